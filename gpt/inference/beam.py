"""Beam search: of the continuations that it looks at, the likeliest, several at once and without chance.

Every step continues each of the N beams of a prompt by every token and looks at the 2 N likeliest results. Those of
them that have ended are hypotheses if they are among the N likeliest; the N likeliest others are the next beams. The N
best hypotheses are kept, and a prompt is done when they are there and its best beam, scored as if it ended now, does
not beat the worst of them, or when `max_new_tokens` ends every beam.

The score of a hypothesis of n tokens, its end included, is its log-probability (in nats, repetition penalty applied)
divided by n ** length_penalty: 0 leaves the sum, which favours short texts, 1 is the mean, more favours long ones.

Legend: B beams of all prompts together, V vocabulary, N beams of a prompt.
Sources: transformers' `generate(do_sample=False, num_beams=N, early_stopping=False)`, whose tokens and scores these
are (its `_beam_search`); length normalisation after Wu et al. 2016 (GNMT), whose divisor is ((5 + n) / 6) ** alpha.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt.inference.decode import Prompt, Sample, prompt_text, prompt_tokens
from gpt.inference.prefill import prefill, refill
from gpt.inference.rows import tokens_seen
from gpt.inference.sampling import penalise_repetition
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.tokenizers import StreamDecoder, Tokenizer

Candidate = tuple[float, int, int]  # log-probability of the whole, index of the beam that it continues, new token


@dataclass(frozen=True)
class Beam:
    """A continuation that may go on: prompt and tokens, and the log-probability of the latter, in nats."""

    tokens: list[int]
    log_probability: float


@dataclass(frozen=True)
class Hypothesis:
    """A continuation that has ended, without the prompt; `ended` as in `Sample`."""

    tokens: list[int]
    score: float
    ended: str


@dataclass(frozen=True)
class Rules:
    """How long a search goes on, and what it likes. `ending` says how a continuation has ended, None if it has not."""

    num_beams: int
    length_penalty: float
    ending: Callable[[list[int]], str | None]


@dataclass(eq=False)
class Search:
    """The beams of one prompt and its hypotheses, best first; done when no beam is left."""

    prompt: list[int]
    rules: Rules
    beams: list[Beam] = field(init=False)
    hypotheses: list[Hypothesis] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.beams = [Beam(self.prompt, 0.0)]

    def advance(self, candidates: Sequence[Candidate]) -> list[int]:
        """Take one step by these candidates, likeliest first. Returns the old beam that each new one continues."""
        width = self.rules.num_beams
        divisor = (len(self.beams[0].tokens) - len(self.prompt) + 1) ** self.rules.length_penalty
        children: list[tuple[int, Beam]] = []
        for rank, (log_probability, parent, token) in enumerate(candidates):
            tokens = [*self.beams[parent].tokens, token]
            continuation = tokens[len(self.prompt) :]
            ended = self.rules.ending(continuation)
            if ended is None and len(children) < width:
                children.append((parent, Beam(tokens, log_probability)))
            elif ended is not None and rank < width:
                self.hypotheses.append(Hypothesis(continuation, log_probability / divisor, ended))
        self.hypotheses = sorted(self.hypotheses, key=lambda each: -each.score)[:width]
        full = len(self.hypotheses) == width
        if full and children and children[0][1].log_probability / divisor <= self.hypotheses[-1].score:
            children = []
        children = settle(children)
        self.beams = [beam for _, beam in children]
        return [parent for parent, _ in children]


def settle(children: Sequence[tuple[int, Beam]]) -> list[tuple[int, Beam]]:
    """These (parent, beam) in an order in which a child takes its parent's place, so that few cache rows move."""
    places: list[tuple[int, Beam] | None] = [None] * len(children)
    others = []
    for child in children:
        if child[0] < len(places) and places[child[0]] is None:
            places[child[0]] = child
        else:
            others.append(child)
    rest = iter(others)
    return [child or next(rest) for child in places]


@torch.inference_mode()
def search(
    model: Decoder,
    prompts: Sequence[list[int]],
    rules: Rules,
    max_new_tokens: int,
    repetition_penalty: float,
    vocab_size: int,
) -> list[list[Hypothesis]]:
    """The hypotheses of each prompt, best first; `rules` must end each continuation of `max_new_tokens`.

    Prompts are decoded together, and each gives what it gives alone. Ids from `vocab_size` on are never chosen.
    """
    searches = [Search(prompt, rules) for prompt in prompts]
    active = searches
    logits, cache = prefill(model, prompts, max_new_tokens)  # one beam a prompt: it is run once
    seen = tokens_seen(prompts, model.vocab_size, logits.device) if repetition_penalty != 1 else None
    while True:
        scores = logits.log_softmax(dim=-1)  # [B, V]
        if seen is not None:
            scores = penalise_repetition(scores, seen, repetition_penalty)
        parents = advance(active, scores[:, :vocab_size])
        active = [each for each in active if each.beams]
        if not active:
            return [each.hypotheses for each in searches]
        cache.select_rows(parents)
        sequences = [beam.tokens for each in active for beam in each.beams]
        newest = torch.tensor([tokens[-1:] for tokens in sequences], device=logits.device)  # [B, 1]
        if seen is not None:
            seen = seen[parents].scatter_(1, newest, True)
        refill(model, sequences, cache)
        logits = model(newest, cache=cache)[:, -1].float()


