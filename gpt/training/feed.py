"""From the corpus to the device: the batches of one step, and those of the next made ready meanwhile.

Legend: B sequences in a micro-batch, T context length.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.text.batches import TrainingData


@dataclass(frozen=True)
class StepBatches:
    """The micro-batches of one step that this process computes, inputs and targets [B, T], and how many targets count
    in the whole step, those of other processes included."""

    micro_batches: list[tuple[Tensor, Tensor]]
    n_tokens: int


class Feed:
    """Hands a step its batches on the device.

    For a GPU a thread reads the next step's sequences into pinned memory while this step is computed, so that copying
    them makes nobody wait. What is read ahead is no state: a step names the sequence that it starts with, and gets
    exactly those whatever was read. On a CPU the thread would only take turns with the step, so there is none.
    """

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        micro_batches: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`micro_batches`: of each of the `world` processes, which take turns; `rank` is that of this one."""
        self.data, self.batch_size, self.count, self.device = data, batch_size, micro_batches, device
        self.rank, self.world = rank, world
        self.pinned = device.type == "cuda"
        self.reader = ThreadPoolExecutor(1, "feed") if self.pinned else None
        self.ahead: tuple[int, Future[StepBatches]] | None = None  # its first sequence, and what will be there

    def step(self, first_sequence: int) -> StepBatches:
        """The batches of the step that starts with this sequence."""
        ready = self.read(first_sequence) if self.reader is None else self.read_ahead(self.reader, first_sequence)
        moved = [
            (inputs.to(self.device, non_blocking=self.pinned), targets.to(self.device, non_blocking=self.pinned))
            for inputs, targets in ready.micro_batches
        ]
        return StepBatches(moved, ready.n_tokens)

    def read_ahead(self, reader: ThreadPoolExecutor, first_sequence: int) -> StepBatches:
        """What `read` gives, ready where the step before has asked for it; asks for that of the step after."""
        started, self.ahead = self.ahead, None
        ready = started[1].result() if started and started[0] == first_sequence else self.read(first_sequence)
        following = first_sequence + self.global_batch
        self.ahead = following, reader.submit(self.read, following)
        return ready

    @property
    def global_batch(self) -> int:
        """Sequences in a step."""
        return self.batch_size * self.count * self.world

    def close(self) -> None:
        """Forget what was read ahead, and end the thread."""
        self.ahead = None
        if self.reader is not None:
            self.reader.shutdown(cancel_futures=True)

    def read(self, first_sequence: int) -> StepBatches:
        """The same in the memory of the CPU, pinned for a GPU."""
        micro_batches = []
        for turn in range(self.count):
            number = turn * self.world + self.rank
            inputs, targets = self.data.batch(first_sequence + number * self.batch_size, self.batch_size)
            pair = torch.from_numpy(inputs), torch.from_numpy(targets)
            micro_batches.append((pair[0].pin_memory(), pair[1].pin_memory()) if self.pinned else pair)
        return StepBatches(micro_batches, self.data.counted(first_sequence, self.global_batch))
