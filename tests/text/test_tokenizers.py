"""Tokenizers against transformers, tiktoken and `tokenizers` itself."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from odd_texts import ODD, random_text, real_text
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from gpt.config import TokenizerConfig
from gpt.options import UserError
from gpt.text import encoders
from gpt.text.encoders import _LINE_ENDS, _SPACE, TiktokenEncoder, fast_encoder
from gpt.text.tokenizers import END_OF_TEXT, Tokenizer
from gpt.text.vocabularies import (
    LONGEST_WORD,
    build_tokenizer,
    byte_level,
    default_vocab_size,
    train_bpe,
    with_short_words,
)

Build = Callable[[str], Tokenizer]
KINDS = ("byte", "char", "bpe", "gpt2")
ANY_TEXT = ("byte", "bpe", "gpt2")
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


@pytest.mark.parametrize(
    ("name", "model_type"), [*((name, "gpt2") for name in KINDS), ("bpe", "llama"), ("bpe", "qwen3")]
)
def test_transformers_reads_what_we_save(build: Build, name: str, model_type: str, tmp_path: Path) -> None:
    ours = build(name)
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    seen = set(real_text() + "".join(ODD))
    for text in [*(odd for odd in ODD if odd != END_OF_TEXT), real_text()[:20_000], "床前 明月\r\n\n光 \t 地上霜。"]:
        if name == "char":
            text = "".join(character for character in text if character in seen)
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert len(theirs) == ours.vocab_size
    assert theirs.eos_token_id == theirs.bos_token_id == ours.end_of_text == ours.vocab_size - 1
    assert theirs.unk_token_id == ours.end_of_text  # CTranslate2's converter asks for one


@pytest.mark.parametrize("name", KINDS)
def test_saving_and_loading_changes_nothing(build: Build, name: str, tmp_path: Path) -> None:
    ours = build(name)
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.name, again.fingerprint, again.vocab_size) == (name, ours.fingerprint, ours.vocab_size)
    assert again.special_ids == {again.end_of_text}
    assert again.encode("return x\n") == ours.encode("return x\n")


@pytest.mark.parametrize("name", ANY_TEXT)
def test_round_trip_of_any_text(build: Build, name: str) -> None:
    tokenizer, rng = build(name), random.Random(1)
    texts = [random_text(rng, 60) for _ in range(200)] + [random_text(rng, 3000), "", " " * 5000, END_OF_TEXT]
    whole, lengths = tokenizer.encode_batch(texts)
    for text, ids in zip(texts, np.split(whole, np.cumsum(lengths)[:-1]), strict=True):
        assert tokenizer.decode(ids.tolist()) == text
        assert tokenizer.end_of_text not in ids
        assert tokenizer.encode(text) == ids.tolist()
        assert tokenizer.token_bytes is not None
        assert tokenizer.token_bytes[ids.astype(int)].sum() == len(text.encode())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("stretch", [encoders.STRETCH, 5])  # with the second, text is cut everywhere it can be
def test_fast_path_equals_tokenizers(build: Build, name: str, stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "STRETCH", stretch)
    tokenizer, rng = build(name), random.Random(2)
    fast = tokenizer._fast
    assert fast is not None
    texts = [real_text(), "", *(random_text(rng, 400) for _ in range(100)), *(blanks(rng) for _ in range(2000))]
    if name == "char":
        seen = set(real_text() + "".join(ODD))
        texts = ["".join(character for character in text if character in seen) for text in texts]
    expected = [tokenizer.backend.encode(text, add_special_tokens=False).ids for text in texts]
    for text, ids in zip(texts, expected, strict=True):
        assert fast([text])[0].tolist() == ids
    for own in (texts, [text for text in texts if "\0" not in text and "\1" not in text], []):
        ids, lengths = fast(own)
        wanted = [ids for text, ids in zip(texts, expected, strict=True) if text in set(own)]
        assert ids.tolist() == [token for each in wanted for token in each]
        assert lengths.tolist() == [len(each) for each in wanted]


BLANKS = ["\t", "\n", "\x0b", "\x0c", "\r", " ", " ", "\x85", "\xa0", "\u2003", "\u2028", "\u3000", "\x1c", "\u200b"]


def blanks(rng: random.Random) -> str:
    """Runs of white space (and of what Python or the eye takes for it) between and around a few words."""
    runs = ("".join(rng.choice(BLANKS) for _ in range(rng.randrange(5))) for _ in range(4))
    return "".join(run + rng.choice(["a", "詩", "7", "!", "'s", "", "\u0301"]) for run in runs)


@pytest.mark.parametrize("name", ["bpe", "gpt2"])
def test_fast_path_on_whole_corpora(build: Build, name: str, shared_data: Path) -> None:
    tokenizer = build(name)
    assert isinstance(tokenizer._fast, TiktokenEncoder)
    poems = (shared_data / "tang-poems.jsonl").read_text(encoding="utf-8")[:400_000]
    for text in (poems, (shared_data / "tinyshakespeare.txt").read_text(encoding="utf-8")[:400_000]):
        assert tokenizer._fast([text])[0].tolist() == tokenizer.backend.encode(text, add_special_tokens=False).ids


def test_both_regex_engines_know_the_same_characters() -> None:
    import tiktoken

    points = [*range(0xD800), *range(0xE000, 0x34000), *range(0xE0000, 0xE0200)]  # no others are assigned
    everything = "".join(map(chr, points))
    ranks = {bytes([byte]): byte for byte in range(256)}
    for kind in (r"\p{L}", r"\p{N}", r"\s"):
        rust = tiktoken.Encoding("one", pat_str=kind, mergeable_ranks=ranks, special_tokens={})
        removed = pre_tokenizers.Split(Regex(kind), "removed").pre_tokenize_str(everything)
        left = set("".join(word for word, _ in removed))
        found = bytes(rust.encode_ordinary(everything)).decode()
        assert found == "".join(character for character in everything if character not in left)
    assert "".join(re.findall(f"[{_SPACE}{_LINE_ENDS}]", everything)) == found  # the blanks that we cut at


def test_gpt2_is_the_released_one(build: Build) -> None:
    import os

    import tiktoken

    tokenizer = build("gpt2")
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (50257, 50256)
    text = real_text()
    assert tokenizer.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)
    released = [
        content
        for content in (path.read_text("utf-8") for path in Path(os.environ["TIKTOKEN_CACHE_DIR"]).iterdir())
        if content.startswith("#version")
    ]
    merges = json.loads(tokenizer.backend.to_str())["model"]["merges"]
    assert merges == [line.split(" ") for line in released[0].strip().split("\n")[1:]]


def test_gpt2_without_network_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiktoken import load

    def offline(url: str, sha256: str) -> bytes:
        raise ConnectionError("no network")

    monkeypatch.setattr(load, "read_file_cached", offline)
    with pytest.raises(UserError, match=r"(?s)tokenizer=gpt2.*TIKTOKEN_CACHE_DIR.*tokenizer=bpe"):
        build_tokenizer(TokenizerConfig(name="gpt2"))


@pytest.mark.parametrize("name", ["bpe", "gpt2"])
@pytest.mark.parametrize("unit", ["a", " ", "\n", "!", "床", "a b", "\u3000"])
def test_endless_runs(build: Build, name: str, unit: str) -> None:
    """In time that is the square of the length, it would not come to an end."""
    tokenizer, text = build(name), unit * 250_000
    assert tokenizer.encode(text) == tokenizer.backend.encode(text, add_special_tokens=False).ids


def spec_of(backend: tokenizers.Tokenizer, **changes: Any) -> dict[str, Any]:
    spec = json.loads(backend.to_str())
    spec["model"].update(changes)
    return spec


def test_fast_path_is_refused_where_tiktoken_would_differ() -> None:
    good = byte_level([("a", "b"), ("c", "d"), ("ab", "cd")], WORDS)
    assert fast_encoder(spec_of(good), good) is not None
    # b·c comes first, so nothing ever merges a·bc; but tiktoken would take ab·c for it.
    unreachable = byte_level([("a", "b"), ("b", "c"), ("a", "bc")], WORDS)
    assert fast_encoder(spec_of(unreachable), unreachable) is None
    assert fast_encoder(spec_of(good, merges=[["c", "d"], ["a", "b"], ["ab", "cd"]]), good) is None
    assert fast_encoder(spec_of(good, dropout=0.1), good) is None
    assert fast_encoder(spec_of(good, ignore_merges=True), good) is None
    normal = byte_level([("a", "b")], WORDS)
    normal.normalizer = normalizers.NFC()
    assert fast_encoder(spec_of(normal), normal) is None
    other = byte_level([("a", "b")], pre_tokenizers.ByteLevel(add_prefix_space=True))
    assert fast_encoder(spec_of(other), other) is None
    added = byte_level([("a", "b")], WORDS)
    added.add_tokens(["hello"])
    assert fast_encoder(spec_of(added), added) is None


def test_training_puts_bytes_first_and_end_of_text_last() -> None:
    backend = train_bpe([real_text()], 400)
    assert backend.get_vocab_size() == 400
    assert [backend.id_to_token(byte) for byte in (33, 65)] == ["!", "A"]
    assert backend.token_to_id(END_OF_TEXT) == 399
    merges = spec_of(backend)["model"]["merges"]
    assert [backend.token_to_id("".join(pair)) for pair in merges] == list(range(256, 399))
    assert train_bpe([real_text()], 400).to_str() == backend.to_str()


def test_small_training_text_gives_fewer_tokens_and_says_so() -> None:
    lines: list[str] = []
    config = TokenizerConfig(vocab_size=5000)
    tokenizer = build_tokenizer(config, texts=lambda: ["hello hello world"], report=lines.append)
    assert 257 < tokenizer.vocab_size < 300
    assert "5,000" in lines[0]


def test_default_vocabulary_grows_with_text_and_script() -> None:
    sizes = [default_vocab_size(n, 90) for n in (10_000, 1_000_000, 11_000_000, 100_000_000)]
    assert sizes == [512, 1024, 4096, 8192]
    assert default_vocab_size(13_000_000, 5500) == 7808


def test_char_lists_unseen_characters(build: Build) -> None:
    with pytest.raises(UserError, match=r"(?s)'夜' \(U\+591C\).*tokenizer=bpe"):
        build("char").encode("x夜")


@pytest.mark.parametrize("name", KINDS)
def test_half_a_surrogate_is_refused(build: Build, name: str) -> None:
    for text in ("a\ud800", "a" * 3000 + "\udfff"):
        with pytest.raises(UserError, match="surrogate"):
            build(name).encode(text)
        with pytest.raises(UserError, match="surrogate"):
            build(name).encode_batch([text])


@pytest.mark.parametrize("name", KINDS)
def test_stream_adds_up_to_decode(build: Build, name: str) -> None:
    tokenizer, rng = build(name), random.Random(3)
    for _ in range(100):  # random ids are mostly invalid UTF-8
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(60))]
        stream = tokenizer.stream()
        assert "".join(map(stream.step, ids)) + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ANY_TEXT)
def test_stream_never_tears_a_character(build: Build, name: str) -> None:
    tokenizer, text = build(name), "床前👩‍👩‍👧𝒳é"
    stream = tokenizer.stream()
    steps = [stream.step(token) for token in tokenizer.encode(text)]
    assert "".join(steps) == text
    assert stream.finish() == ""


def wordpiece() -> Tokenizer:
    words = ["[UNK]", "[CLS]", "[SEP]", "hello", "world", "##ly", "##s", ",", ".", "don", "'", "t", "n", "##'t"]
    backend = tokenizers.Tokenizer(
        models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    return Tokenizer(backend, "[SEP]")


def sentencepiece() -> Tokenizer:
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "▁b",
        "ab",
        "▁ab",
    ]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁a", "b")]
    vocab = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, "</s>")


@pytest.mark.parametrize("make", [wordpiece, sentencepiece])
def test_stream_of_strangers_adds_up_to_decode(make: Callable[[], Tokenizer]) -> None:
    tokenizer, rng = make(), random.Random(4)
    assert tokenizer.token_bytes is None
    assert tokenizer.name == "huggingface"
    for length in [*range(40), 300]:
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(length)]
        stream = tokenizer.stream()
        assert "".join(map(stream.step, ids)) + stream.finish() == tokenizer.decode(ids)


def test_sentencepiece_bytes_are_not_torn() -> None:
    tokenizer, text = sentencepiece(), "ab 床前 a👩b"
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    steps = [stream.step(token) for token in ids]
    assert "�" not in "".join(steps)
    assert "".join(steps) + stream.finish() == text
    assert sum(map(bool, steps)) >= 4  # it does stream


def test_strangers_end_of_text(tmp_path: Path) -> None:
    wordpiece().save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path).end_of_text == 2  # [SEP]
    config = {"eos_token": {"content": "world"}, "auto_map": {"AutoTokenizer": "evil.py"}, "model_max_length": 7}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.end_of_text == 4
    loaded.save(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert again == {"eos_token": "world", "model_max_length": 7}
    assert build_tokenizer(TokenizerConfig(name="huggingface", path=str(tmp_path))).end_of_text == 4


def test_loading_refuses_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.path=.*no tokenizer\.json"):
        build_tokenizer(TokenizerConfig(name="huggingface", path=str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        Tokenizer.load(tmp_path)
    tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="eos_token"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_the_narrow_type_holds_every_id(build: Build, name: str) -> None:
    ids, _ = build(name).encode_batch(["def f"])
    assert ids.dtype == np.uint16
    large = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(70_000)} | {"</s>": 70_000}))
    assert Tokenizer(large, "</s>").dtype == np.uint32


@pytest.mark.parametrize("letter", ["a", "葉", " ", "\n", "-", "_", "é"])
def test_a_word_without_end_is_cut_for_training(letter: str) -> None:
    text = f"leaf {letter * 5432} root, leaf"
    parts = list(with_short_words(text))
    assert "".join(parts) == text
    assert max(len(run) for part in parts for run in re.findall(f"{letter}+", part)) <= LONGEST_WORD
    assert len(parts) == 6
    plain = "leaf 葉葉 root's\n" * 500
    assert list(with_short_words(plain)) == [plain]


def test_digits_need_no_cut() -> None:
    text = "7" * 5000  # the expression takes three at a time
    assert list(with_short_words(text)) == [text]
