"""The checksums of a checkpoint: `trainer/SHA256SUMS`, as `sha256sum -c trainer/SHA256SUMS` checks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from gpt.model.peft_config import ADAPTER_CONFIG
from gpt.options import UserError
from gpt.text import checksums

SUMS = "trainer/SHA256SUMS"


def write_sums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Note the checksum of every file of a checkpoint but one that people may edit: it says where the base of adapters
    lies. Of some files it is `known` already."""
    checksums.write_sums(folder, SUMS, without=(ADAPTER_CONFIG,), known=known)


def has_sums(folder: Path) -> bool:
    return (folder / SUMS).is_file()


def damage(folder: Path, concerns: Callable[[str], bool] = lambda name: True) -> str | None:
    """What is wrong with a checkpoint by its checksums, in words; None where nothing is. `concerns` says which files
    are looked at."""
    return checksums.damage(folder, SUMS, concerns)


def is_weights(name: str) -> bool:
    return "/" not in name and name.endswith(".safetensors")


@contextmanager
def checked_weights(folder: Path) -> Iterator[None]:
    """While a checkpoint is opened, look in a thread whether its weights are still what was written; a folder without
    checksums passes, and so do its other files, which people may edit. Raises UserError at the end."""
    if not has_sums(folder):
        yield
        return
    pool = ThreadPoolExecutor(1, "checksums")
    looking = pool.submit(damage, folder, is_weights)
    try:
        yield
    except Exception:
        refuse(folder, looking.result())  # which says more than what went wrong because of it
        raise
    finally:
        pool.shutdown(wait=False)  # Ctrl-C does not wait for it
    refuse(folder, looking.result())


def refuse(folder: Path, found: str | None) -> None:
    if found:
        raise UserError(
            f"{folder} is damaged: {found}; use another checkpoint of its run, copy it again, or, if the file was "
            f"changed on purpose, put its new sha256sum into {folder / SUMS}"
        ) from None
