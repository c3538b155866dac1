"""Corpora in parts: the same tokens however they are cut and whoever makes them, and nothing finished made again."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from odd_texts import random_text

from gpt.config import DataConfig, TokenizerConfig
from gpt.options import UserError
from gpt.text import assembling, cooperation, documents, downloads, preparing, spans
from gpt.text.cooperation import Cooperation, Shard
from gpt.text.preparing import Preparation
from gpt.text.shards import Corpus, prepare
from gpt.text.spans import Unreadable
from gpt.text.streams import PairStream, TokenStream

ROOT = Path(__file__).resolve().parents[2]
BYTE, CHAR = TokenizerConfig(name="byte"), TokenizerConfig(name="char")


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return str(path)


def lines(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{i} {random_text(rng, 30)}".replace("\n", " ").replace("\r", " ").replace("\0", "") for i in range(n)]


def jsonl(path: Path, n: int = 600, seed: int = 0) -> str:
    rows = [
        json.dumps({"q": f"what is {i % 97}?", "a": text, "e": "" if i % 3 else f"{i}?"})
        for i, text in enumerate(lines(n, seed))
    ]
    return write(path, "\n".join(rows))


def corpora(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Options of every kind of corpus that is cut."""
    text = "\n".join(lines(400))
    book = write(tmp_path / "book.txt", text)
    unbroken = write(tmp_path / "unbroken.txt", "床前明月光é👩" * 3000)
    paragraphs = write(tmp_path / "paragraphs.txt", text.replace(" 1", "\n\n").replace(" 2", "\r\n\r\n \t\n"))
    held_out = write(tmp_path / "held-out.txt", "\n".join(lines(300, seed=1)))
    small = [write(tmp_path / f"small{i}.txt", line) for i, line in enumerate(lines(60, seed=2))]
    rows = jsonl(tmp_path / "rows.jsonl")
    pairs = {"name": "pairs", "files": (rows, jsonl(tmp_path / "more.jsonl", seed=3)), "completion": "{a}"}
    return {
        "one document": {"files": (book,)},
        "one document without line ends": {"files": (unbroken,), "val_fraction": 0.37},
        "documents, some of which are long": {"files": (book, *small, unbroken), "val_fraction": 0.3},
        "a few long documents": {"files": (book, unbroken, paragraphs)},
        "held-out files": {"files": (*small, book), "val_files": (held_out, unbroken)},
        "paragraphs": {"files": (paragraphs, book), "documents": "blank_line"},
        "records": {"name": "jsonl", "files": (rows,), "template": "{q}\n\n{a}"},
        "pairs": {**pairs, "prompt": "{q}"},
        "pairs with empty prompts": {**pairs, "prompt": "{e}"},
    }


KINDS = (
    "a few long documents",
    "one document",
    "one document without line ends",
    "documents, some of which are long",
    "held-out files",
    "paragraphs",
    "records",
    "pairs",
    "pairs with empty prompts",
)


def data(tmp_path: Path, folder: str, options: dict[str, Any]) -> DataConfig:
    return DataConfig(**{"name": "text", "prepared_dir": str(tmp_path / folder), **options})


def contents(stream: TokenStream) -> tuple[Any, ...]:
    pairs = stream.index.tolist() if isinstance(stream, PairStream) else None
    counts = (stream.n_documents, stream.n_characters, stream.n_bytes)
    return stream.read(0, len(stream)).tolist(), pairs, counts


def assert_same(one: Corpus, other: Corpus) -> None:
    assert contents(one.train) == contents(other.train)
    assert contents(one.val) == contents(other.val)
    assert one.fingerprint == other.fingerprint
    assert one.tokenizer.fingerprint == other.tokenizer.fingerprint


def bins(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.bin") if "pairs" not in path.name)


# --- however it is cut -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_do_not_depend_on_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    options = corpora(tmp_path)[kind]
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 50)  # below every part, or the hash of a first piece changes
    whole = prepare(data(tmp_path, "whole", options), CHAR)
    assert len(bins(whole.folder)) == (3 if kind == "held-out files" else 2)
    for size in (4000, 1501):
        monkeypatch.setattr(spans, "PART_BYTES", size)
        cut = prepare(data(tmp_path, f"cut{size}", options), CHAR)
        assert len(bins(cut.folder)) > 8
        assert_same(cut, whole)


def test_a_trained_tokenizer_does_not_depend_on_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = corpora(tmp_path)["records"]
    tokenizer = TokenizerConfig(name="bpe", vocab_size=400)
    whole = prepare(data(tmp_path, "whole", options), tokenizer)
    monkeypatch.setattr(spans, "PART_BYTES", 5000)
    assert_same(prepare(data(tmp_path, "cut", options), tokenizer), whole)


