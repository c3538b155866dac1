"""Token files: how one split of a corpus lies on disk, written once and then memory-mapped.

    train-00000.bin …  the stream of tokens, little-endian, in shards, one for each part of the corpus that has any
    train-pairs.bin    of prompt/completion pairs: a record of `PAIR` for each

A stream starts with an end of text and has one after each document, or after each pair's prompt and completion; before
a document or a prompt stands the tokenizer's prefix, if it has one. A prompt without tokens and prefix is the end of
text before it, as for `sample.py`, so there is always one to predict from.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt.options import UserError
from gpt.text.durable import Unpublished
from gpt.text.tokenizers import Tokenizer

COPIED_PAIRS = 2**14  # at once
# Where in the stream a pair starts, and how many tokens its prompt (prefix included) and the whole of it (end of text
# included) have.
PAIR = np.dtype([("start", "<i8"), ("prompt", "<i4"), ("length", "<i4")])


class TokenStream:
    """The tokens of one split, memory-mapped over all its shards. `n_bytes` and `n_characters` are of its text.

    Reading raises UserError where a token or a pair cannot be, as in a file that is damaged.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, meta: dict[str, Any]):
        self.folder, self.dtype, self.vocab_size = folder, tokenizer.dtype, tokenizer.vocab_size
        self.n_documents: int = meta["documents"]
        self.n_bytes: int = meta["bytes"]
        self.n_characters: int = meta["characters"]
        self._files = [folder / shard["file"] for shard in meta["shards"]]
        self._starts = np.cumsum([0] + [shard["tokens"] for shard in meta["shards"]])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def mean_bytes(self) -> float:
        """UTF-8 bytes of text for each token that counts in training: all but the first."""
        return self.n_bytes / max(1, len(self) - 1)

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        return [np.frombuffer(shard, dtype=self.dtype) for shard in self._mmaps]

    @cached_property
    def _mmaps(self) -> list[mmap.mmap]:
        maps = []
        for path in self._files:
            with path.open("rb") as file:
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return maps

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
        if length and int(out.max()) >= self.vocab_size:
            raise self.damaged(f"token {int(out.max())} of a vocabulary of {self.vocab_size:,}")
        return out

    def read_no_surroundings(self) -> None:
        """Have the kernel read pages that are asked for, and no others near them: for a stream that is read from all
        over, and does not fit into memory. Elsewhere than on Linux and macOS, does nothing."""
        if hasattr(mmap, "MADV_RANDOM"):
            for shard in self._mmaps:
                shard.madvise(mmap.MADV_RANDOM)

    def read_through(self, start: int, stop: int) -> None:
        """Bring tokens `start` to `stop` into the page cache, by large reads in order. Raises nothing: what cannot be
        read is the trouble of who wants to see it."""
        buffer = memoryview(bytearray(1 << 20))
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for file, begins, ends in zip(
            self._files[first:], self._starts[first:], self._starts[first + 1 :], strict=False
        ):
            if begins >= stop:
                return
            left = (min(stop, int(ends)) - max(start, int(begins))) * self.dtype.itemsize
            with suppress(OSError), file.open("rb", buffering=0) as stream:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # reads go no further than asked
                stream.seek((max(start, int(begins)) - int(begins)) * self.dtype.itemsize)
                while left > 0 and (count := stream.readinto(buffer[:left])):
                    left -= count

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.folder}: its token files are damaged ({what}); delete the folder and run again")


