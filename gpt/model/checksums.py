"""The checksums of a checkpoint: `trainer/SHA256SUMS`, as `sha256sum -c trainer/SHA256SUMS` checks it.

They tell a file that the disk, a copy or a killed machine has damaged from one that was written so. They do not
authenticate: whoever can change a checkpoint can change its checksums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from gpt.model.peft_config import ADAPTER_CONFIG
from gpt.options import UserError

SUMS = "trainer/SHA256SUMS"
# What people may edit: where the base of adapters lies, and what sha256sum cannot check of itself.
UNSUMMED = (SUMS, ADAPTER_CONFIG)


def write_sums(folder: Path) -> None:
    """Note the checksum of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    lines = [f"{digest(path)}  {name}\n" for name, path in names.items() if name not in UNSUMMED]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_sums(folder: Path) -> bool:
    return (folder / SUMS).is_file()


def damage(folder: Path, concerns: Callable[[str], bool] = lambda name: True) -> str | None:
    """What is wrong with a folder by its checksums, in words; None where nothing is.

    `concerns` says which of the names are looked at. Only files that lie in the folder are opened, whatever names a
    stranger may have written.
    """
    try:
        sums = read_sums(folder)
        present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        for name in filter(concerns, sums):
            if name not in present:
                return f"{name}, of {SUMS}, is missing"
            if digest(present[name]) != sums[name]:
                return f"{name} does not have the checksum in {SUMS}"
    except (OSError, ValueError) as error:
        return f"it cannot be checked ({error})"
    return None


def read_sums(folder: Path) -> dict[str, str]:
    """The checksum of each file that has one. Raises OSError where they cannot be read, ValueError where not parsed."""
    sums = {}
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        value, gap, name = line.partition("  ")
        if not gap or len(value) != 64:
            raise ValueError(f"{SUMS} is damaged")
        sums[name] = value
    if not sums:
        raise ValueError(f"{SUMS} is empty")
    return sums


def is_weights(name: str) -> bool:
    return "/" not in name and name.endswith(".safetensors")


@contextmanager
def checked_weights(folder: Path) -> Iterator[None]:
    """While a checkpoint is opened, look in a thread whether its weights are still what was written; a folder without
    checksums passes, and so do its other files, which people may edit. Raises UserError at the end."""
    if not has_sums(folder):
        yield
        return
    with ThreadPoolExecutor(1, "checksums") as pool:
        looking = pool.submit(damage, folder, is_weights)
        try:
            yield
        finally:
            if found := looking.result():  # which says more than what else went wrong because of it
                raise UserError(
                    f"{folder} is damaged: {found}; use another checkpoint of its run, copy it again, or, if the file "
                    f"was changed on purpose, delete {folder / SUMS}"
                ) from None
