"""A tokenized corpus on disk: made once, then memory-mapped.

    data/prepared/<source>-<tokenizer>-<hash>/
        meta.json          counts, fingerprint, and the shards of both splits
        train-00000.bin …  token ids, little-endian, uint16 where the vocabulary fits it, else uint32
        val-00000.bin …
        tokenizer.json …   the tokenizer

The hash is of everything that decides the result: options, and each file's path, size and time of change. The folder is
written beside its place under a lock and then renamed, so it is whole or not there. A split starts with an end of text
and has one after each document, except that training text that is cut off inside a document has none there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np

from gpt.config import DataConfig, TokenizerConfig
from gpt.options import UserError
from gpt.text.documents import Source, open_source, spooled
from gpt.text.parallel_encoding import encode_all
from gpt.text.splits import SPLITS, CharacterCounts, Scan, Split, divide, scan, training_texts
from gpt.text.tokenizers import Tokenizer
from gpt.text.vocabularies import build_tokenizer, default_vocab_size, training_bytes

FORMAT = 1
SHARD_TOKENS = 2**26
PREPARED = Path(__file__).resolve().parents[2] / "data" / "prepared"

Report = Callable[[str], None]


class TokenStream:
    """The tokens of one split, memory-mapped over all its shards. `n_bytes` and `n_characters` are of its text."""

    def __init__(self, folder: Path, dtype: np.dtype, meta: dict[str, Any]):
        self.dtype = dtype
        self.n_documents: int = meta["documents"]
        self.n_bytes: int = meta["bytes"]
        self.n_characters: int = meta["characters"]
        self._files = [folder / shard["file"] for shard in meta["shards"]]
        self._starts = np.cumsum([0] + [shard["tokens"] for shard in meta["shards"]])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        return [np.memmap(file, dtype=self.dtype, mode="r") for file in self._files]

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [length] from `start` on, as a copy of `dtype`. Raises IndexError beyond the stream."""
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of a stream of {len(self)}")
        out = np.empty(length, dtype=self.dtype)
        done = 0
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while done < length:
            first = start + done - int(self._starts[shard])
            part = self._maps[shard][first : first + length - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return out


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. `fingerprint` is of the tokens alone; `source` is a line for people."""

    tokenizer: Tokenizer
    train: TokenStream
    val: TokenStream
    fingerprint: str
    folder: Path
    source: str


def open_corpus(folder: Path) -> Corpus:
    """Open a prepared folder. Raises UserError where it is damaged."""
    again = f"delete {folder} and run again"
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'meta.json'}: cannot be read ({error}); {again}") from None
    dtype = np.dtype(meta["dtype"]).newbyteorder("<")
    for split in meta["splits"].values():
        for shard in split["shards"]:
            file = folder / shard["file"]
            size = file.stat().st_size if file.is_file() else 0
            if size != shard["tokens"] * dtype.itemsize:
                raise UserError(f"{file}: has {size:,} bytes, not {shard['tokens'] * dtype.itemsize:,}; {again}")
    train, val = (TokenStream(folder, dtype, meta["splits"][name]) for name in SPLITS)
    return Corpus(Tokenizer.load(folder), train, val, meta["fingerprint"], folder, meta["source"])


def prepare(data: DataConfig, tokenizer: TokenizerConfig, report: Report = lambda line: None) -> Corpus:
    """The corpus that the options describe, from disk where it is ready, else read, split and tokenized now.

    `report` gets short lines about progress. Raises UserError for whatever is wrong with the options or the files.
    """
    root = Path(data.prepared_dir).expanduser().resolve() if data.prepared_dir else PREPARED
    source = open_source(data, root / "downloads", report=report)
    val_source = open_source(data, root / "downloads", held_out=True) if data.val_files else None
    folder = root / f"{data.name}-{tokenizer.name}-{_key(data, tokenizer, source, val_source)}"
    if folder.is_dir():
        return open_corpus(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{folder.name}.lock", report):
            if not folder.is_dir():  # else somebody has just made it
                _make(folder, data, tokenizer, source, val_source, report)
    except OSError as error:  # readers turn theirs into UserErrors, so this one is about writing
        raise UserError(
            f"data.prepared_dir: the tokenized corpus cannot be written to {root} ({error.strerror or error}); make "
            "room there, or name another folder with data.prepared_dir=FOLDER"
        ) from None
    return open_corpus(folder)


def _key(data: DataConfig, tokenizer: TokenizerConfig, source: Source, val_source: Source | None) -> str:
    """12 hex digits of a hash of all that decides the result."""
    options = dataclasses.asdict(data)
    for name in ("workers", "prepared_dir", "files", "val_files"):
        del options[name]
    files = []
    for origin in filter(None, (source, val_source)):
        stats = [(str(file), file.stat()) for file in origin.files]
        files.append([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    contents = []
    if tokenizer.path:
        path = Path(tokenizer.path).expanduser()
        own = path if path.is_dir() else path.parent
        for file in (own / "tokenizer.json" if path.is_dir() else path, own / "tokenizer_config.json"):
            contents.append(hashlib.blake2b(file.read_bytes()).hexdigest() if file.is_file() else "")
    everything = [FORMAT, options, dataclasses.asdict(tokenizer), files, contents]
    return hashlib.blake2b(json.dumps(everything).encode("utf-8"), digest_size=6).hexdigest()


def _lock(file: Path, report: Report) -> filelock.AcquireReturnProxy:
    """A lock, held, to release with `with`. It ends with the process too, however that ends."""
    lock = filelock.FileLock(file)
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        report("Another process is preparing this corpus; waiting for it …")
        return lock.acquire()


def _make(
    folder: Path, data: DataConfig, config: TokenizerConfig, source: Source, val_source: Source | None, report: Report
) -> None:
    """Read, split, tokenize; then rename a finished temporary folder to `folder`."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # a crash left it: the lock says that nobody is writing there
    temporary.mkdir()
    try:
        report(f"Reading {source.description} …")
        if source.remote:
            source = spooled(source, temporary / "spool.jsonl", report)
        needs_characters = config.name == "char" or (config.name == "bpe" and config.vocab_size is None)
        characters = CharacterCounts() if needs_characters else None
        found = scan(source, "data", characters)
        if val_source:
            held_out = scan(val_source, "data.val_files", characters)
            split = Split(source, val_source)
        else:
            held_out, split = Scan(), divide(source, found, data.val_fraction)
        tokenizer = _tokenizer(config, split, found, characters, report)
        tokenizer.save(temporary)
        total = tuple(map(sum, zip(found.totals, held_out.totals, strict=True)))
        _write(temporary, tokenizer, split, total, data.workers, report)
        (temporary / "spool.jsonl").unlink(missing_ok=True)
        _sync(temporary)
        temporary.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tokenizer(
    config: TokenizerConfig, split: Split, found: Scan, characters: CharacterCounts | None, report: Report
) -> Tokenizer:
    if config.name != "bpe":
        return build_tokenizer(config, characters=characters.characters() if characters else ())
    common = len(characters.characters(at_least=10)) if characters else 0
    size = config.vocab_size or default_vocab_size(found.n_bytes, common)
    most = training_bytes(size)
    report(f"Training a tokenizer of {size:,} tokens on {min(most, found.n_bytes) / 1e6:.1f} MB …")
    texts = training_texts(split, found.n_bytes, most)
    return build_tokenizer(config, texts=texts, vocab_size=size, report=report)


def _write(
    folder: Path, tokenizer: Tokenizer, split: Split, total: tuple[int, ...], workers: int, report: Report
) -> None:
    """Tokenize everything into shards and meta.json. `total`: documents, characters and bytes that must come."""
    started = reported = time.monotonic()
    writers = {name: _ShardWriter(folder, name, tokenizer) for name in SPLITS}
    n_tokens = 0
    for side, ids in encode_all(tokenizer, folder, split.pieces(), total[2], workers):
        writers[side].write(ids)
        n_tokens += len(ids)
        if time.monotonic() - reported > 10:
            reported = time.monotonic()
            report(f"Tokenized {n_tokens:,} tokens …")
    sides = [split.routed[name].totals for name in SPLITS]
    extra = split.cut is not None  # one document on both sides
    if tuple(map(sum, zip(*sides, strict=True))) != (total[0] + extra, *total[1:]):
        raise UserError(f"{split.source.description}: changed while it was read; run again")
    for writer in writers.values():
        writer.close()
    splits = {
        name: {"tokens": sum(s["tokens"] for s in writers[name].shards), "documents": side[0], "characters": side[1],
               "bytes": side[2], "shards": writers[name].shards}
        for name, side in zip(SPLITS, sides, strict=True)
    }  # fmt: skip
    digests = b"".join(writers[name].digest.digest() for name in SPLITS)
    held_out = f", held out: {split.val_source.description}" if split.val_source else ""
    meta = {
        "format": FORMAT,
        "source": split.source.description + held_out,
        "dtype": tokenizer.dtype.name,
        "splits": splits,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "fingerprint": hashlib.blake2b(digests, digest_size=16).hexdigest(),
    }
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    speed = f"Tokenized {total[2] / 1e6:.1f} MB in {time.monotonic() - started:.1f} s"
    report(f"{speed}: {n_tokens:,} tokens of {total[2] / n_tokens:.2f} bytes")


class _ShardWriter:
    """Appends tokens to the shards of one split, and hashes them."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer):
        self.folder, self.split, self.dtype = folder, split, tokenizer.dtype
        self.digest = hashlib.blake2b(f"{split} {tokenizer.dtype.name}".encode(), digest_size=16)
        self.shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self.write(np.array([tokenizer.end_of_text]))

    def write(self, ids: np.ndarray) -> None:
        """Append ids [n_tokens]."""
        ids = ids.astype(self.dtype, copy=False)
        self.digest.update(ids.data)
        while len(ids):
            if self._file is None or self.shards[-1]["tokens"] == SHARD_TOKENS:
                self.close()
                name = f"{self.split}-{len(self.shards):05d}.bin"
                self._file = (self.folder / name).open("wb")
                self.shards.append({"file": name, "tokens": 0})
            part = ids[: SHARD_TOKENS - self.shards[-1]["tokens"]]
            self._file.write(part.data)
            self.shards[-1]["tokens"] += len(part)
            ids = ids[len(part) :]

    def close(self) -> None:
        """Make sure that all is on disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def _sync(path: Path) -> None:
    """Make a folder's list of files, and the small files in it, survive a loss of power."""
    for file in [*(path.glob("*.json") if path.name.endswith(".tmp") else ()), path]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
