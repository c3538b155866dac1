"""How the sequences of one update are split into micro-batches so that they fit into the memory.

A split is a divisor of the global batch. The order of data and the learning rate do not depend on it, and a step's
gradient only in rounding. What a split takes is rehearsed (`memory.py`), beforehand for `train.batch_size=auto`, and
after a run was out of memory for the advice it gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpt.config import RunConfig
from gpt.config.device import processes
from gpt.model.available import available_memory, has_room
from gpt.model.hardware import Hardware
from gpt.options import UserError, to_dict, written
from gpt.text.shards import Corpus
from gpt.training.checkpoints import CheckpointFolder, read_state
from gpt.training.memory import PREDICTABLE, SMALL, predict_memory, surely_small
from gpt.training.metrics import size
from gpt.training.parallel.ranks import Ranks
from gpt.training.trainer import Trainer

RESERVE = 0.1  # of the memory that is available: estimates err, and others want some too


@dataclass(frozen=True)
class Fit:
    """A split with which a run fits into the memory, other changes to `train` that it takes, and the bytes needed."""

    batch: int  # sequences in a micro-batch
    count: int  # micro-batches in an update
    others: dict[str, Any]
    needed: int

    @property
    def options(self) -> str:
        """As they are typed."""
        return typed({"batch_size": self.batch, "grad_accum_steps": self.count} | self.others)


def usable(available: int) -> int:
    """Of so many bytes that are available, those that a run may be planned for."""
    return round((1 - RESERVE) * available)


def typed(train: dict[str, Any]) -> str:
    """Options of `train` as the command line takes them."""
    return " ".join(f"train.{name}={written(value)}" for name, value in train.items())


class Trainers:
    """Makes the trainers of a run, one at a time. The first settles `train.batch_size=auto`, and `say` gets a line."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        hardware: Hardware,
        run_dir: Path,
        say: Callable[[str], None],
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.config, self.corpus, self.hardware, self.run_dir, self.say = config, corpus, hardware, run_dir, say
        self.current: Trainer | None = None

    def make(self) -> Trainer:
        """Raises UserError, also where not even one sequence at a time fits."""
        self.current = None  # two at a time may not fit
        if self.config.train.batch_size == "auto":
            self.settle()
        trainer = self.current or self.make_plain()
        self.current = trainer
        return trainer

    def finish(self) -> None:
        """Let the checkpoint be completed that is being written, before another process may have the run; but not one
        that waits for processes that are gone."""
        if self.current is None or (self.current.saving.together and self.ranks.lost_contact):
            return
        if error := self.current.writer.finish():
            self.say(f"The checkpoint of step {self.current.state.step:,} or before could not be written: {error}")

    def make_plain(self) -> Trainer:
        return Trainer(self.config, self.corpus, self.hardware, self.run_dir, self.ranks)

    def settle(self) -> None:
        """Put numbers in the place of `auto`: those with which a continued run began, or it would not continue bit for
        bit, or those of the largest micro-batch that fits."""
        device, whole = self.hardware.device, own_share(self.config)
        refuse_unpredictable(device)
        kept = self.ranks.from_main(lambda: kept_split(self.run_dir, whole))
        self.config = with_split(self.config, kept or whole)
        if kept:
            self.say(f"train.batch_size=auto: {in_words(kept, whole)}, as this run began")
            return
        self.current = trainer = self.make_plain()
        batch, needed, available = self.ranks.from_main(lambda: self.largest(trainer, whole))
        self.config = with_split(self.config, batch)
        resplit(trainer, self.config)
        self.say(f"train.batch_size=auto: {in_words(batch, whole)}, {needed} of {size(available)} available")

    def largest(self, trainer: Trainer, whole: int) -> tuple[int, str, int]:
        """The largest micro-batch that fits, what it needs, in words, and the bytes that are available."""
        if trainer.model.sharded:
            raise UserError("train.batch_size=auto: is not known with parallel=fsdp; give a number, or parallel=ddp")
        device = self.hardware.device
        available = available_memory(device) or 0
        if device.type == "cpu":
            available //= self.ranks.local_world
        limit = usable(available)
        if surely_small(trainer) and has_room(device, self.ranks.local_world * (SMALL + available - limit)):
            return whole, f"less than {size(SMALL)} besides the process", available
        fit = largest_fit(trainer, limit)
        if fit is None:
            raise UserError(too_large(trainer, available, limit))
        return fit.batch, f"about {size(fit.needed)}", available


