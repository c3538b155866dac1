"""The loss: cross entropy of the output head, summed over the tokens that count.

A sum, not a mean, so that the caller divides by the number of counted tokens of the whole global batch, however
it is split over micro-batches and processes (as torchtitan's trainer does).

Logits are many times larger than what they are made from (a context of 1,024 tokens and GPT-2's vocabulary: 206 MB in
fp32), so they are made for `CHUNK` logits at a time, turned at once into the loss and into the gradients of the head
and of its input, and their buffer is used again. Sources: the identity d loss / d logits = softmax - onehot, and the
idea of gradients in the forward pass of Hsu et al. 2024 (Liger Kernel) and Wijmans et al. 2024 (Cut Cross-Entropy).

Legend: N tokens, C width, P rows of the head (vocabulary and padding), R rows of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from gpt.model.fused import activation_dtype, widened
from gpt.text.batches import IGNORE

CHUNK = 1 << 26  # logits that exist at once: 128 MiB in bf16
PIECE = 1 << 23  # numbers of the head's gradient that are added at once: 16 MiB in bf16
SMALLEST = torch.finfo(torch.float32).tiny  # of likelihoods: 87 nats


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over positions of -log p(target), in nats. logits [..., V], targets [...] → scalar fp32."""
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def recomputed_loss(logits_of: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor, rows: int) -> Tensor:
    """`summed_cross_entropy` of the logits of x [..., C], which are made for `rows` tokens at a time, and again for the
    backward pass."""
    parts = zip(x.flatten(0, -2).split(rows), targets.flatten().split(rows), strict=True)

    def loss(part: Tensor, aims: Tensor) -> Tensor:
        return summed_cross_entropy(logits_of(part), aims)

    return torch.stack([checkpoint(loss, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]).sum()


def head_loss(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The summed cross entropy of the logits x weight^T, scalar fp32, with gradients.

    x [..., C], weight [P, C], targets [...] (`IGNORE` where a position does not count). Rows of `weight` from
    `vocab_size` on are padding: they take no probability and get no gradient. A token's loss is at most 87 nats, where
    fp32 probabilities end.
    """
    rows = chunk_rows(weight.shape[0])
    return HeadLoss.apply(x.flatten(0, -2), weight, targets.flatten(), vocab_size, activation_dtype(x), rows)


def chunk_rows(vocabulary: int) -> int:
    """Of how many tokens the logits are there at once."""
    return max(64, CHUNK // vocabulary // 64 * 64)


def logits_bytes(tokens: int, vocabulary: int, dtype: torch.dtype) -> int:
    """What `head_loss` of so many tokens holds of logits at once."""
    return min(tokens, chunk_rows(vocabulary)) * vocabulary * dtype.itemsize


class HeadLoss(torch.autograd.Function):
    """As `head_loss` of x [N, C] and targets [N], by `rows` at a time, with products in `dtype`.

    Makes the gradients with the loss, and the backward pass scales them in place; so it can run backward only once.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, dtype: torch.dtype, rows: int
    ) -> Tensor:
        kept = (targets != IGNORE)[:, None]  # [N, 1]
        targets = targets[:, None].where(kept, 0)
        x_in, table = x.to(dtype), weight.to(dtype)
        counted = x_in * kept  # rows that do not count give the head no gradient
        x_grad = torch.empty_like(x_in)
        weight_grad: Tensor | None = None
        loss = torch.zeros((), dtype=widened(dtype), device=x.device)
        for start in range(0, len(x), rows):
            chunk = slice(start, start + rows)
            logits = x_in[chunk] @ table.T  # [R, P]
            logits[:, vocab_size:] = -torch.inf
            gradient, likelihood = softmax_less_target(logits, targets[chunk])
            loss -= likelihood.clamp_(min=SMALLEST).log_().mul_(kept[chunk]).sum()
            torch.mm(gradient, table, out=x_grad[chunk])
            if ctx.needs_input_grad[1]:
                weight_grad = add_product(weight_grad, gradient, counted[chunk], weight.dtype)
        x_grad.mul_(kept)
        ctx.gradients = x_grad.to(x.dtype), weight_grad
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_grad, weight_grad = ctx.gradients
        del ctx.gradients
        return x_grad.mul_(grad), None if weight_grad is None else weight_grad.mul_(grad), None, None, None, None


def softmax_less_target(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """softmax - onehot of logits [R, P] and targets [R, 1], in the logits' dtype and, but on MPS, their place; and each
    target's probability [R, 1], fp32 at least.

    In bf16 a probability near 1 has lost what is missing to 1, which is all that such a token has to teach. The others
    have not, being small, so the target gets their sum. What all have lost or gained by rounding shows in the sum of
    all, which should be 1.
    """
    own = logits.device.type == "mps"  # the other kernels read what they overwrite first
    probabilities = torch.softmax(logits, dim=-1, out=torch.empty_like(logits) if own else logits)
    at_target = torch.arange(len(targets), device=targets.device)[:, None], targets  # scatter_ would go over all
    dtype = widened(logits.dtype)
    likelihood = probabilities[at_target].to(dtype)
    probabilities[at_target] = 0
    # A sum of all in fp32 takes four times as long as sums of some in bf16, whose own rounding is lost in their number.
    groups = probabilities.unflatten(-1, (-1, math.gcd(64, logits.shape[-1]))).sum(-1, dtype=logits.dtype)
    others = groups.sum(-1, keepdim=True, dtype=dtype)
    total = likelihood + others
    others /= total
    probabilities[at_target] = -others.to(logits.dtype)
    return probabilities, torch.where(others < 0.5, 1 - others, likelihood / total)


def add_product(total: Tensor | None, gradient: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """total + gradient^T x in `dtype`, in the place of `total` [P, C]. gradient [R, P], x [R, C].

    It comes a piece of the vocabulary at a time, so that there is no second [P, C].
    """
    empty = total is None
    if total is None:
        total = torch.empty(gradient.shape[1], x.shape[1], dtype=dtype, device=x.device)
    rows = max(64, PIECE // x.shape[1] // 64 * 64)  # so that each begins where fast kernels like it
    for part, columns in zip(total.split(rows), gradient.split(rows, dim=1), strict=True):
        product = columns.T @ x
        part.copy_(product) if empty else part.add_(product)
    return total
