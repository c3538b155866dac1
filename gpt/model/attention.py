"""Fused causal attention, and the choice of its kernel for each device.

Legend: B batch, H query heads, K key/value heads (K divides H), T queries, S keys, D head size.

Sources: `torch.nn.functional.scaled_dot_product_attention` (FlashAttention, Dao et al. 2022, where the device
has it); grouped queries: Ainslie et al. 2023, "GQA".
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from gpt.model.fused import dropout_mask, on_cpu

QUERY_BLOCK = 128  # queries that `blocked_causal_attention` handles at once


def choose_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """`sdpa`, or `blocked` for bf16 on a CPU, whose fused backward is up to four times slower than plain products."""
    return "blocked" if on_cpu(device) and dtype is torch.bfloat16 else "sdpa"


def sdpa_backend(device: torch.device, dtype: torch.dtype, head_width: int) -> str:
    """What `scaled_dot_product_attention` runs for causal attention, in torch's own judgement: flash, cudnn, efficient
    or math."""
    q = torch.empty(1, 1, QUERY_BLOCK, head_width, dtype=dtype, device=device, requires_grad=True)
    choice = torch._fused_sdp_choice(q, q, q, None, 0.0, True, scale=None, enable_gqa=False)
    return SDPBackend(choice).name.removesuffix("_ATTENTION").lower()


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention in which query t sees keys 0..t. q [B, H, T, D], k and v [B, K, T, D] → [B, H, T, D]."""
    if choose_kernel(q.device, q.dtype) == "blocked":
        return blocked_causal_attention(q, k, v, dropout)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=grouped)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention over cached keys. q [B, H, T, D], k and v [B, K, S, D], mask bool [B, 1, T, S], true where visible."""
    groups = q.shape[1] // k.shape[1]
    if groups == 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # Heads that share keys become more queries of one head, so that no key is copied: [B, K, H / K * T, D].
    shared = q.unflatten(1, (-1, groups)).flatten(2, 3)
    mask = None if mask is None else mask.repeat(1, 1, groups, 1)
    return F.scaled_dot_product_attention(shared, k, v, attn_mask=mask).unflatten(2, (groups, -1)).flatten(1, 2)


def blocked_causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """As `causal_attention`, by blocks of queries that multiply only the keys they may see."""
    return BlockedAttention.apply(q, k, v, dropout, torch.is_grad_enabled())


class BlockedAttention(torch.autograd.Function):
    """Keeps the probabilities of each block for the backward pass: T (T + t) / 2 of them for each head.

    Legend: t queries and s keys of a block; G = H / K queries share a key, and are rows of the same product.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, training: bool) -> Tensor:
        (n_rows, n_heads, length, width), n_keys = q.shape, k.shape[1]
        keys, values = k.flatten(0, 1), v.flatten(0, 1)  # [B K, T, D]
        queries = (q * width**-0.5).reshape(len(keys), -1, length, width)
        output = q.new_empty(n_rows, length, n_keys, n_heads // n_keys, width)  # as the next product reads it
        kept, masks = [], []
        for start, stop in blocks(length):
            scores = queries[:, :, start:stop].flatten(1, 2) @ keys[:, :stop].mT  # [B K, G t, s]
            scores.unflatten(1, (-1, stop - start))[..., start:].add_(future(stop - start, q.dtype, q.device))
            weights = torch.softmax(scores, dim=-1, out=scores)
            if training:
                kept.append(weights)
            if dropout:
                masks.append(dropout_mask(weights, dropout))
                weights = weights * masks[-1]
            seen = (weights @ values[:, :stop]).view(n_rows, n_keys, -1, stop - start, width)
            output[:, start:stop] = seen.permute(0, 3, 1, 2, 4)
        ctx.save_for_backward(queries, keys, values, *kept, *masks)
        return output.flatten(2, 3).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *saved = ctx.saved_tensors
        spans = blocks(queries.shape[2])
        kept, masks = saved[: len(spans)], saved[len(spans) :]
        gradients, q_grad = grad.reshape(queries.shape), torch.empty_like(queries)
        k_grad: Tensor | None = None  # sums over blocks; the last block, which comes first, sees all keys
        v_grad: Tensor | None = None
        for number, (start, stop) in reversed(list(enumerate(spans))):
            weights, block = kept[number], gradients[:, :, start:stop].flatten(1, 2)  # [B K, G t, s or D]
            w_grad = block @ values[:, :stop].mT
            used = weights
            if masks:
                w_grad, used = w_grad.mul_(masks[number]), weights * masks[number]
            s_grad = torch._softmax_backward_data(w_grad, weights, -1, weights.dtype)
            q_grad[:, :, start:stop] = (s_grad @ keys[:, :stop]).unflatten(1, (-1, stop - start))
            k_grad = add_front(k_grad, s_grad.mT @ queries[:, :, start:stop].flatten(1, 2))
            v_grad = add_front(v_grad, used.mT @ block)
        assert k_grad is not None
        assert v_grad is not None
        totals = (total.to(grad.dtype).view(len(grad), -1, *keys.shape[1:]) for total in (k_grad, v_grad))
        return q_grad.mul_(keys.shape[2] ** -0.5).view(grad.shape), *totals, None, None


def blocks(length: int) -> list[tuple[int, int]]:
    """Where each block of queries starts and stops."""
    return [(start, min(start + QUERY_BLOCK, length)) for start in range(0, length, QUERY_BLOCK)]


def future(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What hides the keys behind each query of a block: minus infinity above the diagonal, [t, t]."""
    return torch.full((size, size), -torch.inf, dtype=dtype, device=device).triu_(1)


def add_front(total: Tensor | None, part: Tensor) -> Tensor:
    """total[:, :s] + part [N, s, D], in fp32 at least where there is more than one part."""
    if total is None:
        return part
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    total[:, : part.shape[1]] += part
    return total
