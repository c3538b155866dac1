"""Decoding with a draft against the obvious loop that has none."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from gpt.inference.decode import decode, generate
from gpt.inference.draft import MOST_GUESSES, PATIENCE, Draft, Pace, cost
from gpt.inference.quantize import Int4Linear, Int8Linear, lay_out, rounded_copy
from gpt.inference.rows import Row
from gpt.inference.sampling import Sampling, random_stream
from gpt.model.hardware import Hardware
from gpt.model.transformer import Decoder
from gpt.options import UserError

from ..model.conftest import SHAPES, make_decoder
from .conftest import x86
from .test_decode import END, GREEDY, WARM, byte_tokenizer, prompt, slow_loop

FP32 = Hardware(torch.device("cpu"), "fp32")


def stranger(model: Decoder, amount: float) -> Decoder:
    """A draft of the same shape, whose weights differ by so much; its guesses are partly wrong."""
    other = Decoder(model.config, model.vocab_size).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return other


def drafting(model: Decoder | None) -> Draft | None:
    return None if model is None else Draft(model)


def run(model: Decoder, draft: Decoder | None, prompts: list[list[int]], sampling: Sampling, n: int) -> list[list[int]]:
    rows = [Row(list(prompt), random_stream(0, i, ())) for i, prompt in enumerate(prompts)]
    lengths = {row: len(row.tokens) for row in rows}
    for grown in decode(model, rows, sampling, n, END, draft=drafting(draft)):
        assert len(set(grown)) == len(grown)
        for row in grown:
            lengths[row] += 1
            assert len(row.tokens) == lengths[row]  # one token at a time
    return [row.tokens for row in rows]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("amount", [0.0, 0.02, 1.0], ids=["right", "partly right", "wrong"])
def test_tokens_are_those_of_the_slow_loop_whatever_the_draft(shape: str, sampling: Sampling, amount: float) -> None:
    model = make_decoder(**SHAPES[shape])  # 24 tokens of context
    for prompts in ([prompt(5)], [prompt(length, seed=length) for length in (1, 30, 7, 24, 100)]):
        found = run(model, stranger(model, amount), prompts, sampling, 60)
        assert found == [slow_loop(model, each, sampling, 60, 0, i) for i, each in enumerate(prompts)]


@pytest.mark.parametrize("context", [1, 2, 3])
def test_tiny_contexts(context: int) -> None:
    model = make_decoder(context_length=context)
    assert run(model, stranger(model, 0.02), [prompt(5)], WARM, 20)[0] == slow_loop(model, prompt(5), WARM, 20, 0, 0)


@x86
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_rounded_copy_shares_all_but_the_layers_that_it_rounds(kind: str) -> None:
    model = make_decoder(n_embd=64, dialect="gpt2")
    tensors = {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}
    draft = rounded_copy(model, FP32, kind)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()} == tensors
    assert all(tensor.data_ptr() in tensors.values() for name, tensor in draft.named_parameters())
    assert type(draft.blocks[0].attention.out) is (Int8Linear if kind == "int8" else Int4Linear)
    assert type(model.blocks[0].attention.out) is nn.Linear
    prompts = [prompt(length, seed=length) for length in (3, 9)]
    expected = [slow_loop(model, each, WARM, 50, 0, i) for i, each in enumerate(prompts)]
    lay_out(model, FP32)
    assert run(model, draft, prompts, WARM, 50) == expected


def passes(model: Decoder, draft: Decoder, n: int) -> tuple[int, int]:
    """Of the model and of its draft, to make n tokens."""
    ran: list[nn.Module] = []
    hooks = [each.register_forward_hook(lambda module, *_: ran.append(module)) for each in (model, draft)]
    row = Row(prompt(5), random_stream(0, 0, ()))
    for _ in decode(model, [row], Sampling(), n, end_of_text=-1, draft=Draft(draft)):
        pass
    for hook in hooks:
        hook.remove()
    return ran.count(model), ran.count(draft)


def test_right_guesses_save_passes_and_wrong_ones_are_given_up() -> None:
    model = make_decoder(context_length=128)
    of_model, of_draft = passes(model, stranger(model, 0.0), 90)
    assert of_model <= 1 + 90 / (MOST_GUESSES - 1)
    assert of_model + of_draft >= 90
    of_model, of_draft = passes(model, stranger(model, 1.0), 90)
    assert of_model > 75
    assert of_draft < 35


def test_a_draft_of_no_finite_numbers_guesses_nothing() -> None:
    model = make_decoder(context_length=64)
    draft = stranger(model, 0.0)
    with torch.no_grad():
        draft.blocks[0].mlp.down.weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
    for sampling in (GREEDY, WARM):
        assert run(model, draft, [prompt(5)], sampling, 30)[0] == slow_loop(model, prompt(5), sampling, 30, 0, 0)
    assert passes(model, draft, 50)[1] < 10


@pytest.mark.parametrize("vocab_size", [END + 1, END - 7, 20])
def test_any_number_of_guesses_for_rows_that_end_at_any_time(monkeypatch: pytest.MonkeyPatch, vocab_size: int) -> None:
    """Ragged rows, partly right guesses, rows finished from outside: as the loop without a draft."""
    chance, taken = random.Random(0), set()
    monkeypatch.setattr(Pace, "n_guesses", lambda self, n_rows: chance.randrange(MOST_GUESSES + 1))
    learn = Pace.learn

    def noting(self: Pace, n: int, grown: list[int]) -> None:
        taken.update((n, each) for each in grown)
        learn(self, n, grown)

    monkeypatch.setattr(Pace, "learn", noting)
    for dialect, context in itertools.product(("gpt2", "qwen3"), (1, 7, 24, 64)):
        model = make_decoder(context, dialect=dialect)
        for sampling in (GREEDY, WARM):
            prompts = [prompt(chance.randint(1, 70), seed=seed) for seed in range(chance.randint(1, 5))]
            ends = [len(each) + chance.randint(1, 50) for each in prompts]
            plain, drafted = (
                [Row(list(each), random_stream(0, i, ())) for i, each in enumerate(prompts)] for _ in range(2)
            )
            for rows, draft in ((plain, None), (drafted, stranger(model, 0.01))):
                for grown in decode(model, rows, sampling, 40, END, vocab_size, drafting(draft)):
                    for row in grown:
                        row.finished = row.finished or len(row.tokens) == ends[rows.index(row)]
            assert [row.tokens for row in drafted] == [row.tokens for row in plain]
    assert sum(1 < grown <= n for n, grown in taken) > 10  # some guesses right, but not all


def test_no_tokens_are_none() -> None:
    model = make_decoder()
    for draft in (None, stranger(model, 0.0)):
        row = Row(prompt(5), random_stream(0, 0, ()))
        assert list(decode(model, [row], WARM, 0, END, draft=drafting(draft))) == []
        assert row.tokens == prompt(5)
        assert list(decode(model, [], WARM, 5, END, draft=drafting(draft))) == []


def test_what_is_marked_finished_in_the_middle_of_a_check_grows_no_more() -> None:
    model = make_decoder(context_length=64)
    row, other = Row(prompt(5), random_stream(0, 0, ())), Row(prompt(5), random_stream(0, 1, ()))
    for _ in decode(model, [row, other], WARM, 30, END, draft=Draft(stranger(model, 0.0))):
        row.finished = row.finished or len(row.tokens) == 5 + 4
    assert row.tokens == slow_loop(model, prompt(5), WARM, 4, 0, 0)
    assert other.tokens == slow_loop(model, prompt(5), WARM, 30, 0, 1)


def test_generate_ends_at_a_stop_text_as_without_a_draft() -> None:
    model, tokenizer = Decoder(make_decoder(context_length=64).config, 257), byte_tokenizer()
    jobs = [("ab", 0), ("", 1), ("abc", 2)]

    def texts(draft: Decoder | None, stop: list[str]) -> Iterator[tuple[str, str, int]]:
        *_, samples = generate(
            model, tokenizer, jobs, WARM, max_new_tokens=30, seed=3, stop=stop, draft=drafting(draft)
        )
        for sample in samples:
            yield sample.text, sample.ended, sample.n_tokens

    plain = list(texts(None, []))
    for stop in ([], [plain[0][0][5:7]]):
        assert list(texts(stranger(model, 0.001), stop)) == list(texts(None, stop))


def test_the_pace_follows_what_was_right() -> None:
    pace = Pace()
    assert 3 <= pace.n_guesses(1) <= MOST_GUESSES
    assert pace.n_guesses(8) < pace.n_guesses(1)
    assert pace.n_guesses(1000) == 0  # where each more row costs, none can pay
    for _ in range(1000):
        pace.learn(4, [5, 1, 3])
        pace.learn(0, [1, 1, 1])  # nothing was guessed
    assert pace.right / pace.judged == pytest.approx((4 + 0 + 2) / (4 + 1 + 3))
    for _ in range(100):
        pace.learn(8, [9])
    assert pace.n_guesses(1) == MOST_GUESSES
    for _ in range(100):
        pace.learn(8, [1])
    assert pace.n_guesses(1) == 0


@pytest.mark.parametrize("n_rows", [1, 2, 4])
@pytest.mark.parametrize("right", [0.0, 0.3, 0.5])
def test_guesses_that_do_not_pay_are_few_and_tried_again(n_rows: int, right: float) -> None:
    pace, chance, time, tokens, guessed = Pace(), random.Random(0), 0.0, 0, 0
    for _ in range(20 * PATIENCE):
        n = pace.n_guesses(n_rows)
        grown = [next((i for i in range(n) if chance.random() >= right), n) + 1 for _ in range(n_rows)]
        pace.learn(n, grown)
        guessed += n > 0
        time += cost(n_rows, n)
        tokens += sum(grown)
    assert guessed
    assert tokens / time > 0.93 * n_rows  # without guesses, one token a row in a unit of time
    for _ in range(2 * PATIENCE):
        n = pace.n_guesses(1)
        pace.learn(n, [1 + n])
    assert pace.n_guesses(1) > 4


def test_what_has_no_kernel_is_refused_by_the_name_of_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="draft=int8 is for processors, not cuda; add device=cpu, or leave out draft"):
        rounded_copy(make_decoder(), Hardware(torch.device("cuda"), "fp32"), "int8")
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"])
    with pytest.raises(UserError, match="draft=int4 needs an x86 processor"):
        rounded_copy(make_decoder(), FP32, "int4")
