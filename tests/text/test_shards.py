"""Prepared corpora: the exact stream on disk, the split, and what happens when files change or processes die."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError
from odd_texts import random_text, real_text

from gpt.config import DataConfig, TokenizerConfig
from gpt.options import UserError
from gpt.text import documents, downloads, parallel_encoding, preparing, shards, spans
from gpt.text.shards import Corpus, prepare
from gpt.text.streams import TokenStream
from gpt.text.tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
BYTE = TokenizerConfig(name="byte")
END = 256  # the byte tokenizer's end of text


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")
    return str(path)


def config(tmp_path: Path, *files: str, **options: Any) -> DataConfig:
    options = {"name": "text", "files": files, "prepared_dir": str(tmp_path / "prepared"), **options}
    return DataConfig(**options)


def everything(stream: TokenStream) -> list[int]:
    return stream.read(0, len(stream)).tolist()


def documents_of(stream: TokenStream) -> list[str]:
    """The documents of a split tokenized by bytes."""
    ids = everything(stream)
    assert ids[0] == ids[-1] == END
    return [part.decode() for part in bytes_between(ids)]


def bytes_between(ids: list[int]) -> list[bytes]:
    parts, part = [], bytearray()
    for token in ids[1:]:
        if token == END:
            parts.append(bytes(part))
            part = bytearray()
        else:
            part.append(token)
    return parts


def poems(tmp_path: Path, n: int, seed: int = 0) -> tuple[str, list[str]]:
    """A JSONL file of n short random documents, and their texts."""
    rng = random.Random(seed)
    texts = [f"{i} " + random_text(rng, 12) for i in range(n)]
    return write(tmp_path / f"poems{seed}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts)), texts


# --- the split ---------------------------------------------------------------------------------------------------


def test_one_document_is_split_by_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "床前明月光\n" * 101
    file = write(tmp_path / "a.txt", text)
    cut = int(len(text) * (1 - 0.1))
    for piece in (1 << 20, 100, 7):
        monkeypatch.setattr(documents, "PIECE_CHARACTERS", piece)
        corpus = prepare(config(tmp_path, file, prepared_dir=str(tmp_path / f"prepared{piece}")), BYTE)
        assert everything(corpus.train) == [END, *text[:cut].encode()]
        assert everything(corpus.val) == [END, *text[cut:].encode(), END]
        assert (corpus.train.n_documents, corpus.val.n_documents) == (1, 1)
        assert (corpus.train.n_characters, corpus.val.n_characters) == (cut, len(text) - cut)
        assert (corpus.train.n_bytes, corpus.val.n_bytes) == (len(text[:cut].encode()), len(text[cut:].encode()))


@pytest.mark.parametrize("val_fraction", [0.1, 1e-9])
def test_a_few_long_documents_are_each_split_by_position(tmp_path: Path, val_fraction: float) -> None:
    """Whole ones would be a third of the text, or nine tenths."""
    texts = ["a" * 30_000, "b" * 5, "c" * 90_000]
    files = [write(tmp_path / f"{number}.txt", text) for number, text in enumerate(texts)]
    corpus = prepare(config(tmp_path, *files, val_fraction=val_fraction), BYTE)
    train, val = everything(corpus.train), everything(corpus.val)
    if val_fraction == 0.1:
        ends = [b"a" * 27_000, b"bbbbb", b"c" * 81_000]
        assert train == [END, *ends[0], END, *ends[1], END, *ends[2]]
        assert val == [END, *(b"a" * 3000), END, *(b"c" * 9000), END]
        assert (corpus.train.n_documents, corpus.val.n_documents) == (3, 2)
        assert (corpus.train.n_characters, corpus.val.n_characters) == (108_005, 12_000)
    else:  # of which no character is left: whole ones, then
        assert sorted(documents_of(corpus.train) + documents_of(corpus.val)) == texts
        assert len(documents_of(corpus.val)) == 1


def test_pairs_and_short_documents_are_not_cut(tmp_path: Path) -> None:
    rows = [{"q": "what", "a": letter * 20_000} for letter in "abc"]
    file = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pairs = prepare(config(tmp_path, file, name="pairs", prompt="{a}", completion="{q}"), BYTE)
    assert pairs.train.n_documents + pairs.val.n_documents == 3
    file, texts = poems(tmp_path, 3)
    few = prepare(config(tmp_path, file, name="jsonl"), BYTE)
    assert sorted(documents_of(few.train) + documents_of(few.val)) == sorted(texts)


def test_tiny_shakespeare_is_split_as_everywhere(tmp_path: Path, shared_data: Path) -> None:
    corpus = prepare(config(tmp_path, str(shared_data / "tinyshakespeare.txt")), TokenizerConfig(name="char"))
    assert (corpus.train.n_characters, corpus.val.n_characters) == (1_003_854, 111_540)
    assert (len(corpus.train), len(corpus.val)) == (1_003_855, 111_542)
    assert corpus.tokenizer.vocab_size == 66


def test_documents_are_split_by_their_text(tmp_path: Path) -> None:
    file, texts = poems(tmp_path, 2000)
    corpus = prepare(config(tmp_path, file, name="jsonl"), BYTE)
    train, val = documents_of(corpus.train), documents_of(corpus.val)
    assert sorted(train + val) == sorted(texts)
    assert [text for text in texts if text in set(train)] == train  # in order
    assert 140 < len(val) < 260
    assert (corpus.train.n_documents, corpus.val.n_documents) == (len(train), len(val))
    assert corpus.val.n_bytes == sum(len(text.encode()) for text in val)
    half = prepare(config(tmp_path, file, name="jsonl", val_fraction=0.5), BYTE)
    assert set(val) < set(documents_of(half.val))


def test_equal_documents_never_straddle_the_split(tmp_path: Path) -> None:
    rng = random.Random(5)
    texts = [f"poem {rng.randrange(40)}\n" * 5 for _ in range(800)]
    rows = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = prepare(config(tmp_path, rows, name="jsonl", val_fraction=0.3), BYTE)
    train, val = set(documents_of(corpus.train)), set(documents_of(corpus.val))
    assert train
    assert val
    assert not train & val


@pytest.mark.parametrize("val_fraction", [1e-9, 1 - 1e-9])
def test_both_sides_get_something(tmp_path: Path, val_fraction: float) -> None:
    files = [write(tmp_path / f"{i}.txt", text) for i, text in enumerate(["one", "two", "three", "two"])]
    corpus = prepare(config(tmp_path, *files, val_fraction=val_fraction), BYTE)
    train, val = documents_of(corpus.train), documents_of(corpus.val)
    assert len(set(val if val_fraction < 0.5 else train)) == 1
    assert sorted(train + val) == ["one", "three", "two", "two"]


def test_val_files_are_the_validation_split(tmp_path: Path) -> None:
    train = [write(tmp_path / f"{i}.txt", f"train {i}") for i in range(20)]
    val = write(tmp_path / "val.txt", "held out: 诗")
    corpus = prepare(config(tmp_path, *train, val_files=(val,)), TokenizerConfig(name="char"))
    assert corpus.tokenizer.decode(everything(corpus.val)) == "held out: 诗"
    assert (corpus.train.n_documents, corpus.val.n_documents) == (20, 1)
    assert corpus.source == "20 files, held out: val.txt"


def test_a_tokenizer_is_trained_on_training_text_only(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", "some plain words here\n" * 300)
    val = write(tmp_path / "val.txt", "xylophone " * 300)
    tokenizer = prepare(config(tmp_path, train, val_files=(val,)), TokenizerConfig()).tokenizer
    assert len(tokenizer.encode(" plain")) == 1
    assert len(tokenizer.encode("xylophone")) == len("xylophone")


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["", ""], "there is no text in 2 files"), (["same", "same"], "are the same"), (["x"], "data.val_fraction")],
)
def test_corpora_that_cannot_be_split(tmp_path: Path, texts: list[str], message: str) -> None:
    files = [write(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    for tokenizer in (BYTE, TokenizerConfig(name="char"), TokenizerConfig()):
        with pytest.raises(UserError, match=message):
            prepare(config(tmp_path, *files), tokenizer)
    assert leftovers(tmp_path) == []


# --- what is on disk ---------------------------------------------------------------------------------------------


def test_reading_crosses_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "PART_BYTES", 100)
    text = real_text()[:1234]
    corpus = prepare(config(tmp_path, write(tmp_path / "a.txt", text)), BYTE)
    names = sorted(path.name for path in corpus.folder.glob("train-*.bin"))
    assert names == [f"train-{i:05d}.bin" for i in range(len(names))]
    assert len(names) >= 8
    whole = np.array([END, *text[:1110].encode()], dtype=np.uint16)
    assert len(corpus.train) == len(whole)
    for start, length in ((0, 1111), (0, 0), (99, 2), (100, 100), (150, 777), (1110, 1), (1111, 0)):
        part = corpus.train.read(start, length)
        assert part.dtype == np.uint16
        assert part.tolist() == whole[start : start + length].tolist()
    for start, length in ((0, 1112), (-1, 2), (1111, 1), (5, -1)):
        with pytest.raises(IndexError):
            corpus.train.read(start, length)


def test_tokens_are_as_wide_as_the_vocabulary(tmp_path: Path, build: Callable[[str], Tokenizer]) -> None:
    build("byte").save(tmp_path / "wide")
    backend = Tokenizer.load(tmp_path / "wide").backend
    backend.add_tokens([f"word{i}" for i in range(70_000)])
    Tokenizer(backend, "<|endoftext|>").save(tmp_path / "wide")
    file = write(tmp_path / "a.txt", "say word69999 " * 20)
    corpus = prepare(config(tmp_path, file), TokenizerConfig(name="huggingface", path=str(tmp_path / "wide")))
    assert corpus.train.dtype == np.uint32
    assert max(everything(corpus.train)) == 257 + 69_999
    raw = np.frombuffer((corpus.folder / "train-00000.bin").read_bytes(), dtype="<u4")
    assert raw.tolist() == everything(corpus.train)


@pytest.mark.parametrize("name", ["bpe", "byte"])
def test_the_result_does_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(parallel_encoding, "BATCH_CHARACTERS", 5000)
    file, _ = poems(tmp_path, 1500)
    made = []
    for workers in (1, 2):
        data = config(tmp_path, file, name="jsonl", prepared_dir=str(tmp_path / f"{workers}"), workers=workers)
        made.append(prepare(data, TokenizerConfig(name=name)))
    one, two = made
    assert one.fingerprint == two.fingerprint
    assert one.tokenizer.fingerprint == two.tokenizer.fingerprint
    assert one.folder.name == two.folder.name
    names = sorted(path.name for path in one.folder.iterdir())
    assert names == sorted(path.name for path in two.folder.iterdir())
    assert all((one.folder / name).read_bytes() == (two.folder / name).read_bytes() for name in names)


def test_the_fingerprint_is_of_the_tokens_alone(tmp_path: Path) -> None:
    def fingerprint(name: str, text: str) -> str:
        return prepare(config(tmp_path, write(tmp_path / name, text)), BYTE).fingerprint

    assert fingerprint("a.txt", "hello world") == fingerprint("elsewhere/b.md", "hello world")
    assert fingerprint("c.txt", "hello worlD") != fingerprint("a.txt", "hello world")


def test_a_damaged_folder_of_before_there_were_checksums_is_refused(tmp_path: Path) -> None:
    data = config(tmp_path, write(tmp_path / "a.txt", "hello world"))
    folder = prepare(data, BYTE).folder
    (folder / shards.SUMS).unlink()
    shard = folder / "train-00000.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"train-00000\.bin: has 19 bytes, not 20; delete {folder}"):
        prepare(data, BYTE)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00000\.bin: has 0 bytes"):
        prepare(data, BYTE)
    shard.write_bytes(whole)
    prepare(data, BYTE)
    (folder / "meta.json").unlink()
    with pytest.raises(UserError, match=r"meta\.json: cannot be read"):
        prepare(data, BYTE)


@pytest.mark.parametrize("name", ["meta.json", "tokenizer.json", "tokenizer_config.json", "train-00000.bin"])
def test_one_flipped_bit_in_a_prepared_corpus_is_noticed(tmp_path: Path, name: str) -> None:
    data = config(tmp_path, write(tmp_path / "a.txt", "hello world"))
    folder = prepare(data, BYTE).folder
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{folder} is damaged: {re.escape(name)} does not .*; delete {folder}"):
        prepare(data, BYTE)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{re.escape(name)}, of SHA256SUMS, is missing"):
        prepare(data, BYTE)


def test_of_a_large_corpus_only_the_small_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = config(tmp_path, write(tmp_path / "a.txt", "hello world"))
    folder = prepare(data, BYTE).folder
    shard, meta = folder / "train-00000.bin", folder / "meta.json"
    shard.write_bytes(bytes(shard.stat().st_size))
    monkeypatch.setattr(shards, "CHECKED_BYTES", 8)
    prepare(data, BYTE)
    meta.write_bytes(meta.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"meta\.json does not have the checksum"):
        prepare(data, BYTE)


# --- again -------------------------------------------------------------------------------------------------------


def test_the_second_run_reads_no_corpus_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    data = config(tmp_path, write(file, "hello world"))
    first = prepare(data, BYTE)
    before = file.stat()
    file.write_text("HELLO WORLD")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # only reading it could tell
    lines: list[str] = []
    second = prepare(data, BYTE, lines.append)
    assert (second.folder, everything(second.val), lines) == (first.folder, everything(first.val), [])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    third = prepare(data, BYTE, lines.append)
    assert third.folder != first.folder
    assert bytes(everything(third.train)[1:]) == b"HELLO WOR"


def test_options_that_matter_have_folders_of_their_own(tmp_path: Path, build: Callable[[str], Tokenizer]) -> None:
    file, _ = poems(tmp_path, 30)
    build("byte").save(tmp_path / "tokenizer")
    own = TokenizerConfig(name="huggingface", path=str(tmp_path / "tokenizer"))
    folders = {
        prepare(data, tokenizer).folder.name
        for data, tokenizer in (
            (config(tmp_path, file, name="jsonl"), BYTE),
            (config(tmp_path, file, name="jsonl", workers=1), BYTE),  # not this one
            (config(tmp_path, file, name="jsonl", val_fraction=0.2), BYTE),
            (config(tmp_path, file, name="jsonl", template="{text}!"), BYTE),
            (config(tmp_path, file, name="jsonl"), TokenizerConfig(vocab_size=300)),
            (config(tmp_path, file, name="jsonl"), TokenizerConfig(vocab_size=301)),
            (config(tmp_path, file), BYTE),
            (config(tmp_path, file, name="jsonl"), own),
        )
    }
    assert len(folders) == 7
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    assert prepare(config(tmp_path, file, name="jsonl"), own).folder.name not in folders


def leftovers(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "prepared").iterdir() if not path.name.endswith(".lock")]


def test_what_a_crash_left_is_cleaned_up(tmp_path: Path) -> None:
    data = config(tmp_path, write(tmp_path / "a.txt", "hello world"))
    folder = prepare(data, BYTE).folder
    shutil.rmtree(folder)
    crashed = folder.with_name(f".{folder.name}.0123abcd.tmp")
    write(crashed / "train-00007.bin", "rubbish")
    assert prepare(data, BYTE).folder == folder
    assert leftovers(tmp_path) == [folder.name]
    assert not (folder / "train-00007.bin").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    data = config(tmp_path, write(tmp_path / "a.txt", "hello world"))
    with pytest.raises(UserError, match=r"data\.prepared_dir: .*No space left on device"):
        prepare(data, BYTE)
    assert leftovers(tmp_path) == []
    blocked = write(tmp_path / "file", "")
    with pytest.raises(UserError, match=r"data\.prepared_dir"):
        prepare(config(tmp_path, *data.files, prepared_dir=blocked), BYTE)


@pytest.mark.parametrize("text", ["hello world and more", "hullo werld"])
def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = write(tmp_path / "a.txt", "hello world")
    divide = preparing.divide

    def append(*arguments: Any) -> Any:
        write(tmp_path / "a.txt", text)
        return divide(*arguments)

    monkeypatch.setattr(preparing, "divide", append)
    with pytest.raises(UserError, match="changed while it was read"):
        prepare(config(tmp_path, file), BYTE)
    assert leftovers(tmp_path) == []


PREPARE = """
import sys, time
from gpt.config import DataConfig, TokenizerConfig
from gpt.text import shards
from gpt.text.preparing import Preparation
file, prepared, seconds = sys.argv[1:]
tokenize = Preparation.tokenize
Preparation.tokenize = lambda *a: (print("making", flush=True), time.sleep(float(seconds)), tokenize(*a))[-1]
data = DataConfig(name="text", files=(file,), prepared_dir=prepared)
print(shards.prepare(data, TokenizerConfig(name="byte")).folder.name)
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "hello world")
    both = [start(file, tmp_path / "prepared", 2) for _ in range(2)]
    out = [process.communicate(timeout=60)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert out[0][-1] == out[1][-1]
    assert sorted(line == "making" for lines in out for line in lines) == [False, False, True]  # one did the work


def test_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "hello world")
    process = start(file, tmp_path / "prepared", 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "making\n"
    process.kill()
    process.communicate(timeout=60)
    assert [name.endswith(".tmp") for name in leftovers(tmp_path)] == [True]
    folder = prepare(config(tmp_path, file), BYTE).folder
    assert leftovers(tmp_path) == [folder.name]


def test_a_file_that_changes_while_another_process_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its new text would be kept under the name of the old."""
    file, lock = write(tmp_path / "a.txt", "hello world"), shards._lock

    def waiting(*arguments: Any) -> Any:
        write(tmp_path / "a.txt", "other words")
        return lock(*arguments)

    monkeypatch.setattr(shards, "_lock", waiting)
    with pytest.raises(UserError, match="changed while this waited for another process; run again"):
        prepare(config(tmp_path, file), BYTE)


@pytest.mark.parametrize("answered", [True, False])
def test_an_answer_of_the_hub_that_is_an_error_is_not_passed_over(
    answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network, `datasets` may have kept the data set."""
    refusal = HfHubHTTPError("429 Too Many Requests", response=Mock())

    def dataset_info(*arguments: Any, **options: Any) -> Any:
        raise refusal if answered else ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.dataset_info", dataset_info)
    monkeypatch.setattr("datasets.load_dataset", lambda *arguments, **options: Mock(num_shards=3))
    data = DataConfig(name="huggingface", path="some/poems")
    for cached in (downloads._data_set, downloads._revision):
        cached.cache_clear()
    try:
        if answered:
            with pytest.raises(UserError, match=r"some/poems.*429 Too Many Requests"):
                downloads.hub_parts(data)
        else:
            assert downloads.hub_parts(data) == ("", 3)
    finally:
        for cached in (downloads._data_set, downloads._revision):
            cached.cache_clear()


# --- size --------------------------------------------------------------------------------------------------------


def test_memory_stays_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 1 << 16)
    monkeypatch.setattr(spans, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(parallel_encoding, "BATCH_CHARACTERS", 1 << 16)
    file = write(tmp_path / "a.txt", "some line of text\n" * 500_000)  # 9 MB, 18 MB of tokens
    tracemalloc.start()
    corpus: Corpus = prepare(config(tmp_path, file), BYTE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(corpus.train) + len(corpus.val) == 9_000_003
    assert peak < 4_000_000


def test_spooled_documents_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def records(data: DataConfig, part: int, n_parts: int) -> Any:
        reads.append((data.path, part, n_parts))
        yield from ((f"row {i}", {"text": f"document {i}\n"}) for i in range(50 * part, 50 * part + 50))

    monkeypatch.setattr(documents, "hub_parts", lambda data: ("", 2))
    monkeypatch.setattr(documents, "hub_records", records)
    data = config(tmp_path, name="huggingface", path="some/set", column="text")
    corpus = prepare(data, TokenizerConfig(vocab_size=270))
    assert reads == [("some/set", 0, 2), ("some/set", 1, 2)]
    assert corpus.source == "some/set train"
    assert corpus.train.n_documents + corpus.val.n_documents == 100
    assert not list(corpus.folder.rglob("spool*"))


def test_the_script_prints_the_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "hello world")
    arguments = ["data=text", f"data.files=[{file}]", "tokenizer=byte", f"data.prepared_dir={tmp_path / 'prepared'}"]
    command = [sys.executable, str(ROOT / "data" / "prepare.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == prepare(config(tmp_path, file), BYTE).folder
    assert "Tokenized" in done.stderr
