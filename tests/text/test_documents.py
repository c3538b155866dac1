"""Readers: what they yield, what they refuse, and how little memory they take."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import pytest

from gpt.config import DataConfig
from gpt.options import UserError
from gpt.text import documents, downloads, spans
from gpt.text.documents import Piece, Source, open_source
from gpt.text.files import find_files
from gpt.text.templates import Template


def texts(pieces: Iterable[Piece]) -> list[str]:
    """The whole documents."""
    out, held = [], ""
    for piece in pieces:
        held += piece.text
        if piece.ends:
            out.append(held)
            held = ""
    assert not held, "the last piece does not end its document"
    return out


def source(tmp_path: Path, **options: object) -> Source:
    return open_source(DataConfig(**options), tmp_path / "downloads")  # type: ignore[arg-type]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_text(tmp_path: Path, *files: str | Path, documents: str = "whole") -> list[str]:
    return texts(source(tmp_path, name="text", files=tuple(map(str, files)), documents=documents).read())


# --- files -------------------------------------------------------------------------------------------------------


def test_folders_globs_and_files_are_sorted_and_unique(tmp_path: Path) -> None:
    for name in ("b.txt", "a/x.md", "a/deep/y.txt", "a/picture.png", "a/.hidden.txt", ".git/z.txt"):
        write(tmp_path / name, name)
    named = [str(path.relative_to(tmp_path)) for path in find_files([f"{tmp_path}/b.txt", str(tmp_path)])]
    assert named == ["a/deep/y.txt", "a/x.md", "b.txt"]
    assert find_files([f"{tmp_path}/**/*.txt"]) == [tmp_path / "a/deep/y.txt", tmp_path / "b.txt"]
    assert len(find_files([f"{tmp_path}/a/**"])) == 3  # a glob takes any suffix
    assert find_files([f"{tmp_path}/a/.h*"]) == [tmp_path / "a/.hidden.txt"]


def test_relative_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.txt", "a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_files(["a.txt"]) == find_files(["~/a.txt"]) == find_files(["*.txt"]) == [file]


@pytest.mark.parametrize("name", ["a[1].txt", "what?.txt", "*.txt", "a, {b} 'c' \"d\" 诗.txt"])
def test_a_name_that_exists_is_no_glob(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, "yes")
    write(tmp_path / "a1.txt", "no")
    assert find_files([str(file)]) == [file]


def test_links_in_circles_end(tmp_path: Path) -> None:
    file = write(tmp_path / "a" / "x.txt", "x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "loop2").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "again.txt").symlink_to(file)
    assert find_files([str(tmp_path)]) == find_files([f"{tmp_path}/**/*.txt"]) == [file]


def test_missing_files_name_the_option(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "x.png", "x")
    os.mkfifo(tmp_path / "pipe")
    for pattern, message in (
        ("no.txt", "does not exist"),
        ("*.nothing", "no file matches"),
        ("folder", "no text files"),
        ("pipe", "not a regular file"),
    ):
        with pytest.raises(UserError, match=rf"^data\.val_files: .*{message}"):
            find_files([f"{tmp_path}/{pattern}"], "data.val_files")


# --- text --------------------------------------------------------------------------------------------------------


def test_marks_are_stripped_and_utf16_is_read(tmp_path: Path) -> None:
    text = "诗\r\n👩 \ufeff x\r\n"
    a = write(tmp_path / "a.txt", b"\xef\xbb\xbf" + text.encode())
    b = write(tmp_path / "b.txt", b"\xff\xfe" + text.encode("utf-16-le"))
    c = write(tmp_path / "c.txt", b"\xfe\xff" + text.encode("utf-16-be"))
    empty = write(tmp_path / "d.txt", b"\xef\xbb\xbf")
    assert read_text(tmp_path, a, b, c, empty) == [text] * 3


def test_long_documents_come_in_pieces_at_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(spans, "READ_BYTES", 7)  # also tears characters between reads
    text = "".join(f"{i} 床前明月光\n" for i in range(200)) + "x" * 250 + "👩" * 150
    file = write(tmp_path / "a.txt", text)
    pieces = list(source(tmp_path, name="text", files=(str(file),)).read())
    assert "".join(piece.text for piece in pieces) == text
    assert all(len(piece.text) <= 100 for piece in pieces)
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.text.endswith("\n") for piece in pieces[:15])


@pytest.mark.parametrize("read_bytes", [3, 1 << 20])
def test_binary_files_are_refused_with_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int
) -> None:
    monkeypatch.setattr(spans, "READ_BYTES", read_bytes)
    good = "床前\n".encode() * 10
    for number, (content, message) in enumerate(
        (
            (good + b"\xff" + good, f"byte {len(good)}"),
            (good + b"\xe5\xba", f"byte {len(good)}"),  # cut off inside a character
            (b"\xef\xbb\xbf" + good + b"\xc0", f"byte {len(good) + 3}"),
            (good + b"a\0b", f"offset {len(good) + 1}"),
            (b"\xff\xfe" + "ab".encode("utf-16-le") + b"\x00\xd8a\0", "byte 6"),
        )
    ):
        file = write(tmp_path / f"{number}.txt", content)
        with pytest.raises(UserError, match=rf"{number}\.txt: .*{message}\b"):
            read_text(tmp_path, file)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "a")
    here = source(tmp_path, name="text", files=(str(file),))
    file.unlink()
    with pytest.raises(UserError, match=r"a\.txt: cannot be read"):
        list(here.read())


@pytest.mark.parametrize("read_bytes", [1, 5, 1 << 20])
def test_blank_lines_separate_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int) -> None:
    monkeypatch.setattr(spans, "READ_BYTES", read_bytes)
    a = write(tmp_path / "a.txt", "\n\none\ntwo\n\n \t\n\nthree\r\n\r\nfour\nfive\n")
    b = write(tmp_path / "b.txt", "six")
    assert read_text(tmp_path, a, b, documents="blank_line") == ["one\ntwo", "three", "four\nfive", "six"]


def test_memory_stays_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 1 << 16)
    monkeypatch.setattr(spans, "READ_BYTES", 1 << 16)
    lines = write(tmp_path / "lines.txt", "some line of text\n" * 300_000)  # 5 MB
    one_line = write(tmp_path / "one.txt", "word " * 1_000_000)
    for options in ({}, {"documents": "blank_line"}):
        here = source(tmp_path, name="text", files=(str(lines), str(one_line)), **options)
        tracemalloc.start()
        n_characters = sum(len(piece.text) for piece in here.read())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n_characters >= 10_399_999
        assert peak < 2_000_000


# --- records -----------------------------------------------------------------------------------------------------


def jsonl(tmp_path: Path, content: str | bytes, template: str = "{text}") -> list[str]:
    file = write(tmp_path / "a.jsonl", content)
    return texts(source(tmp_path, name="jsonl", files=(str(file),), template=template).read())


def test_jsonl_records_through_a_template(tmp_path: Path) -> None:
    rows = [
        {"title": "静夜思", "n": 3, "tags": ["诗", 1], "none": None, "lines": ["床前", "举头"], "no_lines": []},
        {"title": "b\n", "n": 1.5, "tags": {}, "none": "", "lines": {}, "no_lines": 0},
    ]
    content = "\ufeff" + "\n \n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    assert jsonl(tmp_path, content, "{{{title}}} {n} {tags}{none} {lines}{no_lines}") == [
        '{静夜思} 3 ["诗", 1] 床前\n举头',
        "{b\n} 1.5 {} {}0",
    ]
    assert jsonl(tmp_path, '{"text": ""}\n{"text": "x"}') == ["x"]  # an empty one is no document


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "list, not an object"),
        ('{"text": ', "not JSON"),
        ('{"txt": 1, "é": 2}', "no field 'text', only 'txt', 'é'.*data.template"),
        (b'{"text": "\xff"}', "not valid UTF-8 at byte 24 of the file"),
        (r'{"text": "a\ud800"}', "surrogate"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_records_name_the_line(tmp_path: Path, line: str | bytes, message: str) -> None:
    content = b'\n{"text":"x"}\n' + (line.encode() if isinstance(line, str) else line) + b"\n"
    with pytest.raises(UserError, match=rf"(?s)a\.jsonl:3: .*{message}"):
        jsonl(tmp_path, content)


@pytest.mark.parametrize("template", ["", "no field", "{", "}", "{a}}", "{{a}", "{}", "{a{b}}"])
def test_bad_templates_are_refused_at_once(tmp_path: Path, template: str) -> None:
    with pytest.raises(UserError, match=r"^data\.template: "):
        jsonl(tmp_path, '{"a": "1"}', template)


def test_templates_reach_nothing_but_fields() -> None:
    for template in ("{text.__class__}", "{text[0]}", "{text!r}", "{text:>10}", "{0}"):
        with pytest.raises(UserError, match=r"a:1: no field"):
            Template.parse(template).render({"text": "secret"}, "a:1")
    assert Template.parse("{a.b}{ }").render({"a.b": "x", " ": "y"}, "a:1") == "xy"  # a plain name, whatever is in it
    assert Template.parse("{a}").render({"a": "{b}{{"}, "a:1") == "{b}{{"  # values are not templates
    assert Template.of_field("{a}").render({"{a}": "x"}, "a:1") == "x"


# --- hugging face, stdlib, shakespeare ----------------------------------------------------------------------------


def test_local_data_sets_by_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    rows = datasets.Dataset.from_dict({"story": ["one", "two 诗", "three"], "n": [1, 2, 3]})
    rows.to_parquet(str(tmp_path / "a.parquet"))
    rows.to_csv(str(tmp_path / "a.csv"), index=False)
    write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for suffix in ("parquet", "csv", "jsonl"):
        file = str(tmp_path / f"a.{suffix}")
        here = source(tmp_path, name="huggingface", files=(file,), column="story")
        assert texts(here.read()) == texts(here.read()) == ["one", "two 诗", "three"]
        here = source(tmp_path, name="huggingface", files=(file,), template="{n} {story}")
        assert texts(here.read())[1] == "2 two 诗"
    here = source(tmp_path, name="huggingface", files=(file,), column="text")
    with pytest.raises(UserError, match=r"row 1: no field 'text', only 'story', 'n'"):
        list(here.read())
    with pytest.raises(UserError, match=r"data\.files: .*a\.xyz is not \.parquet"):
        list(source(tmp_path, name="huggingface", files=(str(write(tmp_path / "a.xyz", "x")),)).read())


def test_unreachable_hub_names_the_way_out(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from gpt.config import DataConfig; from gpt.options import UserError\n"
        "from gpt.text.documents import open_source\n"
        "data = DataConfig(name='huggingface', path='nobody/nothing')\n"
        "try: list(open_source(data, Path('.')).read())\n"
        "except UserError as error: print(error)"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("data.path=nobody/nothing: cannot be read")
    assert "data.files" in done.stdout


def test_stdlib_is_source_code_without_tests(tmp_path: Path) -> None:
    here = source(tmp_path)
    assert here.description.startswith(f"{len(here.files)} Python files")
    names = {str(file) for file in here.files}
    assert any(name.endswith("json/decoder.py") for name in names)
    assert not any("/test/" in name or "/tests/" in name or "-packages/" in name for name in names)
    found = texts(here.read())
    assert 300 < len(found) <= len(here.files)
    assert sum(map(len, found)) > 5_000_000


def test_shakespeare_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = write(tmp_path / "original", "To be").as_uri()
    monkeypatch.setattr(downloads, "SHAKESPEARE_URL", original)
    with pytest.raises(UserError, match="no longer holds"):
        source(tmp_path, name="shakespeare")
    assert not (tmp_path / "downloads").exists()
    digest = hashlib.sha256(b"To be").hexdigest()
    monkeypatch.setattr(downloads, "SHAKESPEARE_SHA256", digest)
    assert texts(source(tmp_path, name="shakespeare").read()) == ["To be"]
    assert os.listdir(tmp_path / "downloads") == ["tinyshakespeare.txt"]

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    assert texts(source(tmp_path, name="shakespeare").read()) == ["To be"]
    (tmp_path / "downloads" / "tinyshakespeare.txt").unlink()
    with pytest.raises(UserError, match=r"data=shakespeare: .*data=text data\.files='\[your\.txt\]'"):
        source(tmp_path, name="shakespeare")


def test_shakespeare_is_the_known_file(shared_data: Path) -> None:
    content = (shared_data / "tinyshakespeare.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == downloads.SHAKESPEARE_SHA256
