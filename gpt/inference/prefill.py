"""Prompts → a cache that holds what the model sees of them, and the logits after each.

The window rule. A model sees at most T tokens. The token after n tokens is predicted from those behind
`window_start(n, T)`: from all while n ≤ T; later the window starts at a multiple of T // 2 and holds between T // 2
and T tokens. So a full cache is refilled from its newer half once in T // 2 tokens, which costs about as much again
as the steps themselves, and cached and uncached decoding see exactly the same tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby, islice

import torch
from torch import Tensor

from gpt.model.kv_cache import KVCache
from gpt.model.transformer import Decoder

PREFILL_TOKENS = 1024  # of prompts that are run together


def window_start(n_tokens: int, context_length: int) -> int:
    """Index of the first token that the model sees when it predicts the one after `n_tokens`."""
    stride = max(1, context_length // 2)
    return max(0, -(-(n_tokens - context_length) // stride) * stride)


def prefill(model: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[Tensor, KVCache]:
    """Logits [B, V] after each prompt's window, and the cache that holds the windows. Equal windows are run once."""
    context, weight = model.config.context_length, model.embed.weight
    capacity = min(context, max(map(len, prompts)) + max_new_tokens)
    cache = KVCache(model.config, len(prompts), capacity, weight.device, weight.dtype)
    windows = {row: prompt[window_start(len(prompt), context) :] for row, prompt in enumerate(prompts)}
    logits = fill(model, cache, windows)
    return torch.stack([logits[row] for row in range(len(prompts))]), cache


def refill(model: Decoder, sequences: Sequence[Sequence[int]], cache: KVCache) -> None:
    """Where a row's cache is full, hold only its new window, less the newest token, which the next step feeds."""
    context = model.config.context_length
    if max(cache.lengths) < context:
        return
    full = [row for row, length in enumerate(cache.lengths) if length == context]
    windows = {row: sequences[row][window_start(len(sequences[row]), context) : -1] for row in full}
    if context == 1:  # such windows are empty
        cache.lengths = [0 if row in windows else length for row, length in enumerate(cache.lengths)]
    else:
        fill(model, cache, windows)


def fill(model: Decoder, cache: KVCache, windows: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
    """Have rows of the cache hold these windows. Returns the logits [V] after each row's.

    Equal windows are run once, and those of equal length together, as many as hold `PREFILL_TOKENS`: more would be no
    quicker, and what has been run is held twice until it is in its place.
    """
    rows_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, window in windows.items():
        rows_of[tuple(window)].append(row)
    logits: dict[int, Tensor] = {}
    for length, group in groupby(sorted(rows_of, key=len), key=len):
        while together := list(islice(group, max(1, PREFILL_TOKENS // length))):
            last, own = run_windows(model, together)
            for number, window in enumerate(together):
                for row in rows_of[window]:
                    cache.fill_row(row, own, number)
                    logits[row] = last[number]
            del own  # before the next is made
    return logits


def run_windows(model: Decoder, windows: Sequence[Sequence[int]]) -> tuple[Tensor, KVCache]:
    """Logits [B, V] after windows of equal length, and a cache that holds these."""
    weight = model.embed.weight
    cache = KVCache(model.config, len(windows), len(windows[0]), weight.device, weight.dtype)
    tokens = torch.tensor(windows, device=weight.device)
    return model(tokens, cache=cache, last_only=True)[:, -1].float(), cache
