"""JSONL files → records, each with its place, for messages that name the line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt.options import UserError


def read_jsonl(files: Iterable[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's place, as `file:line`, and its JSON object. Blank lines are skipped.

    Raises UserError where a line is not valid UTF-8, not JSON, or not an object.
    """
    for file in files:
        offset = 0
        try:
            with file.open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        place = f"{file}:{number}"
                        yield place, _object(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, place, offset)
                    offset += len(line)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _object(line: bytes, place: str, offset: int) -> dict[str, Any]:
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
