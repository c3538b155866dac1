"""Odd input that is taken, with the right result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from gpt.text.shards import open_corpus
from tests.faults.bad_inputs import Fine
from tests.faults.lab import PREPARED, Outcome
from tests.faults.spoil import Spoil, both, edit, link, write

WHOLE = ("data.val_files=[held.txt]",)  # so that all of data.files is training text


def text_of(folder: Path, out: str) -> str:
    """The training text of the corpus that `data/prepare.py` printed the folder of, put together again."""
    corpus = open_corpus(Path(out.strip()))
    tokens = corpus.train.read(0, len(corpus.train))
    return tokens[tokens < 256].astype(np.uint8).tobytes().decode("utf-8")  # of the byte tokenizer


def prepared(name: str, spoil: Spoil, files: str, text: str, *more: str) -> Fine:
    """Text that comes out of preparation as it went in."""
    return Fine(
        name,
        "prepare",
        (f"data.files={files}", *(more or WHOLE)),
        lambda folder, outcome: text_of(folder, outcome.out) == text,
        both(spoil, write("held.txt", "leaf " * 9)),
    )


def sampled(name: str, *arguments: str, spoil: Spoil | None = None, starts: str = "") -> Fine:
    """Samples of a model that come."""
    return Fine(
        name, "sample", arguments, lambda folder, outcome: outcome.out.startswith(starts) and bool(outcome.out), spoil
    )


def tokens_in(folder: Path) -> int:
    (made,) = (path for path in (folder / PREPARED).iterdir() if path.is_dir())
    return int(np.fromfile(made / "train-00000.bin", dtype="<u2").size)


def many(folder: Path) -> None:
    """3,000 tiny files in 30 folders, nested."""
    for number in range(3000):
        place = folder / "tree" / "/".join(f"d{number % (depth + 2)}" for depth in range(6))
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.txt").write_text(f"{number},")


def wrote(folder: Path, outcome: Outcome) -> bool:
    lines = (folder / "made.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines] == ["leaf", " {root}", "葉"]


COMMA = "a, b's [1] {x}.txt"
LONG = '{"text": "' + "leaf 葉 " * 2_000_000 + '"}\n'

FINE: list[Fine] = [
    prepared("a byte order mark", write("x.txt", "\ufeffleaf 葉"), "[x.txt]", "leaf 葉"),
    prepared("UTF-16 with its mark", write("x.txt", "leaf 葉".encode("utf-16")), "[x.txt]", "leaf 葉"),
    prepared("UTF-16 the other way round", write("x.txt", b"\xfe\xff" + "葉".encode("utf-16-be")), "[x.txt]", "葉"),
    prepared("line ends of Windows", write("x.txt", "leaf\r\nroot\r\n"), "[x.txt]", "leaf\r\nroot\r\n"),
    prepared(
        "controls and private characters",
        write("x.txt", "\x01\x1b[31m\x7f\ue000\u2028"),
        "[x.txt]",
        "\x01\x1b[31m\x7f\ue000\u2028",
    ),
    prepared("an end of text in the text", write("x.txt", "a<|endoftext|>b"), "[x.txt]", "a<|endoftext|>b"),
    prepared("the name of a path with everything in it", write(COMMA, "leaf"), f"[{COMMA}]", "leaf"),
    prepared("a name that looks like a glob", write("*.txt", "leaf"), "[*.txt]", "leaf"),
    prepared("a name with a line end", write("a\nb.txt", "leaf"), "[a\nb.txt]", "leaf"),
    prepared(
        "a name that is not UTF-8",
        lambda f: Path(f / "n").mkdir() or write("n/caf\udce9.txt", "leaf")(f),
        "[n]",
        "leaf",
    ),
    prepared("quotes around a name", write("a,b.txt", "leaf"), "['a,b.txt']", "leaf"),
    prepared("links in a circle below a folder", both(write("n/a.txt", "leaf"), link("n/back", ".")), "[n]", "leaf"),
    prepared(
        "a file by two names", both(write("a.txt", "leaf"), link("b.txt", "a.txt")), "[a.txt,b.txt,./a.txt]", "leaf"
    ),
    prepared("an empty file among others", both(write("n/a.txt", ""), write("n/b.txt", "leaf")), "[n]", "leaf"),
    prepared(
        "JSON Lines with a mark, blank lines and Windows' line ends",
        write("x.jsonl", '\ufeff{"text": "a"}\r\n\r\n{"text": "b"}'),
        "[x.jsonl]",
        "ab",
        "data=jsonl",
        "data.val_files=[x.jsonl]",
    ),
    prepared(
        "values that are no text",
        write("x.jsonl", '{"text": {"a": [1, null, NaN]}}\n{"text": 1e3}\n'),
        "[x.jsonl]",
        '{"a": [1, null, NaN]}1000.0',
        "data=jsonl",
        "data.val_files=[x.jsonl]",
    ),
    prepared(
        "braces and everything in a template",
        write("x.jsonl", '{"a.b c!r:>9": "leaf"}\n'),
        "[x.jsonl]",
        "{leaf}\n",
        "data=jsonl",
        "data.val_files=[x.jsonl]",
        "data.template={{{a.b c!r:>9}}}\\n",
    ),
    prepared(
        "a line of 30 MB",
        write("x.jsonl", LONG),
        "[x.jsonl]",
        "leaf 葉 " * 2_000_000,
        "data=jsonl",
        "data.val_files=[x.jsonl]",
    ),
    Fine(
        "thousands of tiny files, deep down",
        "prepare",
        ("data.files=[tree/**/*.txt]", *WHOLE),
        lambda folder, outcome: tokens_in(folder) == 1 + sum(len(f"{n},") + 1 for n in range(3000)),
        both(many, write("held.txt", "leaf " * 9)),
        slow=True,
    ),
    Fine(
        "a word of 200,000 letters for BPE",
        "prepare",
        ("data.files=[x.txt]", "tokenizer=bpe", "tokenizer.vocab_size=300"),
        lambda folder, outcome: "Tokenized" in outcome.err,
        write("x.txt", "acgtaacctg" * 20_000),
    ),
    Fine(
        "a huge vocabulary for little text",
        "prepare",
        ("tokenizer=bpe", "tokenizer.vocab_size=1e7"),
        lambda folder, outcome: "holds only" in outcome.err,
    ),
    Fine("the same option twice", "prepare", ("seed=5", "seed=5"), lambda folder, outcome: "Tokenized" in outcome.err),
    sampled(
        "a config with a mark",
        "checkpoint=model",
        spoil=lambda f: (f / "model/config.json").write_bytes(b"\xef\xbb\xbf" + (f / "model/config.json").read_bytes()),
    ),
    sampled(
        "pointers to code, which nobody follows",
        "checkpoint=model",
        spoil=edit("model/config.json", auto_map={"AutoModel": "evil.Evil"}, trust_remote_code=True),
    ),
    sampled("a prompt of braces", "prompt={a: [1,", starts="{a: [1,"),
    sampled("a prompt of controls", "prompt=\x1b[31m\u202e", starts="\x1b[31m\u202e"),
    sampled("a prompt longer than the context", "prompt=" + "leaf " * 50, starts="leaf " * 50),
    sampled("prompt=null", "prompt=null", starts="null"),
    sampled("the greatest temperature", "temperature=1e300"),
    sampled("a top_k beyond the vocabulary", f"top_k={2**62}"),
    sampled("the least top_p", "top_p=1e-300"),
    Fine(
        "prompts in UTF-16 of Windows",
        "sample",
        ("prompt_file=p.txt", "output=made.jsonl"),
        wrote,
        write("p.txt", "leaf\r\n\r\n {root}\r\n葉".encode("utf-16")),
    ),
]
