"""Plans against runs: planned and measured peak memory on this CPU, and planned times against published ones.

    python -m benchmarks.plan --text input.txt

Memory: each preset is planned in one process, as `plan=true` does, and trained in another as `train.py` does, a few
steps long, with evaluation, samples and checkpoints; the measured peak is what the system counted for that process.
Time: at the default `cluster.mfu`, which knows nothing of the runs; the last column is the share of the peak that they
reached by the plan's count of operations.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.memory import PRESETS, off_by, options_of
from benchmarks.side_by_side import in_turn, median, peak_bytes, print_table, worker, write_json

CHOSEN = [name for name in PRESETS if "large" not in name]
GPT2 = ["model=gpt2", "tokenizer=gpt2", "optimizer=adamw"]
# What their authors say: hours for so many updates.
PUBLISHED = {
    "llm.c, 8 × A100 80 GB": (  # github.com/karpathy/llm.c/discussions/481
        [*GPT2, "cluster.gpu=A100-80GB", "cluster.gpus=8", "train.global_batch_size=512", "train.batch_size=64",
         "train.max_steps=19560"],
        1.5,
    ),
    "llm.c, 8 × H100": (  # github.com/KellerJordan/modded-nanogpt, its first record
        [*GPT2, "cluster.gpu=H100", "cluster.gpus=8", "train.global_batch_size=512", "train.batch_size=64",
         "train.max_steps=19560"],
        0.75,
    ),
    "nanoGPT, 8 × A100 40 GB": (  # github.com/karpathy/nanoGPT, README
        [*GPT2, "cluster.gpu=A100-40GB", "cluster.gpus=8", "train.global_batch_size=480", "train.batch_size=12",
         "train.max_steps=600000"],
        96.0,
    ),
}  # fmt: skip


def planned(options: list[str]) -> Any:
    from gpt.composition import load_config
    from gpt.training.planner import Planner
    from train import COMMAND

    config = load_config(COMMAND, ["plan=true", *options])
    return Planner(config).plan(config, config.cluster.gpus)


def measured(name: str, text: Path, steps: int) -> dict[str, int]:
    from gpt.cli import main as call
    from train import COMMAND, run

    with tempfile.TemporaryDirectory() as folder:
        places = [f"data.prepared_dir={folder}/prepared", f"run_dir={folder}/run"]
        assert call(COMMAND, run, [*options_of(name, text, steps), *places]) == 0
    return {"measured": peak_bytes()}


def memory_plan(name: str, text: Path, steps: int) -> dict[str, Any]:
    parts = planned(options_of(name, text, steps)).parts
    return vars(parts) | {"planned": parts.total}


def print_memory(results: dict[str, Any], presets: list[str]) -> None:
    rows = []
    for name in presets:
        plan, taken = median(results, f"{name}: plan", "planned"), median(results, f"{name}: run", "measured")
        rows.append([name, f"{plan / 2**20:,.0f}", f"{taken / 2**20:,.0f}", off_by(plan, taken)])
    print_table(["preset", "planned MiB", "measured MiB", "error"], rows)


def published() -> dict[str, dict[str, float]]:
    found = {}
    for name, (options, hours) in PUBLISHED.items():
        plan = planned(options)
        total = plan.step_seconds * plan.config.train.max_steps / 3600
        reached = plan.config.cluster.mfu * total / hours
        found[name] = {"published": hours, "planned": total, "reached": reached}
    return found


def print_published(found: dict[str, dict[str, float]]) -> None:
    rows = [
        [
            name, f"{run['published']:.2f}", f"{run['planned']:.2f}",
            off_by(run["planned"], run["published"]), f"{100 * run['reached']:.0f} %",
        ]
        for name, run in found.items()
    ]  # fmt: skip
    print_table(["GPT-2 124M", "published hours", "planned hours", "error", "share of the peak they reached"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="a text file to train on")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=CHOSEN)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    parser.add_argument("--worker", choices=("plan", "run"), help=argparse.SUPPRESS)
    parser.add_argument("--preset", choices=PRESETS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, text = arguments.preset, arguments.text
        take = memory_plan if arguments.worker == "plan" else measured
        print(json.dumps(take(name, text, arguments.steps)))
        return
    common = ["--text", arguments.text.resolve(), "--steps", arguments.steps]
    contenders = {
        f"{name}: {kind}": worker("plan", kind, "--preset", name, *common)
        for name in arguments.presets
        for kind in ("plan", "run")
    }
    results = in_turn(contenders, repeats=1)
    print_memory(results, arguments.presets)
    times = published()
    print()
    print_published(times)
    write_json(arguments.output, {"memory": results, "times": times}, steps=arguments.steps)


if __name__ == "__main__":
    main()
