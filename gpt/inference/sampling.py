"""From logits to a token: small functions from logits to logits, the draw, and its random numbers.

Legend: B rows, V vocabulary. The functions up to `warp` take and return logits [B, V]; minus infinity rules a token
out. The kept sets equal those of transformers' logits processors, in transformers' order.

Sources: repetition penalty: Keskar et al. 2019 (CTRL); top-k: Fan et al. 2018; top-p: Holtzman et al. 2020;
min-p: Nguyen et al. 2024; the draw: Gumbel 1954, as a race of exponential times; SplitMix64: Steele et al. 2014.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gpt.options import UserError
from gpt.text.permutation import FIRST, GOLDEN, SECOND, mix


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


def draw(logits: Tensor, times: Tensor | float) -> Tensor:
    """The tokens that win a race: token i takes an exponential time divided by its probability, and is the first with
    that probability. logits, and logarithms of the times by `log_times`, [B, V] → ids [B]. Equal times: the likeliest.

    Unlike the token at a random place of the cumulative distribution, the winner mostly stays where the probabilities
    change a little, which decoding with a draft needs. Nothing is summed, so no order of sums changes it.
    """
    best = (logits - times).max(dim=-1)  # `argmax` takes twice as long
    if not best.values.isfinite().all():
        raise NotFinite("the model's logits are no finite numbers: its weights are damaged")
    return best.indices


def random_stream(seed: int, sample: int, prompt: Sequence[int]) -> int:
    """What decides, with a token's place, how sample number `sample` of a prompt is drawn, whatever is decoded beside
    it. Prompts have streams of their own, so that what is averaged over them is independent."""
    digest = hashlib.blake2b(np.array(prompt, dtype="<i8").tobytes(), digest_size=8).digest()
    return int(mix(np.uint64(seed) ^ mix(np.uint64(sample) ^ mix(np.frombuffer(digest, dtype="<u8")[0]))))


def log_times(streams: Sequence[int], places: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """Logarithms, finite, of exponentially distributed random numbers of mean 1, fp32 [B, V], one for each token: a
    function of the row's stream and of its place in the text, whoever asks and how often."""
    keys = mix(np.array(streams, dtype=np.uint64) + np.array(places, dtype=np.uint64) * np.uint64(GOLDEN))  # [B]
    state = torch.from_numpy(keys.view(np.int64)).to(device)[:, None] + token_steps(vocab_size, device)
    state = fold(fold(state, 30).mul_(signed(FIRST)), 27).mul_(signed(SECOND))  # SplitMix64
    # 63 bits: the smallest times decide whether a rare token wins, and 24 bits would make them too coarse, or zero.
    uniforms = fold(state, 31).bitwise_and_(2**63 - 1).float().mul_(2.0**-63)
    return uniforms.clamp_(2.0**-63, 1 - 2.0**-24).neg_().log1p_().neg_().log_()


def fold(state: Tensor, shift: int) -> Tensor:
    """state ^ (state >> shift), in place, of bits without a sign."""
    return state.bitwise_xor_((state >> shift).bitwise_and_((1 << (64 - shift)) - 1))


@lru_cache(maxsize=4)
def token_steps(vocab_size: int, device: torch.device) -> Tensor:
    """What SplitMix64 has added to its state before each number, [V]."""
    return torch.arange(1, vocab_size + 1, device=device) * signed(GOLDEN)


def signed(number: int) -> int:
    """The 64-bit integer with the same bits, as torch calculates with it; products and sums agree modulo 2^64."""
    return number - (1 << 64) if number >> 63 else number
