"""Files of strangers: nothing in them runs, reads elsewhere or takes the machine's memory.

Each file that a folder may have is replaced by, or joined by, a pickle that leaves a mark when it is executed, in every
wrapping that some program unpickles; then every command opens the folder. A mark is a finding.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.findings import Finding
from tests.faults.lab import PREPARED, TEXT, TRAIN, Outcome, attempt, attempt_process, copy_of, make_stock

MARK = "EXECUTED"
SHAPED = tuple(each for each in TRAIN if not each.startswith(("model.", "tokenizer")))  # those come with the weights

# Files that the folders have, or that tools put beside them.
MODEL_FILES = (
    "config.json", "model.safetensors",
    "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "vocab.json", "merges.txt", "vocab.txt", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "scaler.pt", "model.pt", "model.ckpt", "tokenizer.model", "adapter_model.bin",
)  # fmt: skip
STATE_FILES = tuple(
    f"trainer/{name}"
    for name in ("state.json", "optimizer.safetensors", "random.safetensors", "optimizer.pt", "random.pt", "state.pkl")
)
RUN_FILES = ("config.yaml", "metrics.jsonl", "samples.jsonl", "loss.png", "base/model.safetensors", "base/origin.json")
ADAPTER_FILES = (
    "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "adapter_base.json", "tokenizer.json",
)  # fmt: skip
CORPUS_FILES = ("meta.json", "train-00000.bin", "val-00000.bin", "tokenizer.json", "spool.jsonl", "train-00000.npy")


class Executed:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def wrapped(mark: Path) -> dict[str, bytes]:
    """The pickle bare, as torch.save's zip and its older form, as an array, in archives, and as YAML and JSON tags."""
    import torch

    evil = Executed(mark)
    forms = {"pickle": pickle.dumps(evil), "protocol 0": pickle.dumps(evil, protocol=0)}
    for name, zipped in (("torch", True), ("older torch", False)):
        buffer = io.BytesIO()
        torch.save({"model.norm.weight": evil}, buffer, _use_new_zipfile_serialization=zipped)
        forms[name] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.array([evil], dtype=object), allow_pickle=True)
    forms["numpy"] = buffer.getvalue()
    forms["zip"], forms["tar"] = in_zip(forms["pickle"]), in_tar(forms["pickle"])
    forms["yaml"] = f"!!python/object/apply:builtins.open ['{mark}', 'w']\n".encode()
    forms["json"] = json.dumps({"py/reduce": [{"py/type": "builtins.open"}, {"py/tuple": [str(mark), "w"]}]}).encode()
    return forms


def in_zip(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("__main__.py", "open('EXECUTED', 'w')")
    return buffer.getvalue()


def in_tar(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("pickle")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def executes(name: str, data: bytes, mark: Path) -> bool:
    """Whether the program that a form is meant for would execute it: else the plant is no plant."""
    import torch

    readers: dict[str, Callable[[io.BytesIO], object]] = {
        "pickle": pickle.load,
        "protocol 0": pickle.load,
        "torch": lambda file: torch.load(file, weights_only=False),
        "older torch": lambda file: torch.load(file, weights_only=False),
        "numpy": lambda file: np.load(file, allow_pickle=True),
    }
    if name not in readers:
        return True
    readers[name](io.BytesIO(data))
    executed = mark.exists()
    mark.unlink(missing_ok=True)
    return executed


@dataclass(frozen=True)
class Place:
    """A folder of a stock, its files, and the commands that open it."""

    name: str
    folder: str
    files: tuple[str, ...]
    commands: tuple[tuple[str, tuple[str, ...]], ...]


def opening(checkpoint: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Every command that takes a checkpoint."""
    return (
        ("sample", (f"checkpoint={checkpoint}", "prompt=leaf", "max_new_tokens=2")),
        ("evaluate", (f"checkpoint={checkpoint}", *TEXT, "max_tokens=20", "device=cpu")),
        ("export", (f"checkpoint={checkpoint}", "output=out")),
        ("train", (*SHAPED, f"init_from={checkpoint}", "experiment=null", "run_dir=tuned")),
    )


def again(run: str, *more: str) -> tuple[str, tuple[str, ...]]:
    """The training that made a run, further."""
    usual = [each for each in TRAIN if not each.startswith("train.max_steps")]
    return "train", (*usual, *more, f"run_dir={run}", "train.max_steps=3")


PLACES = (
    Place("a Hugging Face folder", "model", MODEL_FILES, opening("model")),
    Place(
        "a checkpoint",
        "run/checkpoints/step-00000002",
        (*MODEL_FILES[:7], *STATE_FILES),
        (*opening("run"), again("run")),
    ),
    Place("a run", "run", RUN_FILES, (*opening("run")[:3], again("run"))),
    Place("an adapter folder", "adapter", ADAPTER_FILES, opening("adapter")),
    Place("a prepared corpus", PREPARED, CORPUS_FILES, (("train", (*TRAIN, "run_dir=new")), opening("run")[1])),
)


def plant(place: Place, folder: Path, files: tuple[str, ...], data: bytes) -> None:
    """Put `data` into these files of a place."""
    where = folder / place.folder
    if place.folder == PREPARED:
        attempt("train", [*TRAIN, "run_dir=first"], folder)
        (where,) = (path for path in where.iterdir() if path.is_dir())
    for name in files:
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(data)


def opened(place: Place, folder: Path, real: bool = False) -> Iterator[tuple[str, Outcome]]:
    for command, argv in place.commands:
        run = attempt_process if real else attempt
        yield command, run(command, list(argv), folder)


def fault(outcome: Outcome, mark: Path) -> str:
    """What is wrong about how a command took a stranger's folder; "" where nothing is."""
    if mark.exists() or (mark.parent / "case" / MARK).exists():
        return "the pickle was executed"
    if outcome.crash:
        return f"it broke: {outcome.crash.strip().splitlines()[-1][:200]}"
    return "" if outcome.status in (0, 2) else f"exit status {outcome.status}"


def trials(mark: Path) -> Iterator[tuple[Place, tuple[str, ...], str, bytes]]:
    """Each file in turn with a form in turn; then every file that the place has not, at once, in every form."""
    forms = wrapped(mark)
    names = list(forms)
    for place in PLACES:
        for number, file in enumerate(place.files):
            for form in (names[number % len(names)], names[(number + 4) % len(names)]):
                yield place, (file,), form, forms[form]
        for form in names:
            yield place, place.files[-6:], form, forms[form]


def findings(scale: float) -> Iterator[Finding]:
    """At scale 1 every trial, below a share of them; a few as real processes."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "stock").mkdir()
        make_stock(root / "stock")
        mark = root / MARK
        every = list(trials(mark))[:: max(1, round(1 / max(scale, 0.01)))]
        faults, opens = [], 0
        for number, (place, files, form, data) in enumerate(every):
            folder = copy_of(root / "stock", root / f"{number}" / "case")
            plant(place, folder, files, data)
            for command, outcome in opened(place, folder, real=number % 40 == 0):
                opens += 1
                if why := fault(outcome, mark):
                    faults.append(f"{command} on {place.name} with {form} as {', '.join(files)}: {why}")
                    mark.unlink(missing_ok=True)
        yield Finding(
            "pickles planted in strangers' files",
            f"{len(every)} plants opened by {opens} commands: {len(faults)} executed or broken",
            not faults,
            "\n".join(faults[:10]),
        )


def safetensors_header(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text
