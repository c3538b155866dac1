"""Keys and values of the tokens seen so far, so that decoding computes only what is new.

Legend: L layers, B rows (sequences), K key/value heads, S capacity in tokens, D head size, T new tokens.
The cache is an argument of the model, which writes every layer's part and then advances it once; rows may hold
different numbers of tokens (the design follows gpt-fast's static cache, with lengths kept on the host).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt.config import ModelConfig


class KVCache:
    """Room for `capacity` tokens of `rows` sequences."""

    def __init__(
        self, config: ModelConfig, rows: int, capacity: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layer, rows, config.kv_heads, capacity, config.head_width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # [L, B, K, S, D]
        self.values = torch.zeros(shape, device=device, dtype=dtype)  # [L, B, K, S, D]
        self.lengths = [0] * rows

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def uniform(self) -> bool:
        return min(self.lengths) == max(self.lengths)

    def positions(self, n_new: int) -> Tensor:
        """Positions of the next `n_new` tokens: [T] where all rows are equally long, else [B, T]."""
        steps = torch.arange(n_new, device=self.keys.device)
        if self.uniform:
            return steps + self.lengths[0]
        return torch.tensor(self.lengths, device=self.keys.device)[:, None] + steps

    def mask(self, n_new: int) -> Tensor | None:
        """Which cached keys each new token sees: bool [B or 1, 1, T, S], or None where it sees all of them."""
        if self.uniform and n_new == 1:
            return None
        positions = self.positions(n_new)
        seen = torch.arange(max(self.lengths) + n_new, device=self.keys.device) <= positions[..., None]
        return seen[:, None] if seen.dim() == 3 else seen[None, None]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values [B, K, T, D]; return all it has, [B, K, longest + T, D]."""
        n_new = keys.shape[2]
        end = max(self.lengths) + n_new
        if self.uniform:
            self.keys[layer, :, :, end - n_new : end] = keys
            self.values[layer, :, :, end - n_new : end] = values
        else:
            rows = torch.arange(len(self.lengths), device=keys.device)[:, None]
            places = self.positions(n_new)
            self.keys[layer][rows, :, places] = keys.transpose(1, 2)
            self.values[layer][rows, :, places] = values.transpose(1, 2)
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n_new: int) -> None:
        """Count `n_new` tokens as seen in every row; called by the model after its last layer."""
        self.lengths = [length + n_new for length in self.lengths]

    def forget(self, counts: list[int]) -> None:
        """Hold so many of each row's newest tokens no longer."""
        self.lengths = [length - count for length, count in zip(self.lengths, counts, strict=True)]

    def fill_row(self, row: int, other: KVCache, source: int = 0) -> None:
        """Replace a row by row `source` of another cache, which holds at most `capacity` tokens."""
        length = other.lengths[source]
        self.keys[:, row, :, :length] = other.keys[:, source, :, :length]
        self.values[:, row, :, :length] = other.values[:, source, :, :length]
        self.lengths[row] = length

    def select_rows(self, rows: list[int]) -> None:
        """Row i becomes what row rows[i] was. A row may be dropped, moved, or continued more than once (beams)."""
        used = max(self.lengths)
        if len(rows) != len(self.lengths):
            index = torch.tensor(rows, device=self.keys.device)
            self.keys, self.values = self.keys[:, index], self.values[:, index]
        elif moved := [row for row, source in enumerate(rows) if source != row]:
            to = torch.tensor(moved, device=self.keys.device)
            source = torch.tensor([rows[row] for row in moved], device=self.keys.device)
            for tensor in (self.keys[:, :, :, :used], self.values[:, :, :, :used]):
                tensor.index_copy_(1, to, tensor.index_select(1, source))
        self.lengths = [self.lengths[row] for row in rows]
