"""Cached, batched decoding against an obvious loop that runs the whole window for every token."""

from __future__ import annotations

import weakref

import pytest
import torch

from gpt.config import TokenizerConfig
from gpt.inference import prefill as prefill_module
from gpt.inference.decode import TextStream, decode, generate
from gpt.inference.prefill import prefill, window_start
from gpt.inference.rows import Row
from gpt.inference.sampling import Sampling, draw, log_times, penalise_repetition, random_stream, warp
from gpt.model.kv_cache import KVCache
from gpt.model.transformer import Decoder
from gpt.text.tokenizers import Tokenizer
from gpt.text.vocabularies import build_tokenizer

from ..model.conftest import SHAPES, VOCAB, make_decoder

END = VOCAB - 1
GREEDY = Sampling(temperature=0)
WARM = Sampling(temperature=1.2, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.2)


def slow_loop(model: Decoder, prompt: list[int], sampling: Sampling, n: int, seed: int, sample: int) -> list[int]:
    tokens, stream = list(prompt), random_stream(seed, sample, ())
    for _ in range(n):
        window = tokens[window_start(len(tokens), model.config.context_length) :]
        with torch.no_grad():
            logits = model(torch.tensor([window]))[:, -1]
        if sampling.repetition_penalty != 1:
            seen = torch.zeros(1, VOCAB, dtype=torch.bool)
            seen[0, tokens] = True
            logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
        if sampling.temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(draw(warp(logits, sampling), log_times([stream], [len(tokens)], VOCAB, logits.device)))
        tokens.append(token)
        if token == END:
            break
    return tokens


