"""Checkpoints: model folders with the trainer's state beside them, published whole or not at all.

    <run>/checkpoints/step-00000500/    config.json model.safetensors tokenizer.json …   (a Hugging Face folder)
                          trainer/      state.json optimizer.safetensors random.safetensors SHA256SUMS
                                        (of several processes that wrote together, optimizer-00001-of-00004 …)
    <run>/checkpoints/best              a link to the step with the lowest validation loss, else to the last
    <run>/checkpoints/damaged-00000500  what a step's folder became when its checksums no longer held

A checkpoint is written under another name, flushed to the disk, then renamed (as OLMo-core's `checkpoint.py`), so a
folder with a step's name was complete when it got it; its checksums tell whether it still is. No file of a checkpoint
is ever changed. Nothing in it is a pickle.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gpt.config import RunConfig
from gpt.model.checksums import SUMS, damage, has_sums, write_sums
from gpt.model.tensor_files import write_safetensors
from gpt.options import UserError, defaults
from gpt.text.durable import flush, flush_folder
from gpt.text.files import naming

TRAINER, STATE, OPTIMIZER, RANDOM = "trainer", "state.json", "optimizer.safetensors", "random.safetensors"
FORMAT = 2
WITHOUT_SUMS = 1  # the format before checksums
STEP_PREFIX, PARTIAL_PREFIX, DAMAGED_PREFIX = "step-", "partial-", "damaged-"


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
    rollbacks: int = 0  # to an earlier checkpoint, after numbers that were not finite
    skipped: list[list[int]] = field(default_factory=list)  # by them: the first sequence of each batch, and how many
    wandb_id: str | None = None
    metrics_bytes: int | None = None  # of metrics.jsonl that belong to it; None: of an earlier version
    samples_bytes: int | None = None  # of samples.jsonl
    scaler: dict[str, Any] = field(default_factory=dict)  # of fp16 gradients
    identity: dict[str, Any] = field(default_factory=dict)  # what may not change: model, tokenizer, corpus, seed …
    config: dict[str, Any] = field(default_factory=dict)  # the resolved configuration

    @property
    def sequences_trained(self) -> int:
        """Those before the cursor that were not left out by a rollback."""
        return self.sequences - sum(count for first, count in self.skipped if first < self.sequences)


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

    def step_of(self, folder: Path) -> int:
        return int(folder.name.removeprefix(STEP_PREFIX))

    def latest(self) -> Path | None:
        steps = self.steps()
        return self.at(steps[-1]) if steps else None

    def set_damaged_aside(self) -> list[str]:
        """Make `latest` lead to a checkpoint that is as it was written, by renaming newer ones that are not; a line for
        each. Raises UserError where none is left."""
        found: list[str] = []
        while folder := self.latest():
            why = what_is_wrong(folder)
            if why is None:
                if self.best_leads_nowhere():
                    self.point_best(self.step_of(folder))
                return found
            found.append(self.set_aside(folder, why))
        if self.best_leads_nowhere():
            (self.path / "best").unlink()
        if lost := sorted(path.name for path in self.path.glob(f"{DAMAGED_PREFIX}*")):
            raise UserError(
                "\n".join([*found, f"{self.path} has no other checkpoint to continue from ({', '.join(lost)}); "])
                + "put a copy of one back under its old name, or start anew in another run_dir"
            )
        return found

    def best_leads_nowhere(self) -> bool:
        """As after what it led to was renamed."""
        return (self.path / "best").is_symlink() and not (self.path / "best").exists()

    def set_aside(self, folder: Path, why: str) -> str:
        """Rename a damaged checkpoint, which its owner may still want to look at; what is said of it."""
        name = folder.name.replace(STEP_PREFIX, DAMAGED_PREFIX)
        shutil.rmtree(self.path / name, ignore_errors=True)
        folder.rename(self.path / name)
        return f"The checkpoint {folder} is damaged: {why}. It is now called {name}."

    def publish(self, step: int, write: Callable[[Path], None]) -> Path:
        """Have `write` fill the folder of a step. A failure leaves no trace."""
        publish(self.at(step), write, self.partial(step))
        return self.at(step)

    def partial(self, step: int) -> Path:
        """The folder of a step while it is written."""
        return self.path / f"{PARTIAL_PREFIX}{step:08d}"

    def point_best(self, step: int) -> None:
        """Make `best` lead to a step, in one move."""
        link, new = self.path / "best", self.path / f"{PARTIAL_PREFIX}best"
        new.unlink(missing_ok=True)
        new.symlink_to(self.at(step).name, target_is_directory=True)
        os.replace(new, link)
        flush_folder(self.path)

    def settle(self, state: TrainerState, keep: int) -> None:
        """Once the checkpoint of this state is published: `best`, and what is no longer kept."""
        self.point_best(state.step if state.best_step is None else state.best_step)
        self.prune(keep, state.best_step)

    def prune(self, keep: int, best_step: int | None) -> None:
        """Delete all but the newest `keep` and the best, and what killed runs left half-written."""
        for step in self.steps()[:-keep]:
            if step != best_step:
                self.at(step).rename(self.path / f"{PARTIAL_PREFIX}old-{step:08d}")  # what has its name is complete
        for partial in self.path.glob(f"{PARTIAL_PREFIX}*"):
            partial.unlink() if partial.is_symlink() else shutil.rmtree(partial, ignore_errors=True)


def publish(folder: Path, write: Callable[[Path], None], partial: Path) -> None:
    """Have `write` fill a folder, make it durable, and give it its name, which may be that of an empty folder.

    Until then it is `partial`, in the same parent, which replaces what a killed process left there. A failure leaves no
    trace. Raises OSError where the machine cannot write it, and whatever `write` raises.
    """
    with publishing(folder, partial):
        write(partial)


@contextmanager
def publishing(folder: Path, partial: Path) -> Iterator[None]:
    """As `publish`: what is done within fills the folder."""
    new_parents = [parent for parent in folder.parents if not parent.exists()]  # the innermost first
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with naming(folder):
            partial.mkdir(parents=True)
            yield
            flush(partial)
            partial.rename(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, SafetensorError):  # how safetensors reports a full disk
            raise OSError(errno.EIO, f"the weights cannot be written ({error})", str(folder)) from None
        raise
    for changed in (folder.parent, *(parent.parent for parent in new_parents)):
        flush_folder(changed)


def write_trainer(folder: Path, state: TrainerState, optimizer: dict[str, Tensor], random: dict[str, Tensor]) -> None:
    """Write the trainer's part of a checkpoint, last the checksums of all its files."""
    (folder / TRAINER).mkdir()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in optimizer.items()}
    write_safetensors(tensors, folder / TRAINER / OPTIMIZER)
    write_state(folder, state, random)
    write_sums(folder)


