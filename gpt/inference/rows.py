"""Sequences being decoded, and the choice of their next tokens. Legend: B rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.inference.sampling import Sampling, draw, log_times, penalise_repetition, warp


@dataclass(eq=False)
class Row:
    """One sequence being decoded. Whoever reads the tokens may set `finished`."""

    tokens: list[int]
    stream: int  # of random numbers, by `random_stream`
    finished: bool = False


def choose(logits: Tensor, rows: Sequence[Row], sampling: Sampling, seen: Tensor | None, ahead: int = 0) -> list[int]:
    """The token of each row `ahead` places after its next; logits [B, V], seen bool [B, at least V]."""
    if seen is not None:
        logits = penalise_repetition(logits, seen[:, : logits.shape[1]], sampling.repetition_penalty)
    if sampling.temperature == 0:
        return draw(logits, 0.0).tolist()  # all run at one speed
    places = [len(row.tokens) + ahead for row in rows]
    times = log_times([row.stream for row in rows], places, logits.shape[1], logits.device)
    return draw(warp(logits, sampling), times).tolist()


def tokens_seen(sequences: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> Tensor:
    """Which tokens each sequence contains: bool [B, V]."""
    seen = torch.zeros(len(sequences), vocab_size, dtype=torch.bool, device=device)
    for number, tokens in enumerate(sequences):
        seen[number, torch.tensor(tokens, device=device)] = True
    return seen
