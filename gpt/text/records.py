"""JSONL files → records, each with its place, for messages that name the line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gpt.options import UserError
from gpt.text.spans import READ_BYTES, Span, reading


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


def read_jsonl(spans: Iterable[Span]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Each line's place and its JSON object. Blank lines are skipped. Spans begin and stop between lines.

    Raises UserError where a line is not valid UTF-8, not JSON, or not an object.
    """
    for span in spans:
        offset = span.start
        with reading(span.file), span.file.open("rb") as stream:
            stream.seek(span.start)
            for number, line in enumerate(stream, 1):
                if span.stop is not None and offset >= span.stop:
                    break
                if line.strip():
                    place = Place(span, number)
                    yield place, _object(line if offset else line.removeprefix(codecs.BOM_UTF8), place, offset)
                offset += len(line)


def _object(line: bytes, place: Place, offset: int) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: not valid UTF-8 at byte {offset + error.start} of the file ({error.reason}); convert it to UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error}); each line must hold one JSON object") from None
    if not isinstance(record, dict):
        raise UserError(f'{place}: {type(record).__name__}, not an object; each line must be like {{"text": "…"}}')
    return record
