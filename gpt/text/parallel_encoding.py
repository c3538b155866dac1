"""Text → ids on every core, in order and in flat memory.

Workers are threads: the encoders leave Python's lock while they work, on many short documents as on long ones. What
comes out does not depend on how many there are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gpt.text.documents import Piece
from gpt.text.streams import PAIR
from gpt.text.tokenizers import Tokenizer

BATCH_CHARACTERS = 1 << 19

Batch = tuple[str, list[Piece], list[bool]]  # the side of the split, pieces in order, which of them start a document


@dataclass(frozen=True)
class Encoded:
    """Tokens of consecutive pieces: `ids` [n_tokens], and the `pairs` [n_pairs] of `PAIR` in them."""

    ids: np.ndarray
    pairs: np.ndarray


def encode_pieces(tokenizer: Tokenizer, pieces: list[Piece], starts: list[bool]) -> Encoded:
    """All pieces, with the tokenizer's prefix before each document and an end of text after it.

    `starts`: which pieces start a document. A prompt and its completion are encoded apart.
    """
    ids, part_lengths = tokenizer.encode_batch([part for piece in pieces for part in piece.parts])
    parts = part_lengths.reshape(len(pieces), -1)  # [n_pieces, 1], or [n_pairs, 2]: prompt and completion
    stops = np.cumsum(parts.sum(axis=1))
    ends = np.array([piece.ends for piece in pieces])
    begins = np.array(starts)
    added = np.array([*tokenizer.prefix, tokenizer.end_of_text], dtype=tokenizer.dtype)
    n_prefix = len(added) - 1
    places = np.column_stack([np.append(0, stops[:-1])] * n_prefix + [stops])  # of each in `added`, for each piece
    wanted = np.column_stack([begins] * n_prefix + [ends])
    whole = np.insert(ids, places[wanted], np.broadcast_to(added, places.shape)[wanted])
    return Encoded(whole, _pairs(parts, n_prefix) if pieces[0].prompt is not None else np.zeros(0, dtype=PAIR))


def _pairs(parts: np.ndarray, n_prefix: int) -> np.ndarray:
    """Where pairs of `parts` tokens [n_pairs, 2] lie, one after another, each with a prefix and an end of text."""
    prompts = n_prefix + parts[:, 0]
    lengths = prompts + parts[:, 1] + 1
    borrowed = prompts == 0  # the end of text before an empty prompt
    pairs = np.empty(len(parts), dtype=PAIR)
    pairs["start"] = np.cumsum(lengths) - lengths - borrowed
    pairs["prompt"], pairs["length"] = prompts + borrowed, lengths + borrowed
    return pairs


class Encoders:
    """Threads that turn the pieces of a corpus into tokens, while entered. `workers` = 0 means one for each core.

    They stay for all parts: in memory that threads take, those that come after them leave more gaps each time.
    """

    def __init__(self, tokenizer: Tokenizer, workers: int):
        self.tokenizer, self.workers = tokenizer, workers or available_cores()
        tokenizer.encode_batch([""])  # makes the fast path, which the threads then share
        self.pool = ThreadPoolExecutor(self.workers)

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def encode_all(self, pieces: Iterable[tuple[str, Piece, bool]]) -> Iterator[tuple[str, Encoded]]:
        """Sides and tokens of all pieces, in the pieces' order on each side.

        With each piece comes its side, and whether it starts a document.
        """
        waiting: deque[tuple[str, Future[Encoded]]] = deque()
        for side, batch, starts in _batches(pieces):
            waiting.append((side, self.pool.submit(encode_pieces, self.tokenizer, batch, starts)))
            if len(waiting) > self.workers:
                side, future = waiting.popleft()
                yield side, future.result()
        while waiting:
            side, future = waiting.popleft()
            yield side, future.result()


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _batches(pieces: Iterable[tuple[str, Piece, bool]]) -> Iterator[Batch]:
    waiting: dict[str, list[Piece]] = {}
    starting: dict[str, list[bool]] = {}
    sizes: dict[str, int] = {}
    for side, piece, starts in pieces:
        waiting.setdefault(side, []).append(piece)
        starting.setdefault(side, []).append(starts)
        sizes[side] = sizes.get(side, 0) + len(piece.text) + 16  # a short document costs more than its text
        if sizes[side] >= BATCH_CHARACTERS:
            yield side, waiting.pop(side), starting.pop(side)
            del sizes[side]
    yield from ((side, batch, starting[side]) for side, batch in waiting.items())
