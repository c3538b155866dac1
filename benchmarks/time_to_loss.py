"""Whole-process seconds to train characters of tiny Shakespeare to nanoGPT's loss, next to nanoGPT itself.

    git clone https://github.com/karpathy/nanoGPT
    python -m benchmarks.time_to_loss --nanogpt nanoGPT --repeats 3
    python -m benchmarks.time_to_loss --only Newleaf --experiment shakespeare_char --target 1.4697 --text input.txt

Each repetition runs nanoGPT's published CPU recipe and then `experiment=shakespeare_char_cpu`, both as a user would,
in processes of their own that prepare their data anew. Time counts from the start of the interpreter to its end. Both
final checkpoints are scored alike and by none of the code that trained Newleaf: nanoGPT's by its own model, Newleaf's
by transformers, on the whole validation split (the last tenth of the file) in windows as long as the context.

`--only Newleaf` leaves the peer out, where it would take hours; `--target` then names the loss that the peer published.
Prints a table, and writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import ROOT, in_turn, median, print_table, spread, worker, write_json

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


def timed(command: list[str], folder: Path) -> float:
    """Wall seconds of a command, whose output is shown only where it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    return time.perf_counter() - started


def run_nanogpt(checkout: Path, text: Path, work: Path) -> dict[str, Any]:
    copy = work / "nanogpt"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "*.bin", "*.pkl"))
    shutil.copy(text, copy / "data/shakespeare_char/input.txt")
    seconds = timed([sys.executable, "data/shakespeare_char/prepare.py"], copy)
    seconds += timed([sys.executable, "train.py", *NANOGPT_RECIPE, f"--out_dir={work / 'out'}"], copy)
    return {"seconds": seconds} | nanogpt_loss(copy, work / "out/ckpt.pt", text)


def nanogpt_loss(checkout: Path, checkpoint: Path, text: Path) -> dict[str, Any]:
    """The loss of the checkpoint that nanoGPT kept, its best, and its context length."""
    import torch

    sys.path.insert(0, str(checkout))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    saved = torch.load(checkpoint, weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    context = saved["model_args"]["block_size"]
    characters = text.read_text(encoding="utf-8")
    alphabet = {character: number for number, character in enumerate(sorted(set(characters)))}
    loss, count = validation_loss(lambda x: model.eval()(x, x)[0], characters, alphabet, context)  # targets: all logits
    return {"loss": loss, "characters": count, "context": context, "own_estimate": float(saved["best_val_loss"])}


def run_newleaf(experiment: str, text: Path, work: Path) -> dict[str, Any]:
    options = [f"experiment={experiment}", "data=text", f"data.files=[{text}]", "tokenizer=char"]
    options += [f"run_dir={work / 'run'}", f"data.prepared_dir={work / 'prepared'}"]
    seconds = timed([sys.executable, str(ROOT / "train.py"), *options], work)
    lines = [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()]
    own = min(line["val/loss"] for line in lines if "val/loss" in line)
    return {"seconds": seconds, "own_estimate": own} | newleaf_loss(work / "run/checkpoints/best", text)


def newleaf_loss(checkpoint: Path, text: Path) -> dict[str, Any]:
    """The loss of a checkpoint as transformers reads it, and its context length."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    context = model.config.max_position_embeddings
    characters = text.read_text(encoding="utf-8")
    loss, count = validation_loss(lambda x: model(x).logits, characters, tokenizer["model"]["vocab"], context)
    return {"loss": loss, "characters": count, "context": context}


def validation_loss(
    logits_of: Callable[[Any], Any], text: str, alphabet: dict[str, int], context: int
) -> tuple[float, int]:
    """Mean loss in nats over the characters of the last tenth of the text but its first, and how many those are.

    In windows of `context` that do not overlap, one at a time.
    """
    import torch

    held_out = text[int(0.9 * len(text)) :]  # as nanoGPT's prepare.py cuts
    tokens = torch.tensor([alphabet[character] for character in held_out])
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, context):
            window = tokens[start : start + context + 1]
            logits = logits_of(window[None, :-1])[0]
            total += torch.nn.functional.cross_entropy(logits.float(), window[1:], reduction="sum").item()
    return total / (len(tokens) - 1), len(tokens) - 1


def repetition(contender: str, arguments: argparse.Namespace, text: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        if contender == "nanoGPT":
            return run_nanogpt(arguments.nanogpt.resolve(), text, Path(folder))
        return run_newleaf(arguments.experiment, text, Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, help="tiny Shakespeare; default: the checkout's own input.txt")
    parser.add_argument("--experiment", default="shakespeare_char_cpu", help="Newleaf's preset")
    parser.add_argument("--only", choices=("nanoGPT", "Newleaf"), help="run one contender alone")
    parser.add_argument("--target", type=float, help="a published loss, in nats a character, to compare with")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    parser.add_argument("--worker", choices=("nanoGPT", "Newleaf"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.nanogpt is None and ((arguments.worker or arguments.only) != "Newleaf" or arguments.text is None):
        parser.error("--nanogpt is missing: a checkout of nanoGPT; only --only Newleaf with --text does without")
    text = (arguments.text or arguments.nanogpt / "data/shakespeare_char/input.txt").resolve()
    if not text.is_file():
        parser.error(f"{text} is not there; run the checkout's data/shakespeare_char/prepare.py once, or give --text")
    if arguments.worker:
        return print(json.dumps(repetition(arguments.worker, arguments, text)))
    contenders = [arguments.only] if arguments.only else ["nanoGPT", "Newleaf"]
    common = ["--experiment", arguments.experiment, "--text", text]
    common += ["--nanogpt", arguments.nanogpt.resolve()] if arguments.nanogpt else []
    results = in_turn({name: worker("time_to_loss", name, *common) for name in contenders}, arguments.repeats)
    keys = ("loss", "own_estimate")
    rows = [
        [name, spread(results, name, "seconds", 1), *(spread(results, name, key, 4) for key in keys)]
        for name in contenders
    ]
    scored = results[contenders[0]][0]
    print(f"{scored['characters']:,} held-out characters; Newleaf: experiment={arguments.experiment}\n")
    print_table(["", "seconds, whole process", "loss, nats a character", "its own estimate"], rows)
    if not arguments.only:
        ratio = median(results, "nanoGPT", "seconds") / median(results, "Newleaf", "seconds")
        print(f"\nNewleaf takes 1/{ratio:.1f} of nanoGPT's time.")
    if arguments.target is not None:
        print(f"\nThe loss to reach is {arguments.target}, as published; nothing was run here to get it.")
    conditions = {"experiment": arguments.experiment, "recipe": NANOGPT_RECIPE, "published_target": arguments.target}
    write_json(arguments.output, results, **conditions)
    return None


if __name__ == "__main__":
    main()