def run(model: Decoder, prompts: list[list[int]], sampling: Sampling, n: int, seed: int = 0) -> list[list[int]]:
    rows = [Row(list(prompt), random_stream(seed, i, ())) for i, prompt in enumerate(prompts)]
    for _ in decode(model, rows, sampling, n, END):
        pass
    return [row.tokens for row in rows]


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, END, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_the_window_rule() -> None:
    for context in (1, 2, 3, 8, 9):
        for n in range(1, 60):
            start = window_start(n, context)
            assert context - max(1, context // 2) < n - start <= context or start == 0
            assert start % max(1, context // 2) == 0
            assert (start == 0) == (n <= context)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_tokens_are_those_of_the_slow_loop_also_past_the_context(shape: str, sampling: Sampling) -> None:
    model = make_decoder(**SHAPES[shape])  # 24 tokens of context
    assert run(model, [prompt(5)], sampling, 60)[0] == slow_loop(model, prompt(5), sampling, 60, 0, 0)


@pytest.mark.parametrize("context", [1, 2, 3])
def test_tiny_contexts(context: int) -> None:
    model = make_decoder(context_length=context)
    assert run(model, [prompt(5)], WARM, 20)[0] == slow_loop(model, prompt(5), WARM, 20, 0, 0)


@pytest.mark.parametrize("shape", ["gpt2", "qwen3-grouped"])
def test_prompts_of_different_lengths_give_together_what_each_gives_alone(shape: str) -> None:
    model = make_decoder(**SHAPES[shape])
    prompts = [prompt(length, seed=length) for length in (1, 30, 7, 24, 7, 100)]
    together = run(model, prompts, WARM, 50)
    assert together == [slow_loop(model, p, WARM, 50, 0, i) for i, p in enumerate(prompts)]


def test_sample_i_of_a_seed_is_the_same_alone_and_in_a_batch_of_eight() -> None:
    model = make_decoder(dialect="qwen3")
    batch = run(model, [prompt(6)] * 8, WARM, 40, seed=7)
    assert len({tuple(tokens) for tokens in batch}) == 8
    for i, tokens in enumerate(batch):
        row = Row(prompt(6), random_stream(7, i, ()))
        for _ in decode(model, [row], WARM, 40, END):
            pass
        assert row.tokens == tokens


@torch.no_grad()
def test_logits_after_a_refilled_window_equal_uncached_ones() -> None:
    model = make_decoder(dialect="llama")
    row = Row(prompt(31), random_stream(0, 0, ()))
    logits, _ = prefill(model, [row.tokens], 10)
    torch.testing.assert_close(logits, model(torch.tensor([row.tokens[12:]]))[:, -1], atol=1e-4, rtol=0)


def test_no_two_prompts_are_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, caches, alive = make_decoder(), weakref.WeakSet[KVCache](), []
    make = KVCache.__init__

    def counting(self: KVCache, *arguments: object) -> None:
        caches.add(self)
        alive.append(len(caches))
        make(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(KVCache, "__init__", counting)
    prompts = [prompt(length, seed=length) for length in (3, 9, 3, 5, 9, 7)]
    with torch.no_grad():
        logits, cache = prefill(model, prompts, 2)
    assert alive == [1, 2, 2, 2, 2]  # the batch's own, and that of one prompt
    for row, tokens in enumerate(prompts):
        with torch.no_grad():
            torch.testing.assert_close(logits[row], model(torch.tensor([tokens]))[0, -1], atol=1e-4, rtol=0)
        assert cache.lengths[row] == len(tokens)


def test_a_row_that_ends_leaves_the_others_alone() -> None:
    model = make_decoder(dialect="gpt2")
    with torch.no_grad():
        model.positions.weight[9] += 3 * model.embed.weight[END] / model.embed.weight[END].norm() ** 2  # likely END
    prompts = [prompt(n, seed=n) for n in (3, 8, 5)]
    found = run(model, prompts, WARM, 30)
    assert found == [slow_loop(model, p, WARM, 30, 0, i) for i, p in enumerate(prompts)]


def byte_tokenizer() -> Tokenizer:
    return build_tokenizer(TokenizerConfig(name="byte"))


def stream_text(text: str, stop: list[str]) -> tuple[list[str], bool]:
    tokenizer = byte_tokenizer()
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in tokenizer.encode(text):
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream.stopped


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\n\ntwo", ["\n\n"], "one"),
        ("one\ntwo\n", ["\n\n"], "one\ntwo\n"),
        ("aaab", ["aab"], "a"),
        ("月滿西樓，今夜", ["，今"], "月滿西樓"),
        ("abcabd", ["abd", "cab"], "ab"),
        ("no stop", [], "no stop"),
        ("ends with half a st", ["stop"], "ends with half a st"),
    ],
)
def test_stop_texts_work_across_tokens(text: str, stop: list[str], expected: str) -> None:
    pieces, stopped = stream_text(text, stop)
    assert "".join(pieces) == expected
    assert stopped == (expected != text)


def test_streamed_pieces_are_whole_characters() -> None:
    pieces, _ = stream_text("🌿葉é", [])
    assert "".join(pieces) == "🌿葉é"
    assert not any("\ufffd" in piece for piece in pieces)


def test_generate_reports_how_each_sample_ended() -> None:
    model = Decoder(make_decoder().config, 257)
    tokenizer = byte_tokenizer()
    *_, samples = generate(model, tokenizer, [("ab", 0), ("", 1)], WARM, max_new_tokens=30, seed=3)
    for sample in samples:
        assert sample.ended in ("length", "end_of_text")
        assert sample.n_tokens == 30 or sample.ended == "end_of_text"
    first = samples[0].text
    *_, (stopped,) = generate(model, tokenizer, [("ab", 0)], WARM, max_new_tokens=30, seed=3, stop=[first[5:7]])
    assert stopped.ended == "stop"
    assert stopped.text == first[: first.index(first[5:7])]


def test_a_prompt_is_a_text_or_ids() -> None:
    model, tokenizer = Decoder(make_decoder().config, 257), byte_tokenizer()
    for text, ids in (("葉 leaf", tokenizer.encode("葉 leaf")), ("", [])):
        *_, (of_text,) = generate(model, tokenizer, [(text, 4)], WARM, max_new_tokens=10)
        *_, (of_ids,) = generate(model, tokenizer, [(ids, 4)], WARM, max_new_tokens=10)
        assert of_ids == of_text
        assert of_ids.prompt == text
        assert of_ids.score is None


def test_prompts_of_equal_length_are_run_together_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, run_windows, shapes = make_decoder(), prefill_module.run_windows, []
    monkeypatch.setattr(prefill_module, "PREFILL_TOKENS", 20)
    monkeypatch.setattr(
        prefill_module,
        "run_windows",
        lambda model, some: shapes.append((len(some), len(some[0]))) or run_windows(model, some),
    )
    prompts = [prompt(length, seed=seed) for seed, length in enumerate((5, 9, 5, 5, 5, 5, 22, 9))]
    with torch.no_grad():
        logits, cache = prefill(model, [*prompts, prompts[0]], 2)
    assert shapes == [(4, 5), (1, 5), (2, 9), (1, 22)]  # the last prompt is the first again
    for row, tokens in enumerate([*prompts, prompts[0]]):
        with torch.no_grad():
            torch.testing.assert_close(logits[row], model(torch.tensor([tokens]))[0, -1], atol=1e-4, rtol=0)
        assert cache.lengths[row] == len(tokens)
