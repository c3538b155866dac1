"""The order of prompt/completion pairs, their rows, and what of them counts."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gpt.options import UserError
from gpt.text.batches import IGNORE, counted_tokens, training_data, val_batches
from gpt.text.pairs import PairData
from gpt.text.streams import PAIR, PairStream


class Pairs(PairStream):
    """Pairs of given numbers of tokens (prompt, completion and end of text). A token says its pair and place."""

    def __init__(self, lengths: list[tuple[int, int]]):
        self.tokens = np.array([0] + [1000 * i + place for i, both in enumerate(lengths) for place in range(sum(both))])
        starts = 1 + np.cumsum([0] + [sum(both) for both in lengths])
        self.index = np.array([(starts[i], p, p + c) for i, (p, c) in enumerate(lengths)], dtype=PAIR)

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, length: int) -> np.ndarray:
        assert start + length <= len(self.tokens)
        return self.tokens[start : start + length]


def random_pairs(n: int, seed: int = 0) -> Pairs:
    chance = random.Random(seed)
    return Pairs([(1 + int(chance.expovariate(0.1)), 2 + int(chance.expovariate(0.05))) for _ in range(n)])


def slow_row(stream: Pairs, pair: int, context: int, width: int) -> tuple[list[int], list[int]]:
    _, prompt, length = (int(value) for value in stream.index[pair])
    tokens = [1000 * pair + place for place in range(length)][: context + 1]
    targets = [token if place >= prompt else IGNORE for place, token in enumerate(tokens)][1:]
    padding = width - len(targets)
    return tokens[:-1] + [0] * padding, targets + [IGNORE] * padding


def numbers_of(batch: tuple[np.ndarray, np.ndarray]) -> list[int]:
    return (batch[0][:, 0] // 1000).tolist()


@pytest.mark.parametrize(
    ("n", "context", "global_batch"), [(700, 24, 4), (50, 8, 64), (37, 100, 8), (1, 16, 8), (64, 30, 8)]
)
def test_an_epoch_sees_each_pair_once(n: int, context: int, global_batch: int) -> None:
    stream = random_pairs(n, seed=3)
    kept = sorted(i for i in range(n) if stream.index["prompt"][i] <= context)
    data = training_data(stream, context, seed=5, global_batch=global_batch)
    assert data.sequences_per_epoch == len(kept)
    steps = range(0, 3 * len(kept) + global_batch, global_batch)
    numbers = [number for step in steps for number in numbers_of(data.batch(step, global_batch))]
    epochs = [numbers[i * len(kept) : (i + 1) * len(kept)] for i in range(3)]
    assert all(sorted(epoch) == kept for epoch in epochs)
    if n > 60:
        assert epochs[0] != epochs[1] != epochs[2]
        other = training_data(stream, context, seed=6, global_batch=global_batch)
        assert numbers_of(other.batch(0, 40)) != numbers[:40]


def test_the_order_is_a_pure_function_however_a_batch_is_split() -> None:
    stream = random_pairs(333)
    whole = training_data(stream, 32, seed=1, global_batch=24)
    for first in (24 * 50, 0, 24 * 13, 312, 24 * 27):  # 312 … 335 crosses from one epoch to the next
        fresh = training_data(stream, 32, seed=1, global_batch=24)
        expected = numbers_of(fresh.batch(first, 24))
        assert numbers_of(whole.batch(first, 24)) == expected
        parts = [numbers_of(whole.batch(first + 6 * i, 6)) for i in (3, 0, 2, 1)]
        assert parts[1] + parts[3] + parts[2] + parts[0] == expected


def test_rows_are_pairs_with_only_completions_to_learn() -> None:
    stream = random_pairs(200)
    for context in (7, 24, 1000):
        data = training_data(stream, context, seed=0, global_batch=8)
        for first in range(0, 96, 8):
            inputs, targets = data.batch(first, 8)
            assert inputs.dtype == targets.dtype == np.int64
            assert inputs.shape[1] % 4 == 0 or inputs.shape[1] == context
            for row, pair in enumerate(numbers_of((inputs, targets))):
                expected = slow_row(stream, pair, context, inputs.shape[1])
                assert (inputs[row].tolist(), targets[row].tolist()) == expected


def test_lengths_are_alike_within_a_batch_and_mixed_over_batches() -> None:
    stream = random_pairs(20_000)
    data = training_data(stream, 256, seed=0, global_batch=8)
    shapes = [data.batch(first, 8)[0].shape for first in range(0, 4096, 8)]
    padded = sum(rows * width for rows, width in shapes)
    assert 1 - data.tokens_per_sequence * 4096 / padded < 0.1  # half of it from the multiple of 4
    widths = np.array([width for _, width in shapes], dtype=float)
    assert abs(np.corrcoef(widths[:-1], widths[1:])[0, 1]) < 0.2


def test_a_batch_is_a_stretch_of_the_pairs_by_length() -> None:
    """Also the two parts of one that an epoch's border divides, and whatever the sizes of the parts are."""
    chance = random.Random(2)
    lengths = chance.sample(range(2, 200), 77)
    data = training_data(Pairs([(1, length) for length in lengths]), 256, seed=0, global_batch=8)
    rank = {pair: place for place, pair in enumerate(sorted(range(77), key=lengths.__getitem__))}
    for epoch in range(8):
        first = 77 * epoch
        while first < 77 * (epoch + 1):
            after = min(first // 8 * 8 + 8, 77 * (epoch + 1))
            ranks = [rank[pair] for pair in numbers_of(data.batch(first, after - first))]
            assert ranks == list(range(ranks[0], ranks[0] + after - first))
            first = after


def test_no_two_chunks_or_epochs_have_the_same_order() -> None:
    alike = training_data(Pairs([(1, 3)] * 64), 16, seed=0, global_batch=8)
    epochs = [tuple(numbers_of(alike.batch(64 * epoch, 64))) for epoch in range(5)]
    assert len(set(epochs)) == 5
    chunk = 128
    data = training_data(Pairs([(1, 2 + i) for i in range(3 * chunk)]), 1000, seed=0, global_batch=1)
    orders = [numbers_of(data.batch(chunk * number, chunk)) for number in range(6)]
    assert len({tuple(np.argsort(order).tolist()) for order in orders}) == 6  # of lengths, from chunk to chunk


def test_what_does_not_fit_is_counted() -> None:
    stream = random_pairs(500)
    for context in (5, 20, 60, 400):
        slow = [(int(prompt), int(length)) for _, prompt, length in stream.index]
        data = training_data(stream, context, seed=0, global_batch=8)
        kept = [(prompt, length) for prompt, length in slow if prompt <= context]
        assert data.dropped == 500 - len(kept)
        assert data.truncated == sum(length > context + 1 for _, length in kept)
        assert data.tokens_per_sequence == pytest.approx(sum(min(n - 1, context) for _, n in kept) / len(kept))
        assert counted_tokens(stream, context) == sum(min(n, context + 1) - prompt for prompt, n in kept)
    context = 20
    assert training_data(Pairs([(5, 9), (5, 17), (20, 5), (21, 5), (20, 1)]), context, 0, 8).description == (
        "pairs: 5; completions cut at the context of 20 tokens: 2; left out because the prompt alone fills it: 1"
    )
    with pytest.raises(UserError, match=r"data\.prompt: all 2 prompts .* model\.context_length=20 tokens"):
        training_data(Pairs([(21, 3), (30, 3)]), context, 0, 8)


@pytest.mark.parametrize("max_tokens", [None, 1, 100, 10**6])
@pytest.mark.parametrize("context", [8, 50])
def test_evaluation_counts_each_token_of_a_completion_once(context: int, max_tokens: int | None) -> None:
    stream = random_pairs(60)
    expected: list[int] = []
    for pair in range(60):
        expected += [token for token in slow_row(stream, pair, context, 0)[1] if token != IGNORE]
    for batch_size in (1, 7, 100):
        seen: list[int] = []
        for inputs, targets in val_batches(stream, context, batch_size, max_tokens):
            assert len(inputs) <= batch_size
            for row, pair in enumerate(numbers_of((inputs, targets))):
                full = slow_row(stream, pair, context, inputs.shape[1] + 1000)
                counted = targets[row] != IGNORE
                end = int(counted.nonzero()[0][-1]) + 1
                assert inputs[row, :end].tolist() == full[0][:end]
                assert targets[row, :end].tolist() == full[1][:end]
                assert not counted[end:].any()
            seen += targets[targets != IGNORE].tolist()
        assert sorted(seen) == sorted(expected[:max_tokens])
    with pytest.raises(ValueError, match="stride"):
        val_batches(stream, context, 4, stride=4)


def test_a_batch_of_a_million_pairs_looks_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Pairs([(3, 5)])
    stream.index = np.tile(stream.index, 1_000_000)
    data = training_data(stream, 16, seed=0, global_batch=8)
    assert isinstance(data, PairData)
    looked: list[int] = []
    monkeypatch.setattr(
        "gpt.text.pairs._ends", lambda stream, pairs, context: (looked.append(len(pairs)), pairs * 0 + 8)[1]
    )
    for first in range(8 * 100_000, 8 * 100_100, 8):
        data.batch(first, 8)
    assert sum(looked) < 5000
