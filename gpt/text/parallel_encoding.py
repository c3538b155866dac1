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

Batch = tuple[str, list[Piece], bool]  # the side of the split, pieces in order, whether the first starts a document

_worker_tokenizer: Tokenizer  # set once in each worker process


@dataclass(frozen=True)
class Encoded:
    """Tokens of consecutive pieces: `ids` [n_tokens], and the `pairs` [n_pairs] of `PAIR` in them."""

    ids: np.ndarray
    pairs: np.ndarray


def encode_pieces(tokenizer: Tokenizer, pieces: list[Piece], starts: bool) -> Encoded:
    """All pieces, with the tokenizer's prefix before each document and an end of text after it.

    `starts`: the first piece starts a document. A prompt and its completion are encoded apart.
    """
    end = np.array([tokenizer.end_of_text], dtype=tokenizer.dtype)
    prefix = np.array(tokenizer.prefix, dtype=tokenizer.dtype)
    encoded = iter(tokenizer.encode_batch([part for piece in pieces for part in piece.parts]))
    ids: list[np.ndarray] = []
    pairs: list[tuple[int, int, int]] = []
    length = 0
    for piece in pieces:
        own = [prefix] * starts + [next(encoded) for _ in piece.parts] + [end] * piece.ends
        ids += own
        own_length = sum(map(len, own))
        if piece.prompt is not None:
            prompt = len(own[0]) + len(own[1])
            borrowed = not prompt  # the end of text before an empty prompt
            pairs.append((length - borrowed, prompt + borrowed, own_length + borrowed))
        length += own_length
        starts = piece.ends
    return Encoded(np.concatenate(ids), np.array(pairs, dtype=PAIR))


def encode_all(
    tokenizer: Tokenizer, folder: Path, pieces: Iterable[tuple[str, Piece]], n_bytes: int, workers: int
) -> Iterator[tuple[str, Encoded]]:
    """Sides and tokens of all pieces, in the pieces' order on each side.

    `folder` holds the saved tokenizer; `n_bytes` of text are expected; `workers` = 0 means one for each core.
    """
    workers = workers or available_cores()
    if workers == 1 or n_bytes < POOL_FROM_BYTES:
        yield from ((side, encode_pieces(tokenizer, batch, starts)) for side, batch, starts in _batches(pieces))
        return
    waiting: deque[tuple[str, Future[Encoded]]] = deque()
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(folder,))
    try:
        for side, batch, starts in _batches(pieces):
            waiting.append((side, pool.submit(_encode, batch, starts)))
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
    starts: dict[str, bool] = {}  # whether a side's next batch does; its first one always
    for side, piece in pieces:
        waiting.setdefault(side, []).append(piece)
        sizes[side] = sizes.get(side, 0) + len(piece.text) + 16  # a short document costs more than its text
        if sizes[side] >= BATCH_CHARACTERS:
            batch = waiting.pop(side)
            yield side, batch, starts.get(side, True)
            starts[side] = batch[-1].ends
            del sizes[side]
    yield from ((side, batch, starts.get(side, True)) for side, batch in waiting.items())


def _start(folder: Path) -> None:
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other cores have workers of their own
    _worker_tokenizer = Tokenizer.load(folder)


def _encode(pieces: list[Piece], starts: bool) -> Encoded:
    return encode_pieces(_worker_tokenizer, pieces, starts)
