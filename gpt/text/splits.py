"""Which text is held out, and what a first pass over the corpus learns.

A document is held out when a hash of its text (of its first piece) is a small fraction, so equal documents are always
on the same side, whatever their order; of a prompt/completion pair, a hash of the prompt, so that a prompt with several
completions is too. Of a single document, the end is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from gpt.options import UserError
from gpt.text.documents import Piece, Source

SPLITS = ("train", "val")
EVERY_HASH = 2**64  # as a threshold: everything is held out
_BLOCK = 16_384  # characters; the grain in which training text for a tokenizer is spread over the corpus


class CharacterCounts:
    """How often each code point occurs, in flat memory."""

    def __init__(self) -> None:
        self.counts = np.zeros(0x110000, dtype=np.int64)
        self._waiting: list[str] = []
        self._length = 0

    def add(self, text: str) -> None:
        self._waiting.append(text)
        self._length += len(text)
        if self._length > 1 << 20:
            self.flush()

    def flush(self) -> None:
        points = np.frombuffer("".join(self._waiting).encode("utf-32-le"), dtype="<u4")
        found, counts = np.unique(points, return_counts=True)
        self.counts[found] += counts
        self._waiting, self._length = [], 0

    def characters(self, at_least: int = 1) -> list[str]:
        """Those seen so often, by code point."""
        self.flush()
        return [chr(point) for point in np.flatnonzero(self.counts >= at_least)]


@dataclass
class Scan:
    """What a first pass over a source found. Hashes are of 64 bits."""

    n_documents: int = 0
    n_characters: int = 0
    n_bytes: int = 0  # of UTF-8
    completion_bytes: int = 0  # of UTF-8, of pairs
    hashes: tuple[int, int] | None = None  # smallest and largest

    @property
    def totals(self) -> tuple[int, int, int]:
        return self.n_documents, self.n_characters, self.n_bytes

    def add(self, piece: Piece, starts: bool) -> None:
        self.n_documents += starts
        self.n_characters += len(piece.text)
        self.n_bytes += len(piece.text.encode("utf-8"))
        if piece.prompt is not None:
            self.completion_bytes += len(piece.text[piece.prompt :].encode("utf-8"))

    def add_hash(self, own: int) -> None:
        low, high = self.hashes or (own, own)
        self.hashes = (min(low, own), max(high, own))


def _hash(piece: Piece, by_prompt: bool) -> int:
    text = piece.text[: piece.prompt] if by_prompt else piece.text
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def with_starts(pieces: Iterator[Piece]) -> Iterator[tuple[Piece, bool]]:
    """Each piece, and whether it starts a document."""
    starts = True
    for piece in pieces:
        yield piece, starts
        starts = piece.ends


def scan(source: Source, option: str, characters: CharacterCounts | None) -> Scan:
    """Read everything once. Raises UserError, naming `option`, where there is no text at all."""
    found = Scan()
    for piece, starts in with_starts(source.read()):
        found.add(piece, starts)
        if starts:
            found.add_hash(_hash(piece, source.by_prompt))
        if characters:
            characters.add(piece.text)
    if not found.n_documents:
        raise UserError(f"{option}: there is no text in {source.description}; give files that hold some")
    return found


@dataclass
class Split:
    """A corpus divided in training and validation text.

    Held out is `val_source`; or where that is None, what follows character `cut`; or where that is None too, the
    documents whose hash is below `threshold`.
    """

    source: Source
    val_source: Source | None = None
    cut: int | None = None
    threshold: int = 0
    routed: dict[str, Scan] = field(default_factory=dict)  # what the last whole `pieces` gave each side

    def pieces(self, only_train: bool = False) -> Iterator[tuple[str, Piece]]:
        """All text in order, each piece with its side. On training text cut off by `cut`, no piece ends."""
        routed = {name: Scan() for name in SPLITS}
        sides = self._by_position() if self.cut is not None else self._by_document(only_train)
        for side, piece, starts in sides:
            routed[side].add(piece, starts)
            if side == "train" or not only_train:
                yield side, piece
        self.routed = routed

    def _by_document(self, only_train: bool) -> Iterator[tuple[str, Piece, bool]]:
        side = "train"
        for piece, starts in with_starts(self.source.read()):
            if starts and self.val_source is None:
                side = "val" if _hash(piece, self.source.by_prompt) < self.threshold else "train"
            yield side, piece, starts
        if self.val_source and not only_train:
            for piece, starts in with_starts(self.val_source.read()):
                yield "val", piece, starts

    def _by_position(self) -> Iterator[tuple[str, Piece, bool]]:
        assert self.cut is not None
        position = 0
        for piece in self.source.read():
            left = max(self.cut - position, 0)
            if left:
                yield "train", Piece(piece.text[:left], ends=False), position == 0
            if left < len(piece.text):
                yield "val", Piece(piece.text[left:], piece.ends), position <= self.cut
            position += len(piece.text)


def divide(source: Source, found: Scan, val_fraction: float) -> Split:
    """Hold out about `val_fraction` of the documents; of a single one, its last characters.

    Both sides get something: the documents with the smallest hash are held out, those with the largest are not.
    Raises UserError where that cannot be.
    """
    low, high = found.hashes or (0, 0)
    if found.n_documents == 1 and source.pairs:
        raise UserError(f"{source.description}: a single pair cannot be divided; give more, or name data.val_files")
    if found.n_documents == 1:
        cut = int(found.n_characters * (1 - val_fraction))
        if not 0 < cut < found.n_characters:
            raise UserError(
                f"data.val_fraction={val_fraction}: leaves nothing on one side of the only document's "
                f"{found.n_characters} characters; give more text"
            )
        return Split(source, cut=cut)
    if low == high:
        what = "prompts" if source.by_prompt else "pairs" if source.pairs else "documents"
        raise UserError(
            f"{source.description}: all {found.n_documents:,} {what} are the same, so none can be held out; "
            "give other text, or name data.val_files"
        )
    return Split(source, threshold=min(max(int(val_fraction * EVERY_HASH), low + 1), high))


def training_texts(split: Split, n_bytes: int, most: int) -> Callable[[], Iterator[str]]:
    """About `most` bytes of the training text, in blocks spread evenly; all where the corpus's `n_bytes` are fewer."""

    def texts() -> Iterator[str]:
        due = n_bytes
        for _, piece in split.pieces(only_train=True):
            if n_bytes <= most:
                yield from piece.parts
                continue
            for block in _blocks(piece):
                due += most
                if due >= n_bytes:
                    due -= n_bytes
                    yield from block

    return texts


def _blocks(piece: Piece) -> Iterator[tuple[str, ...]]:
    """What is chosen or not as a whole: stretches of a document; a pair, so that no rhythm picks one kind of part."""
    if piece.prompt is not None:
        yield piece.parts
    else:
        yield from ((piece.text[start : start + _BLOCK],) for start in range(0, len(piece.text), _BLOCK))
