"""How long a checkpoint of GPT-2 124M with AdamW's state, 1.5 GB, holds training up: written behind it, and waited for.

    python -m benchmarks.saving --text input.txt

Each repetition is a process that trains on batches of 256 tokens. `blocked` is the time that a save keeps the loop
from its next step; the first save is told apart, as the memory of its copy is new to the process. `cost` is what a save
costs in all: the time of a save, some steps, and the wait for the writer, less the time of so many steps without.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.memory import BATCH
from benchmarks.side_by_side import in_turn, median, peak_bytes, print_table, spread, worker, write_json

CONTENDERS = {"waiting (train.async_save=false)": "false", "behind (the default)": "true"}


def measure(name: str, text: Path, steps: int, saves: int) -> dict[str, Any]:
    """Seconds that one process measures."""
    from gpt.composition import load_config
    from gpt.model.hardware import choose_hardware
    from gpt.text.shards import prepare
    from gpt.training.trainer import Trainer
    from train import COMMAND

    with tempfile.TemporaryDirectory() as folder:
        options = ["data=text", f"data.files=[{text}]", f"data.prepared_dir={folder}/prepared", f"run_dir={folder}/run"]
        options += ["model=gpt2", *BATCH, "train.batch_size=1", f"train.async_save={CONTENDERS[name]}"]
        config = load_config(COMMAND, options)
        hardware = choose_hardware("cpu", "auto", config.model.n_embd)
        trainer = Trainer(config, prepare(config.data, config.tokenizer), hardware, Path(config.run_dir))
        for _ in range(2):
            trainer.update()
        first = timed(trainer.save)
        trainer.writer.wait()
        plain, blocked, costs = [], [], []
        for _ in range(saves):
            plain.append(timed(lambda: [trainer.update() for _ in range(steps)]))
            started = time.perf_counter()
            blocked.append(timed(trainer.save))
            for _ in range(steps):
                trainer.update()
            trainer.writer.wait()
            costs.append(time.perf_counter() - started - plain[-1])
    middle = statistics.median
    return {
        "first": first, "blocked": middle(blocked), "cost": middle(costs), "step": middle(plain) / steps,
        "peak": peak_bytes(),
    }  # fmt: skip


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="a text file to train on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="after each save")
    parser.add_argument("--saves", type=int, default=3, help="in each process")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments.text, arguments.steps, arguments.saves)))
        return
    common = ["--text", arguments.text.resolve(), "--steps", arguments.steps, "--saves", arguments.saves]
    results = in_turn({name: worker("saving", name, *common) for name in CONTENDERS}, arguments.repeats)
    rows = [
        [name, *(spread(results, name, key, 2) for key in ("blocked", "first", "cost", "step")),
         f"{median(results, name, 'peak') / 2**30:.2f}"]
        for name in results
    ]  # fmt: skip
    print_table(["checkpoint", "blocked s", "first save s", "cost in all s", "step s", "peak GiB"], rows)
    waiting, behind = (median(results, name, "blocked") for name in CONTENDERS)
    print(f"blocked: {100 * behind / waiting:.1f} % of waiting")
    write_json(arguments.output, results, steps=arguments.steps, saves=arguments.saves)


if __name__ == "__main__":
    main()
