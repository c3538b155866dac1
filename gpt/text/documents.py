"""Readers: from people's files to documents, a piece at a time, in flat memory.

A `Source` lists its files and yields `Piece`s: a short document is one piece, a long one is several, cut at line ends
where there are any. Text is never altered and never repaired: bytes that are no valid UTF-8 (or UTF-16 with its mark)
are an error that names the file and the byte, and only a byte order mark is left out. A prompt/completion pair is one
piece, however long.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpt.config import DataConfig
from gpt.options import UserError
from gpt.text.downloads import SHAKESPEARE_NAME, fetch_shakespeare, hub_parts, hub_records, local_records
from gpt.text.durable import Unpublished
from gpt.text.files import find_files, list_folder
from gpt.text.records import Record, between_records, read_json
from gpt.text.spans import Cut, Span, at_blank_lines, decode, in_parts, in_text, reading
from gpt.text.templates import Template

PIECE_CHARACTERS = 1 << 20  # a longer document streams in pieces of at most so many characters


@dataclass(frozen=True)
class Piece:
    """A document, or a stretch of a long one. `ends`: it is the document's last.

    Of a prompt/completion pair, `text` is the one and then the other, and `prompt` is how many characters of it are
    the prompt.
    """

    text: str
    ends: bool
    prompt: int | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The texts that are tokenized apart: of a pair, the prompt and the completion."""
        return (self.text,) if self.prompt is None else (self.text[: self.prompt], self.text[self.prompt :])


@dataclass(frozen=True)
class Part:
    """A stretch of a source, which can be read alone, and again. `name` tells it from every other one.

    `continues`: its first piece goes on with the document in which the part before it ended. `files`: it is in these.
    """

    name: str
    read: Callable[[], Iterator[Piece]]
    continues: bool = False
    files: tuple[Path, ...] = ()

    def pieces(self) -> Iterator[tuple[Piece, bool]]:
        """Each piece, and whether it starts a document."""
        starts = not self.continues
        for piece in self.read():
            yield piece, starts
            starts = piece.ends


@dataclass(frozen=True)
class Source:
    """Where documents come from.

    `description` is a line for people; `files` are what it reads, sorted, for noticing changes; `parts` lists what it
    consists of, the same each time; where `remote`, reading again costs a download. `pairs`: its documents are
    prompt/completion pairs, and with `by_prompt`, those of the same prompt belong on the same side of a split.
    """

    description: str
    files: tuple[Path, ...]
    parts: Callable[[], list[Part]]
    remote: bool = False
    pairs: bool = False
    by_prompt: bool = False

    def read(self) -> Iterator[Piece]:
        for part in self.parts():
            yield from part.read()


