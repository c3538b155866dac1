"""Checkpoints written while training goes on: what is to be saved is copied, and a thread writes the copy.

The copy takes about a fiftieth of the time that writing does, and as much memory as the weights and the optimizer's
state until it is written (`train.async_save=false` does without, and waits). One checkpoint is written at a time. What
goes wrong in the thread stops the run, at its next step.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gpt.model.adapters import save_adapters
from gpt.model.huggingface import save_model
from gpt.model.transformer import Decoder
from gpt.training.checkpoints import TrainerState, write_trainer
from gpt.training.parallel.layouts import Layout
from gpt.training.random_states import random_states

if TYPE_CHECKING:
    from gpt.training.trainer import Trainer


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint is made of, as it was after one step."""

    state: TrainerState
    model: Decoder
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]


def copied(state: TrainerState, model: Decoder, optimizer: Mapping[str, Tensor], random: dict[str, Tensor]) -> Snapshot:
    """A snapshot on the CPU that shares nothing that training changes. Frozen weights are shared, where they are."""
    return Snapshot(
        state,
        copied_model(model),
        {name: tensor.to("cpu", copy=True) for name, tensor in optimizer.items()},
        random,
    )


def copied_model(model: Decoder) -> Decoder:
    stand_ins: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        data = parameter.detach()
        copied = data.to("cpu", copy=True) if parameter.requires_grad else data
        stand_ins[id(parameter)] = nn.Parameter(copied, parameter.requires_grad)
    return copy.deepcopy(model, stand_ins)


class WholeSaving:
    """Saves the checkpoints of a trainer: of several processes, rank 0 collects all that there is, and writes it."""

    together = False  # whether one process's part waits for the others'

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.description = "gathered in rank 0, which has the memory for it" if trainer.model.sharded else ""

    def job(self) -> Callable[[], None] | None:
        """What writes a checkpoint of now, in rank 0; with `train.async_save`, from a copy that training does not
        change. All processes must call it."""
        trainer, main = self.trainer, self.trainer.ranks.main
        make = copied if trainer.config.train.async_save and not trainer.model.sharded else Snapshot
        model, optimizer = trainer.parallel.full_model(main), trainer.optimizers.full_state(main)
        if model is None:
            return None
        state = copy.deepcopy(trainer.state)
        snapshot = make(state, model, optimizer, random_states(trainer.hardware.device))
        return lambda: self.publish(snapshot)

    def publish(self, snapshot: Snapshot) -> None:
        """Write a checkpoint and let older ones go."""
        checkpoints = self.trainer.checkpoints
        checkpoints.publish(snapshot.state.step, lambda folder: self.write(snapshot, folder))
        checkpoints.settle(snapshot.state, self.trainer.config.train.keep_checkpoints)

    def write(self, snapshot: Snapshot, folder: Path) -> None:
        tokenizer = self.trainer.corpus.tokenizer
        if self.trainer.config.lora.rank:
            save_adapters(snapshot.model, folder, self.trainer.base_name)
        else:
            save_model(snapshot.model, folder, tokenizer.end_of_text, begin_of_text=tokenizer.begin_of_text)
        tokenizer.save(folder)
        write_trainer(folder, snapshot.state, snapshot.optimizer, snapshot.random)


class Writer:
    """Runs jobs one after another, in a thread where `behind`, and raises what went wrong in one from a later call."""

    def __init__(self, behind: bool) -> None:
        self.behind = behind
        self.idle = threading.Event()
        self.idle.set()
        self.error: BaseException | None = None

    def run(self, job: Callable[[], None]) -> None:
        """Begin a job, once the one before is done. Raises what went wrong in that one; where not `behind`, in this."""
        self.wait()
        if not self.behind:
            job()
            return
        thread = threading.Thread(target=self.guarded, args=(job,), name="checkpoint writer")
        try:
            self.idle.clear()
            thread.start()
        except Exception:  # for want of memory, say
            self.idle.set()
            raise
        except BaseException:  # interrupted, and it may have started all the same
            if not comes_to_run(thread):
                self.idle.set()
            raise

    def guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # whatever it is, it belongs to the thread that trains
            self.error = error
        finally:
            self.idle.set()

    def check(self) -> None:
        """Raise what went wrong so far, once."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait for the job that is running. Raises what went wrong in it."""
        self.idle.wait()
        self.check()

    def finish(self) -> BaseException | None:
        """Wait for the job that is running, through a Ctrl-C, since no other process may have the folder before; what
        went wrong in it, if nobody was told. A second Ctrl-C ends the process at once."""
        interrupt = sys.exc_info()[1]
        while not self.idle.is_set():
            try:
                if isinstance(interrupt, KeyboardInterrupt):
                    print("Completing the checkpoint that is being written; Ctrl-C again leaves it.", file=sys.stderr)
                self.idle.wait()
            except KeyboardInterrupt as another:
                if isinstance(interrupt, KeyboardInterrupt):
                    os._exit(130)  # no thread outlives that, so the lock is free and nothing is written any more
                interrupt = another
        error, self.error = self.error, None
        return error


def comes_to_run(thread: threading.Thread) -> bool:
    """Whether a thread runs or has run, or comes to run within a second."""
    ends = time.monotonic() + 1
    while thread.ident is None and time.monotonic() < ends:
        time.sleep(0.01)
    return thread.ident is not None


@torch.no_grad()
def first_not_finite(model: Decoder, layout: Layout | None = None) -> str | None:
    """The name of a weight that holds what is no finite number, here; None where all are finite."""
    own = (layout or Layout()).own
    named = {name: own(parameter) for name, parameter in model.named_parameters()}
    if torch.stack([parameter.sum() for parameter in named.values()]).isfinite().all():  # the cheapest look at all
        return None
    return next((name for name, parameter in named.items() if not parameter.isfinite().all()), None)
