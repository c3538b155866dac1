"""The loss: cross entropy summed over the tokens that count.

A sum, not a mean, so that the caller divides by the number of counted tokens of the whole global batch, however
it is split over micro-batches and processes (as torchtitan's trainer does).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gpt.text.batches import IGNORE


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over positions of -log p(target), in nats. logits [..., V], targets [...] → scalar fp32."""
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum")
