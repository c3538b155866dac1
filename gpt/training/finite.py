"""Whether every number of a run so far was finite, known on the device at once and to the host when it looks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepStart:
    """What a step begins with, besides the weights: enough to compute it again."""

    step: int  # updates done before it
    first_sequence: int
    random: dict[str, Tensor]


class Diverged(Exception):
    """The loss, the gradient or a weight is no longer a finite number. Checkpoints hold only what came before.

    `start` is that of the step whose batch made it so; the weights are still those that it began with. It is None where
    no one batch is to blame.
    """

    def __init__(self, message: str, start: StepStart | None = None) -> None:
        super().__init__(message)
        self.start = start


class FiniteWatch:
    """Keeps what is not finite away from the weights.

    For CUDA, looking would make the host wait for the device at every step. There `keep_still` tells the optimizers,
    on the device, to change nothing from the first such step on, and the host finds out which it was when it looks.
    """

    def __init__(self, device: torch.device) -> None:
        self.looking = device.type != "cuda"  # at every step
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=device)  # of `unchecked`
        self.unchecked: list[StepStart] = []  # steps since the host last looked

    def begin(self, start: StepStart) -> None:
        self.unchecked = [*self.unchecked, start]

    def note(self, *numbers: Tensor) -> None:
        """Take in what the step that has begun gave, scalars on the device, before the weights do. Raises `Diverged`
        where the host looks at every step."""
        for number in numbers:
            self.finite &= number.isfinite()
        self.finite_steps += self.finite
        if self.looking:
            self.check()

    @property
    def keep_still(self) -> Tensor | None:
        """For the optimizers: scalar bool on the device, true where nothing may change; None where they may go on."""
        return None if self.looking else ~self.finite

    def check(self) -> None:
        """Look. Raises `Diverged`, with the first step whose numbers were not finite."""
        if not self.finite.item():
            start = self.unchecked[int(self.finite_steps)]
            message = f"step {start.step + 1}: the loss or its gradient is not finite"
            raise Diverged(message, start)
        self.unchecked = []
        self.finite_steps.zero_()
