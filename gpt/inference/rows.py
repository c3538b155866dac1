"""Sequences being decoded, and the choice of their next tokens. Legend: B rows, V vocabulary."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt.inference.sampling import Sampling, draw, log_exponentials, penalise_repetition, warp


@dataclass(eq=False)
class Row:
    """One sequence being decoded. Whoever reads the tokens may set `finished`."""

    tokens: list[int]
    random: torch.Generator
    finished: bool = False
    drawn: deque[Tensor] = field(default_factory=deque, repr=False)  # random numbers of tokens to come, [V] each

    def append(self, token: int) -> None:
        self.tokens.append(token)
        if self.drawn:
            self.drawn.popleft()

    def numbers(self, ahead: int, vocab_size: int) -> Tensor:
        """The random numbers [V] that choose the token `ahead` places after the next, whoever asks and how often."""
        while len(self.drawn) <= ahead:
            self.drawn.append(log_exponentials(vocab_size, self.random))
        return self.drawn[ahead]


def choose(logits: Tensor, rows: Sequence[Row], sampling: Sampling, seen: Tensor | None, ahead: int = 0) -> list[int]:
    """The token of each row `ahead` places after its next; logits [B, V], seen bool [B, at least V]."""
    if seen is not None:
        logits = penalise_repetition(logits, seen[:, : logits.shape[1]], sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.max(dim=-1).indices.tolist()  # `argmax` takes twice as long
    numbers = torch.stack([row.numbers(ahead, logits.shape[1]) for row in rows])
    return draw(warp(logits, sampling), numbers.to(logits.device)).tolist()


def tokens_seen(sequences: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> Tensor:
    """Which tokens each sequence contains: bool [B, V]."""
    seen = torch.zeros(len(sequences), vocab_size, dtype=torch.bool, device=device)
    for number, tokens in enumerate(sequences):
        seen[number, torch.tensor(tokens, device=device)] = True
    return seen
