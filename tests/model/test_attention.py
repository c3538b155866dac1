"""Both kernels of causal attention against a slow loop, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gpt.model import attention
from gpt.model.attention import blocked_causal_attention, causal_attention, choose_kernel


def slow_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            group = h // (q.shape[1] // k.shape[1])
            for t in range(q.shape[2]):
                scores = torch.stack([q[b, h, t] @ k[b, group, s] for s in range(t + 1)]) / math.sqrt(q.shape[3])
                weights = scores.exp() / scores.exp().sum()
                out[b, h, t] = sum(weights[s] * v[b, group, s] for s in range(t + 1))
    return out


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("kernel", [causal_attention, blocked_causal_attention])
def test_kernels_equal_a_slow_loop(kernel, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", 5)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 13, 8, dtype=torch.float64, requires_grad=True) for n in (heads[0], *heads[1:] * 2))
    weight = torch.randn(2, heads[0], 13, 8, dtype=torch.float64)
    expected = slow_attention(q, k, v)
    found = kernel(q, k, v)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_bf16_on_the_cpu_takes_the_blocked_kernel_and_agrees() -> None:
    assert choose_kernel(torch.device("cpu"), torch.bfloat16) == "blocked"
    assert choose_kernel(torch.device("cpu"), torch.float32) == "sdpa"
    assert choose_kernel(torch.device("cuda"), torch.bfloat16) == "sdpa"
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 40, 16) for _ in range(3))
    rounded = causal_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    torch.testing.assert_close(rounded.float(), causal_attention(q, k, v), atol=0.03, rtol=0)


def test_blocked_attention_drops_weights() -> None:
    torch.manual_seed(0)
    q, k = torch.zeros(1, 1, 400, 4), torch.zeros(1, 1, 400, 4)
    v = torch.ones(1, 1, 400, 4)
    out = blocked_causal_attention(q, k, v, dropout=0.5)
    assert out[0, 0, 0, 0] in (0, 2)
    assert 0.8 < out[0, 0, -100:].mean() < 1.2
