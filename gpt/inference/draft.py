"""Decoding ahead: a draft guesses several tokens, and the model checks them all in one pass.

A pass over a few tokens takes hardly longer than over one, as its time is that of reading the weights. The draft is the
same model with its linear layers rounded (`quantize.py`), so it reads a quarter or a fifth as much. It shares the
model's cache: it reads the exact keys and values of the text so far and writes its own for the guesses, which the check
overwrites.

The text is the model's own. Each token is what the model chooses after the tokens before it, by the random numbers of
its place; a guess is made by the same numbers and taken where it is the same token. Because tokens are chosen by a race
(`sampling.draw`), distributions that differ by a total variation of d choose differently in d to 2 d of all draws. In
fp32 a pass over several tokens differs from one over a single token in its last bits, as a row in a batch does from one
alone; that decides only where two tokens are as good as equal, or one is at the very edge of what top-k, top-p or min-p
keep.

Sources: Leviathan et al. 2023 (speculative decoding; the number of guesses from equation 1); Daliri et al. 2024
(drafter-invariant decoding: Gumbel draws by common random numbers); Tiwari et al. 2025 (QuantSpec: a model rounded to
4 bits, there with its cache, drafts for itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt.inference.rows import Row, choose
from gpt.inference.sampling import NotFinite, Sampling
from gpt.model.kv_cache import KVCache
from gpt.model.transformer import Decoder

MOST_GUESSES = 8
# Times in units of a pass over one row, of GPT-2 124M on two cores (`benchmarks/README.md`), with an int4 draft.
FREE_ROWS, ROW = 8, 0.05  # a pass over so many rows takes as long as over one; each more adds so much
GUESS, GUESS_ROW = 0.3, 0.06  # a pass of the draft over one row, and what each more adds
FADING = 0.95  # of what earlier checks count, with each new one
RIGHT, JUDGED = 3.8, 4.0  # what a draft of which nothing is known counts as
PATIENCE = 64  # checks without guesses, until nothing is known any more


def cost(n_rows: int, n_guesses: int) -> float:
    """The time of so many guesses for each of so many rows, and of their check."""
    check = 1 + ROW * max(0, n_rows * (n_guesses + 1) - FREE_ROWS)
    return check + n_guesses * (GUESS + GUESS_ROW * (n_rows - 1))


@dataclass
class Pace:
    """How many guesses pay, by how many were right lately. Where none pay, some are tried again after a while."""

    right: float = RIGHT
    judged: float = JUDGED
    without: int = 0  # checks since some guesses paid

    def learn(self, n_guesses: int, n_grown: Sequence[int]) -> None:
        """Count what a check of so many guesses for each row found: by how many tokens each grew, the last of which
        comes after the right guesses, in the place of the first wrong one. Rows that ended are left out."""
        if n_guesses:
            self.right = FADING * self.right + sum(n - 1 for n in n_grown)
            self.judged = FADING * self.judged + sum(min(n, n_guesses) for n in n_grown)

    def n_guesses(self, n_rows: int) -> int:
        """The number of guesses for each of so many rows that gives the most tokens in a time; to be asked once before
        each check."""
        if self.without == PATIENCE:
            self.right, self.judged = RIGHT, JUDGED
        rate = self.right / self.judged
        best = max(range(MOST_GUESSES + 1), key=lambda n: sum(rate**i for i in range(n + 1)) / cost(n_rows, n))
        self.without = 0 if best else self.without % PATIENCE + 1
        return best


@dataclass
class Draft:
    """A model that guesses for another of its shape, and how many guesses of it pay."""

    model: Decoder
    pace: Pace = field(default_factory=Pace)

    def guess(
        self,
        rows: Sequence[Row],
        cache: KVCache,
        n: int,
        sampling: Sampling,
        seen: Tensor | None,
        vocab_size: int | None,
    ) -> list[list[int]]:
        """The next `n` tokens of each row as the draft would choose them, or fewer where its logits are no numbers. The
        cache counts as many tokens as before, and `seen` stays."""
        guesses = [[row.tokens[-1]] for row in rows]
        lengths, seen = cache.lengths, None if seen is None else seen.clone()
        for ahead in range(n):
            newest = torch.tensor([tokens[-1:] for tokens in guesses], device=cache.keys.device)  # [B, 1]
            if seen is not None:
                seen.scatter_(1, newest, True)
            logits = self.model(newest, cache=cache)[:, -1, :vocab_size].float()
            try:
                chosen = choose(logits, rows, sampling, seen, ahead)
            except NotFinite:  # the draft's fault, of which the model knows nothing
                self.pace.learn(1, [1] * len(rows))
                break
            for tokens, token in zip(guesses, chosen, strict=True):
                tokens.append(token)
        cache.lengths = lengths
        return [tokens[1:] for tokens in guesses]
