"""Tokenizers without tokenizer.json against transformers' own readers of the same folders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from odd_texts import ODD, random_text, real_text

from gpt.options import UserError
from gpt.text.tokenizers import Tokenizer
from gpt.text.vocabularies import train_bpe

transformers = pytest.importorskip("transformers")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    *(odd for odd in ODD if odd != "<|endoftext|>"),
    "床前明月光，疑是地上霜。GPT2 写诗 naïve café Ångström",
    "ÀÉÎÕÜ àéîõü ǅ ß Straße İstanbul",
    "e\u0301e\u0308 A\u030a \u1e9b\u0323",
    "hello, world! don't  un##known\tline\nfeed\u00a0nbsp\u200bzero",
    "㐀𠀀豈 한국어 ひらがな x" * 3,
    "a" * 150,
]


def bert_folder(folder: Path, **config: Any) -> Path:
    characters = sorted(set("".join(TEXTS)) - set(" \t\r\n"))[::2]  # every second one is unknown
    words = ["hello", "world", "un", "##known", "caf", "cafe", "café", "naive", "Hello", "a", "the", "def"]
    letters = [chr(code) for code in range(33, 127)]
    vocab = dict.fromkeys([*SPECIAL, *words, *letters, *(f"##{c}" for c in letters), *characters])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **config}))
    return folder


def gpt2_folder(folder: Path, **config: Any) -> Path:
    spec = json.loads(train_bpe([real_text()[:50_000] + "".join(TEXTS) * 5], 600).to_str())
    merges = "".join(f"{left} {right}\n" for left, right in spec["model"]["merges"])
    vocab = spec["model"]["vocab"] | {"<|endoftext|>": len(spec["model"]["vocab"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **config}))
    return folder


def assert_equal_to_transformers(folder: Path) -> Tokenizer:
    ours = Tokenizer.load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    rng = random.Random(5)
    for text in [*TEXTS, real_text()[:5000], *(random_text(rng, 40) for _ in range(100))]:
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.encode_batch([text, text])[0].tolist() == ids + ids
        kept = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(ids) == kept
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    return ours


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": True, "strip_accents": False},
        {"tokenize_chinese_chars": False, "eos_token": "world"},
        {"added_tokens_decoder": {"5": {"content": "hello", "special": False, "normalized": False, "lstrip": True}}},
    ],
    ids=str,
)
def test_bert_vocabularies(config: dict[str, Any], tmp_path: Path) -> None:
    ours = assert_equal_to_transformers(bert_folder(tmp_path, **config))
    assert ours.end_of_text == (6 if "eos_token" in config else 3)
    assert {0, 1, 2, 3, 4} <= ours.special_ids


@pytest.mark.parametrize("config", [{}, {"add_prefix_space": True}, {"eos_token": "<|stop|>"}], ids=str)
def test_gpt2_vocabularies(config: dict[str, Any], tmp_path: Path) -> None:
    ours = assert_equal_to_transformers(gpt2_folder(tmp_path, **config))
    assert ours.end_of_text == ours.vocab_size - 1
    assert ours.token_bytes is not None


@pytest.mark.parametrize("make", [bert_folder, gpt2_folder])
def test_what_is_rebuilt_is_saved_as_tokenizer_json(make: Any, tmp_path: Path) -> None:
    ours = Tokenizer.load(make(tmp_path))
    ours.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert (again.fingerprint, again.end_of_text, again.name) == (ours.fingerprint, ours.end_of_text, ours.name)
    for text in TEXTS:  # with [CLS] and [SEP] where transformers puts them
        expected = transformers.AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")(text)["input_ids"] == expected


def test_streaming_wordpieces_adds_up(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(bert_folder(tmp_path))
    ids = tokenizer.encode("床前明月光，hello unknown world!")
    stream = tokenizer.stream()
    assert "".join(map(stream.step, ids)) + stream.finish() == tokenizer.decode(ids)


def test_who_ends_a_text(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    assert Tokenizer.load(folder).end_of_text == 3  # [SEP], the usual one
    (folder / "config.json").write_text(
        '{"model_type": "gpt2", "eos_token_id": 50256}'
    )  # GPT-2's, not in this vocabulary
    assert Tokenizer.load(folder).end_of_text == 3
    for index in ("2", "[2, 4]"):
        (folder / "config.json").write_text(f'{{"model_type": "gpt2", "eos_token_id": {index}}}')
        assert Tokenizer.load(folder).end_of_text == 2
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "hello"}}')
    assert Tokenizer.load(folder).end_of_text == 5
    (folder / "tokenizer_config.json").write_text('{"eos_token": "world"}')
    assert Tokenizer.load(folder).end_of_text == 6
    Tokenizer.load(folder).save(folder)  # the same with a tokenizer.json
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer.load(folder).end_of_text == 5


def test_sentencepiece_alone_says_how_to_convert(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(UserError, match=r"SentencePiece.*AutoTokenizer\.from_pretrained.*save_pretrained"):
        Tokenizer.load(tmp_path)


def test_another_kind_of_tokenizer_is_not_guessed(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path, tokenizer_class="Qwen2Tokenizer")
    with pytest.raises(UserError, match=r"a Qwen2Tokenizer without tokenizer\.json.*save_pretrained"):
        Tokenizer.load(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(UserError, match="Qwen2Tokenizer"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.txt", b"\xff\xfe"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"do_lower_case": "maybe"}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": 3}}'),
        ("added_tokens.json", b'{"a": {}, "b": 1}'),
    ],
)
def test_damage_is_no_traceback(name: str, content: bytes, tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=str(folder)):
        Tokenizer.load(folder)


@pytest.mark.parametrize(("name", "content"), [("vocab.json", "[]"), ("merges.txt", "a b c\nzz qq\n")])
def test_damaged_merges_are_no_traceback(name: str, content: str, tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=r"vocab\.json and merges\.txt"):
        Tokenizer.load(folder)
