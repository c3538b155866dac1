"""The order of training data and the windows of evaluation."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpt.options import UserError
from gpt.text import windows
from gpt.text.batches import IGNORE, training_data, val_batches
from gpt.text.permutation import Nearby, epoch_key, permute
from gpt.text.streams import TokenStream
from gpt.text.windows import WindowData, train_batch, window_starts, windows_per_epoch


class Stream:
    """Tokens that say their own position."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def read(self, start: int, length: int) -> np.ndarray:
        assert start >= 0
        assert start + length <= self.n
        return np.arange(start, start + length)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 4097])
def test_permute_visits_everything_once(size: int) -> None:
    orders = [permute(np.arange(size, dtype=np.uint64), size, np.uint64(key)) for key in (1, 2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(size))
    if size > 60:
        assert not np.array_equal(*orders)
        assert abs(np.corrcoef(np.arange(size), orders[0].astype(float))[0, 1]) < 0.3


@pytest.mark.parametrize("size", [79, 80, 81, 160, 163, 1000, 4097])
def test_a_long_order_visits_everything_once_from_few_places_at_a_time(size: int) -> None:
    block, blocks = 10, 4
    everything = np.arange(size, dtype=np.uint64)
    order = Nearby(size, block, blocks).order(everything, epoch_key(0, 1))
    assert sorted(order.tolist()) == list(range(size))
    assert order[::3].tolist() == Nearby(size, block, blocks).order(everything[::3], epoch_key(0, 1)).tolist()
    n_groups = size // (block * blocks)
    if n_groups < 2:
        assert order.tolist() == permute(everything, size, epoch_key(0, 1)).tolist()
        return
    places = []
    for number in range(n_groups):
        group = order[number * 40 : (number + 1) * 40 if number < n_groups - 1 else size] // block
        assert len(set(group.tolist())) <= (blocks if number < n_groups - 1 else 2 * blocks + 1)
        places.append(group.astype(float).mean())
    assert not np.array_equal(order, Nearby(size, block, blocks).order(everything, epoch_key(0, 2)))
    if size > 1000:  # the stretches of a group lie all over the stream
        assert np.std(places) < 0.25 * size / block
        assert abs(np.corrcoef(everything.astype(float), order.astype(float))[0, 1]) < 0.3


def test_a_long_stream_is_read_by_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    short = window_starts(np.arange(200, dtype=np.uint64), 1000, 5, seed=0)
    monkeypatch.setattr(windows, "STRETCH_TOKENS", 50)
    assert window_starts(np.arange(200, dtype=np.uint64), 1000, 5, seed=0).tolist() == short.tolist()
    monkeypatch.setattr(windows, "STRETCHES", 2)
    long = window_starts(np.arange(199, dtype=np.uint64), 1000, 5, seed=0)
    assert sorted(long.tolist()) == sorted(short[:199].tolist()) == list(range(long.min(), long.min() + 995, 5))
    for first in range(0, 160, 20):
        assert len({(start - long.min()) // 50 for start in long[first : first + 20].tolist()}) == 2


def test_the_stretches_to_come_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "STRETCH_TOKENS", 50)
    monkeypatch.setattr(windows, "STRETCHES", 2)
    tokens = np.arange(1007, dtype=np.uint16)
    shards = []
    for number, part in enumerate(np.split(tokens, [300, 301, 640])):
        (tmp_path / f"{number}.bin").write_bytes(part.tobytes())
        shards.append({"file": f"{number}.bin", "tokens": len(part)})
    tokenizer = SimpleNamespace(dtype=np.dtype(np.uint16), vocab_size=2000)
    meta = {"documents": 1, "bytes": 1, "characters": 1, "shards": shards}
    stream = TokenStream(tmp_path, tokenizer, meta)  # type: ignore[arg-type]
    read: list[tuple[int, int]] = []
    monkeypatch.setattr(stream, "read_through", lambda *stretch: read.append(stretch))
    data = WindowData(stream, 5, seed=0)
    expected: list[tuple[int, int]] = []
    groups = []
    for sequence in range(2 * data.sequences_per_epoch):
        inputs, _ = data.batch(sequence, 1)
        for thread in threading.enumerate():
            if thread.name == "reading ahead":
                thread.join()
        assert data.coming is not None
        if data.coming not in groups:
            groups.append(data.coming)
            expected += data.stretches(*data.coming)
        assert read == expected  # once a group
        assert (
            sum(start <= inputs[0, 0] and inputs[0, -1] + 1 < stop for start, stop in data.stretches(*groups[-1])) == 1
        )
    assert len(groups) == 2 * data.nearby.n_groups == 20
    assert all(0 <= start < stop <= len(tokens) for start, stop in read)


def test_reading_through_touches_just_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = []
    for number in range(3):
        (tmp_path / f"{number}.bin").write_bytes(bytes(20))
        shards.append({"file": f"{number}.bin", "tokens": 10})
    tokenizer = SimpleNamespace(dtype=np.dtype(np.uint16), vocab_size=2000)
    meta = {"documents": 1, "bytes": 1, "characters": 1, "shards": shards}
    stream = TokenStream(tmp_path, tokenizer, meta)  # type: ignore[arg-type]
    asked: list[tuple[str, int, int]] = []

    class File(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            place = self.tell()
            asked.append((Path(str(self.name)).name, place, len(buffer)))
            return super().readinto(buffer) or 0

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: File(path))
    stream.read_through(7, 22)
    assert asked == [("0.bin", 14, 6), ("1.bin", 0, 20), ("2.bin", 0, 4)]
    (tmp_path / "1.bin").unlink()
    stream.read_through(7, 22)  # is only a help


@pytest.mark.parametrize(("n_tokens", "context"), [(1000, 7), (8, 7), (9, 7), (14, 7), (15, 7), (2, 1)])
def test_an_epoch_reads_each_window_once(n_tokens: int, context: int) -> None:
    windows = windows_per_epoch(n_tokens, context)
    assert windows >= 1
    offsets = set()
    for epoch in range(20):
        sequences = np.arange(epoch * windows, (epoch + 1) * windows, dtype=np.uint64)
        starts = sorted(window_starts(sequences, n_tokens, context, seed=3).tolist())
        assert np.diff(starts).tolist() == [context] * (windows - 1)
        assert starts[0] >= 0
        assert starts[-1] + context + 1 <= n_tokens
        offsets.add(starts[0])
    assert len(offsets) > 1 or n_tokens <= context + 1


def test_targets_are_the_next_tokens() -> None:
    inputs, targets = train_batch(Stream(500), 16, seed=0, first_sequence=3, count=5)
    assert inputs.shape == targets.shape == (5, 16)
    assert inputs.dtype == np.int64
    assert np.array_equal(targets, inputs + 1)


def test_the_order_does_not_depend_on_how_a_batch_is_split() -> None:
    whole = train_batch(Stream(500), 16, seed=9, first_sequence=40, count=12)[0]
    parts = [train_batch(Stream(500), 16, seed=9, first_sequence=40 + i, count=4)[0] for i in (0, 4, 8)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, train_batch(Stream(500), 16, seed=10, first_sequence=40, count=12)[0])


@pytest.mark.parametrize("max_tokens", [None, 1, 16, 50, 10_000])
@pytest.mark.parametrize("n_tokens", [2, 17, 18, 100])
def test_evaluation_counts_every_token_once(n_tokens: int, max_tokens: int | None) -> None:
    expected = list(range(1, n_tokens))[:max_tokens]
    for batch_size in (1, 3, 100):
        seen = []
        for inputs, targets in val_batches(Stream(n_tokens), 16, batch_size, max_tokens):
            assert inputs.shape == targets.shape
            counted = targets != IGNORE
            assert np.array_equal(targets[counted], inputs[counted] + 1)
            seen += targets[counted].tolist()
        assert seen == expected


def test_the_interface_deals_the_same_windows() -> None:
    data = training_data(Stream(500), 16, seed=9, global_batch=4)
    for first in (0, 28, 200):
        for found, expected in zip(data.batch(first, 5), train_batch(Stream(500), 16, 9, first, 5), strict=True):
            assert np.array_equal(found, expected)
    assert data.sequences_per_epoch == windows_per_epoch(500, 16)
    assert (data.tokens_per_sequence, data.description) == (16, "")
    with pytest.raises(UserError, match=r"16 tokens to train on, but model\.context_length=16"):
        training_data(Stream(16), 16, seed=9, global_batch=4)


@pytest.mark.parametrize("max_tokens", [None, 1, 16, 17, 50])
@pytest.mark.parametrize("n_tokens", [1, 2, 17, 18, 100])
@pytest.mark.parametrize("stride", [1, 5, 15, 16])
def test_overlapping_windows_count_every_token_once(n_tokens: int, max_tokens: int | None, stride: int) -> None:
    """Against the loop of https://huggingface.co/docs/transformers/perplexity, on inputs and targets."""
    end = min(n_tokens - 1, max_tokens or n_tokens)
    expected, counted_to = [], 0
    for begin in range(0, end, stride):
        stop = min(begin + 16, end)
        expected += [(begin, target) for target in range(counted_to + 1, stop + 1)]
        counted_to = stop
        if stop == end:
            break
    for batch_size in (1, 3, 100):
        seen = []
        for inputs, targets in val_batches(Stream(n_tokens), 16, batch_size, max_tokens, stride):
            assert inputs.shape == targets.shape
            assert 0 < len(inputs) <= batch_size
            counted = targets != IGNORE
            assert counted.any(axis=1).all()
            assert np.array_equal(targets[counted], inputs[counted] + 1)
            seen += [(int(inputs[row, 0]), int(targets[row, column])) for row, column in np.argwhere(counted)]
        assert seen == expected


@pytest.mark.parametrize("stride", [0, -1, 17])
def test_strides_that_leave_tokens_out_are_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride={stride}"):
        val_batches(Stream(100), 16, 4, stride=stride)