class PairStream(TokenStream):
    """A stream of prompt/completion pairs, and where each of them is.

    `completion_tokens` counts the ends of text after the completions, `completion_bytes` (of UTF-8) does not.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, meta: dict[str, Any]):
        super().__init__(folder, tokenizer, meta)
        self.completion_tokens: int = meta["pairs"]["completion_tokens"]
        self.completion_bytes: int = meta["pairs"]["completion_bytes"]
        self._index_file = folder / meta["pairs"]["file"]

    @property
    def mean_bytes(self) -> float:
        """UTF-8 bytes of completions for each token of them, ends of text included."""
        return self.completion_bytes / max(1, self.completion_tokens)

    @cached_property
    def index(self) -> np.ndarray:
        """All pairs in the order of the files, [n_pairs] of `PAIR`."""
        if not self.n_documents:
            return np.zeros(0, dtype=PAIR)  # an empty file cannot be mapped
        index = np.memmap(self._index_file, dtype=PAIR, mode="r")
        start, prompt, length = (index[name].astype(np.int64) for name in PAIR.names or ())
        if (start < 0).any() or (prompt < 1).any() or (length <= prompt).any() or (start > len(self) - length).any():
            raise self.damaged("a pair that lies outside of them")
        return index

    def pairs(self) -> Iterator[tuple[list[int], list[int]]]:
        """Ids of each pair: its prompt as `decode.prompt_tokens` gives it, its completion without the end of text."""
        for start, prompt, length in self.index:
            tokens = self.read(int(start), int(length)).tolist()
            yield tokens[:prompt], tokens[prompt:-1]


def open_stream(folder: Path, tokenizer: Tokenizer, meta: dict[str, Any]) -> TokenStream:
    """The split that `meta` describes. Raises UserError where a file is not in its folder or has not the size that it
    says, and KeyError, TypeError or ValueError where `meta` does not describe a split."""
    counts = [meta[name] for name in ("documents", "bytes", "characters")]
    files = {shard["file"]: shard["tokens"] * tokenizer.dtype.itemsize for shard in meta["shards"]}
    if "pairs" in meta:
        counts += [meta["pairs"][name] for name in ("completion_tokens", "completion_bytes")]
        files[meta["pairs"]["file"]] = meta["documents"] * PAIR.itemsize
    if not all(type(count) is int and 0 <= count < 2**62 for count in [*counts, *files.values()]):
        raise ValueError("a number in it cannot be")
    if not meta["shards"] or len(files) != len(meta["shards"]) + ("pairs" in meta):
        raise ValueError("it names no files, or one twice")
    if not all(shard["tokens"] for shard in meta["shards"]):
        raise ValueError("it names a file without tokens")
    for name, expected in files.items():
        if not isinstance(name, str) or name != Path(name).name or "\0" in name:
            raise ValueError(f"it names {name!r}, which is no file of its own folder")
        file = folder / name
        size = file.stat().st_size if file.is_file() else 0
        if size != expected or not file.is_file():
            raise UserError(f"{file}: has {size:,} bytes, not {expected:,}")
    return (PairStream if "pairs" in meta else TokenStream)(folder, tokenizer, meta)


@dataclass
class Counts:
    """What one side of the split has in one part of the corpus."""

    tokens: int = 0
    pairs: int = 0
    completion_tokens: int = 0  # ends of text included
    documents: int = 0  # that start there
    characters: int = 0
    bytes: int = 0  # of UTF-8
    completion_bytes: int = 0


def total_counts(counts: Iterable[Counts]) -> dict[str, int]:
    """The sum of each, by name."""
    total = dict.fromkeys((field.name for field in fields(Counts)), 0)
    for own in counts:
        for name in total:
            total[name] += getattr(own, name)
    return total


class StreamWriter:
    """Appends tokens, and the pairs in them, to the files of one side of one part. They are there once `published`."""

    def __init__(self, tokens: Path, pairs: Path | None, dtype: np.dtype, scratch: Path | None = None):
        """`scratch`: where the files are until then; by default, where they will be."""
        self.counts = Counts()
        self._dtype = dtype
        self._tokens = Unpublished(tokens, scratch)
        self._pairs = Unpublished(pairs, scratch) if pairs else None

    def write(self, ids: np.ndarray, pairs: np.ndarray) -> None:
        """Append ids [n_tokens], and the pairs [n_pairs] of `PAIR` in them, whose starts count from `ids[0]`."""
        if self._pairs:
            pairs = pairs.copy()
            pairs["start"] += self.counts.tokens
            self.counts.pairs += len(pairs)
            self.counts.completion_tokens += int((pairs["length"].astype(np.int64) - pairs["prompt"]).sum())
            self._pairs.file.write(pairs.data)
        self._tokens.file.write(ids.astype(self._dtype, copy=False).data)
        self.counts.tokens += len(ids)

    def publish(self) -> None:
        """Make sure that all is on disk, and give the files their names."""
        for file in filter(None, (self._tokens, self._pairs)):
            file.publish()

    def discard(self) -> None:
        """Leave nothing of what is not published."""
        for file in filter(None, (self._tokens, self._pairs)):
            file.discard()


def join_pairs(parts: Iterable[tuple[Path, int]], joined: Path) -> None:
    """Write the index of a split from those of its parts, each with the number of tokens before it."""
    with joined.open("wb") as out:
        for file, before in parts:
            with file.open("rb") as stream:
                while data := stream.read(COPIED_PAIRS * PAIR.itemsize):
                    pairs = np.frombuffer(data, dtype=PAIR).copy()
                    pairs["start"] += before
                    out.write(pairs.data)
        out.flush()
        os.fsync(out.fileno())


def stream_digest(split: str, dtype: np.dtype, tokens: Iterable[Path], pairs: Path | None) -> bytes:
    """Of the tokens of a split, however many files they lie in, and of the pairs where there is an index."""
    tokens_digest = hashlib.blake2b(f"{split} {dtype.name}".encode(), digest_size=16)
    pairs_digest = hashlib.blake2b(digest_size=16)
    for file in tokens:
        _feed(tokens_digest, file)
    if pairs:
        _feed(pairs_digest, pairs)
    return tokens_digest.digest() + (pairs_digest.digest() if pairs else b"")


def _feed(digest: hashlib.blake2b, path: Path) -> None:
    with path.open("rb") as stream:
        while data := stream.read(1 << 18):
            digest.update(data)
