"""Corpora from elsewhere: tiny Shakespeare over HTTP, and Hugging Face data sets.

Sources: https://github.com/karpathy/char-rnn (tiny Shakespeare), https://huggingface.co/docs/datasets.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from gpt.config import DataConfig
from gpt.options import UserError
from gpt.text.spans import MOST_PARTS, Span

SHAKESPEARE_NAME = "tiny Shakespeare"
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_LOADERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}


def fetch_shakespeare(folder: Path, report: Callable[[str], None]) -> Path:
    """Path of tiny Shakespeare (1,115,394 bytes) in `folder`, downloaded where it is not there yet.

    Raises UserError without network, and where what came is not the file.
    """
    file = folder / "tinyshakespeare.txt"
    if file.is_file():
        return file
    report(f"Downloading {SHAKESPEARE_NAME} …")
    instead = "data=text data.files='[your.txt]' trains on a text of yours instead"
    try:
        with urllib.request.urlopen(SHAKESPEARE_URL, timeout=30) as response:
            text = response.read()
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise UserError(f"data=shakespeare: {SHAKESPEARE_URL} cannot be reached ({error}); {instead}") from None
    if hashlib.sha256(text).hexdigest() != SHAKESPEARE_SHA256:
        raise UserError(f"data=shakespeare: {SHAKESPEARE_URL} no longer holds the file that is expected; {instead}")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{file.name}.{os.getpid()}.part"
    try:
        part.write_bytes(text)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file


def local_records(spans: Iterable[Span]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of local parquet, CSV, TSV and JSON files, each with its place. Raises UserError for other kinds."""
    import datasets

    for file in (span.file for span in spans):
        loader = _LOADERS.get(file.suffix.lower())
        if loader is None:
            raise UserError(f"data.files: {file} is not {', '.join(_LOADERS)}; use data=text or data=jsonl")
        options: dict[str, Any] = {"delimiter": "\t"} if file.suffix.lower() == ".tsv" else {}
        load = lambda f=file, k=loader, o=options: datasets.load_dataset(  # noqa: E731
            k, data_files=str(f), split="train", streaming=True, **o
        )
        yield from _rows(load, str(file), "check the file")


def hub_parts(data: DataConfig) -> tuple[str, int]:
    """The commit of a data set on the Hub ("" of a local folder), and in how many parts it is read: its shards, or some
    of them together."""
    try:
        shards = _data_set(str(data.path), data.subset, data.split).num_shards
        return _revision(str(data.path)) or "", max(1, min(shards, MOST_PARTS))
    except Exception as error:  # whatever the library's transports raise
        raise _unreadable(error, f"data.path={data.path}", _WAY_OUT) from None


def hub_records(data: DataConfig, part: int, n_parts: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one of the parts of a data set on the Hub (or in a local folder), streamed, each with its place."""
    data_set = lambda: _data_set(str(data.path), data.subset, data.split)  # noqa: E731
    load = lambda: data_set().shard(n_parts, part, contiguous=True) if n_parts > 1 else data_set()  # noqa: E731
    place = f"data.path={data.path}" + (f" part {part + 1} of {n_parts}" if n_parts > 1 else "")
    yield from _rows(load, place, _WAY_OUT)


_WAY_OUT = "check the id, data.subset and data.split, and the network; or use local files with data.files"


@lru_cache(maxsize=2)
def _data_set(path: str, subset: str | None, split: str) -> Any:
    """A streamed data set, looked up once: that takes seconds of asking the Hub."""
    import datasets

    return datasets.load_dataset(path, subset, split=split, streaming=True, revision=_revision(path))


@lru_cache(maxsize=2)
def _revision(path: str) -> str | None:
    """The newest commit of a data set on the Hub, so that all of it is of one; None of a local folder, and without a
    network, where `datasets` finds what it has kept, or tells why not. Raises where the Hub answers with an error:
    processes that share the work would take it for different ones."""
    if Path(path).expanduser().is_dir():
        return None
    from huggingface_hub import dataset_info
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return dataset_info(path, timeout=30).sha
    except HfHubHTTPError:
        raise
    except Exception:
        return None


def _rows(load: Callable[[], Any], place: str, way_out: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        for number, row in enumerate(load(), 1):
            yield f"{place} row {number}", row
    except UserError:
        raise
    except Exception as error:  # the library passes on whatever its many readers and transports raise
        raise _unreadable(error, place, way_out, f" after row {number}" if number else "") from None


def _unreadable(error: Exception, place: str, way_out: str, where: str = "") -> UserError:
    reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
    return UserError(f"{place}: cannot be read{where} ({reason}); {way_out}")
