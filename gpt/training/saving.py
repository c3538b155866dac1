"""Checkpoints written while training goes on: what is to be saved is copied, and a thread writes the copy.

The copy takes about a fiftieth of the time that writing does, and as much memory as the weights and the optimizer's
state until it is written (`train.async_save=false` does without, and waits). One checkpoint is written at a time. What
goes wrong in the thread stops the run, at its next step.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt.model.transformer import Decoder
from gpt.training.checkpoints import TrainerState


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint is made of, as it was after one step."""

    state: TrainerState
    model: Decoder
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]


def copied(state: TrainerState, model: Decoder, optimizer: Mapping[str, Tensor], random: dict[str, Tensor]) -> Snapshot:
    """A snapshot on the CPU that shares nothing that training changes; frozen weights of a CPU are shared."""
    return Snapshot(
        copy.deepcopy(state),
        copied_model(model),
        {name: tensor.to("cpu", copy=True) for name, tensor in optimizer.items()},
        random,
    )


def copied_model(model: Decoder) -> Decoder:
    stand_ins: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        data = parameter.detach().to("cpu", copy=parameter.requires_grad)
        stand_ins[id(parameter)] = nn.Parameter(data, parameter.requires_grad)
    return copy.deepcopy(model, stand_ins)


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
        self.idle.clear()
        threading.Thread(target=self.guarded, args=(job,), name="checkpoint writer").start()

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

    def finish(self) -> None:
        """Wait for the job that is running, whatever Ctrl-C may come, which is raised then: no other process may have
        the folder before."""
        interrupt = None
        while not self.idle.is_set():
            try:
                self.idle.wait()
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt:
            raise interrupt


@torch.no_grad()
def first_not_finite(model: Decoder) -> str | None:
    """The name of a weight that holds what is no finite number; None where all are finite."""
    named = dict(model.named_parameters())
    if torch.stack([parameter.sum() for parameter in named.values()]).isfinite().all():  # the cheapest look at all
        return None
    return next((name for name, parameter in named.items() if not parameter.isfinite().all()), None)
