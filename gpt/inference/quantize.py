"""Weights laid out once for decoding on the processor: in oneDNN's blocks in fp32 and bf16, or rounded to int8, int4.

Decoding multiplies a few rows by every weight, once a token, so its time is that of reading the weights: fewer bytes
are fewer seconds. All layouts compute each row by itself, and those of bf16, int8 and int4 to the same bits however
many rows there are. In fp32 a row alone and among others differs in its last bits, with these layouts as without.

- int8: weights in 255 steps, with a scale for each output; activations in 256 steps between the least and the largest
  of their own row, which wastes none on a skewed row such as GELU's. The products are sums of integers, and exact.
- int4: weights in 16 steps between the least and the largest of each `GROUP` inputs of an output, times activations in
  bf16. The head is int8: no later layer mends its errors.

What is not a linear layer stays in fp32 in both: embeddings, residual stream, norms, attention.

Legend: N rows, I inputs, O outputs, G groups of inputs.
Sources: Dettmers et al. 2022 (LLM.int8(): a scale for each row and output, zero points); Yao et al. 2022 (ZeroQuant: a
scale for each token, and for each group of weights). The kernels are those that torch ships: oneDNN, FBGEMM, ATen.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import suppress
from itertools import chain

import torch
from torch import Tensor, nn

from gpt.model.hardware import Hardware
from gpt.model.transformer import Decoder
from gpt.options import UserError

GROUP = 32  # inputs that share a scale in int4
INT4_OUTPUTS = 16  # ATen's int4 kernel takes multiples of so many outputs
EXPECTED_ROWS = 16  # by which oneDNN chooses fp32 blocks, which are good for any number; 1 would make several rows slow
TINY = 1e-30  # the least scale, so that weights that are all zero can be divided by it


class PackedLinear(nn.Module):
    """A linear layer in fp32 or bf16 whose weight lies in the blocks that oneDNN reads."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows = EXPECTED_ROWS if linear.weight.dtype is torch.float32 else None
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias
        self.multiply = torch.ops.mkldnn._linear_pointwise.default  # a lookup takes as long as a small operation

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] → [..., O], in x's precision."""
        return self.multiply(x, self.packed, self.bias, "none", [], "")


class Int8Linear(nn.Module):
    """A linear layer in 8-bit integers. A row of x is low + span * u / steps, with integers u from 0 to steps."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # Without VNNI, FBGEMM adds two products in 16 bits, which overflow unless u has only 7 bits.
        self.step = 1 / (255 if torch.cpu._is_vnni_supported() else 127)
        weight = linear.weight.detach()
        largest = torch.maximum(weight.amax(1), -weight.amin(1))  # [O]; of `abs` there would be a copy
        scales = largest.clamp_(min=TINY).double() / 127  # [O]
        zeros = torch.zeros_like(scales, dtype=torch.long)
        with warnings.catch_warnings():  # torch will drop the function some day, but not from the versions we allow
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rounded, None)
        self.multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        self.sums = self.multiply(torch.ones(1, weight.shape[1]), self.step, 0, self.packed)  # [1, O]
        self.bias = torch.zeros(()) if linear.bias is None else linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] → [..., O], fp32."""
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)  # [..., 1]; aminmax is slower than both
        span = high - low
        # In a constant row span is 0 and each u any integer at all, which the multiplication by 0 forgets.
        y = self.multiply((x - low).div_(span), self.step, 0, self.packed)
        return torch.addcmul(self.bias, low, self.sums).addcmul_(y, span)


