"""Greedy decoding and beam search, token for token against transformers' `generate` on the same weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from gpt.inference.beam import Rules, search
from gpt.inference.decode import decode
from gpt.inference.rows import Row
from gpt.inference.sampling import Sampling, random_stream
from gpt.model.transformer import Decoder

from .conftest import VOCAB, Generated, Peers, random_prompt

PROMPTS = [random_prompt(length) for length in (1, 7, 40)]
NEW = 20
NEVER = 100  # a token that ends nothing here


def beams(
    model: Decoder,
    prompts: Sequence[list[int]],
    end_of_text: int,
    n_new: int = NEW,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    vocab_size: int = VOCAB,
) -> list[Generated]:
    def ending(continuation: list[int]) -> str | None:
        if continuation[-1] == end_of_text:
            return "end_of_text"
        return "length" if len(continuation) == n_new else None

    rules = Rules(num_beams, length_penalty, ending)
    found = search(model, prompts, rules, n_new, repetition_penalty, vocab_size)
    return [[(each.tokens, each.score) for each in hypotheses] for hypotheses in found]


def check(found: Generated, expected: Generated) -> None:
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-4)


def usual_token(peers: Peers) -> int:
    """A token that ends some of the likeliest continuations early."""
    made = [tokens for prompt in PROMPTS for tokens, _ in peers.generate(prompt, NEVER, 8, num_beams=6)]
    return Counter(token for tokens in made for token in set(tokens[2:])).most_common(1)[0][0]


def test_greedy(peers: Peers) -> None:
    for sampling in (Sampling(temperature=0), Sampling(temperature=0, repetition_penalty=1.4)):
        rows = [Row(list(prompt), random_stream(0, 0, ())) for prompt in PROMPTS]
        for _ in decode(peers.model, rows, sampling, NEW, NEVER):
            pass
        for row, prompt in zip(rows, PROMPTS, strict=True):
            options = {"repetition_penalty": sampling.repetition_penalty}
            ((expected, _),) = peers.generate(prompt, NEVER, NEW, **options)
            assert row.tokens == prompt + expected
            assert len(set(expected)) > 3  # a loop of one token would prove little


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 2, "repetition_penalty": 1.5},
        {"num_beams": 7, "repetition_penalty": 0.8, "length_penalty": 0.5},
        {"length_penalty": 0.0},
        {"length_penalty": 2.0},
        {"length_penalty": -1.5},
    ],
    ids=str,
)
def test_beams(peers: Peers, options: dict[str, Any]) -> None:
    options = {"num_beams": 4, **options}
    end = usual_token(peers)
    found = beams(peers.model, PROMPTS, end, **options)
    for prompt, mine in zip(PROMPTS, found, strict=True):
        check(mine, peers.generate(prompt, end, NEW, **options))
    lengths = {len(tokens) for mine in found for tokens, _ in mine}
    assert len(lengths) > 1 or options.get("length_penalty") == 2, "nothing ended early"


def test_beams_that_only_the_length_ends(peers: Peers) -> None:
    for prompt, found in zip(PROMPTS, beams(peers.model, PROMPTS, NEVER), strict=True):
        check(found, peers.generate(prompt, NEVER, NEW, num_beams=4))


@pytest.mark.parametrize("n_new", [1, 2])
def test_short_searches(peers: Peers, n_new: int) -> None:
    (found,) = beams(peers.model, PROMPTS[1:2], NEVER, n_new, num_beams=5)
    check(found, peers.generate(PROMPTS[1], NEVER, n_new, num_beams=5))


def test_more_candidates_than_tokens(peers: Peers) -> None:
    (found,) = beams(peers.model, PROMPTS[1:2], NEVER, 4, num_beams=90)
    check(found, peers.generate(PROMPTS[1], NEVER, 4, num_beams=90))


def test_ids_that_the_tokenizer_lacks_are_never_chosen(peers: Peers) -> None:
    (found,) = beams(peers.model, PROMPTS[1:2], 3, vocab_size=30)
    assert max(token for tokens, _ in found for token in tokens) < 30
    check(found, peers.generate(PROMPTS[1], 3, NEW, num_beams=4, suppress_tokens=list(range(30, VOCAB))))