def test_parts_are_few_however_large_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(write(tmp_path / "a.txt", "x\n" * 50_000))
    monkeypatch.setattr(spans, "PART_BYTES", 10)
    parts = spans.in_parts([file], spans.between_lines)
    assert spans.MOST_PARTS * 0.9 < len(parts) <= spans.MOST_PARTS
    assert [part[0].start for part in parts[1:]] == [part[0].stop for part in parts[:-1]]
    assert (parts[0][0].start, parts[-1][0].stop) == (0, None)


def test_utf16_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "PART_BYTES", 100)
    text = "床前明月光\n" * 100
    file = write(tmp_path / "a.txt", b"\xff\xfe" + text.encode("utf-16-le"))
    corpus = prepare(data(tmp_path, "made", {"files": (file,)}), BYTE)
    assert corpus.train.n_characters + corpus.val.n_characters == len(text)


@pytest.mark.parametrize("row", [3, 250, 599])
def test_mistakes_in_later_parts_are_placed_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    monkeypatch.setattr(spans, "PART_BYTES", 2000)
    rows = Path(jsonl(tmp_path / "a.jsonl")).read_bytes().split(b"\n")
    before = b"".join(line + b"\n" for line in rows[:row])
    rows[row] = b'{"a": "\xff"}'
    options = {"name": "jsonl", "files": (write(tmp_path / "a.jsonl", b"\n".join(rows)),), "template": "{a}"}
    with pytest.raises(UserError, match=rf"a\.jsonl:{row + 1}: .* byte {len(before) + 7} of the file"):
        prepare(data(tmp_path, "made", options), BYTE)
    text = "床前\n" * 3000
    place = 7 * row
    bad = write(tmp_path / "a.txt", text[: place // 7 * 3].encode() + b"\xff" + text.encode())
    with pytest.raises(UserError, match=rf"a\.txt: not valid UTF-8 at byte {place} "):
        prepare(data(tmp_path, "made", {"files": (bad,)}), BYTE)
    assert [path for path in (tmp_path / "made").iterdir() if path.suffix != ".lock"] == []


# --- stopped and gone on with ------------------------------------------------------------------------------------


def started(*arguments: str, pause: float = 0.1) -> subprocess.Popen[str]:
    """`data/prepare.py`, in parts of 40 kB and slowly: with a pause before each, in seconds."""
    script = (
        "import runpy, sys, time\n"
        "from gpt.text import spans, preparing\n"
        "spans.PART_BYTES = 40_000\n"
        "tokenize = preparing.Preparation.tokenize\n"
        f"preparing.Preparation.tokenize = lambda *a: (time.sleep({pause}), tokenize(*a))[-1]\n"
        f"sys.argv[0] = {str(ROOT / 'data' / 'prepare.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *arguments]
    # Where the tests run in the background of a shell, Ctrl-C is ignored, and that is inherited.
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear
    )


def arguments(tmp_path: Path, folder: str, file: str, tokenizer: str = "bpe") -> list[str]:
    return [
        "data=pairs",
        f"data.files=[{file}]",
        "data.prompt={q}",
        "data.completion={a}",
        f"tokenizer={tokenizer}",
        f"data.prepared_dir={tmp_path / folder}",
    ]


def finished(process: subprocess.Popen[str]) -> Path:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return Path(out.strip())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("how", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGINT])
def test_what_is_finished_is_not_made_again(tmp_path: Path, how: signal.Signals) -> None:
    file = jsonl(tmp_path / "a.jsonl", 2500)
    usual = finished(started(*arguments(tmp_path, "usual", file)))
    parts = tmp_path / "stopped"
    process = started(*arguments(tmp_path, "stopped", file))
    wait_for(lambda: len(list(parts.rglob("done-*.json"))) >= 2, process)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-how if how == signal.SIGKILL else 130)
    assert ("Interrupted; what is finished is kept" in errors) == (how == signal.SIGINT)
    done = {path.name.partition("-")[2][:5] for path in parts.rglob("done-*.json")}
    before = {path.name: path.stat().st_mtime_ns for path in parts.rglob("train-*.bin") if path.name[6:11] in done}
    trained = {path.name: path.stat().st_mtime_ns for path in parts.rglob("tokenizer.json")}
    assert trained
    assert 2 <= len(before) < len(list(usual.glob("train-0*.bin")))
    process = started(*arguments(tmp_path, "stopped", file))
    wait_for(lambda: len(list(parts.rglob("done-*.json"))) > len(done), process)
    assert {path.name: path.stat().st_mtime_ns for path in parts.rglob("parts/tokenizer/tokenizer.json")} == trained
    folder = finished(process)
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert files_of(folder) == files_of(usual)
    assert [path.name for path in parts.iterdir() if path.suffix != ".lock"] == [folder.name]


