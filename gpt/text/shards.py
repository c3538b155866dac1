"""A tokenized corpus on disk: made once, then memory-mapped.

    data/prepared/<source>-<tokenizer>-<hash>/
        meta.json          counts, fingerprint, and the files of both splits
        train-00000.bin …  token ids, little-endian, uint16 where the vocabulary fits it, else uint32; a file for each
                           part of the corpus that has any
        train-pairs.bin    of data=pairs: where each pair is (`streams.py` has the formats)
        val-00000.bin …
        tokenizer.json …   the tokenizer
        SHA256SUMS         checksums of all these, by which damage is noticed when the folder is opened

The hash is of everything that decides the result: options, and each file's path, size and time of change. The folder is
made beside its place, under a lock, and then renamed (`preparing.py`), so it is whole or not there. A split starts with
an end of text and has one after each document, except that training text that is cut off inside the last has none
there. The tokenizer's prefix stands before each document, also before the held-out end of one that is cut.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import filelock

from gpt.config import DataConfig, TokenizerConfig
from gpt.options import UserError, written
from gpt.text.assembling import FORMAT, SUMS, assemble, remove_leftovers
from gpt.text.checksums import damage
from gpt.text.cooperation import OthersFinished, Report, Shard
from gpt.text.documents import open_source
from gpt.text.encoders import is_unicode
from gpt.text.files import read_object
from gpt.text.preparing import Job, Preparation, stat_of
from gpt.text.spans import Unreadable
from gpt.text.splits import SPLITS
from gpt.text.streams import TokenStream, open_stream
from gpt.text.tokenizers import Tokenizer
from gpt.text.vocabularies import build_tokenizer

CHECKED_BYTES = 2**28  # of shards: more would be a wait at each start, so then only their sizes are checked
ALONE = Shard()
PREPARED = Path(__file__).resolve().parents[2] / "data" / "prepared"


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. `fingerprint` is of the tokens (and where pairs are) alone; `source` is a line for people."""

    tokenizer: Tokenizer
    train: TokenStream
    val: TokenStream
    fingerprint: str
    folder: Path
    source: str


def open_corpus(folder: Path, tokenizer: Tokenizer | None = None, thorough: bool = False) -> Corpus:
    """Open a prepared folder, or one that was made just now with `tokenizer`. Raises UserError where it is damaged,
    which of a large one is noticed at once only if `thorough`."""
    if tokenizer is None and (found := _damage(folder, thorough)):
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


def _damage(folder: Path, thorough: bool) -> str | None:
    """What is wrong with a prepared folder by its checksums, if it is not older than these; None where nothing is."""
    if not (folder / SUMS).is_file():
        return None
    shards = [path for path in folder.iterdir() if path.suffix == ".bin"]
    thorough = thorough or sum(path.stat().st_size for path in shards) <= CHECKED_BYTES
    return damage(folder, SUMS, lambda name: thorough or not name.endswith(".bin"))


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    report: Report = lambda line: None,
    whole: bool = False,
    shard: Shard = ALONE,
    thorough: bool = False,
) -> Corpus:
    """The corpus that the options describe, from disk where it is ready, else read, split and tokenized now.

    With `whole`, for evaluation, all of it is the validation split, down to a single short document, and the training
    split has no text; a tokenizer that is made from training text (bpe, char) cannot be then: ValueError.
    With a `shard`, this process does its part of the work, and waits for the others. `thorough`: all checksums of what
    is on disk are checked. `report` gets short lines about progress. Raises UserError for whatever is wrong with the
    options or the files.
    """
    if whole and tokenizer.name in ("bpe", "char"):
        raise ValueError(f"tokenizer={tokenizer.name} is made from training text, and whole=True leaves none")
    if whole and data.val_files:
        raise UserError(f"data.val_files={written(data.val_files)}: all of data.files is held out here; leave it out")
    root = Path(data.prepared_dir).expanduser().resolve() if data.prepared_dir else PREPARED
    source = open_source(data, root / "downloads", report=report)
    val_source = open_source(data, root / "downloads", held_out=True) if data.val_files else None
    job = Job(data, tokenizer, source, val_source, whole)
    stats = _stats(job)
    folder = root / f"{data.name}-{tokenizer.name}-{_key(job, stats)}"
    tokenizer_made = None
    if folder.is_dir():
        remove_leftovers(folder)
        return open_corpus(folder, thorough=thorough)
    name = f"{shard.index}-of-{shard.count}." if shard.index else ""  # the first is also who prepares it alone
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{folder.name}.{name}lock", report):
            if not folder.is_dir():  # else somebody has just made it
                if _stats(job) != stats:
                    raise UserError(f"{source.description}: changed while this waited for another process; run again")
                tokenizer_made = _make(folder, job, shard, report)
    except OSError as error:  # readers turn theirs into UserErrors, so this one is about writing
        kept = "; what is finished is kept there" if any(root.glob(f".{folder.name}.*.tmp")) else ""
        way_out = (
            "have the shell allow more open files (ulimit -n)" if error.errno == errno.EMFILE else "make room there"
        )
        raise UserError(
            f"data.prepared_dir: the tokenized corpus cannot be written to {root} ({error.strerror or error}); "
            f"{way_out}, or name another folder with data.prepared_dir=FOLDER{kept}"
        ) from None
    return open_corpus(folder, tokenizer_made)


Stats = list[list[tuple[str, int, int]]]


def _stats(job: Job) -> Stats:
    """Path, size in bytes and time of change of each file, of `source` and of `val_source`. Raises UserError."""
    origins = filter(None, (job.source, job.val_source))
    return [[(str(file), *stat_of(file)) for file in origin.files] for origin in origins]


def _key(job: Job, stats: Stats) -> str:
    """12 hex digits of a hash of all that decides the result."""
    options = dataclasses.asdict(job.data)
    for name in ("workers", "prepared_dir", "files", "val_files"):
        del options[name]
    tokenizer = dataclasses.asdict(job.tokenizer)
    if job.tokenizer.path:  # what is there counts, not where: each checkpoint of a run has the same
        theirs = build_tokenizer(job.tokenizer)
        tokenizer["path"] = [theirs.fingerprint, theirs.end_of_text, *theirs.prefix]
    everything = [FORMAT, options, tokenizer, stats, job.whole]
    return hashlib.blake2b(json.dumps(everything).encode("utf-8"), digest_size=6).hexdigest()


def _lock(file: Path, report: Report) -> filelock.AcquireReturnProxy:
    """A lock, held, to release with `with`. It ends with the process too, however that ends."""
    lock = filelock.FileLock(file)
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        report("Another process is preparing this corpus; waiting for it …")
        return lock.acquire()


def _make(place: Path, job: Job, shard: Shard, report: Report) -> Tokenizer | None:
    """Put a finished folder in its place. Returns its tokenizer, or None where another process was the last.

    Whoever stops leaves what is finished to the next, but nothing where the files are at fault, or it is not worth it.
    """
    preparation = Preparation(place, job, shard, report)
    try:
        made = preparation.run()
        assemble(made, preparation, place)
        return made.tokenizer
    except OthersFinished:
        return None
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, OSError) and place.is_dir():  # a process of another number of shards was quicker
            return None
        in_vain = isinstance(error, UserError) and not isinstance(error, Unreadable) and not job.source.remote
        if shard.count == 1 and (in_vain or not preparation.worth_keeping):
            shutil.rmtree(preparation.folder, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            report("Interrupted; what is finished is kept, and the same command goes on from there.")
        elif shard.count > 1:
            preparation.others.fail(error)
        raise