def advance(active: Sequence[Search], scores: Tensor) -> list[int]:
    """Take a step in each search, given the log-probability of each token after each beam of all, [B, V].

    Returns the row that each beam continues.
    """
    so_far = torch.tensor([beam.log_probability for each in active for beam in each.beams], device=scores.device)
    n_candidates = 2 * active[0].rules.num_beams  # so that N can go on even where each beam has ended in one way
    best = (scores + so_far[:, None]).topk(min(n_candidates, scores.shape[1]))
    values, tokens = best.values.tolist(), best.indices.tolist()
    parents: list[int] = []
    first = 0
    for each in active:
        n_beams = len(each.beams)
        candidates = (
            (value, beam, token)
            for beam in range(n_beams)
            for value, token in zip(values[first + beam], tokens[first + beam], strict=True)
        )
        chosen = heapq.nlargest(n_candidates, candidates, key=lambda candidate: candidate[0])
        parents += [first + beam for beam in each.advance(chosen)]
        first += n_beams
    return parents


def beam_search(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    num_beams: int,
    num_return: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
) -> list[list[Sample]]:
    """The `num_return` best continuations that `num_beams` beams find of each prompt, best first.

    A continuation ends with the end of text, with a stop text, which is cut from it, or after `max_new_tokens`.
    An empty prompt is the start of a document. Raises UserError where the tokenizer cannot encode a prompt, or has
    fewer tokens than there are beams.
    """
    if not num_return <= num_beams <= tokenizer.vocab_size:
        raise UserError(
            f"num_beams={num_beams}: must be at least num_samples={num_return}, "
            f"and at most the number of tokens, {tokenizer.vocab_size}"
        )

    finder = StopFinder(tokenizer, stop) if stop else None

    def ending(continuation: list[int]) -> str | None:
        if continuation[-1] == tokenizer.end_of_text:
            return "end_of_text"
        if finder is not None and finder.stops(continuation):
            return "stop"
        return "length" if len(continuation) == max_new_tokens else None

    model.eval()
    ids = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    rules = Rules(num_beams, length_penalty, ending)
    found = search(model, ids, rules, max_new_tokens, repetition_penalty, tokenizer.vocab_size)
    samples: list[list[Sample]] = []
    for prompt, hypotheses in zip(prompts, found, strict=True):
        text = prompt_text(tokenizer, prompt)
        best = enumerate(hypotheses[:num_return])
        samples.append([to_sample(tokenizer, text, number, each, stop) for number, each in best])
    return samples


class StopFinder:
    """Whether the text of a continuation holds a stop text, from its newest token and what is kept of its beam.

    Continuations come as a search grows them: by length, each one of a beam that did not stop, and a token more.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.stop = stop
        self.kept = max(map(len, stop)) - 1  # characters of earlier text that a stop text may begin in
        self.length = -1
        # By tokens, those that the present step continues and those that it makes: the decoder, and the text's end.
        self.beams: dict[tuple[int, ...], tuple[StreamDecoder, str]] = {}
        self.children: dict[tuple[int, ...], tuple[StreamDecoder, str]] = {(): (tokenizer.stream(), "")}

    def stops(self, continuation: Sequence[int]) -> bool:
        """Whether a stop text is in what the tokenizer's `decode` gives for these tokens."""
        *before, token = continuation
        if len(before) != self.length:
            self.beams, self.children, self.length = self.children, {}, len(before)
        decoder, end = self.beams[tuple(before)]
        decoder = decoder.fork()
        text = end + decoder.step(token)
        self.children[*before, token] = decoder, text[max(0, len(text) - self.kept) :]
        return first_stop(text + decoder.fork().finish(), self.stop) is not None


def to_sample(tokenizer: Tokenizer, prompt: str, number: int, hypothesis: Hypothesis, stop: Sequence[str]) -> Sample:
    text = tokenizer.decode(hypothesis.tokens)
    if hypothesis.ended == "stop":
        text = text[: first_stop(text, stop)]
    return Sample(prompt, number, text, hypothesis.ended, len(hypothesis.tokens), hypothesis.score)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the stop texts begins."""
    return min((place for each in stop if (place := text.find(each)) >= 0), default=None)
