"""Sampling functions against transformers' logits processors and against the definition of a distribution."""

from __future__ import annotations

import math

import pytest
import torch

from gpt.inference.sampling import (
    NotFinite,
    Sampling,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_times,
    penalise_repetition,
    random_stream,
    warp,
)

logits_process = pytest.importorskip("transformers.generation.logits_process")


def some_logits(rows: int = 20, vocab: int = 200) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))


def logits_of(kind: str) -> torch.Tensor:
    """Logits [20, 200] that are easy, or hard in one way."""
    logits = some_logits()
    if kind == "ties":
        return logits.round()  # about twenty values for two hundred tokens
    if kind == "equal":
        return torch.full_like(logits, -7.0)
    if kind == "extreme":
        return logits.sign() * 10 ** (12 * logits.abs() / logits.abs().max())  # up to 1e12, of either sign
    if kind == "ruled out":
        return logits.masked_fill(some_logits().roll(1, dims=0) < 2, float("-inf"))
    if kind == "certain":
        return torch.nn.functional.one_hot(torch.arange(20), 200) * 1e4 - 1e4
    return logits


KINDS = ["random", "ties", "equal", "extreme", "ruled out", "certain"]
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize("k", [1, 2, 5, 37, 199, 200, 1000])
def test_top_k_keeps_what_transformers_keeps(kind: str, k: int) -> None:
    theirs = logits_process.TopKLogitsWarper(top_k=k)
    assert torch.equal(keep_top_k(logits_of(kind), k), theirs(None, logits_of(kind)))


@kinds
@pytest.mark.parametrize("p", [1e-9, 0.01, 0.25, 0.5, 0.95, 0.9999, 1 - 1e-7])
def test_top_p_keeps_what_transformers_keeps(kind: str, p: float) -> None:
    theirs = logits_process.TopPLogitsWarper(top_p=p)
    assert torch.equal(keep_top_p(logits_of(kind), p), theirs(None, logits_of(kind)))


@kinds
@pytest.mark.parametrize("p", [1e-9, 0.001, 0.1, 0.5, 1.0])
def test_min_p_keeps_what_transformers_keeps(kind: str, p: float) -> None:
    theirs = logits_process.MinPLogitsWarper(min_p=p)
    assert torch.equal(keep_min_p(logits_of(kind), p), theirs(None, logits_of(kind)))


@kinds
def test_something_is_always_kept(kind: str) -> None:
    for sampling in (Sampling(1e-3, 1, 1e-9, 1.0), Sampling(50.0, 3, 0.5, 0.5), Sampling(top_p=1e-9)):
        kept = warp(logits_of(kind), sampling).softmax(dim=-1)
        assert (kept > 0).any(dim=-1).all()
        assert not kept.isnan().any()


@kinds
@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_repetition_penalty_is_that_of_transformers(kind: str, penalty: float) -> None:
    ids = torch.randint(0, 200, (20, 30), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(20, 200, dtype=torch.bool).scatter(1, ids, True)
    theirs = logits_process.RepetitionPenaltyLogitsProcessor(penalty=penalty)
    assert torch.equal(penalise_repetition(logits_of(kind), seen, penalty), theirs(ids, logits_of(kind)))


@kinds
@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_the_order_is_that_of_transformers(kind: str, temperature: float) -> None:
    mine = warp(logits_of(kind), Sampling(temperature, top_k=50, top_p=0.9, min_p=0.02))
    theirs = logits_of(kind)
    for step in (
        logits_process.TemperatureLogitsWarper(temperature),
        logits_process.TopKLogitsWarper(50),
        logits_process.TopPLogitsWarper(0.9),
        logits_process.MinPLogitsWarper(0.02),
    ):
        theirs = step(None, theirs)
    assert torch.equal(mine, theirs)


def times(n: int, vocab_size: int, stream: int = 1) -> torch.Tensor:
    """The random numbers of n places, [n, V]."""
    return log_times([random_stream(stream, 0, ())] * n, range(n), vocab_size, torch.device("cpu"))


def test_the_random_numbers_are_logarithms_of_exponential_ones() -> None:
    found = times(100, 10_000).double().exp()
    for numbers in (found.flatten(), found[:, 7], found[3]):
        for value in (1e-5, 1e-3, 0.1, 1.0, 3.0):
            expected = 1 - math.exp(-value)
            error = 5 * math.sqrt(expected * (1 - expected) / len(numbers)) + 1 / len(numbers)
            assert float((numbers < value).double().mean()) == pytest.approx(expected, abs=error)
    assert float(torch.corrcoef(found[:50].log()).triu(1).abs().max()) < 0.06


def test_the_random_numbers_are_those_of_splitmix64() -> None:
    stream, place, wrap = random_stream(7, 3, ()), 11, 2**64

    def mixed(state: int) -> int:
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % wrap
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % wrap
        return state ^ (state >> 31)

    key = mixed((stream + (place + 1) * 0x9E3779B97F4A7C15) % wrap)
    states = [mixed((key + (token + 1) * 0x9E3779B97F4A7C15) % wrap) for token in range(20_000)]
    expected = [math.log(-math.log1p(-(state % 2**63) / 2**63)) for state in states]
    (found,) = log_times([stream], [place], 20_000, torch.device("cpu")).tolist()
    assert found == pytest.approx(expected, rel=0, abs=1e-4)  # of 24 bits, the least would be wrong by 6e-4


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, float("-inf"), 2.0, -6.0, -7.0]])
    n = 400_000
    frequencies = torch.bincount(draw(logits.expand(n, -1), times(n, 6)), minlength=6) / n
    for found, expected in zip(frequencies.tolist(), logits[0].softmax(0).tolist(), strict=True):
        assert found == pytest.approx(expected, abs=5 * math.sqrt(expected / n))


