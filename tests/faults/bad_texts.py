"""Wrong text: files and globs, encodings, too little."""

from __future__ import annotations

import os
import socket as sockets
from pathlib import Path

from tests.faults.bad_inputs import Case, bad
from tests.faults.spoil import Spoil, both, fifo, link, write


def socket(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path must be short
        try:
            with sockets.socket(sockets.AF_UNIX) as made:
                made.bind(name)
        finally:
            os.chdir(here)

    return spoil


FILES = [
    bad("a missing file", "train", "data.files=[none.txt]", says=["'none.txt' does not exist", "check the path"]),
    bad(
        "one missing of two",
        "train",
        "data.files=[book.txt,none.txt]",
        says=["'none.txt' does not exist", "check the path"],
    ),
    bad(
        "a missing held-out file",
        "train",
        "data.val_files=[none.txt]",
        says=["data.val_files", "does not exist", "check"],
    ),
    bad(
        "a glob that matches nothing",
        "train",
        "data.files=[*.md]",
        says=["no file matches '*.md'", "check the pattern"],
    ),
    bad("stars beside letters", "train", "data.files=[**.txt]", says=["'**.txt'", "write '[notes/**/*.txt]'"]),
    bad("a glob that never closes", "train", "data.files=[book[.txt]", says=["no file matches 'book[.txt'", "check"]),
    bad(
        "a folder without text",
        "train",
        "data.files=[bare]",
        says=["'bare' has no text files", "**/*.log"],
        spoil=write("bare/photo.jpg", b"\xff\xd8"),
    ),
    bad(
        "a hidden folder's text",
        "train",
        "data.files=[notes]",
        says=["'notes' has no text files"],
        spoil=write("notes/.hidden/a.txt", "leaf"),
    ),
    bad("a device", "train", "data.files=[/dev/zero]", says=["'/dev/zero' is not a regular file", "save its text"]),
    bad(
        "a pipe",
        "train",
        "data.files=[pipe]",
        says=["'pipe' is not a regular file", "save its text"],
        spoil=fifo("pipe"),
    ),
    bad("a socket", "train", "data.files=[s]", says=["'s' is not a regular file", "save its text"], spoil=socket("s")),
    bad(
        "a link to itself",
        "train",
        "data.files=[loop]",
        says=["'loop' does not exist", "check"],
        spoil=link("loop", "loop"),
    ),
    bad(
        "a link to nothing", "train", "data.files=[l.txt]", says=["'l.txt' does not exist"], spoil=link("l.txt", "none")
    ),
    bad(
        "nobody's home",
        "train",
        "data.files=[~nobody7/x]",
        says=["~nobody7/x", "no user of that name", "begin with ./~"],
    ),
    bad(
        "a name of 5,000 letters",
        "train",
        "data.files=[" + "x" * 5000 + "]",
        says=["(5000 characters)", "check the path"],
    ),
    bad(
        "4,000 missing files",
        "train",
        "data.files=[" + ",".join(f"{n}.txt" for n in range(4000)) + "]",
        says=["'0.txt' does not exist"],
    ),
    bad(
        "100,000 commas", "train", "data.files=[" + "," * 100_000 + "]", says=["data.files=[]", "data.files='[book.txt"]
    ),
    bad("a file that cannot be read", "train", "data.files=[/proc/self/mem]", says=["/proc", "/mem", "cannot be read"]),
]

CONTENTS = [
    bad(
        "no text",
        "train",
        "data.files=[x.txt]",
        says=["no text in x.txt", "give files that hold some"],
        spoil=write("x.txt", ""),
    ),
    bad("only a mark", "train", "data.files=[x.txt]", says=["no text in x.txt"], spoil=write("x.txt", b"\xef\xbb\xbf")),
    bad(
        "only blank lines in paragraphs",
        "train",
        "data.files=[x.txt]",
        "data.documents=blank_line",
        says=["no text in x.txt"],
        spoil=write("x.txt", "\n \n\t\n"),
    ),
    bad(
        "no held-out text",
        "train",
        "data.val_files=[x.txt]",
        says=["data.val_files", "no text"],
        spoil=write("x.txt", ""),
    ),
    bad(
        "one letter",
        "train",
        "data.files=[x.txt]",
        says=["data.val_fraction", "give more text"],
        spoil=write("x.txt", "a"),
    ),
    bad(
        "two letters",
        "train",
        "data.files=[x.txt]",
        says=["shorter than one context", "give more text"],
        spoil=write("x.txt", "ab"),
    ),
    bad(
        "less than a context",
        "train",
        "data.files=[x.txt]",
        says=["shorter than one context", "model.context_length=16"],
        spoil=write("x.txt", "leaf leaf"),
    ),
    bad(
        "the same text twice",
        "train",
        "data.files=[a.txt,b.txt]",
        says=["all 2 documents are the same", "other text"],
        spoil=both(write("a.txt", "leaf " * 9), write("b.txt", "leaf " * 9)),
    ),
    bad(
        "Latin-1",
        "train",
        "data.files=[x.txt]",
        says=["x.txt", "at byte 3", "iconv -f ENCODING"],
        spoil=write("x.txt", b"caf\xe9 leaf"),
    ),
    bad(
        "UTF-8 that breaks off",
        "train",
        "data.files=[x.txt]",
        says=["x.txt", "at byte 4", "iconv"],
        spoil=write("x.txt", b"leaf\xe8\x91"),
    ),
    bad(
        "overlong UTF-8",
        "train",
        "data.files=[x.txt]",
        says=["x.txt", "at byte 0"],
        spoil=write("x.txt", b"\xc0\xaf leaf"),
    ),
    bad(
        "surrogates in UTF-8",
        "train",
        "data.files=[x.txt]",
        says=["x.txt", "at byte 2"],
        spoil=write("x.txt", b"ab\xed\xa0\x80"),
    ),
    bad(
        "UTF-16 that breaks off",
        "train",
        "data.files=[x.txt]",
        says=["x.txt", "UTF-16-LE", "iconv"],
        spoil=write("x.txt", b"\xff\xfea\x00b"),
    ),
    bad(
        "half a pair in UTF-16",
        "train",
        "data.files=[x.txt]",
        says=["x.txt", "UTF-16-LE"],
        spoil=write("x.txt", b"\xff\xfe\x00\xd8a\x00"),
    ),
    bad(
        "UTF-16 without a mark",
        "train",
        "data.files=[x.txt]",
        says=["x.txt", "NUL byte at offset 1"],
        spoil=write("x.txt", "leaf".encode("utf-16-le")),
    ),
    bad(
        "UTF-32",
        "train",
        "data.files=[x.txt]",
        says=["x.txt", "NUL", "leave it out"],
        spoil=write("x.txt", "leaf".encode("utf-32")),
    ),
    bad(
        "a NUL in the middle",
        "train",
        "data.files=[x.txt]",
        says=["x.txt", "NUL byte at offset 9", "leave it out"],
        spoil=write("x.txt", "leaf leaf\0leaf"),
    ),
    bad(
        "a picture named .txt",
        "train",
        "data.files=[x.txt]",
        says=["x.txt", "at byte 0"],
        spoil=write("x.txt", b"\x89PNG\r\n\x1a\n\0\0"),
    ),
    bad(
        "a broken file among good ones",
        "train",
        "data.files=[notes]",
        says=["b.txt", "at byte 0", "leave it out"],
        spoil=both(write("notes/a.txt", "leaf " * 50), write("notes/b.txt", b"\xff")),
    ),
]

CASES: list[Case] = [*FILES, *CONTENTS]
