"""Which text is held out, and what a first pass over the corpus learns.

A document is held out when a hash of its text (of its first piece) is a small fraction, so equal documents are always
on the same side, whatever their order; of a prompt/completion pair, a hash of the prompt, so that a prompt with several
completions is too. Of a single document, the end is held out; and of a few long ones, of each, where whole ones would
be far from what is asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpt.options import UserError
from gpt.text.documents import Part, Piece, Source

SPLITS = ("train", "val")
EVERY_HASH = 2**64  # as a threshold: everything is held out
FEW = 64  # documents at most, of which each may be cut
LONG = 10_000  # characters that they have on average, so that their ends are something to measure on
_BLOCK = 16_384  # characters; the grain in which training text for a tokenizer is spread over the corpus


class CharacterCounts:
    """How often each code point occurs, in flat memory."""

    def __init__(self) -> None:
        self._counts: np.ndarray | None = None  # made when it is needed
        self._waiting: list[str] = []
        self._length = 0

    def add(self, text: str) -> None:
        self._waiting.append(text)
        self._length += len(text)
        if self._length > 1 << 20:
            self.flush()

    @property
    def counts(self) -> np.ndarray:
        """By code point, [0x110000]."""
        if self._counts is None:
            self._counts = np.zeros(0x110000, dtype=np.int64)
        return self._counts

    def flush(self) -> None:
        points = np.frombuffer("".join(self._waiting).encode("utf-32-le"), dtype="<u4")
        found, counts = np.unique(points, return_counts=True)
        self.counts[found] += counts
        self._waiting, self._length = [], 0

    def merge(self, found: list[list[int]]) -> None:
        """Add what `found` said elsewhere."""
        points, counts = np.array(found, dtype=np.int64)  # also of a part without text
        self.counts[points] += counts

    @property
    def found(self) -> list[list[int]]:
        """The code points that occur, and how often each."""
        self.flush()
        points = np.flatnonzero(self.counts)
        return [points.tolist(), self.counts[points].tolist()]

    def characters(self, at_least: int = 1) -> list[str]:
        """Those seen so often, by code point."""
        self.flush()
        return [chr(point) for point in np.flatnonzero(self.counts >= at_least)]


@dataclass
class Scan:
    """What a first pass over text found. Hashes are of 64 bits."""

    n_documents: int = 0  # that start in it
    n_characters: int = 0
    n_bytes: int = 0  # of UTF-8
    completion_bytes: int = 0  # of UTF-8, of pairs
    hashes: tuple[int, int] | None = None  # smallest and largest
    last_hash: int | None = None  # of the last document that starts in it
    characters: list[list[int]] | None = None  # `CharacterCounts.found`, where it was asked for
    before: int = 0  # characters before the first document that starts in it
    few: list[list[int]] | None = field(default_factory=list)  # hash and characters of each document; None: over `FEW`

    @property
    def totals(self) -> tuple[int, int, int]:
        return self.n_documents, self.n_characters, self.n_bytes

    def add(self, piece: Piece, starts: bool) -> None:
        self.n_documents += starts
        self.n_characters += len(piece.text)
        if starts and self.few is not None:
            self.few = [*self.few, [0, 0]] if len(self.few) < FEW else None
        self._lengthen(len(piece.text))
        self.n_bytes += len(piece.text.encode("utf-8"))
        if piece.prompt is not None:
            self.completion_bytes += len(piece.text[piece.prompt :].encode("utf-8"))

    def _lengthen(self, count: int) -> None:
        """Count characters to the last document."""
        if self.few:
            self.few[-1][1] += count
        elif self.few is not None:
            self.before += count

    def add_hash(self, own: int) -> None:
        self.last_hash = own
        if self.few:
            self.few[-1][0] = own
        self._widen(own, own)

    def merge(self, after: Scan) -> None:
        """Add what was found in text that follows; `characters` are left out."""
        self.n_documents += after.n_documents
        self.n_characters += after.n_characters
        self.n_bytes += after.n_bytes
        self.completion_bytes += after.completion_bytes
        self._lengthen(after.before)
        together = None if self.few is None or after.few is None else [*self.few, *map(list, after.few)]
        self.few = together if together is not None and len(together) <= FEW else None
        if after.hashes:
            self._widen(*after.hashes)
            self.last_hash = after.last_hash

    def _widen(self, *hashes: int) -> None:
        low, high = self.hashes or (hashes[0], hashes[0])
        self.hashes = (min(low, *hashes), max(high, *hashes))


def _hash(piece: Piece, by_prompt: bool) -> int:
    text = piece.text[: piece.prompt] if by_prompt else piece.text
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def scan(pieces: Iterable[tuple[Piece, bool]], by_prompt: bool, count_characters: bool) -> Scan:
    """Read a part once."""
    found, characters = Scan(), CharacterCounts() if count_characters else None
    for piece, starts in pieces:
        found.add(piece, starts)
        if starts:
            found.add_hash(_hash(piece, by_prompt))
        if characters:
            characters.add(piece.text)
    if characters:
        found.characters = characters.found
    return found


@dataclass(frozen=True)
class Share:
    """A part of the corpus, and what its division hangs on.

    `held_out`: it is of the files that are held out. `position`: characters of the corpus before it. `begun`: the hash
    of the document with which it goes on, where it does.
    """

    part: Part
    held_out: bool = False
    position: int = 0
    begun: int | None = None


@dataclass(frozen=True)
class Split:
    """A corpus divided in training and validation text.

    Besides what is `held_out` anyway, that is the end of each document, where there are `cuts`: at which character of
    the corpus it begins, and where the document ends. Else, the documents whose hash is below `threshold`.
    """

    by_prompt: bool = False
    cuts: tuple[tuple[int, int], ...] = ()
    threshold: int = 0

    def pieces(self, share: Share) -> Iterator[tuple[str, Piece, bool]]:
        """A part's text in order: the side, a piece, whether it starts a document on that side.

        A training text that is cut off inside a document ends there too, but for the last.
        """
        if share.held_out:
            yield from (("val", piece, starts) for piece, starts in share.part.pieces())
        elif self.cuts:
            yield from self._by_position(share)
        else:
            yield from self._by_document(share)

    def cut_within(self, share: Share, n_characters: int) -> int:
        """How many documents have their cut in a part of so many characters: they are on both sides."""
        return sum(share.position <= cut < min(end, share.position + n_characters) for cut, end in self.cuts)

    def _by_document(self, share: Share) -> Iterator[tuple[str, Piece, bool]]:
        own = share.begun
        for piece, starts in share.part.pieces():
            own = _hash(piece, self.by_prompt) if starts or own is None else own
            yield "val" if own < self.threshold else "train", piece, starts

    def _by_position(self, share: Share) -> Iterator[tuple[str, Piece, bool]]:
        position, (_, last) = share.position, self.cuts[-1]
        for piece, starts in share.part.pieces():
            cut, end = next(one for one in self.cuts if position < one[1])
            left, stop = max(cut - position, 0), position + len(piece.text)
            if left:
                yield "train", Piece(piece.text[:left], ends=cut <= stop and (cut == end or end < last)), starts
            if cut < stop:
                yield "val", Piece(piece.text[left:], piece.ends), position <= cut
            position = stop


def divide(source: Source, found: Scan, val_fraction: float) -> Split:
    """Hold out about `val_fraction` of the documents; of a single one, its last characters, and of a few long ones,
    those of each, where whole documents would be less than half of that, or more than twice.

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
        return Split(cuts=((cut, found.n_characters),))
    if low == high:
        what = "prompts" if source.by_prompt else "pairs" if source.pairs else "documents"
        raise UserError(
            f"{source.description}: all {found.n_documents:,} {what} are the same, so none can be held out; "
            "give other text, or name data.val_files"
        )
    threshold = min(max(int(val_fraction * EVERY_HASH), low + 1), high)
    if not source.pairs and found.few and found.n_characters >= LONG * found.n_documents:
        held_out = sum(length for own, length in found.few if own < threshold)
        cuts = tuple(ends(found.few, val_fraction))
        usual = val_fraction / 2 <= held_out / found.n_characters <= 2 * val_fraction
        if not usual and any(cut < end for cut, end in cuts):
            return Split(cuts=cuts)
    return Split(source.by_prompt, threshold=threshold)


def ends(documents: Iterable[Sequence[int]], val_fraction: float) -> Iterator[tuple[int, int]]:
    """Where each of them is cut, and where it ends, in characters of the corpus."""
    start = 0
    for _, length in documents:
        yield start + math.ceil(length * (1 - val_fraction)), start + length
        start += length


def training_texts(split: Split, shares: Iterable[Share], n_bytes: int, most: int) -> Iterator[str]:
    """About `most` bytes of the training text, in blocks spread evenly; all where the corpus's `n_bytes` are fewer."""
    due = n_bytes
    for piece in (piece for share in shares for side, piece, _ in split.pieces(share) if side == "train"):
        if n_bytes <= most:
            yield from piece.parts
            continue
        for block in _blocks(piece):
            due += most
            if due >= n_bytes:
                due -= n_bytes
                yield from block


def _blocks(piece: Piece) -> Iterator[tuple[str, ...]]:
    """What is chosen or not as a whole: stretches of a document; a pair, so that no rhythm picks one kind of part."""
    if piece.prompt is not None:
        yield piece.parts
    else:
        yield from ((piece.text[start : start + _BLOCK],) for start in range(0, len(piece.text), _BLOCK))
