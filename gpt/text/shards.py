"""A tokenized corpus on disk: made once, then memory-mapped.

    data/prepared/<source>-<tokenizer>-<hash>/
        meta.json          counts, fingerprint, and the files of both splits
        train-00000.bin …  token ids, little-endian, uint16 where the vocabulary fits it, else uint32
        train-pairs.bin    of data=pairs: where each pair is (`streams.py` has the formats)
        val-00000.bin …
        tokenizer.json …   the tokenizer
        SHA256SUMS         checksums of all these, by which damage is noticed when the folder is opened

The hash is of everything that decides the result: options, and each file's path, size and time of change. The folder is
written beside its place under a lock and then renamed, so it is whole or not there. A split starts with an end of text
and has one after each document, except that training text that is cut off inside a document has none there. The
tokenizer's prefix stands before each document, also before the held-out end of a single one.
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
from pathlib import Path

import filelock

from gpt.config import DataConfig, TokenizerConfig
from gpt.options import UserError, written
from gpt.text.checksums import damage, write_sums
from gpt.text.documents import Source, open_source, spooled
from gpt.text.encoders import is_unicode
from gpt.text.files import read_object
from gpt.text.parallel_encoding import encode_all
from gpt.text.splits import EVERY_HASH, SPLITS, CharacterCounts, Scan, Split, divide, scan, training_texts
from gpt.text.streams import StreamWriter, TokenStream, open_stream
from gpt.text.tokenizers import Tokenizer
from gpt.text.vocabularies import build_tokenizer, default_vocab_size, training_bytes

FORMAT = 1
SUMS = "SHA256SUMS"
CHECKED_BYTES = (
    2**30
)  # of shards: more would be a wait at each start, so of larger corpora only their sizes are checked
PREPARED = Path(__file__).resolve().parents[2] / "data" / "prepared"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. `fingerprint` is of the tokens (and where pairs are) alone; `source` is a line for people."""

    tokenizer: Tokenizer
    train: TokenStream
    val: TokenStream
    fingerprint: str
    folder: Path
    source: str


def open_corpus(folder: Path, tokenizer: Tokenizer | None = None) -> Corpus:
    """Open a prepared folder, or one that was made just now with `tokenizer`. Raises UserError where it is damaged."""
    if tokenizer is None and (found := _damage(folder)):
        raise UserError(f"the prepared corpus {folder} is damaged: {found}; delete {folder} and run again")
    tokenizer = tokenizer or Tokenizer.load(folder)
    path = folder / "meta.json"
    try:
        meta = read_object(path)
        if meta["dtype"] != tokenizer.dtype.name or not is_text(meta["fingerprint"]) or not is_text(meta["source"]):
            raise ValueError("its dtype, fingerprint or source cannot be")
        train, val = (open_stream(folder, tokenizer, meta["splits"][name]) for name in SPLITS)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path}: cannot be read ({why}); delete {folder} and run again") from None
    except UserError as error:
        said = str(error).removesuffix("; copy or download it again")  # it is ours, and is made again
        raise UserError(f"{said}; delete {folder} and run again") from None
    return Corpus(tokenizer, train, val, meta["fingerprint"], folder, meta["source"])


def is_text(value: object) -> bool:
    return isinstance(value, str) and is_unicode(value)


def _damage(folder: Path) -> str | None:
    """What is wrong with a prepared folder by its checksums, if it is not older than these; None where nothing is."""
    if not (folder / SUMS).is_file():
        return None
    shards = [path for path in folder.iterdir() if path.suffix == ".bin"]
    small = sum(path.stat().st_size for path in shards) <= CHECKED_BYTES
    return damage(folder, SUMS, lambda name: small or not name.endswith(".bin"))