def write_state(folder: Path, state: TrainerState, random: dict[str, Tensor]) -> None:
    """Write what of the trainer's part is small."""
    text = json.dumps({"format": FORMAT} | asdict(state), indent=1, ensure_ascii=False)
    (folder / TRAINER / STATE).write_text(text + "\n", encoding="utf-8")
    write_safetensors(random, folder / TRAINER / RANDOM)


def what_is_wrong(folder: Path) -> str | None:
    """How a checkpoint differs from what was written, in words; None where it does not."""
    if has_sums(folder):
        return damage(folder)
    try:
        state = json.loads((folder / TRAINER / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:  # the one before checksums, or one that `read_state` will name
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{TRAINER}/{STATE} cannot be read ({error})"
    return f"{SUMS} is missing"


def has_state(folder: Path) -> bool:
    """Whether a model folder says how it was trained."""
    return (folder / TRAINER / STATE).is_file()


def state_of(folder: Path) -> TrainerState | None:
    """How a model was trained, where its folder says so. Raises UserError where that cannot be read."""
    return read_state(folder) if has_state(folder) else None


def read_state(folder: Path) -> TrainerState:
    """The state in a checkpoint. Raises UserError where there is none that this version reads."""
    path = folder / TRAINER / STATE
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        if keys.pop("format") not in (WITHOUT_SUMS, FORMAT):
            raise UserError(f"{path} was written by another version of Newleaf; start in a new run_dir")
        state = TrainerState(**keys)
        check_state(state)
        return state
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete {folder} to continue from the one before, or only "
            f"{path.parent} to use the model of somebody else's checkpoint"
        ) from None


def check_state(state: TrainerState) -> None:
    """Raise ValueError where a field has not its type, since a stranger may have written it."""
    for name, hint in typing.get_type_hints(TrainerState).items():
        if not has_type(getattr(state, name), hint):
            raise ValueError(f"{name} is {getattr(state, name)!r:.80}")
    if len({value is None for value in (state.best_loss, state.best_bits_per_byte, state.best_step)}) > 1:
        raise ValueError("of best_loss, best_bits_per_byte and best_step only some are there")
    if not all(isinstance(part, list) and [type(number) for number in part] == [int, int] for part in state.skipped):
        raise ValueError(f"skipped is {state.skipped!r:.80}")
    if not isinstance(state.identity.get("init_from", ""), str):
        raise ValueError(f"identity.init_from is {state.identity['init_from']!r:.80}")
    if state.base and not is_base(state.base):
        raise ValueError(f"base is {state.base!r:.80}")
    if not is_shaped(state.config, defaults(RunConfig)):
        raise ValueError("config does not hold the options of a run")


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of the type that a field is annotated with."""
    if isinstance(hint, types.UnionType):
        return any(has_type(value, part) for part in typing.get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else typing.get_origin(hint) or hint)


def is_base(base: Mapping[str, Any]) -> bool:
    """Whether this is what `Trainer.evaluate_base` keeps."""
    scored = all(has_type(base.get(name), float) for name in ("loss", "bits_per_byte"))
    return scored and has_type(base.get("hub"), str | None) and is_texts(base.get("samples"))


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def is_shaped(value: Any, default: Any) -> bool:
    """Whether options are groups, lists of texts, texts and single values where the defaults are."""
    if isinstance(default, Mapping):
        known = value.keys() & default.keys() if isinstance(value, Mapping) else ()
        return isinstance(value, Mapping) and all(is_shaped(value[name], default[name]) for name in known)
    if isinstance(default, list):
        return is_texts(value)
    return isinstance(value, str) if isinstance(default, str) else not isinstance(value, (list, Mapping))


def optimizer_files(folder: Path) -> list[Path]:
    """The files with a checkpoint's optimizer tensors: one, or those of as many processes as wrote it together."""
    whole = folder / TRAINER / OPTIMIZER
    return [whole] if whole.is_file() else sorted((folder / TRAINER).glob("optimizer-?????-of-?????.safetensors"))


def read_optimizer(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's tensors of a checkpoint by name, one in memory at a time. Raises UserError where damaged."""
    files = optimizer_files(folder)
    if not files or (
        len(files) > 1 and files[-1].name != f"optimizer-{len(files):05d}-of-{len(files):05d}.safetensors"
    ):
        raise unreadable(folder, "files of the optimizer are missing")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                names = list(opened.keys())
            for name in names:
                with safe_open(file, framework="pt") as opened:  # closed each time: mapped pages stay resident
                    tensor = opened.get_tensor(name)
                yield name, tensor
        except (OSError, SafetensorError) as error:
            raise unreadable(folder, error) from None


def read_random(folder: Path) -> dict[str, Tensor]:
    """The random states of a checkpoint. Raises UserError where they are damaged."""
    try:
        return load_file(folder / TRAINER / RANDOM)
    except (OSError, SafetensorError) as error:
        raise unreadable(folder, error) from None


def unreadable(folder: Path, why: object) -> UserError:
    return UserError(f"{folder / TRAINER} cannot be read ({why}); delete {folder} to continue from the one before")
