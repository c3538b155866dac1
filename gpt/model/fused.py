"""Training operations with hand-derived gradients: what autograd would do in many passes, in few.

A CPU has no fused kernels for these in eager mode, and a small model spends most of a step in such passes. Each
function saves only what its gradient needs and recomputes the rest, so it also takes less memory. The formulas follow
from the definitions; `tests/model/test_fused.py` compares them with autograd on the plain ones.

Legend: B batch, T time, N rows of any kind, C features, h heads (queries, then keys), D head size, F hidden width.
Sums, norms and gradients of weights are in fp32; activations in the dtype that autocast asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def activation_dtype(x: Tensor) -> torch.dtype:
    """What matrix products will read: autocast's dtype inside it, else that of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def widened(dtype: torch.dtype) -> torch.dtype:
    """What sums of numbers of this dtype are kept in: fp32 at least."""
    return torch.promote_types(dtype, torch.float32)


def by_hand(x: Tensor) -> bool:
    """Whether the hand-derived gradients pay: in training, where neither the device nor the compiler fuses."""
    return on_cpu(x.device) and torch.is_grad_enabled() and not torch.compiler.is_compiling()


_pretended: list[str] = []


def on_cpu(device: torch.device) -> bool:
    """Whether to take the operations that are for CPUs."""
    return (_pretended[-1] if _pretended else device.type) == "cpu"


@contextmanager
def operations_of(kind: str) -> Iterator[None]:
    """Within, models take the operations of this kind of device wherever they are: a plan for GPUs is rehearsed where
    there are none."""
    _pretended.append(kind)
    try:
        yield
    finally:
        _pretended.pop()


def embed_tied(tokens: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a matrix that the head shares, and the matrix for the head. tokens [B, T], weight [P, C] → [B, T, C] and
    [P, C].

    The head's gradient is dense, that of the rows touches few: they are added to it in its place. Autograd would add
    two matrices, into a third. So the matrix is for `head_loss` alone, whose gradient nobody else holds.
    """
    return TiedEmbedding.apply(tokens, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last axis (Zhang and Sennrich 2019). x [..., C] → [..., C]."""
    if by_hand(x):
        return RMSNorm.apply(x, weight, eps, activation_dtype(x))  # as the next product reads it
    # FSDP gathers weights in less than the fp32 of x, and torch fuses only what is of one dtype.
    return F.rms_norm(x, weight.shape, weight.to(torch.promote_types(x.dtype, weight.dtype)), eps)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up of the two halves of the last axis (Shazeer 2020). x [..., 2 F] → [..., F]."""
    if by_hand(x):
        return SwiGLU.apply(x)
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def normalise_and_rotate(heads: Tensor, weight: Tensor, rotary: Tensor, eps: float) -> Tensor:
    """RMSNorm of each head, then its rotation by position.

    heads [B, T, h, D], weight [h, D], rotary [2, T, D] → [B, h, T, D], contiguous.
    """
    return NormaliseAndRotate.apply(heads, weight, rotary, eps)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last axis, which is kept: [..., 1], widened."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=widened(x.dtype))
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm_gradient(grad: Tensor, normal: Tensor, scale: Tensor) -> Tensor:
    """The gradient of x, given that of `normal` = x * scale: scale * (grad - normal * mean(grad * normal)).

    `grad` is overwritten.
    """
    mean = (grad * normal).mean(dim=-1, keepdim=True)
    return grad.addcmul_(normal, mean, value=-1).mul_(scale)


class TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens)
        return F.embedding(tokens, weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, table_grad: Tensor) -> tuple[None, Tensor]:
        (tokens,) = ctx.saved_tensors
        return None, table_grad.index_add_(0, tokens.flatten(), grad.flatten(0, -2))


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        scale = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normal = x * scale
        grad = grad.to(normal.dtype)
        weight_grad = (grad * normal).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return rms_norm_gradient(grad * weight, normal, scale).to(x.dtype), weight_grad, None, None


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        x_grad = torch.empty_like(x)
        gate_grad, up_grad = x_grad.chunk(2, dim=-1)
        slope = gate.sigmoid()
        value = gate * slope  # silu(gate)
        torch.mul(value, grad, out=up_grad)
        slope.addcmul_(value, 1 - slope)  # the derivative of silu
        torch.mul(slope, grad * up, out=gate_grad)
        return x_grad


class NormaliseAndRotate(torch.autograd.Function):
    """`rotate` of y = weight * x / rms(x). The weight goes into both tables, so that a head is read once."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, weight: Tensor, rotary: Tensor, eps: float) -> Tensor:
        x = heads.to(widened(heads.dtype))
        scale = inverse_rms(x, eps)
        cos, sin = rotary[:, :, None]  # [T, 1, D]
        ctx.save_for_backward(heads, weight, cos, sin, scale)
        normal = x * scale
        turned = (normal * (weight * cos)).addcmul_(swap(normal), swap(weight) * sin)
        return turned.transpose(1, 2).to(heads.dtype, memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        heads, weight, cos, sin, scale = ctx.saved_tensors
        grad = grad.transpose(1, 2).to(scale.dtype)  # [B, T, h, D]
        back = (grad * cos).addcmul_(swap(grad), sin, value=-1)  # of y: rotated by the negative angle
        normal = heads * scale
        weight_grad = (back * normal).sum(dim=(0, 1)) if ctx.needs_input_grad[1] else None
        return rms_norm_gradient(back.mul_(weight), normal, scale).to(heads.dtype), weight_grad, None, None


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn each pair (x[d], x[d + D/2]) by its angle: x * cos + swap(x) * sin.

    x [B, H, T, D]; rotary [2, T, D] or [2, B, T, D], cosines and sines, those of the first half of a head negated.
    """
    cos, sin = rotary if rotary.dim() == 3 else rotary[:, :, None]
    return x * cos + swap(x) * sin


def swap(x: Tensor) -> Tensor:
    """Exchange the two halves of the last axis."""
    return x.roll(x.shape[-1] // 2, dims=-1)


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zero each number with this probability, and scale the others so that the mean stays."""
    if not probability:
        return x
    return x * dropout_mask(x, probability) if x.device.type == "cpu" else F.dropout(x, probability)


def dropout_mask(x: Tensor, probability: float) -> Tensor:
    """0 or 1 / (1 - probability) for each number of `x`, from 16 random bits each.

    A CPU's generator gives one number after another; 64 bits of it serve four numbers here.
    """
    count = x.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].view(x.shape)
    dropped = min(round(probability * 2**16), 2**16 - 1)
    return (bits >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))
