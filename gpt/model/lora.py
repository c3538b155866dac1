"""Low-rank adapters: the weights of a trained model stay, and each targeted matrix learns a small correction.

    y = x W^T + b + (alpha / r) (x A^T) B^T

Legend: r rank, A [r, in] and B [out, r] the trained factors, W [out, in] and b [out] the frozen base.
Sources: Hu et al. 2021 (LoRA, https://arxiv.org/abs/2106.09685); A's initial values are those of Microsoft's loralib
and of PEFT.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config import LoRAConfig
from gpt.model.transformer import Decoder


class LoRALinear(nn.Linear):
    """A linear layer with an adapter. `weight` and `bias` are those of the layer that it replaces, under their names,
    so that whatever reads the base's parameters by name finds them."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha = rank, alpha
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(
            self.lora_a, a=math.sqrt(5)
        )  # within 1 / sqrt(in); with B at zero, nothing changes yet

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        narrow = F.linear(x, self.lora_a) * (self.alpha / self.rank)  # [..., r]: the cheapest place to scale
        return F.linear(x, self.weight, self.bias) + F.linear(narrow, self.lora_b)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha:g}"

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer over the same parameters, the correction added to the weight in place."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        correction = self.lora_b.float() @ self.lora_a.float() * (self.alpha / self.rank)  # [out, in]
        plain.weight.copy_(self.weight.float() + correction)  # a narrow weight is rounded once
        return plain


def add_adapters(model: Decoder, config: LoRAConfig) -> None:
    """Give every targeted matrix of every block an adapter, and freeze all else: the model computes what it did.

    Initial values come from the default generator of the device that holds the weights.
    """
    assert config.rank > 0
    model.requires_grad_(False)
    for layer in range(len(model.blocks)):
        for target in config.targets:
            add_adapter(model, f"blocks.{layer}.{target}", config.rank, config.alpha)


def add_adapter(model: Decoder, name: str, rank: int, alpha: float) -> LoRALinear:
    """Replace the plain linear layer at a dotted name by one with an adapter."""
    base = model.get_submodule(name)
    assert type(base) is nn.Linear, f"{name} is not a plain linear layer"
    adapter = LoRALinear(base, rank, alpha)
    model.set_submodule(name, adapter)
    return adapter


def merge_adapters(model: Decoder) -> None:
    """Fold every adapter into its weight, in place: plain linear layers under the names of before, all trainable."""
    for name, adapter in adapters_of(model).items():
        model.set_submodule(name, adapter.merged())
    model.requires_grad_(True)


def adapters_of(model: Decoder) -> dict[str, LoRALinear]:
    """The layers that carry an adapter, by dotted name, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def trainable_parameter_count(model: nn.Module) -> int:
    """Numbers that training changes; a shared matrix counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
