"""Readers: from people's files to documents, a piece at a time, in flat memory.

A `Source` lists its files and yields `Piece`s: a short document is one piece, a long one is several, cut at line ends
where there are any. Text is never altered and never repaired: bytes that are no valid UTF-8 (or UTF-16 with its mark)
are an error that names the file and the byte, and only a byte order mark is left away. A prompt/completion pair is one
piece, however long.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
import sysconfig
import time
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt.config import DataConfig
from gpt.options import UserError
from gpt.text.downloads import SHAKESPEARE_NAME, fetch_shakespeare, hub_records, local_records
from gpt.text.files import find_files, list_folder
from gpt.text.records import read_jsonl
from gpt.text.templates import Template

PIECE_CHARACTERS = 1 << 20  # a longer document streams in pieces of at most so many characters
_READ_BYTES = 1 << 20


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
class Source:
    """Where documents come from.

    `description` is a line for people; `files` are what it reads, sorted, for noticing changes; `read` starts over each
    time; where `remote`, reading again costs a download. `pairs`: its documents are prompt/completion pairs, and with
    `by_prompt`, those of the same prompt belong on the same side of a split.
    """

    description: str
    files: tuple[Path, ...]
    read: Callable[[], Iterator[Piece]]
    remote: bool = False
    pairs: bool = False
    by_prompt: bool = False


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
        return Source(f"{len(files):,} Python files of Python {version}'s library", files, lambda: _read_python(files))
    if data.name == "shakespeare":
        file = fetch_shakespeare(downloads, report)
        return Source(SHAKESPEARE_NAME, (file,), lambda: read_texts((file,), "whole"))
    option, patterns = ("data.val_files", data.val_files) if held_out else ("data.files", data.files)
    if data.name == "text":
        files = tuple(find_files(patterns, option))
        return Source(_count(files), files, lambda: read_texts(files, data.documents))
    if data.name == "pairs":
        return _open_pairs(data, tuple(find_files(patterns, option)))
    template = Template.of_field(data.column) if data.column is not None else Template.parse(data.template)
    if data.name == "jsonl":
        files = tuple(find_files(patterns, option))
        return Source(_count(files), files, lambda: _render(read_jsonl(files), template))
    if data.path is None:
        files = tuple(find_files(patterns, option))
        return Source(_count(files), files, lambda: _render(local_records(files), template))
    folder = Path(data.path).expanduser()
    files = tuple(list_folder(folder, any_suffix=True)) if folder.is_dir() else ()
    name = " ".join(filter(None, [data.path, data.subset, data.split]))
    return Source(name, files, lambda: _render(hub_records(data), template), remote=not files)


def _open_pairs(data: DataConfig, files: tuple[Path, ...]) -> Source:
    prompt = Template.parse(data.prompt, "data.prompt", needs_field=False)
    completion = Template.parse(data.completion, "data.completion")
    read = lambda: _render_pairs(read_jsonl(files), prompt, completion)  # noqa: E731
    return Source(_count(files), files, read, pairs=True, by_prompt=prompt.has_field)


def _count(files: tuple[Path, ...]) -> str:
    if len(files) != 1:
        return f"{len(files):,} files"
    return files[0].name.encode("utf-8", "backslashreplace").decode("utf-8")  # a name may be any bytes


def spooled(source: Source, file: Path, report: Callable[[str], None]) -> Source:
    """A copy on disk of a source that would have to be downloaded for each pass."""
    started, count = time.monotonic(), 0
    with file.open("w", encoding="utf-8") as out:
        for piece in source.read():
            out.write(json.dumps([piece.text, piece.ends]) + "\n")
            count += piece.ends
            if time.monotonic() - started > 10:
                report(f"Downloaded {count:,} documents …")
                started = time.monotonic()

    def read() -> Iterator[Piece]:
        with file.open(encoding="utf-8") as lines:
            yield from (Piece(*json.loads(line)) for line in lines)

    return replace(source, read=read, remote=False)


# --- documents from text -----------------------------------------------------------------------------------------


def pieces_of(fragments: Iterable[str]) -> Iterator[Piece]:
    """One document's text, in fragments of any length, as pieces. Nothing where there is no text."""
    held = ""
    for fragment in fragments:
        held, start = held + fragment, 0  # cut once a fragment: one may be a gigabyte
        while len(held) - start > PIECE_CHARACTERS:
            cut = held.rfind("\n", start, start + PIECE_CHARACTERS) + 1 or start + PIECE_CHARACTERS
            yield Piece(held[start:cut], ends=False)
            start = cut
        held = held[start:]
    if held:
        yield Piece(held, ends=True)


def read_texts(files: Iterable[Path], documents: str) -> Iterator[Piece]:
    """Text files, each one document (`whole`), or several with blank lines between (`blank_line`)."""
    for file in files:
        if documents == "whole":
            yield from pieces_of(decode_file(file))
        else:
            yield from _paragraphs(_lines(decode_file(file)))


def decode_file(file: Path) -> Iterator[str]:
    """The text of a UTF-8 file, or of one in UTF-16 with a byte order mark, in fragments.

    Raises UserError, with the byte's offset, where it is neither, or holds NUL as binary files do.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_READ_BYTES)
            name, mark = _encoding(data)
            rest, offset = data[mark:], mark  # bytes not decoded yet, and where in the file they start
            while data:
                data = stream.read(_READ_BYTES)
                text, used = _decode(rest, name, final=not data)
                if "\0" in text:
                    at = offset + len(text[: text.index("\0")].encode(name))
                    raise UserError(
                        f"{file}: a NUL byte at offset {at}: this is not a text file; leave it out, or, if it is in "
                        "UTF-16 without its mark, convert it (iconv -f UTF-16LE -t UTF-8)"
                    )
                yield text
                rest, offset = rest[used:] + data, offset + used
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not valid {name.upper()} at byte {offset + error.start} ({error.reason}); convert the file to "
            "UTF-8 (iconv -f ENCODING -t UTF-8), or leave it out"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


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


def _render(records: Iterator[tuple[str, dict[str, Any]]], template: Template) -> Iterator[Piece]:
    for place, record in records:
        yield from pieces_of([_rendered(template, record, place)])


def _render_pairs(
    records: Iterator[tuple[str, dict[str, Any]]], prompt: Template, completion: Template
) -> Iterator[Piece]:
    for place, record in records:
        before, after = (_rendered(template, record, place) for template in (prompt, completion))
        if not after:
            raise UserError(
                f"{place}: {completion.option} gives no text, so there is nothing to learn; mend or drop this record"
            )
        yield Piece(before + after, ends=True, prompt=len(before))


def _rendered(template: Template, record: dict[str, Any], place: str) -> str:
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


def _read_python(files: Iterable[Path]) -> Iterator[Piece]:
    """Python files by their declared encoding, a document each. The library's few that do not decode are skipped."""
    for file in files:
        try:
            with tokenize.open(file) as stream:
                text = stream.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        yield from pieces_of([text])
