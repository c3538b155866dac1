"""A loaded decoder with another context length or dropout than it was saved with.

Sources: a longer table of learned positions repeats the old one, as Longformer starts from RoBERTa's (Beltagy et al.
2020, section 5): neighbours keep their relations, and training mends the seams. Rotary positions need no weights.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from gpt.config import ModelConfig
from gpt.model.transformer import Decoder


@torch.no_grad()
def adapt(model: Decoder, config: ModelConfig) -> None:
    """Give a decoder the context length and dropout of `config`, which must agree with its own in all else."""
    length, before = config.context_length, model.config.context_length
    if config.position_kind == "learned" and length != before:
        table = model.positions.weight  # [T before, C]
        repeated = table.repeat(math.ceil(length / before), 1)[:length].clone()
        model.positions = nn.Embedding.from_pretrained(repeated, freeze=False)
    model.config = config
    model.tie_and_tabulate()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.dropout


def describe_change(before: int, after: int, position_kind: str) -> str:
    """What a change of the context from `before` to `after` tokens does, in words; "" where there is none."""
    if after == before:
        return ""
    if after < before:
        return f"context {after:,} of its {before:,} tokens"
    how = "learned positions repeated" if position_kind == "learned" else "rotary positions continued"
    return f"context extended from {before:,} to {after:,} tokens ({how}; only training makes them useful)"