def test_a_draw_never_gives_a_token_without_probability() -> None:
    logits = torch.full((1, 100), float("-inf"))
    logits[0, 40:60] = torch.randn(20)
    extreme = torch.full((1, 100), -80.0)  # the earliest of times for those that are not in the race
    extreme[0, 40:60] = 4.0
    for some in (extreme, torch.zeros(1, 100), times(1, 100)):
        assert 40 <= draw(logits, some).item() < 60


def test_no_time_is_endless() -> None:
    """This token's 63 random bits, of SplitMix64, are 1 when rounded to fp32."""
    stream, place, token = 7, 240, 47_223
    found = log_times([stream], [place], token + 1, torch.device("cpu"))
    assert found[0, token] == found.max()
    assert found.isfinite().all()
    logits = torch.zeros_like(found)
    logits[0, token] = 1.0
    assert draw(warp(logits, Sampling(top_k=1)), found).item() == token


def test_prompts_have_streams_of_their_own() -> None:
    prompts = [[], [1], [2], [1, 2], [2, 1], [1, 2, 3]]
    assert len({random_stream(1, 0, prompt) for prompt in prompts}) == len(prompts)
    assert random_stream(1, 0, (1, 2)) == random_stream(1, 0, [1, 2])


def test_a_draw_from_no_numbers_is_refused() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(NotFinite):
            draw(torch.tensor([[0.0, 1.0], [0.0, bad]]), torch.zeros(2, 2))
        with pytest.raises(NotFinite):
            draw(torch.tensor([[0.0, bad]]), 0.0)


@pytest.mark.parametrize("change", [0.1, 0.3, 1.0])
def test_the_same_numbers_draw_the_same_of_nearly_the_same(change: float) -> None:
    """Of two distributions with total variation d, 1 - 2 d / (1 + d) of draws or more are equal (Daliri), and no way to
    draw gives more than 1 - d."""
    n, logits = 20_000, some_logits(1, 500)
    other = logits + change * some_logits(2, 500)[1:] / 3
    equal = float((draw(logits, times(n, 500)) == draw(other, times(n, 500))).double().mean())
    distance = float((logits.softmax(-1) - other.softmax(-1)).abs().sum()) / 2
    error = 4 * math.sqrt(distance / n)
    assert distance > 4 * error
    assert 1 - 2 * distance / (1 + distance) - error < equal < 1 - distance + error


def test_random_streams_differ_and_repeat() -> None:
    asked = [(seed, sample, place) for seed in (0, 1, 2**62) for sample in (0, 1, 2) for place in (0, 1, 5)]
    streams = [random_stream(seed, sample, ()) for seed, sample, _ in asked]
    numbers = log_times(streams, [place for *_, place in asked], 4, torch.device("cpu"))
    assert len({tuple(row) for row in numbers.tolist()}) == len(asked)
    assert torch.equal(numbers[5], log_times([random_stream(0, 1, ())], [5], 4, torch.device("cpu"))[0])