class Int4Linear(nn.Module):
    """A linear layer of 4-bit weights: zero + scale * (u - 8) in each group, with integers u from 0 to 15."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        groups = linear.weight.detach().unflatten(1, (-1, GROUP))  # [O, G, GROUP]
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)  # [O, G, 1]
        scale = ((high - low) / 15).clamp_(min=TINY).bfloat16()
        zero = (low + 8 * scale).bfloat16()
        rounded = (groups - zero).div_(scale).add_(8).round_().clamp_(0, 15)
        self.packed = torch._convert_weight_to_int4pack_for_cpu(rounded.int().flatten(1), 1)
        self.scales_and_zeros = torch.cat((scale, zero), dim=-1).transpose(0, 1).contiguous()  # [G, O, 2]
        self.bias = torch.zeros(len(groups)) if linear.bias is None else linear.bias  # a scalar would leave bf16

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] → [..., O], fp32."""
        rows = x.reshape(-1, x.shape[-1]).bfloat16()  # [N, I]
        y = torch._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales_and_zeros)  # bf16
        return (y + self.bias).view(*x.shape[:-1], -1)  # fp32, as the bias is


@torch.no_grad()
def lay_out(model: Decoder, hardware: Hardware, quantize: str = "none", option: str = "quantize") -> str:
    """Have a model that is on its device and in its precision decode as fast as it can there; it learns no more.

    Layer by layer, so that no two are held twice; a tied table stays, to look tokens up. Returns in words what the
    weights are now. Raises UserError, in the name of `option`, where `quantize` (none, int8 or int4) has no kernel for
    the device or for the model's shape; nothing has changed then.
    """
    check_quantize(model, hardware, quantize, option)
    if quantize == "none" and not onednn_is_faster(hardware):
        return "weights as loaded"
    for name in [name for name, module in model.named_modules() if type(module) is nn.Linear]:
        model.set_submodule(name, layer_kind(name, quantize)(model.get_submodule(name)))  # type: ignore[arg-type]
    return {"none": "weights packed", "int8": "weights int8", "int4": f"weights int4 by {GROUP}, head int8"}[quantize]


def rounded_copy(model: Decoder, hardware: Hardware, kind: str) -> Decoder:
    """The model with its linear layers rounded to int8 or int4, to guess tokens (`draft.py`). The model stays as it is,
    and shares all else. To be called before `lay_out`. Raises UserError as that does."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, shared)
    lay_out(twin, hardware, kind, option="draft")
    return twin


def possible_draft(model: Decoder, hardware: Hardware) -> str:
    """The kind of draft with the fastest passes over one row for which there are kernels: int4, int8 or none."""
    for kind in ("int4", "int8"):
        with suppress(UserError):
            check_quantize(model, hardware, kind)
            return kind
    return "none"


def layer_kind(name: str, quantize: str) -> type[PackedLinear | Int8Linear | Int4Linear]:
    """The class that takes the place of the linear layer with this name."""
    if quantize == "none":
        return PackedLinear
    return Int8Linear if quantize == "int8" or name == "head" else Int4Linear


def onednn_is_faster(hardware: Hardware) -> bool:
    """Whether packing pays: in bf16, where the processor has instructions for it; in fp32 always. The library behind
    `F.linear` is far slower for several rows, and for one row on AMD's processors; on Intel's it gains a twentieth."""
    if hardware.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return hardware.precision != "bf16" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_quantize(model: Decoder, hardware: Hardware, quantize: str, option: str = "quantize") -> None:
    """Raise UserError for what the kernels cannot do; `option` asked for it."""
    if quantize == "none":
        return
    way_out = f"leave out {option}" + ("; precision=bf16 halves the weights" if option == "quantize" else "")
    if hardware.device.type != "cpu":
        raise UserError(f"{option}={quantize} is for processors, not {hardware.device}; add device=cpu, or {way_out}")
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise UserError(f"{option}={quantize} needs an x86 processor with AVX2; {way_out}")
    if quantize == "int4":
        for name, module in model.blocks.named_modules(prefix="blocks"):
            if isinstance(module, nn.Linear) and (module.in_features % GROUP or module.out_features % INT4_OUTPUTS):
                raise UserError(
                    f"{option}=int4 takes multiples of {GROUP} inputs and {INT4_OUTPUTS} outputs, and {name} has "
                    f"{module.in_features} and {module.out_features}; use {option}=int8"
                )
