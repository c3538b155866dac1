"""Token streams → windows of one length: the order of training, and the windows of evaluation.

Legend: B sequences, T context length, N tokens in the stream.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gpt.options import UserError
from gpt.text.permutation import Nearby, epoch_key, mix
from gpt.text.streams import TokenStream

STRETCH_TOKENS = 2**21
STRETCHES = 256  # that are shuffled together: 2^29 tokens, a gigabyte
IGNORE = -100  # target of a position that does not count; `gpt.model.loss` skips it

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]  # inputs and targets, each [B, T]


class WindowData:
    """Training sequences cut from a stream; `gpt.text.batches.TrainingData` says what the members mean.

    Raises UserError where the stream is shorter than one window of T + 1 tokens.
    """

    description = ""

    def __init__(self, stream: TokenStream, context_length: int, seed: int):
        if len(stream) < context_length + 1:
            raise UserError(
                f"the corpus is shorter than one context: {len(stream):,} tokens to train on, but "
                f"model.context_length={context_length}; give more text, or a smaller model.context_length"
            )
        self.stream, self.context_length, self.seed = stream, context_length, seed
        self.sequences_per_epoch = windows_per_epoch(len(stream), context_length)
        self.tokens_per_sequence = float(context_length)
        self.nearby = nearby(self.sequences_per_epoch, context_length)
        self.coming: tuple[int, int] | None = None  # epoch and group whose stretches are read ahead
        if self.nearby.n_groups > 1:
            stream.read_no_surroundings()

    def batch(self, first_sequence: int, count: int) -> Batch:
        if self.nearby.n_groups > 1:
            self.read_ahead(first_sequence)
        return train_batch(self.stream, self.context_length, self.seed, first_sequence, count)

    def counted(self, first_sequence: int, count: int) -> int:
        return count * self.context_length

    def read_ahead(self, sequence: int) -> None:
        """Where another group of stretches begins, have them read into the page cache, one after another."""
        epoch, position = divmod(sequence, self.sequences_per_epoch)
        group = int(self.nearby.group_of(np.array([position], dtype=np.uint64))[0])
        if self.coming == (epoch, group):
            return
        self.coming = (epoch, group)
        threading.Thread(target=self._read_group, args=self.coming, name="reading ahead", daemon=True).start()

    def _read_group(self, epoch: int, group: int) -> None:
        for start, stop in self.stretches(epoch, group):
            if self.coming != (epoch, group):
                return
            self.stream.read_through(start, stop)

    def stretches(self, epoch: int, group: int) -> Iterator[tuple[int, int]]:
        """Where in the stream the windows of a group lie: stretches of tokens, from the first to before the last."""
        key = epoch_key(self.seed, epoch)
        length = self.nearby.block * self.context_length
        for block in np.sort(self.nearby.blocks_of(group, key)).tolist():
            start = epoch_offset(key, len(self.stream), self.context_length) + block * length
            yield start, min(start + length + 1, len(self.stream))


def nearby(windows: int, context_length: int) -> Nearby:
    """How the windows of an epoch are shuffled."""
    return Nearby(windows, max(1, STRETCH_TOKENS // context_length), STRETCHES)


def train_batch(stream: TokenStream, context_length: int, seed: int, first_sequence: int, count: int) -> Batch:
    """Training sequences `first_sequence` … `first_sequence + count - 1` of the run, [count, T].

    Each epoch cuts the stream into windows of T tokens from a random offset and visits every window once, in a
    random order; that of a very long stream takes it some stretches at a time, from all over it, so that a machine
    which cannot hold it reads each page once an epoch, not once a window. Needs a stream of at least T + 1 tokens.
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


def epoch_offset(key: NDArray[np.uint64], n_tokens: int, context_length: int) -> int:
    """Where in the stream the first window of an epoch starts."""
    return int(mix(key) % np.uint64(largest_offset(n_tokens, context_length) + 1))


def window_starts(sequences: NDArray[np.uint64], n_tokens: int, context_length: int, seed: int) -> NDArray[np.int64]:
    """Where in the stream each of these training sequences starts."""
    windows = windows_per_epoch(n_tokens, context_length)
    epochs = sequences // np.uint64(windows)
    starts = np.empty(len(sequences), dtype=np.int64)
    for epoch in np.unique(epochs):
        key = epoch_key(seed, epoch)
        chosen = epochs == epoch
        order = nearby(windows, context_length).order(sequences[chosen] % np.uint64(windows), key)
        starts[chosen] = epoch_offset(key, n_tokens, context_length) + order.astype(np.int64) * context_length
    return starts


def val_windows(
    stream: TokenStream, context_length: int, batch_size: int, max_tokens: int | None = None, stride: int | None = None
) -> Iterator[Batch]:
    """Every token of the stream (or the first `max_tokens`) as a target once, in windows of T tokens, [≤ B, T].

    A window starts `stride` tokens after the one before (default T) and counts only the tokens that none before it
    has counted, so each has at least T - stride tokens of context, but for those of the first window. The stream's
    first token is only context. Positions that do not count have the target `IGNORE`.
    """
    stride = context_length if stride is None else stride
    n_targets = len(stream) - 1 if max_tokens is None else min(max_tokens, len(stream) - 1)
    n_windows = 1 - (min(0, context_length - n_targets) // stride) if n_targets else 0
    for first in range(0, n_windows, batch_size):
        rows = min(batch_size, n_windows - first)
        start, span = first * stride, (rows - 1) * stride + context_length
        count = min(span, n_targets - start)
        tokens = stream.read(start, count + 1).astype(np.int64)
        inputs = np.zeros(span, dtype=np.int64)
        targets = np.full(span, IGNORE, dtype=np.int64)
        inputs[:count], targets[:count] = tokens[:-1], tokens[1:]
        places = np.arange(rows)[:, None] * stride + np.arange(context_length)
        inputs, targets = inputs[places], targets[places]
        targets[int(first == 0) :, : context_length - stride] = IGNORE  # the window before has counted them
        yield inputs, targets
