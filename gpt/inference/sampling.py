"""From logits to a token: small functions from logits to logits, and the draw.

Legend: B rows, V vocabulary. Every function takes and returns logits [B, V]; minus infinity rules a token out.
The kept sets equal those of transformers' logits processors, in transformers' order.

Sources: repetition penalty: Keskar et al. 2019 (CTRL); top-k: Fan et al. 2018; top-p: Holtzman et al. 2020;
min-p: Nguyen et al. 2024; the draw: Gumbel 1954 in the form of exponential races.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt.options import UserError
from gpt.text.permutation import mix


class NotFinite(UserError):
    """There is no next token, as its probabilities are no numbers."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the fields are those of `SampleConfig`."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive and multiply the negative logits of tokens in the text so far; seen bool [B, V]."""
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest, and what equals the k-th."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set whose probability reaches p: the likeliest tokens."""
    ordered, index = logits.sort(descending=False)
    dropped = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    dropped[..., -1] = False
    return logits.masked_fill(dropped.scatter(-1, index, dropped), float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the likeliest."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), float("-inf"))


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, top-k, top-p and min-p, in this order; `sampling.temperature` must not be 0."""
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def log_exponentials(n: int, random: torch.Generator) -> Tensor:
    """Logarithms [n], fp32, of n exponentially distributed random numbers of mean 1."""
    uniforms = torch.rand(n, generator=random, dtype=torch.float64)  # of fp32's 2^24 steps one draw in 300 would meet 0
    return uniforms.log_().neg_().log_().float()


def draw(logits: Tensor, log_times: Tensor) -> Tensor:
    """The tokens that win a race: token i arrives after an exponential time divided by its probability, and is the
    first with that probability. logits and logarithms of the times [B, V] → ids [B].

    Unlike the place of one number in the cumulative distribution, the winner mostly stays where the probabilities
    change a little, which decoding with a draft needs. Nothing is summed, so the order of sums is nowhere felt.
    """
    best = (logits - log_times).max(dim=-1)
    if not best.values.isfinite().all():
        raise NotFinite("the model's logits are no finite numbers: its weights are damaged")
    return best.indices


def random_stream(seed: int, sample: int) -> torch.Generator:
    """The random numbers of sample number `sample` of a seed, whatever is decoded beside it."""
    generator = torch.Generator()
    generator.manual_seed(int(mix(np.uint64(seed) ^ mix(np.uint64(sample)))) >> 1)
    return generator
