"""Corpora → batches, one interface for every kind: what the trainer and the evaluation see.

The order of training is a pure function of (seed, sequence number), so any split of a global batch over micro-batches
and processes sees the same sequences, and a resume needs no cursor but the number of sequences consumed. Token streams
come in windows of one length (`windows.py`), prompt/completion pairs one to a row (`pairs.py`).

Legend: B sequences, T context length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from gpt.text.pairs import PairData, counted_lengths, val_pairs
from gpt.text.streams import PairStream, TokenStream
from gpt.text.windows import IGNORE, Batch, WindowData, val_windows

__all__ = [
    "IGNORE",
    "Batch",
    "TrainingData",
    "counted_tokens",
    "training_data",
    "val_batches",
]


class TrainingData(Protocol):
    """The training split as the trainer sees it: sequences numbered from 0 on through all epochs of the run."""

    sequences_per_epoch: int
    tokens_per_sequence: float  # that a row feeds to the model, padding left out; mean of an epoch
    description: str  # what was cut and left out, in words for people; "" where nothing can be

    def batch(self, first_sequence: int, count: int) -> Batch:
        """Inputs and targets [count, ≤ T] of sequences `first_sequence` … `first_sequence + count - 1`.

        Positions that do not count have the target `IGNORE`.
        """
        ...

    def counted(self, first_sequence: int, count: int) -> int:
        """How many targets of these sequences count, without reading them."""
        ...


def training_data(split: TokenStream, context_length: int, seed: int, global_batch: int) -> TrainingData:
    """How `split` is dealt out to a run whose optimizer steps take `global_batch` sequences each.

    The order of pairs depends on `global_batch`, that of a stream does not. Raises UserError where there is nothing to
    learn: a stream shorter than T + 1 tokens, or pairs whose prompts all fill the context.
    """
    if isinstance(split, PairStream):
        return PairData(split, context_length, seed, global_batch)
    return WindowData(split, context_length, seed)


def val_batches(
    split: TokenStream, context_length: int, batch_size: int, max_tokens: int | None = None, stride: int | None = None
) -> Iterator[Batch]:
    """Every token that counts (or the first `max_tokens` of them) as a target once, in batches [≤ B, ≤ T].

    Which tokens count, and after which context, is the same whatever the `batch_size`. Of a stream every token counts
    but its first; its windows move by `stride` tokens (1 … T; default T: no overlap), as in Hugging Face's guide to
    perplexity (https://huggingface.co/docs/transformers/perplexity). Of pairs count the completions, with their end of
    text, as far as the context holds them. Raises ValueError for a stride out of range or with pairs.
    """
    if stride is not None and not 1 <= stride <= context_length:
        raise ValueError(f"stride={stride}: must be from 1 to the context length {context_length}")
    if not isinstance(split, PairStream):
        return val_windows(split, context_length, batch_size, max_tokens, stride)
    if stride is not None:
        raise ValueError(f"stride={stride}: pairs are not cut into windows, so none can overlap")
    return val_pairs(split, context_length, batch_size, max_tokens)


def counted_tokens(split: TokenStream, context_length: int) -> int:
    """How many tokens `val_batches` counts on the whole of `split`."""
    if isinstance(split, PairStream):
        return int(counted_lengths(split, context_length).sum())
    return len(split) - 1