@dataclass(frozen=True)
class _Job:
    """What is to be prepared. With `whole`, all of `source` is held out."""

    data: DataConfig
    tokenizer: TokenizerConfig
    source: Source
    val_source: Source | None
    whole: bool


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, report: Report = lambda line: None, whole: bool = False
) -> Corpus:
    """The corpus that the options describe, from disk where it is ready, else read, split and tokenized now.

    With `whole`, for evaluation, all of it is the validation split, down to a single short document, and the training
    split has no text; a tokenizer that is made from training text (bpe, char) cannot be then: ValueError.
    `report` gets short lines about progress. Raises UserError for whatever is wrong with the options or the files.
    """
    if whole and tokenizer.name in ("bpe", "char"):
        raise ValueError(f"tokenizer={tokenizer.name} is made from training text, and whole=True leaves none")
    if whole and data.val_files:
        raise UserError(f"data.val_files={written(data.val_files)}: all of data.files is held out here; leave it away")
    root = Path(data.prepared_dir).expanduser().resolve() if data.prepared_dir else PREPARED
    source = open_source(data, root / "downloads", report=report)
    val_source = open_source(data, root / "downloads", held_out=True) if data.val_files else None
    job = _Job(data, tokenizer, source, val_source, whole)
    folder = root / f"{data.name}-{tokenizer.name}-{_key(job)}"
    tokenizer_made = None
    if folder.is_dir():
        return open_corpus(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{folder.name}.lock", report):
            if not folder.is_dir():  # else somebody has just made it
                tokenizer_made = _make(folder, job, report)
    except OSError as error:  # readers turn theirs into UserErrors, so this one is about writing
        raise UserError(
            f"data.prepared_dir: the tokenized corpus cannot be written to {root} ({error.strerror or error}); make "
            "room there, or name another folder with data.prepared_dir=FOLDER"
        ) from None
    return open_corpus(folder, tokenizer_made)


def _key(job: _Job) -> str:
    """12 hex digits of a hash of all that decides the result."""
    options = dataclasses.asdict(job.data)
    for name in ("workers", "prepared_dir", "files", "val_files"):
        del options[name]
    files = []
    for origin in filter(None, (job.source, job.val_source)):
        stats = [(str(file), file.stat()) for file in origin.files]
        files.append([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    tokenizer = dataclasses.asdict(job.tokenizer)
    if job.tokenizer.path:  # what is there counts, not where: each checkpoint of a run has the same
        theirs = build_tokenizer(job.tokenizer)
        tokenizer["path"] = [theirs.fingerprint, theirs.end_of_text, *theirs.prefix]
    everything = [FORMAT, options, tokenizer, files, job.whole]
    return hashlib.blake2b(json.dumps(everything).encode("utf-8"), digest_size=6).hexdigest()


def _lock(file: Path, report: Report) -> filelock.AcquireReturnProxy:
    """A lock, held, to release with `with`. It ends with the process too, however that ends."""
    lock = filelock.FileLock(file)
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        report("Another process is preparing this corpus; waiting for it …")
        return lock.acquire()


def _make(folder: Path, job: _Job, report: Report) -> Tokenizer:
    """Read, split, tokenize; then rename a finished temporary folder to `folder`. Returns the tokenizer."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # a crash left it: the lock says that nobody is writing there
    temporary.mkdir()
    try:
        report(f"Reading {job.source.description} …")
        source = spooled(job.source, temporary / "spool.jsonl", report) if job.source.remote else job.source
        config = job.tokenizer
        needs_characters = config.name == "char" or (config.name == "bpe" and config.vocab_size is None)
        characters = CharacterCounts() if needs_characters else None
        found, held_out = scan(source, "data", characters), Scan()
        if job.val_source:
            held_out = scan(job.val_source, "data.val_files", characters)
            split = Split(source, job.val_source)
        elif job.whole:
            split = Split(source, threshold=EVERY_HASH)
        else:
            split = divide(source, found, job.data.val_fraction)
        tokenizer = _tokenizer(config, split, found, characters, report)
        tokenizer.save(temporary)
        total = tuple(map(sum, zip(found.totals, held_out.totals, strict=True)))
        _write(temporary, tokenizer, split, total, job.data.workers, report)
        (temporary / "spool.jsonl").unlink(missing_ok=True)
        write_sums(temporary, SUMS)
        _sync(temporary)
        temporary.rename(folder)
        _sync(folder.parent)
        return tokenizer
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tokenizer(
    config: TokenizerConfig, split: Split, found: Scan, characters: CharacterCounts | None, report: Report
) -> Tokenizer:
    if config.name != "bpe":
        return build_tokenizer(config, characters=characters.characters() if characters else ())
    common = len(characters.characters(at_least=10)) if characters else 0
    size = config.vocab_size or default_vocab_size(found.n_bytes, common)
    size = min(size, 257 + found.n_bytes)  # no text holds more, and the trainer makes room for as many as it is told
    most = training_bytes(size)
    report(f"Training a tokenizer of {size:,} tokens on {min(most, found.n_bytes) / 1e6:.1f} MB …")
    texts = training_texts(split, found.n_bytes, most)
    return build_tokenizer(config, texts=texts, vocab_size=size, report=report)


def _write(
    folder: Path, tokenizer: Tokenizer, split: Split, total: tuple[int, ...], workers: int, report: Report
) -> None:
    """Tokenize everything into shards and meta.json. `total`: documents, characters and bytes that must come."""
    started = reported = time.monotonic()
    writers = {name: StreamWriter(folder, name, tokenizer, split.source.pairs) for name in SPLITS}
    for side, encoded in encode_all(tokenizer, split.pieces(), workers):
        writers[side].write(encoded.ids, encoded.pairs)
        if time.monotonic() - reported > 10:
            reported = time.monotonic()
            report(f"Tokenized {sum(writer.n_tokens for writer in writers.values()):,} tokens …")
    sides = [split.routed[name] for name in SPLITS]
    extra = split.cut is not None  # one document on both sides
    if tuple(map(sum, zip(*(side.totals for side in sides), strict=True))) != (total[0] + extra, *total[1:]):
        raise UserError(f"{split.source.description}: changed while it was read; run again")
    for writer in writers.values():
        writer.close()
    splits = {
        name: writers[name].meta(*side.totals, side.completion_bytes) for name, side in zip(SPLITS, sides, strict=True)
    }
    digests = b"".join(writer.digest for writer in writers.values())
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
    n_tokens = sum(writer.n_tokens for writer in writers.values()) - len(SPLITS)
    speed = f"Tokenized {total[2] / 1e6:.1f} MB in {time.monotonic() - started:.1f} s"
    report(f"{speed}: {n_tokens:,} tokens of {total[2] / n_tokens:.2f} bytes")


def _sync(path: Path) -> None:
    """Make a folder's list of files, and the small files in it, survive a loss of power."""
    small = [file for file in path.iterdir() if file.suffix != ".bin"] if path.name.endswith(".tmp") else []
    for file in [*small, path]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
