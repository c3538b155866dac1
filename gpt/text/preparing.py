"""How a corpus is prepared: part by part, so that processes can share the work, and a killed one loses one part.

All happens in a folder beside the corpus's place, which the last step renames to it:

    .<corpus>.<parts>.tmp/train-00003.bin …   tokens of part 3, whole once the file has this name
    .<corpus>.<parts>.tmp/parts/              scan-00003.json and done-00003.json: what each part holds; the tokenizer;
                                              spool-00003.jsonl, a copy of a part that came over the network

Each process scans its parts. From all scans follow the split and the tokenizer, which the first process trains where it
must be trained. Then each tokenizes its parts, and the first puts together what all have made. Nothing that is there is
made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from gpt.config import DataConfig, TokenizerConfig
from gpt.options import UserError
from gpt.text.cooperation import Cooperation, Report, Shard
from gpt.text.documents import Part, Piece, Source, read_spool, spooling
from gpt.text.durable import flush, read_note, write_note
from gpt.text.parallel_encoding import Encoders
from gpt.text.spans import reading
from gpt.text.splits import EVERY_HASH, SPLITS, CharacterCounts, Scan, Share, Split, divide, scan, training_texts
from gpt.text.streams import PAIR, Counts, StreamWriter
from gpt.text.tokenizers import Tokenizer
from gpt.text.vocabularies import build_tokenizer, default_vocab_size, training_bytes

NOTES = "parts"


@dataclass(frozen=True)
class Job:
    """What is to be prepared. With `whole`, all of `source` is held out."""

    data: DataConfig
    tokenizer: TokenizerConfig
    source: Source
    val_source: Source | None = None
    whole: bool = False


@dataclass(frozen=True)
class Tokenized:
    """What is in the folder once every part is done: `counts` of each part, by its side of the split."""

    tokenizer: Tokenizer
    counts: list[dict[str, Counts]]


class Preparation:
    """One process's work on a corpus whose place is `place`. Raises UserError where a file cannot be read."""

    def __init__(self, place: Path, job: Job, shard: Shard, report: Report):
        self.job, self.shard, self.report = job, shard, report
        sources = filter(None, (job.source, job.val_source))
        self.parts = [(part, source) for source in sources for part in source.parts()]
        names = json.dumps([part.name for part, _ in self.parts])
        digest = hashlib.blake2b(names.encode("utf-8"), digest_size=4).hexdigest()
        self.folder = place.with_name(f".{place.name}.{digest}.tmp")  # so that what was cut otherwise lies elsewhere
        self.notes = self.folder / NOTES
        self.others = Cooperation(self.notes, place, shard, report)
        self.own = shard.own(len(self.parts))
        self.stats = {file: stat_of(file) for part, _ in self.parts for file in part.files}

    def run(self) -> Tokenized:
        """All but putting together. Raises UserError, OSError for what cannot be written, and OthersFinished."""
        self.others.begin()
        config = self.job.tokenizer
        released = None if config.name in ("bpe", "char") else build_tokenizer(config)  # out of reach: known at once
        self.report(f"Reading {self.job.source.description} …")
        for number in self.own:
            if self.scanned(number) is None:
                self.scan(number)
        characters = CharacterCounts()
        scans = self.others.collect(partial(self.taken, characters), range(len(self.parts)), "what is in the text")
        split, shares = self.divided(scans)
        tokenizer = released or self.made_tokenizer(split, shares, scans, characters)
        self.tokenize_own(tokenizer, split, shares, scans)
        if self.shard.index:
            self.others.collect(lambda _: None, [0], "the whole to be put together")  # ends by OthersFinished
        done = partial(self.tokenized, tokenizer=tokenizer)
        return Tokenized(tokenizer, self.others.collect(done, range(len(self.parts)), "tokens"))

    # --- the first pass ------------------------------------------------------------------------------------------

    def scan(self, number: int) -> None:
        """Read a part, and note what is in it. What came over the network is copied."""
        part, source = self.parts[number]
        read = (lambda: spooling(part.read(), self.spool(number))) if source.remote else part.read
        pieces = Part(part.name, read, part.continues).pieces()
        write_note(self.scan_file(number), asdict(scan(pieces, source.by_prompt, self.counts_characters)))
        self.others.report_sometimes(lambda: f"Read {number + 1:,} of {len(self.parts):,} parts …")

    def scanned(self, number: int) -> Scan | None:
        content = read_note(self.scan_file(number))
        return None if content is None else Scan(**content)

    def taken(self, characters: CharacterCounts, number: int) -> Scan | None:
        """What is in a part, but for its characters, which are added to those of others."""
        found = self.scanned(number)
        if found and found.characters:
            characters.merge(found.characters)
            found.characters = None
        return found

    def scan_file(self, number: int) -> Path:
        return self.notes / f"scan-{number:05d}.json"

    def spool(self, number: int) -> Path:
        return self.notes / f"spool-{number:05d}.jsonl"

    @property
    def counts_characters(self) -> bool:
        config = self.job.tokenizer
        return config.name == "char" or (config.name == "bpe" and config.vocab_size is None)

    # --- what follows from all of it -----------------------------------------------------------------------------

    def divided(self, scans: list[Scan]) -> tuple[Split, list[Share]]:
        """The split, and each part's place in it. Raises UserError where there is no text, or too little to divide."""
        job, shares = self.job, []
        found, held_out = Scan(), Scan()
        for number, ((part, source), own) in enumerate(zip(self.parts, scans, strict=True)):
            so_far = held_out if source is job.val_source else found
            if source.remote:
                part = replace(part, read=partial(read_spool, self.spool(number)))
            begun = so_far.last_hash if part.continues else None
            shares.append(Share(part, so_far is held_out, so_far.n_characters, begun))
            so_far.merge(own)
        for option, source_or_none, what in (("data", job.source, found), ("data.val_files", job.val_source, held_out)):
            if source_or_none and not what.n_documents:
                description = source_or_none.description
                raise UserError(f"{option}: there is no text in {description}; give files that hold some")
        if job.val_source:
            return Split(), shares
        if job.whole:
            return Split(threshold=EVERY_HASH), shares
        return divide(job.source, found, job.data.val_fraction), shares

    def made_tokenizer(
        self, split: Split, shares: list[Share], scans: list[Scan], characters: CharacterCounts
    ) -> Tokenizer:
        """The one that is made from this text, and, as its training takes long, kept."""
        config = self.job.tokenizer
        if config.name == "char":
            return build_tokenizer(config, characters=characters.characters())
        file = self.notes / "tokenizer"
        if not file.is_dir() and self.shard.index == 0:
            n_bytes = sum(found.n_bytes for found, share in zip(scans, shares, strict=True) if not share.held_out)
            tokenizer = self.train(split, shares, n_bytes, len(characters.characters(at_least=10)))
            half = file.with_name("tokenizer.partial")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            tokenizer.save(half)
            flush(half)
            half.rename(file)
            return tokenizer
        self.others.collect(lambda _: file.is_dir() or None, [0], "the tokenizer")
        return Tokenizer.load(file)

    def train(self, split: Split, shares: list[Share], n_bytes: int, n_common: int) -> Tokenizer:
        config = self.job.tokenizer
        size = config.vocab_size or default_vocab_size(n_bytes, n_common)
        size = min(size, 257 + n_bytes)  # no text holds more, and the trainer makes room for as many as it is told
        most = training_bytes(size)
        self.report(f"Training a tokenizer of {size:,} tokens on {min(most, n_bytes) / 1e6:.1f} MB …")
        texts = partial(training_texts, split, shares, n_bytes, most)
        return build_tokenizer(config, texts=texts, vocab_size=size, report=self.report)

    # --- the second pass -----------------------------------------------------------------------------------------

    def tokenize_own(self, tokenizer: Tokenizer, split: Split, shares: list[Share], scans: list[Scan]) -> None:
        started, n_tokens, n_bytes = time.monotonic(), 0, 0
        due = [number for number in self.own if self.tokenized(number, tokenizer) is None]
        if before := len(self.own) - len(due):
            self.report(f"{before:,} of {len(self.own):,} parts are there from before")
        with Encoders(tokenizer, self.job.data.workers) as encoders:
            for number in due:
                if self.tokenized(number, tokenizer) is None:  # else a process of another number of shards was quicker
                    if self.parts[number][1].remote and not self.spool(number).is_file():  # gone with its tokens
                        self.scan(number)
                    n_tokens += self.tokenize(number, encoders, split, shares[number], scans[number])
                    n_bytes += scans[number].n_bytes
        if n_tokens:
            speed = f"Tokenized {n_bytes / 1e6:.1f} MB in {time.monotonic() - started:.1f} s"
            self.report(f"{speed}: {n_tokens:,} tokens of {n_bytes / n_tokens:.2f} bytes")

    def tokenize(self, number: int, encoders: Encoders, split: Split, share: Share, found: Scan) -> int:
        """Write a part's tokens, and then the note that they are there. Returns their number."""
        tokenizer = encoders.tokenizer
        writers: dict[str, StreamWriter] = {}
        routed = {side: Scan() for side in SPLITS}

        def pieces() -> Iterator[tuple[str, Piece, bool]]:
            for side, piece, starts in split.pieces(share):
                routed[side].add(piece, starts)
                yield side, piece, starts

        try:
            for side in SPLITS:
                writers[side] = StreamWriter(*self.files(number, side), tokenizer.dtype, self.notes)
            if number == 0:  # a stream starts with an end of text
                for writer in writers.values():
                    writer.write(np.array([tokenizer.end_of_text]), np.zeros(0, dtype=PAIR))
            for side, encoded in encoders.encode_all(pieces()):
                writers[side].write(encoded.ids, encoded.pairs)
                self.others.report_sometimes(lambda: self.progress(number, writers))
            total = tuple(map(sum, zip(*(own.totals for own in routed.values()), strict=True)))
            divided = split.cut_within(share, found.n_characters)
            changed = any(stat_of(file) != self.stats[file] for file in share.part.files)
            if changed or total != (found.n_documents + divided, found.n_characters, found.n_bytes):
                raise UserError(f"{self.parts[number][1].description}: changed while it was read; run again")
            for writer in writers.values():
                writer.publish()
        finally:
            for writer in writers.values():
                writer.discard()
        counts = {side: with_text(writers[side].counts, routed[side]) for side in SPLITS}
        write_note(self.done_file(number), {side: asdict(own) for side, own in counts.items()})
        self.spool(number).unlink(missing_ok=True)
        return sum(own.tokens for own in counts.values()) - (len(SPLITS) if number == 0 else 0)

    def progress(self, number: int, writers: dict[str, StreamWriter]) -> str:
        n_tokens = sum(writer.counts.tokens for writer in writers.values())
        of = f" of part {number + 1:,} of {len(self.parts):,}" if len(self.parts) > 1 else ""
        return f"Tokenized {n_tokens:,} tokens{of} …"

    def files(self, number: int, side: str) -> tuple[Path, Path | None]:
        """Of a part's tokens on one side, and of its pairs."""
        index = self.notes / f"{side}-pairs-{number:05d}.bin" if self.job.source.pairs else None
        return self.folder / f"{side}-{number:05d}.bin", index

    def done_file(self, number: int) -> Path:
        return self.notes / f"done-{number:05d}.json"

    def tokenized(self, number: int, tokenizer: Tokenizer) -> dict[str, Counts] | None:
        """What a part's files hold, where they are whole."""
        content = read_note(self.done_file(number))
        if content is None:
            return None
        counts = {side: Counts(**content[side]) for side in SPLITS}
        for side in SPLITS:
            tokens, pairs = self.files(number, side)
            if not has_bytes(tokens, counts[side].tokens * tokenizer.dtype.itemsize):
                return None
            if pairs and not has_bytes(pairs, counts[side].pairs * PAIR.itemsize):
                return None
        return counts

    @property
    def worth_keeping(self) -> bool:
        """Whether a process that has stopped leaves something by which the next one gets on."""
        return len(self.parts) > 1 or any(self.notes.glob("spool-*.jsonl"))


def with_text(counts: Counts, text: Scan) -> Counts:
    return replace(
        counts,
        documents=text.n_documents,
        characters=text.n_characters,
        bytes=text.n_bytes,
        completion_bytes=text.completion_bytes,
    )


def stat_of(file: Path) -> tuple[int, int]:
    """By which a change of a file is noticed. Raises UserError."""
    with reading(file):
        stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def has_bytes(file: Path, size: int) -> bool:
    """Whether it is there and whole. One without tokens may be gone: `assemble` removes it."""
    return file.stat().st_size == size if file.is_file() else size == 0