def open_source(
    data: DataConfig,
    downloads: Path,
    held_out: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Source:
    """The source that `data` describes, of its `files`, or of its `val_files` where `held_out`.

    `downloads` is the folder for what is fetched once. Only looks at names: no corpus file is read.
    Raises UserError for files that are not there and for a template that cannot be.
    """
    if data.name == "stdlib":
        files = tuple(_stdlib_files())
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        name = f"{len(files):,} Python files of Python {version}'s library"
        return Source(name, files, partial(_parts, files, _read_python))
    if data.name == "shakespeare":
        file = fetch_shakespeare(downloads, report)
        return Source(SHAKESPEARE_NAME, (file,), partial(_parts, (file,), partial(read_texts, documents="whole")))
    if data.name == "huggingface" and data.path is not None:
        return _open_data_set(data, data.path)
    option, patterns = ("data.val_files", data.val_files) if held_out else ("data.files", data.files)
    files = tuple(find_files(patterns, option))
    if data.name == "pairs":
        return _open_pairs(data, files)
    cut: Cut | None = None
    if data.name == "text":
        if not held_out and any(file.suffix.lower() == ".jsonl" for file in files):
            report("data=text takes .jsonl files as they are, braces and all; data=jsonl reads the text in them")
        cut = in_text if data.documents == "whole" else at_blank_lines
        read: Reader = partial(read_texts, documents=data.documents)
    else:
        template = _template(data)
        cut, records = (between_records, read_json) if data.name == "jsonl" else (None, local_records)
        read = lambda spans: _render(records(spans), template)  # noqa: E731
    return Source(_count(files), files, partial(_parts, files, read, cut))


Reader = Callable[[tuple[Span, ...]], Iterator[Piece]]


def _parts(files: tuple[Path, ...], read: Reader, cut: Cut | None = None) -> list[Part]:
    parts = []
    for spans in in_parts(files, cut):
        name = " ".join(f"{span.file}:{span.start}-{span.stop or ''}" for span in spans)
        continues, inside = cut is in_text and spans[0].start > 0, tuple(span.file for span in spans)
        parts.append(Part(name, partial(read, spans), continues, inside))
    return parts


def _open_data_set(data: DataConfig, path: str) -> Source:
    template = _template(data)
    folder = Path(path).expanduser()
    files = tuple(list_folder(folder, any_suffix=True)) if folder.is_dir() else ()
    name = " ".join(filter(None, [path, data.subset, data.split]))

    def parts() -> list[Part]:
        version, of = hub_parts(data)
        read = lambda number: _render(hub_records(data, number, of), template)  # noqa: E731
        return [Part(f"{number} of {of} {version}", partial(read, number)) for number in range(of)]

    return Source(name, files, parts, remote=not files)


def _template(data: DataConfig) -> Template:
    return Template.of_field(data.column) if data.column is not None else Template.parse(data.template)


def _open_pairs(data: DataConfig, files: tuple[Path, ...]) -> Source:
    prompt = Template.parse(data.prompt, "data.prompt", needs_field=False)
    completion = Template.parse(data.completion, "data.completion")
    read = lambda spans: _render_pairs(read_json(spans), prompt, completion)  # noqa: E731
    parts = partial(_parts, files, read, between_records)
    return Source(_count(files), files, parts, pairs=True, by_prompt=prompt.has_field)


def _count(files: tuple[Path, ...]) -> str:
    if len(files) != 1:
        return f"{len(files):,} files"
    return files[0].name.encode("utf-8", "backslashreplace").decode("utf-8")  # a name may be any bytes


# --- copies of what is far away ----------------------------------------------------------------------------------


def spooling(pieces: Iterable[Piece], file: Path) -> Iterator[Piece]:
    """The same pieces, which have been copied into `file` when the last of them is taken."""
    copy = Unpublished(file)
    try:
        for piece in pieces:
            copy.file.write(json.dumps([piece.text, piece.ends]).encode("utf-8") + b"\n")
            yield piece
        copy.publish()
    finally:
        copy.discard()


def read_spool(file: Path) -> Iterator[Piece]:
    with file.open(encoding="utf-8") as lines:
        yield from (Piece(*json.loads(line)) for line in lines)


# --- documents from text -----------------------------------------------------------------------------------------


def pieces_of(fragments: Iterable[str], ends: bool = True) -> Iterator[Piece]:
    """One document's text, in fragments of any length, as pieces. Nothing where there is no text.

    `ends`: the document ends with them.
    """
    held = ""
    for fragment in fragments:
        held, start = held + fragment, 0  # cut once a fragment: one may be a gigabyte
        while len(held) - start > PIECE_CHARACTERS:
            cut = held.rfind("\n", start, start + PIECE_CHARACTERS) + 1 or start + PIECE_CHARACTERS
            yield Piece(held[start:cut], ends=False)
            start = cut
        held = held[start:]
    if held:
        yield Piece(held, ends)


def read_texts(spans: Iterable[Span], documents: str) -> Iterator[Piece]:
    """Text files, each one document (`whole`), or several with blank lines between (`blank_line`)."""
    for span in spans:
        if documents == "whole":
            yield from pieces_of(decode(span), ends=span.stop is None)
        else:
            yield from _paragraphs(_lines(decode(span)))


def _lines(fragments: Iterable[str]) -> Iterator[str]:
    """Lines with their ends; a line longer than a piece comes in parts."""
    held = ""
    for fragment in fragments:
        *whole, held = (held + fragment).split("\n")
        yield from (line + "\n" for line in whole)
        if len(held) > PIECE_CHARACTERS:
            yield held
            held = ""
    if held:
        yield held


def _paragraphs(lines: Iterator[str]) -> Iterator[Piece]:
    """Documents with blank lines between them. Its last line end is no part of a document."""

    def paragraph(line: str) -> Iterator[str]:
        while line.strip():
            following = next(lines, "")
            yield line if following.strip() else line.rstrip("\r\n")
            line = following

    for line in lines:
        yield from pieces_of(paragraph(line))


# --- documents from records --------------------------------------------------------------------------------------


def _render(records: Iterator[Record], template: Template) -> Iterator[Piece]:
    for place, record in records:
        yield from pieces_of([_rendered(template, record, place)])


def _render_pairs(records: Iterator[Record], prompt: Template, completion: Template) -> Iterator[Piece]:
    for place, record in records:
        before, after = (_rendered(template, record, place) for template in (prompt, completion))
        if not after:
            raise UserError(
                f"{place}: {completion.option} gives no text, so there is nothing to learn; mend or drop this record"
            )
        yield Piece(before + after, ends=True, prompt=len(before))


def _rendered(template: Template, record: dict[str, Any], place: object) -> str:
    text = template.render(record, place)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: {text[error.start]!r} is half of a surrogate pair, not a character; mend or drop this record"
        ) from None
    return text


# --- Python's own library ----------------------------------------------------------------------------------------

# Installed packages, tests, generated documentation and code pages: not what a person would write.
_NOT_PROSE = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data", "encodings",
}  # fmt: skip


def _stdlib_files() -> Iterator[Path]:
    """Every .py file of the standard library but `_NOT_PROSE`, sorted by path."""
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(set(folders) - _NOT_PROSE)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _read_python(spans: Iterable[Span]) -> Iterator[Piece]:
    """Python files by their declared encoding, a document each. The library's few that do not decode are skipped."""
    for span in spans:
        try:
            with reading(span.file), tokenize.open(span.file) as stream:
                text = stream.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        yield from pieces_of([text])