def refuse_unpredictable(device: torch.device) -> None:
    if device.type not in PREDICTABLE or available_memory(device) is None:
        raise UserError(
            f"train.batch_size=auto: how much memory a run takes and has on the device {device} of this system is not "
            "known; give a number, as train.batch_size=8"
        )


def kept_split(run_dir: Path, whole: int) -> int | None:
    """Sequences in a micro-batch of the run that is continued; None where there is none, or its update is another."""
    latest = CheckpointFolder(run_dir).latest()
    saved = read_state(latest).config.get("train", {}) if latest else {}
    batch, count = saved.get("batch_size"), saved.get("grad_accum_steps")
    return batch if isinstance(batch, int) and isinstance(count, int) and batch * count == whole else None


def with_split(config: RunConfig, batch: int) -> RunConfig:
    """The configuration with the same global batch in micro-batches of `batch` sequences, as if typed in numbers."""
    count = own_share(config) // batch
    return replace(
        config, train=replace(config.train, batch_size=batch, grad_accum_steps=count, global_batch_size=None)
    )


def own_share(config: RunConfig) -> int:
    """Sequences in an update that one process computes."""
    return config.train.global_batch // processes()


def resplit(trainer: Trainer, config: RunConfig) -> None:
    """Have a trainer that has not begun take another configuration, which differs in the split only."""
    trainer.config, trainer.state.config = config, to_dict(config)
    trainer.feed.close()
    trainer.feed = trainer.make_feed()


def in_words(batch: int, whole: int) -> str:
    count = whole // batch
    return f"{batch} sequence{'s' * (batch > 1)} × {count} micro-batch{'es' * (count > 1)}"


def needed_memory(trainer: Trainer, batch: int, others: dict[str, Any]) -> int:
    """Bytes at the peak of the run with another split, and other changes to `train`."""
    other = copy.copy(trainer)
    config = with_split(trainer.config, batch)
    other.config = replace(config, train=replace(config.train, **others))
    return predict_memory(other).needed


def largest_fit(trainer: Trainer, limit: int, below: int | None = None, **others: Any) -> Fit | None:
    """The largest micro-batch, of less than `below` sequences, with which the run needs at most `limit` bytes; `others`
    are further changes to `train`. None where not even 1 fits."""
    whole = own_share(trainer.config)
    untried = [batch for batch in range(1, whole + 1) if whole % batch == 0 and (below is None or batch < below)]
    best, index = None, len(untried) - 1  # often all fit
    while untried:
        batch = untried[index]
        needed = needed_memory(trainer, batch, others)
        if needed <= limit:
            best, untried = Fit(batch, whole // batch, others, needed), untried[index + 1 :]
        else:
            untried = untried[:index]
        index = len(untried) // 2
    return best


def fit_with_less(trainer: Trainer, limit: int, below: int | None = None) -> Fit | None:
    """Where the split alone does not help: the same with other options that need less memory and, up to rounding, give
    the same results."""
    train, copies = trainer.config.train, trainer.hardware.device.type == "cpu"  # what is saved, on the device itself
    needing_less = {
        "eval_batch_size": None,
        **({"async_save": False} if copies else {}),
        "activation_checkpointing": True,
    }
    others: dict[str, Any] = {}
    for name, needs_less in needing_less.items():
        if getattr(train, name) != needs_less:
            others = others | {name: needs_less}
            if fit := largest_fit(trainer, limit, below, **others):
                return fit
    return None


def too_large(trainer: Trainer, available: int, limit: int) -> str:
    """What to tell where not even one sequence at a time fits."""
    least = size(needed_memory(trainer, 1, {}))
    message = (
        f"train.batch_size=auto: even 1 sequence at a time needs about {least}, and of the {size(available)} available "
        f"{size(limit)} are to be used, for estimates err; "
    )
    if fit := fit_with_less(trainer, limit):
        return message + f"with {typed(fit.others)} as many as {fit.batch} fit"
    return message + smaller(trainer)


def smaller(trainer: Trainer) -> str:
    """The last ways out."""
    return f"a smaller model, or a model.context_length below {trainer.config.model.context_length}, needs less"
