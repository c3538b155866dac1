"""What the trainer is fed against the order of the data, also where batches are read ahead."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from gpt.text.batches import IGNORE
from gpt.text.windows import Batch
from gpt.training.feed import Feed

CPU = torch.device("cpu")


class Numbered:
    """Sequences of three tokens that say their own number; every fifth has a target that does not count."""

    sequences_per_epoch, tokens_per_sequence, description = 1000, 3.0, ""

    def __init__(self) -> None:
        self.read_in: list[tuple[int, str]] = []

    def batch(self, first_sequence: int, count: int) -> Batch:
        self.read_in.append((first_sequence, threading.current_thread().name))
        inputs = np.arange(first_sequence, first_sequence + count)[:, None].repeat(3, axis=1)
        targets = inputs + 1
        targets[inputs[:, 0] % 5 == 0, 0] = IGNORE
        return inputs, targets

    def counted(self, first_sequence: int, count: int) -> int:
        return sum(3 - (number % 5 == 0) for number in range(first_sequence, first_sequence + count))


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, data: Any, batch_size: int, micro_batches: int) -> Feed:
    """A feed that reads ahead, with its device and pinning replaced by the CPU's memory."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    feed = Feed(data, batch_size, micro_batches, torch.device("cuda"))
    feed.device = CPU
    return feed


@pytest.mark.parametrize("ahead", [False, True])
def test_a_step_gets_the_sequences_that_it_names(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Numbered()
    feed = as_on_a_gpu(monkeypatch, data, 2, 3) if ahead else Feed(data, 2, 3, CPU)
    for first in (0, 6, 12, 4, 10, 500, 12):  # in order, then as restored runs may jump
        batches = feed.step(first)
        inputs = torch.cat([inputs for inputs, _ in batches.micro_batches])
        assert inputs[:, 0].tolist() == list(range(first, first + 6))
        assert [len(inputs) for inputs, _ in batches.micro_batches] == [2, 2, 2]
        skipped = sum(number % 5 == 0 for number in range(first, first + 6))
        assert batches.n_tokens == 18 - skipped


def test_the_next_step_is_read_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Numbered()
    feed = as_on_a_gpu(monkeypatch, data, 2, 1)
    for first in (0, 2, 4):
        feed.step(first)
    assert feed.reader is not None
    feed.reader.shutdown()
    main = threading.current_thread().name
    assert [first for first, thread in data.read_in if thread == main] == [0]
    assert [first for first, thread in data.read_in if thread != main] == [2, 4, 6]
    data.read_in.clear()
    Feed(data, 2, 1, CPU).step(8)
    assert data.read_in == [(8, main)], "on a CPU nothing is read ahead"


def test_an_error_while_reading_ahead_is_that_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Numbered):
        def batch(self, first_sequence: int, count: int) -> Batch:
            if first_sequence == 2:
                raise OSError("disk")
            return super().batch(first_sequence, count)

    feed = as_on_a_gpu(monkeypatch, Failing(), 2, 1)
    feed.step(0)
    with pytest.raises(OSError, match="disk"):
        feed.step(2)


def test_batches_come_to_a_device_that_is_not_read_ahead_for() -> None:
    """As MPS; meta tensors stand in for its own."""
    feed = Feed(Numbered(), 2, 2, torch.device("meta"))
    batches = feed.step(0)
    assert {tensor.device.type for pair in batches.micro_batches for tensor in pair} == {"meta"}
    assert batches.n_tokens == 2 * 2 * 3 - 1
