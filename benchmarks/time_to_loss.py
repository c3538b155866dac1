"""Whole-process seconds to train characters of tiny Shakespeare to nanoGPT's loss, next to nanoGPT itself.

    git clone https://github.com/karpathy/nanoGPT
    python -m benchmarks.time_to_loss --nanogpt nanoGPT --repeats 3

Each repetition runs nanoGPT's published CPU recipe and then `experiment=shakespeare_char_cpu`, both as a user would,
from the start of the interpreter, each preparing its data anew. Both models are scored on the whole validation split
(the last tenth of the file) in 64-character windows. Prints a table, and writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# README of nanoGPT, "I only have a macbook"
NANOGPT_RECIPE = [
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=100",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]
CONTEXT = 64


def timed(command: list[str], folder: Path) -> float:
    """Wall seconds of a command, whose output is shown only where it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    return time.perf_counter() - started


def run_nanogpt(checkout: Path, text: Path, work: Path) -> dict[str, float]:
    copy = work / "nanogpt"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "*.bin", "*.pkl"))
    shutil.copy(text, copy / "data/shakespeare_char/input.txt")
    seconds = timed([sys.executable, "data/shakespeare_char/prepare.py"], copy)
    seconds += timed([sys.executable, "train.py", *NANOGPT_RECIPE, f"--out_dir={work / 'out'}"], copy)
    return {"seconds": seconds, "loss": nanogpt_loss(copy, work / "out/ckpt.pt")}


def nanogpt_loss(checkout: Path, checkpoint: Path) -> float:
    """Mean loss of a nanoGPT checkpoint over the whole validation split, nats a character."""
    import numpy as np
    import torch

    sys.path.insert(0, str(checkout))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    saved = torch.load(checkpoint, weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    tokens = np.fromfile(checkout / "data/shakespeare_char/val.bin", dtype=np.uint16).astype(np.int64)
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, CONTEXT):
            window = torch.from_numpy(tokens[start : start + CONTEXT + 1])[None]
            total += model.eval()(window[:, :-1], window[:, 1:])[1].item() * (window.shape[1] - 1)
    return total / (len(tokens) - 1)


def run_newleaf(text: Path, work: Path) -> dict[str, float]:
    options = ["data=text", f"data.files=[{text}]", "tokenizer=char", "experiment=shakespeare_char_cpu"]
    options += [f"run_dir={work / 'run'}", f"data.prepared_dir={work / 'prepared'}"]
    seconds = timed([sys.executable, str(ROOT / "train.py"), *options], work)
    lines = [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()]
    return {"seconds": seconds, "loss": min(line["val/loss"] for line in lines if "val/loss" in line)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, help="tiny Shakespeare; default: the checkout's own input.txt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    text = (arguments.text or arguments.nanogpt / "data/shakespeare_char/input.txt").resolve()
    if not text.is_file():
        parser.error(f"{text} is not there; run the checkout's data/shakespeare_char/prepare.py once, or give --text")
    results: dict[str, list[dict[str, float]]] = {"nanoGPT": [], "Newleaf": []}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            results["nanoGPT"].append(run_nanogpt(arguments.nanogpt.resolve(), text, Path(folder)))
            results["Newleaf"].append(run_newleaf(text, Path(folder)))
    print(f"{'':10}{'seconds (median, all)':>40}  whole-validation loss")
    for name, runs in results.items():
        seconds = sorted(run["seconds"] for run in runs)
        spread = ", ".join(f"{value:.0f}" for value in seconds)
        losses = ", ".join(f"{run['loss']:.4f}" for run in runs)
        print(f"{name:10}{f'{statistics.median(seconds):.0f} ({spread})':>40}  {losses}")
    medians = [statistics.median(run["seconds"] for run in results[name]) for name in ("nanoGPT", "Newleaf")]
    print(f"Newleaf takes 1/{medians[0] / medians[1]:.1f} of nanoGPT's time.")
    if arguments.output:
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        assert all(math.isfinite(run["loss"]) for runs in results.values() for run in runs)
        arguments.output.write_text(json.dumps(machine | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
