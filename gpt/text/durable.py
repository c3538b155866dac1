"""Files and folders that survive a loss of power: flushed to the disk before they get the name by which they count."""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any


def flush(folder: Path) -> None:
    """Wait until every file below a folder is on the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            flush_file(path)
        else:
            flush_folder(path)
    flush_folder(folder)


def flush_file(path: Path) -> None:
    with open(path, "rb" if os.name == "posix" else "rb+") as file:  # a kept base may be read-only
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """What is in it by name, not what is in the files."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Unpublished:
    """A file under a name of this process alone, open for writing, until it is whole.

    `scratch`: the folder where it is until then; by default, where it will be.
    """

    def __init__(self, path: Path, scratch: Path | None = None):
        self.path = path
        self.partial = (scratch or path.parent) / f"{path.name}.{uuid.uuid4().hex[:8]}.partial"
        self.file = self.partial.open("wb")

    def publish(self) -> None:
        """Give it its name, once all is on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.partial.replace(self.path)

    def discard(self) -> None:
        """Leave nothing, where it is not published."""
        with suppress(OSError):  # what was still to be written may find no room
            self.file.close()
        self.partial.unlink(missing_ok=True)


def write_note(path: Path, content: Any) -> None:
    """Write JSON: it is there whole, or not at all."""
    note = Unpublished(path)
    try:
        note.file.write(json.dumps(content).encode("utf-8"))
        note.publish()
    finally:
        note.discard()


def read_note(path: Path) -> Any:
    """What `write_note` wrote; None where it did not, or the disk has lost it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
