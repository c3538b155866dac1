"""Wrong corpora: prepared folders, what `data/prepare.py` and `evaluate.py` are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpt.text.shards import SUMS
from tests.faults.bad_inputs import USUAL, Case, bad
from tests.faults.lab import TEXT, attempt
from tests.faults.spoil import Spoil, cut, edit, inside, write


def prepared(spoil: Callable[[str], Spoil]) -> Spoil:
    """The corpus of the usual training, prepared and then spoiled; `spoil` gets its folder's name."""

    def all_of_it(folder: Path) -> None:
        made = attempt("prepare", USUAL["prepare"], folder)
        if made.status != 0:
            raise RuntimeError(made.said)
        place = Path(made.out.strip()).relative_to(folder.resolve())
        (folder / place / SUMS).unlink()  # as whoever spoils it on purpose would do
        spoil(str(place))(folder)

    return all_of_it


def shard(split: str, **keys: object) -> Spoil:
    """The first shard of a split said to be another."""

    def spoil(at: str) -> Spoil:
        return inside(f"{at}/meta.json", lambda meta: meta["splits"][split]["shards"][0].update(keys))

    return prepared(spoil)


AGAIN = ["delete", "run again"]
CORPORA = [
    bad(
        "a prepared corpus without meta.json",
        "train",
        says=["meta.json", *AGAIN],
        spoil=prepared(lambda at: lambda f: (f / at / "meta.json").unlink()),
    ),
    bad(
        "meta.json of nothing",
        "train",
        says=["meta.json", *AGAIN],
        spoil=prepared(lambda at: write(f"{at}/meta.json", "{}")),
    ),
    bad(
        "meta.json that breaks off",
        "train",
        says=["meta.json", *AGAIN],
        spoil=prepared(lambda at: cut(f"{at}/meta.json", 40)),
    ),
    bad(
        "another width of tokens",
        "train",
        says=["meta.json", *AGAIN],
        spoil=prepared(lambda at: edit(f"{at}/meta.json", dtype="uint32")),
    ),
    bad(
        "shards of somewhere else",
        "train",
        says=["meta.json", "no file of its own folder", *AGAIN],
        spoil=shard("train", file="../../book.txt"),
    ),
    bad(
        "shards of the whole machine",
        "train",
        says=["meta.json", "/etc/passwd", *AGAIN],
        spoil=shard("val", file="/etc/passwd"),
    ),
    bad("shards of exabytes", "train", says=["train-00000.bin", *AGAIN], spoil=shard("train", tokens=10**17)),
    bad("a negative number of tokens", "train", says=["meta.json", *AGAIN], spoil=shard("train", tokens=-5)),
    bad(
        "a shard that is cut",
        "train",
        says=["train-00000.bin", *AGAIN],
        spoil=prepared(lambda at: cut(f"{at}/train-00000.bin", 99)),
    ),
    bad(
        "a shard that is gone",
        "train",
        says=["val-00000.bin", *AGAIN],
        spoil=prepared(lambda at: lambda f: (f / at / "val-00000.bin").unlink()),
    ),
    bad(
        "tokens that are none",
        "train",
        says=["token", "vocabulary of 257", *AGAIN],
        spoil=prepared(
            lambda at: (
                lambda f: (f / at / "val-00000.bin").write_bytes(b"\xff" * (f / at / "val-00000.bin").stat().st_size)
            )
        ),
    ),
    bad(
        "a prepared tokenizer that is broken",
        "train",
        says=["tokenizer.json"],
        spoil=prepared(lambda at: write(f"{at}/tokenizer.json", "[]")),
    ),
]

PREPARING = [
    bad("nothing to prepare", "prepare", "data.files=[none.txt]", says=["'none.txt' does not exist", "check the path"]),
    bad(
        "preparing binary files",
        "prepare",
        "data.files=[x.txt]",
        says=["x.txt", "NUL"],
        spoil=write("x.txt", b"\0" * 99),
    ),
    bad("preparing into a file", "prepare", "data.prepared_dir=book.txt", says=["data.prepared_dir", "another folder"]),
    bad(
        "preparing with no tokenizer",
        "prepare",
        "tokenizer=huggingface",
        "tokenizer.path=none",
        says=["tokenizer.path=none"],
    ),
    bad(
        "evaluating on nothing",
        "evaluate",
        *TEXT[:1],
        "data.files=[x.txt]",
        says=["no text in x.txt"],
        spoil=write("x.txt", ""),
    ),
    bad(
        "evaluating unseen characters",
        "evaluate",
        "checkpoint=char",
        *TEXT[:1],
        "data.files=[x.txt]",
        says=["never seen", "leave such characters out"],
        spoil=write("x.txt", "leaf ☃ " * 20),
    ),
    bad(
        "evaluating a run whose text is gone",
        "evaluate",
        says=["book.txt", "does not exist"],
        spoil=lambda folder: (folder / "book.txt").unlink(),
    ),
]

CASES: list[Case] = [*CORPORA, *PREPARING]
