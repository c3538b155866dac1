"""Templates: a document from the fields of a record, as in '{title}\\n{author}\\n{text}'.

Only plain names are replaced: no attribute, index, conversion or format, so a template from anywhere is harmless.
`{{` and `}}` are literal braces.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from gpt.options import UserError

_TOKENS = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")


@dataclass(frozen=True)
class Template:
    """`parts`: (text, False) for literal text, (name, True) for a field. `option` is where it was written."""

    parts: tuple[tuple[str, bool], ...]
    option: str

    @classmethod
    def parse(cls, template: str, option: str = "data.template", needs_field: bool = True) -> Template:
        """Raises UserError, naming `option`, where a brace has no partner, a field no name, or a field is missing."""
        parts = []
        for token in _TOKENS.findall(template):
            if token in ("{{", "}}"):
                parts.append((token[0], False))
            elif token in ("{", "}", "{}"):
                raise UserError(
                    f"{option}: {template!r} has a {token!r} that names no field; write {{text}} for a field and "
                    "{{ or }} for a brace"
                )
            elif token.startswith("{"):
                parts.append((token[1:-1], True))
            else:
                parts.append((token, False))
        parsed = cls(tuple(parts), option)
        if needs_field and not parsed.has_field:
            raise UserError(f"{option}: {template!r} uses no field, so all documents would be alike; write {{text}}")
        return parsed

    @classmethod
    def of_field(cls, name: str) -> Template:
        """Just the field `name`, whatever characters are in its name."""
        return cls(((name, True),), "data.column")

    @property
    def has_field(self) -> bool:
        return any(is_field for _, is_field in self.parts)

    def render(self, record: dict[str, Any], place: object) -> str:
        """The text of `record`. Strings stand as they are, null is empty, a list of strings has a line for
        each, other values are JSON.

        Raises UserError, naming `place` (such as file:line) and the fields there are, where one is missing.
        """
        missing = [name for name, is_field in self.parts if is_field and name not in record]
        if missing:
            raise UserError(
                f"{place}: no field {missing[0]!r}, only {', '.join(map(repr, record)) or 'none at all'}; "
                f"name one that is there in {self.option}"
            )
        return "".join(_text(record[part]) if is_field else part for part, is_field in self.parts)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)  # as the verses of a poem often are
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
