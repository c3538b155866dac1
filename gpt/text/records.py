"""JSON files → records, each with its place, for messages that name it.

A file has an object on each line (JSONL), or is one array of objects, as much that is downloaded is.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from gpt.options import UserError
from gpt.text.spans import READ_BYTES, Span, between_lines, check_unpacked, decode, reading

HEAD_BYTES = 4096  # of a file, among which an array begins
LARGEST_ELEMENT = 2**28  # characters of one in an array: where more come, its end is missing
LONGEST_WORD = 16  # more characters than any that is parsed as a whole, as -Infinity or \\ud83d\\ude00
BLANKS = " \t\r\n"

Record = tuple[object, dict[str, Any]]  # where it is, as `str` says it, and what it holds


@dataclass(frozen=True)
class Place:
    """The `number`-th line of a span, as `file:line`; the lines before the span are counted once somebody asks."""

    span: Span
    number: int

    def __str__(self) -> str:
        before, left = 0, self.span.start
        with reading(self.span.file), self.span.file.open("rb") as stream:
            while left and (data := stream.read(min(READ_BYTES, left))):
                before += data.count(b"\n")
                left -= len(data)
        return f"{self.span.file}:{before + self.number}"


def between_records(stream: BinaryIO, place: int) -> int | None:
    """Where at or after a place a file can be cut: between lines, and nowhere in an array."""
    return None if _is_array(_head(stream)) else between_lines(stream, place)


def _head(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read(HEAD_BYTES)


def _is_array(head: bytes) -> bool:
    return head.removeprefix(codecs.BOM_UTF8).lstrip(BLANKS.encode()).startswith(b"[")


def read_json(spans: Iterable[Span]) -> Iterator[Record]:
    """The place and the object of each line, or of each element where a file is an array.

    Blank lines are skipped. Spans begin and stop between lines. Raises UserError for what is not valid UTF-8, not JSON,
    or not an object.
    """
    for span in spans:
        with reading(span.file), span.file.open("rb") as stream:
            head = _head(stream)
        check_unpacked(span.file, head)
        yield from _elements(span) if _is_array(head) and not span.start else _lines(span)


# --- an object a line --------------------------------------------------------------------------------------------


def _lines(span: Span) -> Iterator[Record]:
    offset = span.start
    with reading(span.file), span.file.open("rb") as stream:
        stream.seek(span.start)
        for number, line in enumerate(stream, 1):
            if span.stop is not None and offset >= span.stop:
                break
            if line.strip():
                place = Place(span, number)
                yield place, _parsed(line if offset else line.removeprefix(codecs.BOM_UTF8), place, offset)
            offset += len(line)


def _parsed(line: bytes, place: Place, offset: int) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: not valid UTF-8 at byte {offset + error.start} of the file ({error.reason}); convert it to UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error}); each line must hold one JSON object") from None
    return _object(record, place)


def _object(record: Any, place: object) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(f'{place}: {type(record).__name__}, not an object; each must be like {{"text": "…"}}')
    return record


# --- one array ---------------------------------------------------------------------------------------------------


def _elements(span: Span) -> Iterator[Record]:
    """The objects of an array, in the memory that a block of the file and the longest of them take."""
    text = _Text(span)
    text.take("[")
    number, more = 0, text.peek() != "]"
    while more:
        number += 1
        place = f"{span.file}: object {number:,} of the array"
        yield place, _object(text.value(place), place)
        more = text.peek() == ","
        if more:
            text.take(",")
        elif text.peek() != "]":
            raise UserError(f"{place}: a comma or ] must follow, not {text.peek()!r}; mend the file")
    text.take("]")
    if text.peek():
        raise UserError(f"{span.file}: {text.peek()!r} follows the end of the array; leave out what is not JSON")


class _Text:
    """The text of a file, of which what has been taken is forgotten."""

    def __init__(self, span: Span) -> None:
        self.fragments = filter(None, decode(span))
        self.held, self.start = "", 0
        self.parse = json.JSONDecoder().raw_decode

    def read(self) -> bool:
        """Hold at least twice as much of what is not taken. False where there is no more."""
        parts = [self.held[self.start :]]
        wanted = 2 * len(parts[0]) + 1
        while len(parts[0]) + sum(map(len, parts[1:])) < wanted and (fragment := next(self.fragments, "")):
            parts.append(fragment)
        self.held, self.start = "".join(parts), 0
        return len(parts) > 1

    def peek(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            while self.start < len(self.held):
                if self.held[self.start] not in BLANKS:
                    return self.held[self.start]
                self.start += 1
            if not self.read():
                return ""

    def take(self, character: str) -> None:
        found = self.peek()
        assert found == character
        self.start += 1

    def value(self, place: object) -> Any:
        """Take the JSON value that is next. Raises UserError where there is none."""
        self.peek()
        while True:
            try:
                value, end = self.parse(self.held, self.start)
            except (ValueError, RecursionError) as error:
                if not (self.goes_on(error) and self.read()):
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else error  # not its line and column
                    raise UserError(f"{place}: not JSON ({reason}); mend the file") from None
            else:
                if end < len(self.held) or not self.read():  # a number may go on in the next fragment
                    self.start = end
                    return value

    def goes_on(self, error: Exception) -> bool:
        """Whether what cannot be parsed may only end too early."""
        if not isinstance(error, json.JSONDecodeError) or len(self.held) - self.start > LARGEST_ELEMENT:
            return False
        return error.msg.startswith("Unterminated string") or error.pos > len(self.held) - LONGEST_WORD
