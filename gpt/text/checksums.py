"""Checksums of a folder's files, in a file that `sha256sum -c` checks too.

They tell a file that the disk, a copy or a killed machine has damaged from one that was written so. They do not
authenticate: whoever can change a folder can change its checksums.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath


def write_sums(folder: Path, name: str, without: Collection[str] = (), known: Mapping[str, str] | None = None) -> None:
    """Note the checksum of every file below a folder in its file `name`, but for files and folders `without`. Of some
    it is `known` already."""
    known = known or {}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    left_out = {name, *without}
    summed = sorted(file for file in files if left_out.isdisjoint([file, *map(str, PurePosixPath(file).parents)]))
    lines = (f"{known.get(file) or digest(files[file])}  {file}\n" for file in summed)
    (folder / name).write_text("".join(lines), encoding="utf-8")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path, name: str, concerns: Callable[[str], bool] = lambda file: True) -> str | None:
    """What is wrong with a folder by the checksums in its file `name`, in words; None where nothing is.

    `concerns` says which files are looked at. Only files that lie in the folder are opened, whatever names a stranger
    may have written. Raises OSError where the machine cannot look, which says nothing of the folder.
    """
    try:
        sums = read_sums(folder, name)
    except ValueError as error:
        return str(error)
    present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for file in filter(concerns, sums):
        if file not in present:
            return f"{file}, of {name}, is missing"
        try:
            if digest(present[file]) != sums[file]:
                return f"{file} does not have the checksum in {name}"
        except FileNotFoundError:
            return f"{file}, of {name}, is missing"
        except OSError as error:
            if error.errno != errno.EIO:  # which is how a bad disk answers
                raise
            return f"{file} cannot be read ({error.strerror})"
    return None


def read_sums(folder: Path, name: str) -> dict[str, str]:
    """The checksum of each file that has one. Raises OSError where they cannot be read, ValueError where not parsed."""
    sums = {}
    for line in (folder / name).read_text(encoding="utf-8", errors="replace").splitlines():
        value, gap, file = line.partition("  ")
        if not gap or len(value) != 64:
            raise ValueError(f"{name} is damaged")
        sums[file] = value
    if not sums:
        raise ValueError(f"{name} is empty")
    return sums
