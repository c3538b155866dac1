"""Beam search against an obvious one without a cache, its ends, and its interface."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models

from gpt.config import TokenizerConfig
from gpt.inference import prefill
from gpt.inference.beam import Rules, StopFinder, beam_search, first_stop, search
from gpt.inference.decode import Prompt, Sample, generate
from gpt.inference.prefill import window_start
from gpt.inference.sampling import Sampling
from gpt.model.kv_cache import KVCache
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.tokenizers import Tokenizer
from gpt.text.vocabularies import build_tokenizer

from .conftest import DIALECTS, VOCAB, Peers, random_prompt, varied_decoder

LETTERS = "abcdefghijklmnopqrstuvwxyz月滿西樓"


def slow_search(model: Decoder, prompt: list[int], width: int, end: int, n_new: int) -> list[list[int]]:
    """Beam search by the book: every continuation of every beam, scored by the mean, the whole window each time."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for n in range(1, n_new + 1):
        longer = []
        for score, new in beams:
            text = prompt + new
            window = text[window_start(len(text), model.config.context_length) :]
            with torch.no_grad():
                steps = model(torch.tensor([window]))[0, -1].log_softmax(0).tolist()
            longer += [(score + step, [*new, token]) for token, step in enumerate(steps)]
        best = sorted(longer, reverse=True)[: 2 * width]
        ended += [(s / n, new) for s, new in best[:width] if new[-1] == end or n == n_new]
        ended = sorted(ended, reverse=True)[:width]
        beams = [(s, new) for s, new in best if new[-1] != end][:width]
        if len(ended) == width and beams[0][0] / n <= ended[-1][0]:
            break
    return [new for _, new in ended]


def fast_search(model: Decoder, prompts: list[list[int]], width: int, end: int, n_new: int) -> list[list[list[int]]]:
    def ending(new: list[int]) -> str | None:
        return "ended" if new[-1] == end or len(new) == n_new else None

    found = search(model, prompts, Rules(width, 1.0, ending), n_new, 1.0, VOCAB)
    return [[each.tokens for each in hypotheses] for hypotheses in found]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_beams_past_the_context_are_those_of_the_slow_search(dialect: str) -> None:
    model = varied_decoder(context_length=12, **DIALECTS[dialect])
    prompts = [random_prompt(length) for length in (3, 12, 29)]
    expected = [slow_search(model, prompt, 3, VOCAB, 25) for prompt in prompts]
    assert fast_search(model, prompts, 3, VOCAB, 25) == expected
    assert len({tuple(new[-10:]) for found in expected for new in found}) > 6  # they go different ways


@pytest.mark.parametrize("context", [1, 2, 3])
def test_tiny_contexts(context: int) -> None:
    model = varied_decoder(context_length=context, **DIALECTS["gpt2"])
    assert fast_search(model, [random_prompt(5)], 3, VOCAB, 15) == [slow_search(model, random_prompt(5), 3, VOCAB, 15)]


def test_searches_that_end_at_different_times_leave_each_other_alone() -> None:
    model = varied_decoder(context_length=16, **DIALECTS["llama"])
    prompts = [random_prompt(length) for length in (1, 2, 5, 9, 15, 16, 17, 30)]
    alone = [fast_search(model, [prompt], 3, 51, 25)[0] for prompt in prompts]
    assert fast_search(model, prompts, 3, 51, 25) == alone
    assert len({max(map(len, found)) for found in alone}) > 2


def letters() -> Tokenizer:
    return build_tokenizer(TokenizerConfig(name="char"), characters=LETTERS)


@pytest.fixture(scope="module")
def writer() -> Decoder:
    return varied_decoder(letters().vocab_size, dialect="llama", tie_embeddings=False)


def find(model: Decoder, *prompts: Prompt, num_beams: int = 4, **options: object) -> list[list[Sample]]:
    options = {"num_return": num_beams, "max_new_tokens": 20} | options
    return beam_search(model, letters(), prompts, num_beams=num_beams, **options)


def test_stop_texts_end_a_hypothesis_where_those_of_transformers_do(writer: Decoder, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = letters()
    tokenizer.save(tmp_path)
    peers = Peers(writer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    free = find(writer, "abc")[0]
    stop = [free[0].text[4:6], free[-1].text[9], free[0].text[12:14]]
    prompt = tokenizer.encode("abc")
    expected = peers.generate(prompt, tokenizer.end_of_text, 20, num_beams=4, stop_strings=stop, tokenizer=theirs)
    (found,) = find(writer, "abc", stop=stop)
    assert [sample.score for sample in found] == pytest.approx([score for _, score in expected], rel=1e-4)
    for sample, (tokens, _) in zip(found, expected, strict=True):
        text = tokenizer.decode(tokens)
        assert sample.text == text[: first_stop(text, stop)]
    assert "stop" in {sample.ended for sample in found}


def test_a_search_ends_where_stop_texts_end_all_it_looks_at(writer: Decoder) -> None:
    (found,) = find(writer, "abc", stop=list(LETTERS))
    assert [sample.text for sample in found] == [""] * 4
    assert {sample.n_tokens for sample in found} == {1}


def bytes_only() -> Tokenizer:
    return build_tokenizer(TokenizerConfig(name="byte"))


def wordpieces() -> Tokenizer:
    words = ["[UNK]", "[SEP]", "leaf", "new", "##ly", "##s", ",", ".", "don", "'", "t", "n", "##'t"]
    backend = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[UNK]", "[SEP]"])
    return Tokenizer(backend, "[SEP]")


def sentencepieces() -> Tokenizer:
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in (*range(0x80, 0xA0), *range(0xE0, 0xE8))), "▁", "a", "▁b"]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "</s>"])
    return Tokenizer(backend, "</s>")


