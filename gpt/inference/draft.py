"""Decoding ahead: a draft guesses several tokens, and the model checks them all in one pass.

A pass over a few tokens takes hardly longer than over one, as its time is that of reading the weights. The draft is the
same model with its linear layers rounded (`quantize.py`), so it reads a quarter or an eighth as much. It shares the
model's cache: it reads the exact keys and values of the text so far and writes its own for the guesses, which the check
overwrites.

The text is the model's own. Each token is what the model chooses after the tokens before it, by the random numbers of
its place; a guess is made by the same numbers and taken where it is the same token. Because tokens are chosen by a race
(`sampling.draw`), two distributions that differ by a total variation of d choose differently in about 2 d of all draws.

Sources: Leviathan et al. 2023 (speculative decoding; the number of guesses from equation 1); Daliri et al. 2024
(drafter-invariant decoding: Gumbel draws by common random numbers); Tiwari et al. 2025 (QuantSpec: a model rounded to
4 bits drafts for itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.inference.rows import Row, choose
from gpt.inference.sampling import Sampling
from gpt.model.kv_cache import KVCache
from gpt.model.transformer import Decoder

MOST_GUESSES = 8
# Times in units of a pass over one row, for GPT-2 124M on two cores. They decide how fast tokens come, not which.
FREE_ROWS, ROW = 8, 0.05  # a pass over so many rows takes as long as over one; each more adds so much
GUESS, GUESS_ROW = 0.35, 0.03  # a pass of the draft over one row, and what each more adds


def guess(
    draft: Decoder,
    rows: Sequence[Row],
    cache: KVCache,
    n: int,
    sampling: Sampling,
    seen: Tensor | None,
    vocab: int | None,
) -> list[list[int]]:
    """The next `n` tokens of each row, as the draft would choose them. The cache counts as many tokens as before."""
    lengths, guesses = cache.lengths, [[row.tokens[-1]] for row in rows]
    seen = None if seen is None else seen.clone()
    for ahead in range(n):
        newest = torch.tensor([tokens[-1:] for tokens in guesses], device=cache.keys.device)
        logits = draft(newest, cache=cache)[:, -1, :vocab]
        for tokens, token in zip(guesses, choose(logits, rows, sampling, seen, ahead), strict=True):
            tokens.append(token)
        if seen is not None:
            seen.scatter_(1, torch.tensor([tokens[-1:] for tokens in guesses], device=seen.device), True)
    cache.lengths = lengths
    return [tokens[1:] for tokens in guesses]


@dataclass
class Pace:
    """How many guesses pay, by how many were right. Starts as if 9 of 10 had been."""

    right: int = 9
    judged: int = 10

    def learn(self, checks: Sequence[tuple[int, int]]) -> None:
        """Count what a check found of each row that goes on: how many tokens were guessed, and by how many it grew, the
        last of which comes after the right guesses, in the place of the first wrong one."""
        for n_guesses, n_grown in checks:
            self.right += n_grown - 1
            self.judged += min(n_grown, n_guesses)

    def n_guesses(self, n_rows: int) -> int:
        """The number of guesses for each of so many rows that gives the most tokens in a time."""
        rate = self.right / self.judged

        def tokens_per_time(n: int) -> float:
            check = 1 + ROW * max(0, n_rows * (n + 1) - FREE_ROWS)
            return sum(rate**i for i in range(n + 1)) / (check + n * (GUESS + GUESS_ROW * (n_rows - 1)))

        return max(range(MOST_GUESSES + 1), key=tokens_per_time)
