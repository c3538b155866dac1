"""Token streams → batches: the order of training data, and the windows of evaluation.

The order is a pure function of (seed, sequence number), so any split of a global batch over micro-batches and
processes sees the same sequences, and a resume needs no cursor but the number of sequences consumed.

Legend: B sequences, T context length, N tokens in the stream.
Sources: permutation without a table by a Feistel network and cycle walking (Black and Rogaway 2002, "Ciphers with
Arbitrary Finite Domains"); mixing constants of SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gpt.text.shards import TokenStream

IGNORE = -100  # target of a position that does not count; `gpt.model.loss` skips it
FEISTEL_ROUNDS = 4

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]  # inputs and targets, each [B, T]


def train_batch(stream: TokenStream, context_length: int, seed: int, first_sequence: int, count: int) -> Batch:
    """Training sequences `first_sequence` … `first_sequence + count - 1` of the run, [count, T].

    Each epoch cuts the stream into windows of T tokens from a random offset and visits every window once, in a
    random order. Needs a stream of at least T + 1 tokens.
    """
    sequences = np.arange(first_sequence, first_sequence + count, dtype=np.uint64)
    starts = window_starts(sequences, len(stream), context_length, seed)
    rows = np.stack([stream.read(int(start), context_length + 1) for start in starts]).astype(np.int64)
    return rows[:, :-1], rows[:, 1:]


def windows_per_epoch(n_tokens: int, context_length: int) -> int:
    """How many sequences make an epoch: whole windows that fit behind the largest offset."""
    return (n_tokens - 1 - largest_offset(n_tokens, context_length)) // context_length


def largest_offset(n_tokens: int, context_length: int) -> int:
    return min(context_length - 1, n_tokens - 1 - context_length)


def window_starts(sequences: NDArray[np.uint64], n_tokens: int, context_length: int, seed: int) -> NDArray[np.int64]:
    """Where in the stream each of these training sequences starts."""
    windows = windows_per_epoch(n_tokens, context_length)
    epochs = sequences // np.uint64(windows)
    starts = np.empty(len(sequences), dtype=np.int64)
    for epoch in np.unique(epochs):
        key = mix(np.uint64(seed) ^ mix(epoch))
        offset = int(mix(key) % np.uint64(largest_offset(n_tokens, context_length) + 1))
        chosen = epochs == epoch
        order = permute(sequences[chosen] % np.uint64(windows), windows, key)
        starts[chosen] = offset + order.astype(np.int64) * context_length
    return starts


def permute(index: NDArray[np.uint64], size: int, key: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """A pseudo-random permutation of 0 … size - 1, evaluated at `index` without building it."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)

    def encrypt(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = value >> half, value & low
        for round_ in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (mix(right ^ mix(key ^ np.uint64(round_))) & low)
        return (left << half) | right

    value = encrypt(index)
    while (outside := value >= size).any():  # the network permutes a power of four: walk on to land inside
        value[outside] = encrypt(value[outside])
    return value


def mix(value: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: well-spread 64 bits from any 64 bits."""
    with np.errstate(over="ignore"):
        mixed = np.asarray(value, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def val_batches(
    stream: TokenStream, context_length: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[Batch]:
    """Every token of the stream (or the first `max_tokens`) as a target once, in non-overlapping windows, [≤ B, T].

    The stream's first token is only context. Positions past the end have the target `IGNORE`.
    """
    n_targets = len(stream) - 1 if max_tokens is None else min(max_tokens, len(stream) - 1)
    n_windows = -(-n_targets // context_length)
    for first in range(0, n_windows, batch_size):
        rows = min(batch_size, n_windows - first)
        start = first * context_length
        count = min(rows * context_length, n_targets - start)
        tokens = stream.read(start, count + 1).astype(np.int64)
        inputs = np.zeros(rows * context_length, dtype=np.int64)
        targets = np.full(rows * context_length, IGNORE, dtype=np.int64)
        inputs[:count], targets[:count] = tokens[:-1], tokens[1:]
        yield inputs.reshape(rows, -1), targets.reshape(rows, -1)
