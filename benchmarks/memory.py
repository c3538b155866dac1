"""Predicted and measured peak memory of runs of the presets.

    python -m benchmarks.memory --text input.txt

Each preset is a process of its own that trains, evaluates, samples and saves as `train.py` does, a few steps long. The
prediction is the one in the table at the start of a run; the measured peak is what the system counted for the process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import in_turn, median, peak_bytes, print_table, worker, write_json

BATCH = ["tokenizer=gpt2", "optimizer=adamw", "model.context_length=256"]
PRESETS = {
    "mini, the default": [],
    "shakespeare_char_cpu": ["experiment=shakespeare_char_cpu", "tokenizer=char"],
    "gpt2, 4x256": ["model=gpt2", *BATCH, "train.batch_size=4"],
    "gpt2, 4x256, recomputed": ["model=gpt2", *BATCH, "train.batch_size=4", "train.activation_checkpointing=true"],
    "modern with muon, 4x256": ["model=modern", *BATCH, "optimizer=muon", "train.batch_size=4"],
    "gpt2-medium, 1x256": ["model=gpt2-medium", *BATCH, "train.batch_size=1"],
    "gpt2-large, 1x256": ["model=gpt2-large", *BATCH, "train.batch_size=1"],
}
FITTING = [name for name in PRESETS if "large" not in name]  # in 8 GiB


def options_of(name: str, text: Path, steps: int) -> list[str]:
    """The arguments of a short run of a preset, with two evaluations."""
    short = ["schedule.warmup_steps=2", f"train.max_steps={steps}", f"train.eval_every={steps // 2}"]
    options = ["data=text", f"data.files=[{text}]", *short, "train.log_every=2", *PRESETS[name]]
    return list({option.partition("=")[0]: option for option in options}.values())


def off_by(predicted: float, measured: float) -> str:
    return f"{100 * (predicted / measured - 1):+.0f} %"


def measure(name: str, text: Path, steps: int) -> dict[str, Any]:
    """Bytes predicted, by part, and measured."""
    from gpt.composition import load_config
    from gpt.model.hardware import choose_hardware
    from gpt.text.shards import prepare
    from gpt.training.memory import predict_memory
    from gpt.training.parallel.ranks import Ranks
    from gpt.training.run import train_locked
    from gpt.training.trainer import Trainer
    from train import COMMAND

    with tempfile.TemporaryDirectory() as folder:
        places = [f"data.prepared_dir={folder}/prepared", f"run_dir={folder}/run"]
        config = load_config(COMMAND, [*options_of(name, text, steps), *places])
        hardware = choose_hardware("cpu", "auto", config.model.n_embd)
        trainer = Trainer(config, prepare(config.data, config.tokenizer), hardware, Path(config.run_dir))
        trainer.run_dir.mkdir()
        predicted = predict_memory(trainer)
        train_locked(lambda: trainer, trainer.run_dir, None, Ranks())
    return vars(predicted) | {"predicted": predicted.peak, "measured": peak_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="a text file to train on")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=FITTING)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    parser.add_argument("--worker", choices=PRESETS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments.text, arguments.steps)))
        return
    common = ["--text", arguments.text.resolve(), "--steps", arguments.steps]
    results = in_turn({name: worker("memory", name, *common) for name in arguments.presets}, repeats=1)
    rows = []
    for name in results:
        predicted, measured = median(results, name, "predicted"), median(results, name, "measured")
        rows.append([name, f"{predicted / 2**30:.2f}", f"{measured / 2**30:.2f}", off_by(predicted, measured)])
    print_table(["preset", "predicted GiB", "measured GiB", "error"], rows)
    write_json(arguments.output, results, steps=arguments.steps)


if __name__ == "__main__":
    main()