@pytest.mark.parametrize("make", [letters, bytes_only, wordpieces, sentencepieces])
def test_stop_texts_are_found_where_the_whole_text_has_them(make: Callable[[], Tokenizer]) -> None:
    tokenizer, chance = make(), random.Random(0)
    found = 0
    for search_number in range(30):
        text = tokenizer.decode(chance.choices(range(tokenizer.vocab_size), k=40))
        stop = [text[start : start + length] for length in (2, 3, 7) if (start := chance.randrange(20)) >= 0]
        stop = list(filter(None, [*stop, "\ufffd" * (search_number % 4), "newly", "don't"]))
        finder, beams = StopFinder(tokenizer, stop), [[]]
        for _ in range(25):
            grown = [[*chance.choice(beams), chance.randrange(tokenizer.vocab_size)] for _ in range(12)]
            stopped = [first_stop(tokenizer.decode(tokens), stop) is not None for tokens in grown]
            assert [finder.stops(tokens) for tokens in grown] == stopped
            found += sum(stopped)
            beams = [tokens for tokens, ended in zip(grown, stopped, strict=True) if not ended][:6]
            if not beams:
                break
    assert found > 10


def test_a_search_with_stop_texts_decodes_no_whole_continuation(
    writer: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, decode_all = [], Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: whole.append(ids) or decode_all(self, ids))
    (found,) = find(writer, "abc", stop=["zzzz"])
    assert len(whole) == len(found)  # the hypotheses, at the end


def test_samples_tell_their_prompt_rank_end_and_score(writer: Decoder) -> None:
    tokenizer = letters()
    (found,) = find(writer, "月滿西樓", num_return=3)
    assert [(sample.prompt, sample.number) for sample in found] == [("月滿西樓", rank) for rank in range(3)]
    for sample in found:
        assert sample.ended == ("length" if len(sample.text) == 20 else "end_of_text")
        new = tokenizer.encode(sample.text) + [tokenizer.end_of_text] * (sample.ended == "end_of_text")
        assert sample.n_tokens == len(new)
        tokens = torch.tensor([tokenizer.encode("月滿西樓") + new])
        with torch.no_grad():
            steps = writer(tokens[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None])[0, 3:, 0]
        assert sample.score == pytest.approx(steps.mean().item(), rel=1e-4)


def test_prompts_are_texts_or_ids(writer: Decoder) -> None:
    tokenizer = letters()
    text, ids, nothing, start = find(writer, "leaf", tokenizer.encode("leaf"), "", [tokenizer.end_of_text])
    assert ids == text
    assert nothing == start


def test_beams_need_enough_tokens(writer: Decoder) -> None:
    with pytest.raises(UserError, match="num_beams=40"):
        find(writer, "a", num_beams=40)
    assert len(find(writer, "a", num_beams=31, max_new_tokens=1)[0]) == 31  # every token there is


@pytest.fixture
def count_windows(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    run, windows = prefill.run_windows, []
    monkeypatch.setattr(prefill, "run_windows", lambda model, some: windows.extend(some) or run(model, some))
    return lambda: len(windows)


def test_a_prompt_is_run_once_for_all_its_beams(writer: Decoder, count_windows: Callable[[], int]) -> None:
    find(writer, "leaf", "b", num_beams=6)
    assert count_windows() == 2


def test_a_prompt_is_run_once_for_all_its_samples(writer: Decoder, count_windows: Callable[[], int]) -> None:
    jobs = [("leaf", number) for number in range(6)]
    for _ in generate(writer, letters(), jobs, Sampling(), max_new_tokens=5):
        pass
    assert count_windows() == 1


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 2, 0], [1, 1, 1], [1], [0, 0, 1, 2, 2]], ids=str)
def test_rows_of_a_cache_are_moved_with_their_lengths(rows: list[int]) -> None:
    cache = KVCache(varied_decoder(**DIALECTS["qwen3"]).config, 3, 8, "cpu", torch.float32)
    cache.keys.normal_()
    cache.values.normal_()
    cache.lengths = [3, 8, 5]
    keys, values = cache.keys[:, rows].clone(), cache.values[:, rows].clone()
    cache.select_rows(rows)
    assert torch.equal(cache.keys, keys)
    assert torch.equal(cache.values, values)
    assert cache.lengths == [(3, 8, 5)[row] for row in rows]
