"""Files in parts of about equal size, each of which can be read alone, and their bytes as text.

Small files go together in a part. A large one is cut where its format allows: between lines, or documents, or anywhere
between characters. Where the cuts are depends on the files alone, so every process that looks finds the same parts.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gpt.options import UserError

PART_BYTES = 2**26
# More bytes than so many parts hold make larger ones: each part becomes two files, which stay open while mapped. Files
# that do not fill a part may make up to twice as many.
MOST_PARTS = 128
READ_BYTES = 1 << 20
NO_TEXT = {  # how compressed files begin, and the way out
    b"\x1f\x8b": "compressed; unpack it first (gunzip)",
    b"\x28\xb5\x2f\xfd": "compressed; unpack it first (unzstd)",
    b"\xfd7zXZ\0": "compressed; unpack it first (unxz)",
    **{b"BZh%d1AY&SY" % level: "compressed; unpack it first (bunzip2)" for level in range(1, 10)},
    b"PK\3\4": "a zip archive, or a document of an office or a book; give the text in it",
}

Cut = Callable[[BinaryIO, int], int | None]  # a file and a place → where at or after it a part may begin, if anywhere


@dataclass(frozen=True)
class Span:
    """A stretch of a file, in bytes; without `stop`, to its end, wherever that is when it is read."""

    file: Path
    start: int = 0
    stop: int | None = None


def in_parts(files: Sequence[Path], cut: Cut | None = None) -> list[tuple[Span, ...]]:
    """All of the files, in their order. Files that are larger than a part are cut up where there is a `cut`."""
    sizes = [_size(file) for file in files]
    most = max(PART_BYTES, -(-sum(sizes) // MOST_PARTS))
    parts: list[tuple[Span, ...]] = []
    waiting: list[Span] = []
    weight = 0
    for file, size in zip(files, sizes, strict=True):
        if waiting and weight + size > most:
            parts.append(tuple(waiting))
            waiting, weight = [], 0
        if size > most:
            parts += [(span,) for span in _cut_up(file, size, most, cut)]
        else:
            waiting.append(Span(file))
            weight += size
    return [*parts, tuple(waiting)] if waiting else parts


def _size(file: Path) -> int:
    with reading(file):
        return file.stat().st_size


def _cut_up(file: Path, size: int, most: int, cut: Cut | None) -> list[Span]:
    starts = [0]
    with reading(file), file.open("rb") as stream:
        if cut is None or stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return [Span(file)]
        while starts[-1] + most < size:
            start = cut(stream, starts[-1] + most)
            if start is None or start >= size:
                break
            starts.append(start)
    return [Span(file, start, stop) for start, stop in zip(starts, [*starts[1:], None], strict=True)]


def between_lines(stream: BinaryIO, place: int) -> int | None:
    return _after(re.compile(rb"\n"), stream, place)


def at_blank_lines(stream: BinaryIO, place: int) -> int | None:
    return _after(re.compile(rb"\n\r?\n"), stream, place)


def in_text(stream: BinaryIO, place: int) -> int | None:
    """Between lines where one ends soon, else between characters."""
    stream.seek(place)
    data = stream.read(READ_BYTES)
    end = data.find(b"\n")
    if end >= 0:
        return place + end + 1
    return place + next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)  # 10xxxxxx continues one


def _after(pattern: re.Pattern[bytes], stream: BinaryIO, place: int) -> int | None:
    """The end of the first match that begins at `place` or later; of no more than three bytes."""
    stream.seek(place)
    held = b""
    while data := stream.read(READ_BYTES):
        held += data
        if found := pattern.search(held):
            return place + found.end()
        place += len(held[:-2])
        held = held[-2:]
    return None


class Unreadable(UserError):
    """A file that cannot be read, but may be the next time: nothing is wrong with what is in it."""


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """A file that cannot be read is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise Unreadable(f"{file}: cannot be read ({error.strerror}); see to it, and run again") from None


# --- text --------------------------------------------------------------------------------------------------------


def decode(span: Span) -> Iterator[str]:
    """The text of a UTF-8 file, or of one in UTF-16 with a byte order mark, in fragments.

    Raises UserError, with the byte's offset in the file, where it is neither, or holds NUL as binary files do.
    """
    try:
        with reading(span.file), span.file.open("rb") as stream:
            blocks = _blocks(stream, span)
            data = next(blocks, b"")
            check_unpacked(span.file, data)
            name, mark = ("utf-8", 0) if span.start else _encoding(data)
            rest, offset = data[mark:], span.start + mark  # bytes not decoded yet, and where in the file they start
            while data:
                data = next(blocks, b"")
                text, used = _decode(rest, name, final=not data)
                if "\0" in text:
                    at = offset + len(text[: text.index("\0")].encode(name))
                    raise UserError(
                        f"{span.file}: a NUL byte at offset {at}: this is not a text file; leave it out, or, if it is "
                        "in UTF-16 without its mark, convert it (iconv -f UTF-16LE -t UTF-8)"
                    )
                yield text
                rest, offset = rest[used:] + data, offset + used
    except UnicodeDecodeError as error:
        raise UserError(
            f"{span.file}: not valid {name.upper()} at byte {offset + error.start} ({error.reason}); convert the file "
            "to UTF-8 (iconv -f ENCODING -t UTF-8), or leave it out"
        ) from None


def check_unpacked(file: Path, head: bytes) -> None:
    """Raises UserError where a file that begins so is compressed."""
    for magic, found in NO_TEXT.items():
        if head.startswith(magic):
            raise UserError(f"{file}: {found}")


def _blocks(stream: BinaryIO, span: Span) -> Iterator[bytes]:
    stream.seek(span.start)
    place = span.start
    while data := stream.read(READ_BYTES if span.stop is None else min(READ_BYTES, span.stop - place)):
        yield data
        place += len(data)


def _encoding(head: bytes) -> tuple[str, int]:
    """Codec of a file that starts with `head`, and the length of its byte order mark."""
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if head.startswith(mark):
            return name, len(mark)
    return "utf-8", 0


def _decode(data: bytes, name: str, final: bool) -> tuple[str, int]:
    """Text of the whole characters in `data`, and how many bytes they take."""
    decoders: dict[str, Callable[..., tuple[str, int]]] = {
        "utf-8": codecs.utf_8_decode,
        "utf-16-le": codecs.utf_16_le_decode,
        "utf-16-be": codecs.utf_16_be_decode,
    }
    return decoders[name](data, "strict", final)