def test_a_part_whose_file_is_not_whole_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "PART_BYTES", 5000)
    options = corpora(tmp_path)["pairs"]
    usual = prepare(data(tmp_path, "usual", options), BYTE)
    stop_after(monkeypatch, 6, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(data(tmp_path, "stopped", options), BYTE)
    monkeypatch.undo()
    monkeypatch.setattr(spans, "PART_BYTES", 5000)
    broken = {path.name: path for path in (tmp_path / "stopped").rglob("*.bin")}
    broken["train-00001.bin"].write_bytes(b"")
    broken["train-pairs-00002.bin"].unlink()
    next((tmp_path / "stopped").rglob("done-00003.json")).write_text("{")
    next((tmp_path / "stopped").rglob("scan-00004.json")).write_text("")
    assert_same(prepare(data(tmp_path, "stopped", options), BYTE), usual)


def stop_after(monkeypatch: pytest.MonkeyPatch, n: int, error: type[BaseException] | BaseException) -> None:
    """Have the tokenization of the part after `n` others raise."""
    tokenize, left = preparing.Preparation.tokenize, [n]

    def stopping(*given: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return tokenize(*given)

    monkeypatch.setattr(preparing.Preparation, "tokenize", stopping)


def test_a_full_disk_costs_no_finished_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "PART_BYTES", 5000)
    options = corpora(tmp_path)["records"]
    stop_after(monkeypatch, 3, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UserError, match=r"No space left on device.*; what is finished is kept there"):
        prepare(data(tmp_path, "made", options), BYTE)
    assert len(list((tmp_path / "made").rglob("done-*.json"))) == 3
    stop_after(monkeypatch, 0, Unreadable("a.jsonl: cannot be read (Stale file handle)"))
    with pytest.raises(UserError, match="Stale"):
        prepare(data(tmp_path, "made", options), BYTE)
    assert len(list((tmp_path / "made").rglob("done-*.json"))) == 3
    stop_after(monkeypatch, 0, UserError("changed while it was read"))
    with pytest.raises(UserError, match="changed"):  # then nothing of it can be used
        prepare(data(tmp_path, "made", options), BYTE)
    assert [path for path in (tmp_path / "made").iterdir() if path.suffix != ".lock"] == []


def test_what_was_downloaded_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def records(config: DataConfig, part: int, n_parts: int) -> Any:
        reads.append(part)
        for row in range(20):
            if part == 2 and row == 7 and reads.count(2) == 1:
                raise UserError("data.path=some/set: cannot be read")
            yield f"row {row}", {"text": f"document {part} {row}"}

    monkeypatch.setattr(documents, "hub_parts", lambda config: ("1234abcd", 4))
    monkeypatch.setattr(documents, "hub_records", records)
    options = {"name": "huggingface", "path": "some/set"}
    with pytest.raises(UserError, match="cannot be read"):
        prepare(data(tmp_path, "made", options), BYTE)
    corpus = prepare(data(tmp_path, "made", options), BYTE)
    assert reads == [0, 1, 2, 2, 3]
    assert corpus.train.n_documents + corpus.val.n_documents == 80
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(data(tmp_path, "again", options), BYTE)
    next((tmp_path / "again").rglob("train-00001.bin")).write_bytes(b"")  # and what was downloaded for it is gone
    reads.clear()
    assert_same(prepare(data(tmp_path, "again", options), BYTE), corpus)
    assert reads == [1]


# --- by several processes ----------------------------------------------------------------------------------------


def test_processes_share_the_work(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", 2500)
    usual = finished(started(*arguments(tmp_path, "usual", file)))
    given = arguments(tmp_path, "shared", file)
    three = [started(*given, f"shard={index}/3", pause=1.0 if index == 1 else 0.1) for index in range(3)]
    wait_for(lambda: len(list((tmp_path / "shared").rglob("done-*.json"))) >= 2, three[1])
    three[1].kill()
    three[1].wait()
    time.sleep(1)
    assert three[0].poll() is None  # it waits
    assert three[2].poll() is None
    three[1].communicate()
    three[1] = started(*given, "shard=1/3")
    folders = [finished(process) for process in three]
    assert len(set(folders)) == 1
    assert files_of(folders[0]) == files_of(usual)
    assert finished(started(*given, "shard=2/3")) == folders[0]  # one who comes late finds it there


def test_who_comes_too_late_leaves_nothing_in_the_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of another number of shards goes on writing while the corpus is put together."""
    options, write_sums = corpora(tmp_path)["records"], assembling.write_sums

    def late(*given: Any, **options: Any) -> None:
        (notes,) = (tmp_path / "made").glob(".*.tmp/parts")
        (notes / "train-00007.bin.0123abcd.partial").write_bytes(b"half")
        write_sums(*given, **options)

    monkeypatch.setattr(assembling, "write_sums", late)
    folder = prepare(data(tmp_path, "made", options), BYTE).folder
    assert "partial" not in (folder / "SHA256SUMS").read_text()
    prepare(data(tmp_path, "made", options), BYTE)  # opens it, and finds no damage


def test_a_failure_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "PART_BYTES", 5000)
    monkeypatch.setattr(cooperation, "FAILURE_SECONDS", 0.2)
    monkeypatch.setattr(cooperation, "OLD_FAILURE_SECONDS", 2.0)
    monkeypatch.setattr(cooperation, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(cooperation, "REPORT_SECONDS", 0.1)
    rows = Path(jsonl(tmp_path / "a.jsonl")).read_text().split("\n")
    rows[250] = "[]"
    bad = {"name": "jsonl", "files": (write(tmp_path / "a.jsonl", "\n".join(rows)),), "template": "{a}"}
    parts = spans.in_parts([tmp_path / "a.jsonl"], spans.between_lines)
    start = len("\n".join(rows[:250]).encode()) + 1
    guilty = max(number for number, (span,) in enumerate(parts) if span.start <= start) % 2
    messages, said = [], []
    for index in (guilty, 1 - guilty):
        with pytest.raises(UserError) as caught:
            prepare(data(tmp_path, "made", bad), BYTE, said.append, shard=Shard(index, 2))
        messages.append(str(caught.value))
    assert any(f"(start shard={guilty}/2 again, which has failed: " in line for line in said)  # it was older
    assert messages[0].endswith(':251: list, not an object; each must be like {"text": "…"}')
    assert messages[1] == f"shard={guilty}/2 has failed: {messages[0]}"


def test_the_note_of_a_failure_before_this_try_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that are sent again start at any distance, and each would find the other's old note."""
    monkeypatch.setattr(cooperation, "FAILURE_SECONDS", 0.0)
    monkeypatch.setattr(cooperation, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(cooperation, "REPORT_SECONDS", 0.0)
    said: list[str] = []
    other, own = (Cooperation(tmp_path, tmp_path / "place", Shard(index, 2), said.append) for index in (1, 0))
    other.begin()
    other.fail(RuntimeError("of an earlier try"))
    own.begin()
    wanted = "start shard=1/2 again, which has failed: of an earlier try"
    assert own.collect(lambda _: any(wanted in line for line in said) or None, [1], "tokens") == [True]
    time.sleep(0.02)  # the clock of a disk may be coarse
    other.fail(RuntimeError("of this one"))
    with pytest.raises(UserError, match="shard=1/2 has failed: of this one"):
        own.collect(lambda _: None, [1], "tokens")


def test_killed_while_it_was_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without tokens are removed then; the next process does not take them for work that is missing."""
    monkeypatch.setattr(spans, "PART_BYTES", 5000)
    name = {"name": "jsonl", "files": (jsonl(tmp_path / "a.jsonl"),), "template": "{a}"}
    options = name | {"val_files": (jsonl(tmp_path / "b.jsonl", 20),)}
    files = data(tmp_path, "made", options)
    usual = prepare(data(tmp_path, "usual", options), BYTE)

    class Killed(BaseException):
        pass

    def killed(*arguments: object) -> None:
        raise Killed

    monkeypatch.setattr(assembling, "stream_digest", killed)
    with pytest.raises(Killed):
        prepare(files, BYTE)
    monkeypatch.undo()
    monkeypatch.setattr(spans, "PART_BYTES", 5000)
    monkeypatch.setattr(Preparation, "tokenize", killed)
    found = prepare(files, BYTE)
    assert files_of(found.folder) == files_of(usual.folder)


@pytest.mark.parametrize("shard", ["4/4", "1", "a/b", "-1/3", "1/0", "0/0"])
def test_a_shard_that_cannot_be_is_refused(tmp_path: Path, shard: str) -> None:
    process = started("tokenizer=byte", f"data.prepared_dir={tmp_path / 'made'}", f"shard={shard}")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert out == ""
    assert "shard" in errors
    assert "give 0/4, 1/4, 2/4 and 3/4" in errors
    assert "Traceback" not in errors


def test_shards_of_a_data_set_are_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    texts = [f"document {number}" for number in range(50)]
    for number in range(5):
        rows = datasets.Dataset.from_dict({"text": texts[10 * number : 10 * number + 10]})
        rows.to_parquet(str(tmp_path / "set" / f"train-{number:05d}-of-00005.parquet"))
    source = documents.open_source(
        data(tmp_path, "made", {"name": "huggingface", "path": str(tmp_path / "set")}), tmp_path
    )
    parts = source.parts()
    assert [[piece.text for piece in part.read()] for part in parts] == [texts[i : i + 10] for i in range(0, 50, 10)]
    assert [piece.text for piece in source.read()] == texts
    monkeypatch.setattr(downloads, "MOST_PARTS", 2)
    assert [piece.text for piece in source.read()] == texts
    assert len(source.parts()) == 2
