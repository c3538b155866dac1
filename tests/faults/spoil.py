"""Ways to spoil a file: each makes a function of the folder that a case runs in."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Spoil = Callable[[Path], object]
MODEL = "model/config.json"
WEIGHTS = "model/model.safetensors"


def write(name: str, content: str | bytes) -> Spoil:
    """A file with this content, made or replaced, its folders too."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))

    return spoil


def edit(name: str, *without: str, **keys: Any) -> Spoil:
    """Keys of a JSON object set, or taken out."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8")) | keys
        for key in without:
            del content[key]
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return spoil


def inside(name: str, change: Callable[[Any], object]) -> Spoil:
    """A JSON file changed in place by a function."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return spoil


def remove(*names: str) -> Spoil:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name: str, size: int) -> Spoil:
    """A file cut, or extended without taking place on the disk, to so many bytes."""
    return lambda folder: os.truncate(folder / name, size)


def both(*spoils: Spoil) -> Spoil:
    return lambda folder: [spoil(folder) for spoil in spoils]


def link(name: str, target: str) -> Spoil:
    return lambda folder: (folder / name).symlink_to(target)


def fifo(name: str) -> Spoil:
    return lambda folder: os.mkfifo(folder / name)


def header(change: Callable[[dict[str, Any]], object], lie: int = 0, file: str = WEIGHTS) -> Spoil:
    """The header of a file of safetensors changed, and its length said wrong by `lie`."""

    def spoil(folder: Path) -> None:
        data = (folder / file).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        content = json.loads(data[8 : 8 + length])
        change(content)
        text = json.dumps(content).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text) + lie) + text + data[8 + length :])

    return spoil


def tensors(change: Callable[[dict[str, Any]], object], file: str = WEIGHTS) -> Spoil:
    """The tensors of a file of safetensors changed by a function of the dict."""

    def spoil(folder: Path) -> None:
        from safetensors.torch import load, save_file

        content = load((folder / file).read_bytes())
        change(content)
        save_file(content, folder / file)

    return spoil
