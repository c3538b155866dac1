"""A corpus whose parts are all tokenized → a finished folder in its place."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from gpt.text.checksums import write_sums
from gpt.text.durable import flush_file, flush_folder
from gpt.text.preparing import NOTES, Preparation, Tokenized
from gpt.text.splits import SPLITS
from gpt.text.streams import join_pairs, stream_digest, total_counts

FORMAT = 4
SUMS = "SHA256SUMS"


def assemble(made: Tokenized, preparation: Preparation, place: Path) -> None:
    """Give the folder all that a corpus has besides tokens, then its name. Raises OSError."""
    folder, job = preparation.folder, preparation.job
    shards = {side: _shards(made, preparation, side) for side in SPLITS}
    tokens = {file.name for files in shards.values() for file in files}
    for path in folder.iterdir():  # what a process left that was killed at some other time
        if path.name not in tokens and path.name != NOTES:
            path.unlink(missing_ok=True)
    made.tokenizer.save(folder)
    indexes = {side: _join_pairs(made, preparation, side) for side in SPLITS} if job.source.pairs else {}
    digests = [stream_digest(side, made.tokenizer.dtype, shards[side], indexes.get(side)) for side in SPLITS]
    held_out = f", held out: {job.val_source.description}" if job.val_source else ""
    meta = {
        "format": FORMAT,
        "source": job.source.description + held_out,
        "dtype": made.tokenizer.dtype.name,
        "splits": {side: _describe(made, side, shards[side], indexes.get(side)) for side in SPLITS},
        "tokenizer_fingerprint": made.tokenizer.fingerprint,
        "fingerprint": hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest(),
    }
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    write_sums(folder, SUMS, without=[NOTES])
    for path in folder.iterdir():
        if path.is_file():  # in the notes another number of shards may still come and go
            flush_file(path)
    flush_folder(folder)
    folder.rename(place)
    flush_folder(place.parent)
    remove_leftovers(place)


def _shards(made: Tokenized, preparation: Preparation, side: str) -> dict[Path, int]:
    """The token files of a split that hold any, and how many."""
    counts = {preparation.files(number, side)[0]: part[side].tokens for number, part in enumerate(made.counts)}
    return {file: tokens for file, tokens in counts.items() if tokens}


def _join_pairs(made: Tokenized, preparation: Preparation, side: str) -> Path:
    joined = preparation.folder / f"{side}-pairs.bin"
    files = [preparation.files(number, side)[1] for number in range(len(made.counts))]
    before = itertools.accumulate((part[side].tokens for part in made.counts), initial=0)
    join_pairs([(file, tokens) for file, tokens in zip(files, before, strict=False) if file], joined)
    return joined


def _describe(made: Tokenized, side: str, shards: dict[Path, int], index: Path | None) -> dict[str, Any]:
    """The split's part of meta.json, all that its readers need to know."""
    total = total_counts(part[side] for part in made.counts)
    described: dict[str, Any] = {name: total[name] for name in ("tokens", "documents", "characters", "bytes")}
    described["shards"] = [{"file": file.name, "tokens": tokens} for file, tokens in shards.items()]
    if index:
        of_pairs = {name: total[name] for name in ("completion_tokens", "completion_bytes")}
        described["pairs"] = {"file": index.name, **of_pairs}
    return described


def remove_leftovers(place: Path) -> None:
    """What a corpus no longer needs once it is in its place, where somebody was killed before removing it."""
    for folder in (place / NOTES, *place.parent.glob(f".{place.name}.*.tmp")):
        shutil.rmtree(folder, ignore_errors=True)
