"""Checkpoints: model folders with the trainer's state beside them, published whole or not at all.

    <run>/checkpoints/step-00000500/    config.json model.safetensors tokenizer.json …   (a Hugging Face folder)
                          trainer/      state.json optimizer.safetensors random.safetensors
    <run>/checkpoints/best              a link to the step with the lowest validation loss, else to the last

A checkpoint is written under another name, flushed to the disk, then renamed (as OLMo-core's `checkpoint.py`), so a
folder with a step's name is always complete. Nothing in it is a pickle.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt.model.tensor_files import write_safetensors
from gpt.options import UserError

TRAINER, STATE, OPTIMIZER, RANDOM = "trainer", "state.json", "optimizer.safetensors", "random.safetensors"
FORMAT = 1
STEP_PREFIX, PARTIAL_PREFIX = "step-", "partial-"


@dataclass
class TrainerState:
    """Where a run is, besides its tensors."""

    step: int = 0  # updates done
    sequences: int = 0  # training sequences consumed: the data cursor
    best_loss: float | None = None  # validation, nats a token
    best_bits_per_byte: float | None = None
    best_step: int | None = None
    bad_evaluations: int = 0  # since the best
    elapsed_seconds: float = 0.0  # of training and evaluation, over all sessions
    base: dict[str, Any] = field(default_factory=dict)  # of fine-tuning: what the initial model scored and wrote
    wandb_id: str | None = None
    scaler: dict[str, Any] = field(default_factory=dict)  # of fp16 gradients
    identity: dict[str, Any] = field(default_factory=dict)  # what may not change: model, tokenizer, corpus, seed …
    config: dict[str, Any] = field(default_factory=dict)  # the resolved configuration


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "checkpoints"

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        names = (p.name.removeprefix(STEP_PREFIX) for p in self.path.glob(f"{STEP_PREFIX}*") if p.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def at(self, step: int) -> Path:
        return self.path / f"{STEP_PREFIX}{step:08d}"

    def latest(self) -> Path | None:
        steps = self.steps()
        return self.at(steps[-1]) if steps else None

    def publish(self, step: int, write: Callable[[Path], None]) -> Path:
        """Have `write` fill a folder, make it durable, and give it its name. A failure leaves no trace."""
        partial = self.path / f"{PARTIAL_PREFIX}{step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            try:
                write(partial)
            except SafetensorError as error:  # how safetensors reports a full disk
                raise OSError(errno.EIO, f"the checkpoint cannot be written ({error})", str(partial)) from None
            flush(partial)
            partial.rename(self.at(step))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        flush_folder(self.path)
        return self.at(step)

    def point_best(self, step: int) -> None:
        """Make `best` lead to a step, in one move."""
        link, new = self.path / "best", self.path / f"{PARTIAL_PREFIX}best"
        new.unlink(missing_ok=True)
        new.symlink_to(self.at(step).name, target_is_directory=True)
        os.replace(new, link)
        flush_folder(self.path)

    def prune(self, keep: int, best_step: int | None) -> None:
        """Delete all but the newest `keep` and the best, and what killed runs left half-written."""
        for step in self.steps()[:-keep]:
            if step != best_step:
                self.at(step).rename(self.path / f"{PARTIAL_PREFIX}old-{step:08d}")  # what has its name is complete
        for partial in self.path.glob(f"{PARTIAL_PREFIX}*"):
            partial.unlink() if partial.is_symlink() else shutil.rmtree(partial, ignore_errors=True)


def flush(folder: Path) -> None:
    """Wait until every file below a folder is on the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        else:
            flush_folder(path)
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_trainer(folder: Path, state: TrainerState, optimizer: dict[str, Tensor], random: dict[str, Tensor]) -> None:
    """Write the trainer's part of a checkpoint."""
    trainer = folder / TRAINER
    trainer.mkdir()
    text = json.dumps({"format": FORMAT} | asdict(state), indent=1, ensure_ascii=False)
    (trainer / STATE).write_text(text + "\n", encoding="utf-8")
    write_safetensors({name: tensor.cpu().contiguous() for name, tensor in optimizer.items()}, trainer / OPTIMIZER)
    write_safetensors(random, trainer / RANDOM)


def read_state(folder: Path) -> TrainerState:
    """The state in a checkpoint. Raises UserError where there is none that this version reads."""
    path = folder / TRAINER / STATE
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        if keys.pop("format") != FORMAT:
            raise UserError(f"{path} was written by another version of Newleaf; start in a new run_dir")
        return TrainerState(**keys)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete {folder} to continue from the one before") from None


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Optimizer tensors and random states of a checkpoint. Raises UserError where they are damaged."""
    try:
        return load_file(folder / TRAINER / OPTIMIZER), load_file(folder / TRAINER / RANDOM)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / TRAINER} cannot be read ({error}); delete {folder} to continue from the one before"
        ) from None
