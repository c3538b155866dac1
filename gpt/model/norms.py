"""The normalisation layers of the dialects: LayerNorm (Ba et al. 2016) in gpt2, RMSNorm (Zhang and Sennrich 2019) in
the others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config import ModelConfig
from gpt.model.fused import rms_norm


def norm_layer(config: ModelConfig, width: int) -> nn.Module:
    if config.dialect == "gpt2":
        return LayerNorm(width, eps=config.norm_eps)
    return RMSNorm(width, eps=config.norm_eps)


class LayerNorm(nn.LayerNorm):
    """With weights of less than the fp32 of x, too, as FSDP gathers them; torch's on a CPU refuses those."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] → [..., C]."""
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps)


class RMSNorm(nn.RMSNorm):
    """With the gradient of `gpt.model.fused`."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] → [..., C]."""
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)
