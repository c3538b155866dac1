"""Fused causal attention, and the choice of its kernel for each device.

Legend: B batch, H query heads, K key/value heads (K divides H), T queries, S keys, D head size.

Sources: `torch.nn.functional.scaled_dot_product_attention` (FlashAttention, Dao et al. 2022, where the device
has it); grouped queries: Ainslie et al. 2023, "GQA".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 128  # queries that `blocked_causal_attention` handles at once


def choose_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """`sdpa`, or `blocked` for bf16 on a CPU, whose fused backward is up to four times slower than plain products."""
    return "blocked" if device.type == "cpu" and dtype is torch.bfloat16 else "sdpa"


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
    length, groups = q.shape[2], q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    q = q * q.shape[3] ** -0.5
    keys = k.transpose(2, 3)  # [B, H, D, T]
    outputs = []
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        future = torch.ones(stop - start, stop, dtype=torch.bool, device=q.device).triu(start + 1)
        scores = (q[:, :, start:stop] @ keys[..., :stop]).masked_fill(future, float("-inf"))
        weights = F.dropout(scores.softmax(dim=-1), dropout, training=dropout > 0)
        outputs.append(weights @ v[:, :, :stop])
    return torch.cat(outputs, dim=2)
