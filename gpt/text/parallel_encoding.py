"""Text → ids on every core, in order and in flat memory.

Workers are processes, as threads would queue for Python's lock on short documents. Each loads the tokenizer from its
folder. What comes out does not depend on how many there are.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from gpt.text.documents import Piece
from gpt.text.streams import PAIR
from gpt.text.tokenizers import Tokenizer

POOL_FROM_BYTES = 16_000_000  # starting processes takes as long as tokenizing a few megabytes
BATCH_CHARACTERS = 1 << 19

Batch = tuple[str, list[Piece]]  # the side of the split, and pieces in order

_worker_tokenizer: Tokenizer  # set once in each worker process


@dataclass(frozen=True)
class Encoded:
    """Tokens of consecutive pieces: `ids` [n_tokens], and the `pairs` [n_pairs] of `PAIR` in them."""

    ids: np.ndarray
    pairs: np.ndarray


def encode_pieces(tokenizer: Tokenizer, pieces: list[Piece]) -> Encoded:
    """All pieces, with an end of text after each document; a prompt and its completion are encoded apart."""
    end = np.array([tokenizer.end_of_text], dtype=tokenizer.dtype)
    encoded = iter(tokenizer.encode_batch([part for piece in pieces for part in piece.parts]))
    ids: list[np.ndarray] = []
    pairs: list[tuple[int, int, int]] = []
    length = 0
    for piece in pieces:
        own = [next(encoded) for _ in piece.parts] + [end] * piece.ends
        ids += own
        own_length = sum(map(len, own))
        if piece.prompt is not None:
            borrowed = not len(own[0])  # the end of text before an empty prompt
            pairs.append((length - borrowed, len(own[0]) + borrowed, own_length + borrowed))
        length += own_length
    return Encoded(np.concatenate(ids), np.array(pairs, dtype=PAIR))


def encode_all(
    tokenizer: Tokenizer, folder: Path, pieces: Iterable[tuple[str, Piece]], n_bytes: int, workers: int
) -> Iterator[tuple[str, Encoded]]:
    """Sides and tokens of all pieces, in the pieces' order on each side.

    `folder` holds the saved tokenizer; `n_bytes` of text are expected; `workers` = 0 means one for each core.
    """
    workers = workers or available_cores()
    if workers == 1 or n_bytes < POOL_FROM_BYTES:
        yield from ((side, encode_pieces(tokenizer, batch)) for side, batch in _batches(pieces))
        return
    waiting: deque[tuple[str, Future[Encoded]]] = deque()
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(folder,))
    try:
        for side, batch in _batches(pieces):
            waiting.append((side, pool.submit(_encode, batch)))
            if len(waiting) > 2 * workers:
                side, future = waiting.popleft()
                yield side, future.result()
        while waiting:
            side, future = waiting.popleft()
            yield side, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _batches(pieces: Iterable[tuple[str, Piece]]) -> Iterator[Batch]:
    waiting: dict[str, list[Piece]] = {}
    sizes: dict[str, int] = {}
    for side, piece in pieces:
        waiting.setdefault(side, []).append(piece)
        sizes[side] = sizes.get(side, 0) + len(piece.text) + 16  # a short document costs more than its text
        if sizes[side] >= BATCH_CHARACTERS:
            yield side, waiting.pop(side)
            del sizes[side]
    yield from waiting.items()


def _start(folder: Path) -> None:
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other cores have workers of their own
    _worker_tokenizer = Tokenizer.load(folder)


def _encode(pieces: list[Piece]) -> Encoded:
    return encode_pieces(_worker_tokenizer, pieces)
