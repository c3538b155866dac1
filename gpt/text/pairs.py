"""Prompt/completion pairs → batches: one pair to a row, padded on the right, only completions count.

A row is `prompt completion end-of-text`, the prompt led by the tokenizer's prefix if it has one. The model is causal,
so no position that counts sees the padding, and no attention mask is needed. To pad little, an epoch's random order is
sorted by length within chunks of `CHUNK_BATCHES` global batches, whose order is then shuffled again. Hugging Face's
`LengthGroupedSampler` sorts such megabatches too.

A sequence of more than T + 1 tokens is cut there; where the prompt alone has more than T, nothing would count, and the
pair is left out.

Legend: B sequences, T context length, G sequences in a global batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gpt.options import UserError
from gpt.text.permutation import epoch_key, mix, permute
from gpt.text.streams import PairStream
from gpt.text.windows import IGNORE, Batch

CHUNK_BATCHES = 128
MULTIPLE = 4  # tokens to which rows are padded: matrices like it, and each doubling pads 2 % more short poems


class PairData:
    """The training pairs of a split; `gpt.text.batches.TrainingData` says what the members mean.

    Raises UserError where every prompt fills the context.
    """

    def __init__(self, stream: PairStream, context_length: int, seed: int, global_batch: int):
        self.stream, self.context_length, self.seed, self.global_batch = stream, context_length, seed, global_batch
        counted = counted_lengths(stream, context_length)
        fits = counted > 0
        self.dropped = int((~fits).sum())
        self.truncated = int((fits & (stream.index["length"] > context_length + 1)).sum())
        self.sequences_per_epoch = len(stream.index) - self.dropped
        if not self.sequences_per_epoch:
            raise UserError(
                f"data.prompt: all {len(stream.index):,} prompts to train on fill model.context_length="
                f"{context_length} tokens and leave no room for a completion; give a larger context, or shorter prompts"
            )
        self.tokens_per_sequence = float(_ends(stream, np.flatnonzero(fits), context_length).mean() - 1)
        self.description = (
            f"pairs: {len(stream.index):,}; completions cut at the context of {context_length} tokens: "
            f"{self.truncated:,}; left out because the prompt alone fills it: {self.dropped:,}"
        )
        self.kept = np.flatnonzero(fits) if self.dropped else None  # None: all, without a table
        self.chunk = functools.lru_cache(maxsize=2)(self._chunk)  # two, as an epoch may end inside a batch

    def counted(self, first_sequence: int, count: int) -> int:
        chosen = self.pairs_of(first_sequence, count)
        return int((_ends(self.stream, chosen, self.context_length) - self.stream.index["prompt"][chosen]).sum())

    def pairs_of(self, first_sequence: int, count: int) -> NDArray[np.int64]:
        """Which pairs of the split these training sequences are."""
        return np.array([self.pair_of(number) for number in range(first_sequence, first_sequence + count)])

    def batch(self, first_sequence: int, count: int) -> Batch:
        chosen = self.pairs_of(first_sequence, count)
        return padded_batch(self.stream, chosen, _ends(self.stream, chosen, self.context_length), self.context_length)

    def pair_of(self, sequence: int) -> int:
        """Which pair of the split training sequence `sequence` is."""
        epoch, position = divmod(sequence, self.sequences_per_epoch)
        first_batch = epoch * self.sequences_per_epoch // self.global_batch
        begins, order = self.chunk(epoch, (sequence // self.global_batch - first_batch) // CHUNK_BATCHES)
        return int(order[position - begins])

    def _chunk(self, epoch: int, chunk: int) -> tuple[int, NDArray[np.int64]]:
        """Where in the epoch a chunk of global batches begins, and its pairs in their order.

        An epoch may begin and end inside a global batch, whose two parts then hold similar lengths each.
        """
        size, before = self.sequences_per_epoch, epoch * self.sequences_per_epoch
        batches = before // self.global_batch + chunk * CHUNK_BATCHES + np.arange(CHUNK_BATCHES + 1)
        borders = np.unique(np.clip(batches * self.global_batch - before, 0, size))  # of the batches, in the epoch
        key = epoch_key(self.seed, epoch)
        pairs = permute(np.arange(borders[0], borders[-1], dtype=np.uint64), size, key).astype(np.int64)
        if self.kept is not None:
            pairs = self.kept[pairs]
        by_length = pairs[np.argsort(_ends(self.stream, pairs, self.context_length), kind="stable")]
        # Batch `turns[i]` is the i-th to take its share of the sorted pairs.
        sizes = np.diff(borders)
        turns = permute(np.arange(len(sizes), dtype=np.uint64), len(sizes), mix(key ^ mix(np.uint64(chunk))))
        shares = np.split(by_length, np.cumsum(sizes[turns])[:-1])
        return int(borders[0]), np.concatenate([shares[turn] for turn in np.argsort(turns)])


def counted_lengths(stream: PairStream, context_length: int) -> NDArray[np.int64]:
    """How many tokens of each pair count, [n_pairs]: of the completion and its end of text, what the context holds."""
    index = stream.index
    return np.maximum(np.minimum(index["length"], context_length + 1).astype(np.int64) - index["prompt"], 0)


def _ends(stream: PairStream, pairs: NDArray[np.int64], context_length: int) -> NDArray[np.int64]:
    """Lengths of these pairs' sequences, in tokens, cut at T + 1."""
    return np.minimum(stream.index["length"][pairs].astype(np.int64), context_length + 1)


def padded_batch(stream: PairStream, pairs: NDArray[np.int64], ends: NDArray[np.int64], context_length: int) -> Batch:
    """Inputs and targets of the first `ends` tokens of these pairs, [len(pairs), ≤ T]."""
    width = min(-(-(int(ends.max()) - 1) // MULTIPLE) * MULTIPLE, context_length)
    inputs = np.zeros((len(pairs), width), dtype=np.int64)
    targets = np.full((len(pairs), width), IGNORE, dtype=np.int64)
    for row, (pair, end) in enumerate(zip(stream.index[pairs], ends.tolist(), strict=True)):
        tokens = stream.read(int(pair["start"]), end)
        prompt = int(pair["prompt"])
        inputs[row, : end - 1] = tokens[:-1]
        targets[row, prompt - 1 : end - 1] = tokens[prompt:]
    return inputs, targets


def val_pairs(stream: PairStream, context_length: int, batch_size: int, max_tokens: int | None) -> Iterator[Batch]:
    """Every token of a completion that the context holds as a target once, in batches [≤ B, ≤ T].

    With `max_tokens`, the first so many in the order of the files. Pairs then come by length, to pad little.
    """
    counted = counted_lengths(stream, context_length)
    if max_tokens is not None:
        counted = np.clip(max_tokens - (np.cumsum(counted) - counted), 0, counted)
    ends = stream.index["prompt"] + counted
    used = np.flatnonzero(counted)
    used = used[np.argsort(ends[used], kind="stable")]
    for first in range(0, len(used), batch_size):
        pairs = used[first : first + batch_size]
        yield padded_batch(stream, pairs, ends[pairs], context_length)
