"""Files: which ones `data.files` means (files, folders and globs), how one is written whole, and JSON ones.

A name that exists is taken as it is, even where it looks like a glob. A folder means the text files in it and below.
Hidden files and folders are skipped unless named.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gpt.options import UserError

# What a folder contributes. Anything else can be named, or matched by a glob.
_TEXT_NAME = re.compile(
    r".*\.(txt|text|md|markdown|rst|org|adoc|tex|srt|html?|xml|csv|tsv|jsonl?|ya?ml|toml|ini|pyi?|[ch]|cc|cpp|cxx|hpp|cu"
    r"|java|kt|scala|m?js|jsx|tsx?|css|go|rs|rb|php|pl|lua|r|jl|m|swift|cs|fs|hs|ml|el|lisp|clj|exs?|erl|sh|bash|zsh|sql"
    r"|vim|nix|zig|f90|asm)",
    re.IGNORECASE,
)
MOST_JSON = 2**28  # bytes of a file that is read whole
SHARED_SECONDS = 90.0  # NFS remembers for up to 60 that a name was not there (acdirmax, nfs(5))


def find_files(patterns: Iterable[str], option: str = "data.files") -> list[Path]:
    """All files that the patterns mean: resolved paths, each once, sorted.

    Raises UserError, naming `option`, for what is not there and for a folder without text files.
    """
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            inside = set(list_folder(path))
            if not inside:
                raise UserError(
                    f"{option}: the folder {pattern!r} has no text files (.txt, .md, .py …); for others give "
                    f"a glob, as '[{path}/**/*.log]'"
                )
            found |= inside
        elif path.is_file():
            found.add(path.resolve())
        elif path.exists():
            raise UserError(f"{option}: {pattern!r} is not a regular file; save its text in one")
        elif any(character in pattern for character in "*?["):
            if any("**" in part and part != "**" for part in path.parts):
                raise UserError(
                    f"{option}: in {pattern!r} the ** stands beside other characters, and it can only be a whole "
                    "folder name; write '[notes/**/*.txt]' for files at any depth, or * within a name"
                )
            matched = set(_glob(path))
            if not matched:
                raise UserError(f"{option}: no file matches {pattern!r} (from {Path.cwd()}); check the pattern")
            found |= matched
        else:
            several = f"; several are written {option}='[one.txt,notes/*.txt]'" if re.search("[, ]", pattern) else ""
            raise UserError(f"{option}: {pattern!r} does not exist (from {Path.cwd()}); check the path{several}")
    return sorted(found)


def list_folder(folder: Path, any_suffix: bool = False) -> Iterator[Path]:
    """Text files (or all) in `folder` and below, resolved. Links to folders are followed, each folder once."""
    visited = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(here, name)
            if (any_suffix or _TEXT_NAME.fullmatch(name)) and not name.startswith(".") and path.is_file():
                yield path.resolve()


def _glob(pattern: Path) -> Iterator[Path]:
    """Files that match; `**` is any number of folders and follows no links."""
    parts = pattern.parts
    wild = next(i for i, part in enumerate(parts) if any(character in part for character in "*?["))
    base, rest = Path(*parts[:wild]), "/".join(parts[wild:])
    if parts[-1] == "**":
        rest += "/*"
    hidden_meant = any(part.startswith(".") for part in parts[wild:])
    for path in base.glob(rest):
        hidden = any(part.startswith(".") for part in path.relative_to(base).parts)
        if path.is_file() and (hidden_meant or not hidden):
            yield path.resolve()


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write a text file (UTF-8) beside its place, then rename it: it is there whole, or as it was before.

    Raises OSError, and whatever `lines` raises.
    """
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(lines)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """What to write beside a file; it takes the file's place once that is done, and is gone where it is not."""
    partial = path.with_name(path.name + ".partial")
    try:
        with naming(path):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing, as on a full disk, tell the path, which Python's do only where a file is opened."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def check_writable_folder(folder: Path, name: str = "") -> None:
    """Raise OSError where nothing can be made in an existing folder, or nothing whose name holds `name`."""
    os.rmdir(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))  # what permissions say is not always so


def appears(folder: Path, within: float = SHARED_SECONDS) -> bool:
    """Whether a folder that another host has made is there, or comes within so many seconds: where a network's file
    system has told this host that it is not, the host believes it for a while."""
    ends = time.monotonic() + within
    while not folder.is_dir():
        if time.monotonic() > ends:
            return False
        time.sleep(0.1)
        with suppress(OSError):
            os.listdir(folder.parent)  # which asks anew
    return True


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError, but FileNotFoundError where there is no such file."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} cannot be read: it is not a regular file")
        if (size := path.stat().st_size) > MOST_JSON:
            raise UserError(f"{path} cannot be read: it has {size:,} bytes, and such files have a few thousand")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; copy or download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object; copy or download it again")
    return content
