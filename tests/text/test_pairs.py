"""Prompt/completion pairs, from JSONL to a prepared corpus."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.config import DataConfig, TokenizerConfig
from gpt.options import ConfigError, UserError
from gpt.text import documents, parallel_encoding
from gpt.text.batches import IGNORE, training_data
from gpt.text.shards import Corpus, prepare
from gpt.text.streams import PairStream

BYTE = TokenizerConfig(name="byte")
END = 256  # the byte tokenizer's end of text

Row = dict[str, Any]


def config(tmp_path: Path, rows: list[Row], **options: Any) -> DataConfig:
    file = tmp_path / "qa.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    defaults = {"files": (str(file),), "prompt": "{q}", "completion": "{a}", "prepared_dir": str(tmp_path / "prepared")}
    return DataConfig(name="pairs", **{**defaults, **options})


def questions(n: int, n_prompts: int | None = None, seed: int = 0) -> list[Row]:
    """Rows with prompts and completions of all lengths, in several scripts; one prompt in eight is empty."""
    chance = random.Random(seed)
    words = ["what", "is", "葉子", "grün", "👩‍👧", "leaf", " ", "\n", "?", "12"]
    prompts = [" ".join(chance.choices(words, k=chance.randrange(1, 8))) + str(i) for i in range(n_prompts or n)]
    prompts[:: max(8, len(prompts) // 8)] = [""] * len(prompts[:: max(8, len(prompts) // 8)])
    return [
        {"q": chance.choice(prompts), "a": "".join(chance.choices(words, k=chance.randrange(1, 12)))} for _ in range(n)
    ]


def decoded(split: Any) -> list[tuple[str, str]]:
    """The pairs of a split tokenized by bytes."""
    assert isinstance(split, PairStream)
    pairs = ((bytes(part for part in prompt if part != END), bytes(answer)) for prompt, answer in split.pairs())
    return [(prompt.decode(), answer.decode()) for prompt, answer in pairs]


def of_rows(rows: list[Row]) -> Counter[tuple[str, str]]:
    return Counter((row["q"], row["a"]) for row in rows)


# --- preparation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["byte", "bpe", "char"])
@pytest.mark.parametrize("batch_characters", [1, 1 << 19])
def test_a_prompt_and_its_completion_are_encoded_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, batch_characters: int
) -> None:
    monkeypatch.setattr(parallel_encoding, "BATCH_CHARACTERS", batch_characters)
    rows = [{"q": f"{row['q']}lea", "a": f"f{row['a']}"} for row in questions(60)] + [{"q": "", "a": "葉子"}] * 9
    sizes = {"vocab_size": 300} if name == "bpe" else {}
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text('{"q": "", "a": "leaf"}\n{"q": "leaf", "a": "grün"}\n', encoding="utf-8")
    corpus = prepare(config(tmp_path, rows, val_files=(str(held_out),)), TokenizerConfig(name=name, **sizes))
    encode, end = corpus.tokenizer.encode, corpus.tokenizer.end_of_text
    val_rows = [{"q": "", "a": "leaf"}, {"q": "leaf", "a": "grün"}]
    for split, own in ((corpus.train, rows), (corpus.val, val_rows)):
        assert isinstance(split, PairStream)
        assert list(split.pairs()) == [(encode(row["q"]) or [end], encode(row["a"])) for row in own]
        whole = [end] + [token for row in own for token in (*encode(row["q"]), *encode(row["a"]), end)]
        assert split.read(0, len(split)).tolist() == whole
        assert split.completion_tokens == sum(len(encode(row["a"])) + 1 for row in own)
        assert split.completion_bytes == sum(len(row["a"].encode()) for row in own)
        assert split.n_bytes == sum(len((row["q"] + row["a"]).encode()) for row in own)
        assert split.n_documents == len(own)
    assert (encode("lea") + encode("f") != encode("leaf")) == (name == "bpe")
    raw = np.frombuffer(
        (corpus.folder / "train-pairs.bin").read_bytes(), dtype=[("s", "<i8"), ("p", "<i4"), ("n", "<i4")]
    )
    assert raw.tolist() == corpus.train.index.tolist()


def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_encoding, "BATCH_CHARACTERS", 500)
    rows = questions(120)
    one, two = (
        prepare(config(tmp_path, rows, workers=workers, prepared_dir=str(tmp_path / str(workers))), BYTE).folder
        for workers in (1, 2)
    )
    names = sorted(path.name for path in one.iterdir())
    assert {"train-pairs.bin", "val-pairs.bin"} < set(names)
    assert names == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_a_trained_tokenizer_learns_from_both_texts(tmp_path: Path) -> None:
    rows = [{"q": f" question{i}", "a": f" answer{i}"} for i in range(300)]
    encode = prepare(config(tmp_path, rows), TokenizerConfig(vocab_size=290)).tokenizer.encode
    assert len(encode(" question")) == len(encode(" answer")) == 1


@pytest.mark.parametrize("n_prompts", [12, None])
def test_a_prompt_is_on_one_side_of_the_split(tmp_path: Path, n_prompts: int | None) -> None:
    rows = questions(300, n_prompts)
    corpus = prepare(config(tmp_path, rows, val_fraction=0.3), BYTE)
    train, val = decoded(corpus.train), decoded(corpus.val)
    assert Counter(train) + Counter(val) == of_rows(rows)
    assert train
    assert val
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in val}


def test_a_prompt_without_fields_does_not_decide_the_split(tmp_path: Path) -> None:
    rows = questions(100)
    corpus = prepare(config(tmp_path, rows, prompt="Write {{leaf}}:\n", val_fraction=0.3), BYTE)
    train, val = decoded(corpus.train), decoded(corpus.val)
    assert {prompt for prompt, _ in train + val} == {"Write {leaf}:\n"}
    assert 10 < len(val) < 60
    assert not set(train) & set(val)


def test_the_fingerprint_covers_where_prompts_end(tmp_path: Path) -> None:
    whole = [
        prepare(config(tmp_path, [{"q": q, "a": a}]), BYTE, whole=True)
        for q, a in (("ab", "c"), ("a", "bc"), ("ab", "c"))
    ]
    assert [corpus.val.read(0, 5).tolist() for corpus in whole] == [[END, *b"abc", END]] * 3
    assert whole[0].fingerprint == whole[2].fingerprint != whole[1].fingerprint


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    data = config(tmp_path, questions(20))
    index = prepare(data, BYTE).folder / "val-pairs.bin"
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"val-pairs\.bin does not have the checksum in SHA256SUMS; delete"):
        prepare(data, BYTE)
    index.with_name("SHA256SUMS").unlink()  # as of a corpus from before there were checksums
    with pytest.raises(UserError, match=r"val-pairs\.bin: has \d+ bytes, not \d+; delete"):
        prepare(data, BYTE)


def test_memory_stays_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_encoding, "BATCH_CHARACTERS", 1 << 16)
    data = config(tmp_path, [{"q": f"{i}" * 50, "a": "leaf" * 200} for i in range(4000)])  # 4 MB
    tracemalloc.start()
    corpus = prepare(data, BYTE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(corpus.train) + len(corpus.val) > 3_900_000
    assert peak < 2_000_000


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"q": "x", "a": ""}', r"data\.completion gives no text"),
        ('{"q": "x", "a": null}', r"data\.completion gives no text"),
        ('{"a": "x", "é": 2}', r"no field 'q', only 'a', 'é'; name one that is there in data\.prompt"),
        ('{"q": "x"}', r"no field 'a', only 'q'; name one that is there in data\.completion"),
        ('{"q": "x", "a": ', "not JSON"),
        (r'{"q": "a\ud800", "a": "x"}', "surrogate"),
    ],
)
def test_bad_records_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    data = config(tmp_path, [])
    Path(data.files[0]).write_text('{"q": "x", "a": "y"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"qa\.jsonl:3: .*{message}"):
        prepare(data, BYTE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"completion": "always"}, r"^data\.completion: 'always' uses no field"),
        ({"prompt": "{q"}, r"^data\.prompt: "),
    ],
)
def test_bad_templates_name_their_option(tmp_path: Path, options: Row, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(config(tmp_path, questions(9), **options), BYTE)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"q": "x", "a": "y"}], "a single pair cannot be divided; give more, or name data.val_files"),
        ([{"q": "x", "a": str(i)} for i in range(9)], "all 9 prompts are the same"),
        ([], "there is no text"),
    ],
)
def test_pairs_that_cannot_be_split(tmp_path: Path, rows: list[Row], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(config(tmp_path, rows), BYTE)


def test_options_that_do_not_fit() -> None:
    for options, message in (
        ({"name": "pairs", "prompt": "{q}", "completion": "{a}"}, "files=[]: data=pairs needs data.files"),
        ({"name": "pairs", "files": ("x",), "completion": "{a}"}, r"data=pairs needs data.prompt='{question}\n'"),
        ({"name": "pairs", "files": ("x",), "prompt": "{q}"}, "data=pairs needs data.completion='{answer}'"),
        ({"name": "text", "files": ("x",), "prompt": "{q}"}, "prompt={q}: is only for data=pairs, not text"),
        ({"name": "jsonl", "files": ("x",), "completion": "{a}"}, "completion={a}: is only for data=pairs, not jsonl"),
        ({"name": "pairs", "files": ("x",), "prompt": "p", "completion": "{a}", "template": "{b}"}, "template={b}: is"),
    ):
        with pytest.raises(ConfigError) as caught:
            DataConfig(**options)  # type: ignore[arg-type]
        assert message in str(caught.value)
        assert len(caught.value.mistakes) == 1


# --- everything held out -----------------------------------------------------------------------------------------


def test_the_whole_can_be_held_out(tmp_path: Path) -> None:
    rows = questions(30)
    data = config(tmp_path, rows)
    corpus = prepare(data, BYTE, whole=True)
    assert Counter(decoded(corpus.val)) == of_rows(rows)
    assert corpus.train.read(0, len(corpus.train)).tolist() == [END]
    assert decoded(corpus.train) == []
    assert prepare(data, BYTE).folder != corpus.folder == prepare(data, BYTE, whole=True).folder


def test_the_whole_of_a_single_short_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 2)
    for text in ("x", "葉 leaf"):
        file = tmp_path / f"{len(text)}.txt"
        file.write_text(text, encoding="utf-8")
        data = DataConfig(name="text", files=(str(file),), prepared_dir=str(tmp_path / "prepared"))
        corpus = prepare(data, BYTE, whole=True)
        assert corpus.val.read(0, len(corpus.val)).tolist() == [END, *text.encode(), END]
        assert (len(corpus.train), corpus.val.n_documents, corpus.train.n_documents) == (1, 1, 0)
        with pytest.raises(UserError, match=r"^data\.val_files=.*held out"):
            prepare(DataConfig(name="text", files=data.files, val_files=data.files), BYTE, whole=True)
        with pytest.raises(ValueError, match="training text"):
            prepare(data, TokenizerConfig(name="bpe"), whole=True)


# --- and its batches ---------------------------------------------------------------------------------------------


def test_a_corpus_of_one_script(tmp_path: Path) -> None:
    rows = [{"q": f"靜夜思 {i}\n李白", "a": "床前看月光，疑是地上霜。\n" * (1 + i % 3)} for i in range(40)]
    corpus: Corpus = prepare(config(tmp_path, rows, prompt="《{q}》\n"), TokenizerConfig(name="char"))
    data = training_data(corpus.train, 64, seed=0, global_batch=4)
    inputs, targets = data.batch(0, 4)
    decode = corpus.tokenizer.decode
    for prompt, answer in zip(inputs.tolist(), targets.tolist(), strict=True):
        learned = [token for token in answer if token != IGNORE]
        assert learned[-1] == corpus.tokenizer.end_of_text
        assert decode(learned) in {row["a"] for row in rows}
        start = answer.index(learned[0])
        assert decode(prompt[: start + 1]) in {f"《{row['q']}》\n" for row in rows}
