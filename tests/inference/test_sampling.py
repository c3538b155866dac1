"""Sampling functions against transformers' logits processors and against the definition of a distribution."""

from __future__ import annotations

import pytest
import torch

from gpt.inference.sampling import (
    Sampling,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    random_stream,
    warp,
)

logits_process = pytest.importorskip("transformers.generation.logits_process")


def some_logits(rows: int = 20, vocab: int = 200) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("k", [1, 5, 200, 1000])
def test_top_k_keeps_what_transformers_keeps(k: int) -> None:
    theirs = logits_process.TopKLogitsWarper(top_k=k)
    assert torch.equal(keep_top_k(some_logits(), k), theirs(None, some_logits()))


@pytest.mark.parametrize("p", [0.01, 0.5, 0.95, 0.9999])
def test_top_p_keeps_what_transformers_keeps(p: float) -> None:
    theirs = logits_process.TopPLogitsWarper(top_p=p)
    assert torch.equal(keep_top_p(some_logits(), p), theirs(None, some_logits()))


@pytest.mark.parametrize("p", [0.001, 0.1, 1.0])
def test_min_p_keeps_what_transformers_keeps(p: float) -> None:
    theirs = logits_process.MinPLogitsWarper(min_p=p)
    assert torch.equal(keep_min_p(some_logits(), p), theirs(None, some_logits()))


def test_repetition_penalty_is_that_of_transformers() -> None:
    ids = torch.randint(0, 200, (20, 30), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(20, 200, dtype=torch.bool).scatter(1, ids, True)
    theirs = logits_process.RepetitionPenaltyLogitsProcessor(penalty=1.3)
    torch.testing.assert_close(penalise_repetition(some_logits(), seen, 1.3), theirs(ids, some_logits()))


def test_the_order_is_that_of_transformers() -> None:
    mine = warp(some_logits(), Sampling(temperature=0.7, top_k=50, top_p=0.9, min_p=0.02))
    theirs = some_logits()
    for step in (
        logits_process.TemperatureLogitsWarper(0.7),
        logits_process.TopKLogitsWarper(50),
        logits_process.TopPLogitsWarper(0.9),
        logits_process.MinPLogitsWarper(0.02),
    ):
        theirs = step(None, theirs)
    torch.testing.assert_close(mine, theirs)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, float("-inf"), 2.0]])
    uniforms = torch.linspace(0, 1, 100_001)[:-1]
    tokens = draw(logits.expand(len(uniforms), -1), uniforms)
    frequencies = torch.bincount(tokens, minlength=4) / len(tokens)
    torch.testing.assert_close(frequencies, logits[0].softmax(0), atol=1e-4, rtol=0)


def test_a_draw_never_gives_a_token_without_probability() -> None:
    logits = torch.full((1, 100), float("-inf"))
    logits[0, 40:60] = torch.randn(20)
    for uniform in (0.0, 0.5, 1 - 2**-24, 1.0):
        assert 40 <= draw(logits, torch.tensor([uniform])).item() < 60


def test_random_streams_differ_and_repeat() -> None:
    numbers = {(s, i): torch.rand(4, generator=random_stream(s, i)) for s in (0, 1, 2**62) for i in (0, 1, 2)}
    assert len({tuple(values.tolist()) for values in numbers.values()}) == 9
    assert torch.equal(numbers[1, 2], torch.rand(4, generator=random_stream(1, 2)))
