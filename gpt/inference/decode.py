"""The decoding loop: prompts → tokens → text, cached, batched and streamed.

The window rule. A model sees at most T tokens. The token after n tokens is predicted from those behind
`window_start(n, T)`: from all while n ≤ T; later the window starts at a multiple of T // 2 and holds between T // 2
and T tokens. So a full cache is refilled from its newer half once in T // 2 tokens, which costs about as much again
as the steps themselves, and cached and uncached decoding see exactly the same tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TypeAlias

import torch
from torch import Tensor

from gpt.inference.sampling import Sampling, draw, penalise_repetition, random_stream, warp
from gpt.model.kv_cache import KVCache
from gpt.model.transformer import Decoder
from gpt.text.tokenizers import Tokenizer

Prompt: TypeAlias = str | Sequence[int]  # a text, or token ids
PREFILL_TOKENS = 1024  # of prompts that are run together


def window_start(n_tokens: int, context_length: int) -> int:
    """Index of the first token that the model sees when it predicts the one after `n_tokens`."""
    stride = max(1, context_length // 2)
    return max(0, -(-(n_tokens - context_length) // stride) * stride)


@dataclass(eq=False)
class Row:
    """One sequence being decoded. Whoever reads the tokens may set `finished`."""

    tokens: list[int]
    random: torch.Generator
    finished: bool = False


def decode(
    model: Decoder,
    rows: Sequence[Row],
    sampling: Sampling,
    max_new_tokens: int,
    end_of_text: int,
    vocab_size: int | None = None,
) -> Iterator[list[Row]]:
    """Append tokens to the rows, yielding after each step the rows that grew.

    A row ends with the token `end_of_text`, which is appended, or when it is marked finished. Ids from `vocab_size` on
    are never chosen: released models often have more rows than their tokenizer has tokens.
    """
    mode = torch.no_grad() if model.sharded else torch.inference_mode()  # whose tensors training could not use again
    return mode(steps)(model, rows, sampling, max_new_tokens, end_of_text, vocab_size)


def steps(
    model: Decoder,
    rows: Sequence[Row],
    sampling: Sampling,
    max_new_tokens: int,
    end_of_text: int,
    vocab_size: int | None,
) -> Iterator[list[Row]]:
    """As `decode`, which sees to gradients."""
    active = list(rows)
    prompts = [row.tokens for row in active]
    logits, cache = prefill(model, prompts, max_new_tokens)  # [B, V]
    seen = tokens_seen(prompts, model.vocab_size, logits.device) if sampling.repetition_penalty != 1 else None
    for step in range(max_new_tokens):
        for row, token in zip(active, choose(logits[:, :vocab_size], active, sampling, seen), strict=True):
            row.tokens.append(token)
            row.finished = token == end_of_text
        yield active
        kept = [i for i, row in enumerate(active) if not row.finished]
        if not kept or step + 1 == max_new_tokens:
            return
        if len(kept) < len(active):
            active = [active[i] for i in kept]
            cache.select_rows(kept)
            seen = None if seen is None else seen[kept]
        newest = torch.tensor([row.tokens[-1:] for row in active], device=logits.device)  # [B, 1]
        if seen is not None:
            seen.scatter_(1, newest, True)
        refill(model, [row.tokens for row in active], cache)
        logits = model(newest, cache=cache)[:, -1].float()


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


def choose(logits: Tensor, rows: Sequence[Row], sampling: Sampling, seen: Tensor | None) -> list[int]:
    """The next token of each row; logits [B, V], seen bool [B, V]."""
    if seen is not None:
        logits = penalise_repetition(logits, seen[:, : logits.shape[1]], sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.max(dim=-1).indices.tolist()  # `argmax` takes twice as long
    uniforms = torch.cat([torch.rand(1, generator=row.random) for row in rows])
    return draw(warp(logits, sampling), uniforms).tolist()


def tokens_seen(sequences: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> Tensor:
    """Which tokens each sequence contains: bool [B, V]."""
    seen = torch.zeros(len(sequences), vocab_size, dtype=torch.bool, device=device)
    for number, tokens in enumerate(sequences):
        seen[number, torch.tensor(tokens, device=device)] = True
    return seen


class TextStream:
    """Tokens → text that is safe to print: whole characters, and nothing that a stop text may still swallow."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.decoder, self.stop = tokenizer.stream(), stop
        self.held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token makes certain; once `stopped`, the part before the stop text."""
        return self.release(self.decoder.step(token), final=False)

    def finish(self) -> str:
        """What is left when no token follows."""
        return "" if self.stopped else self.release(self.decoder.finish(), final=True)

    def release(self, text: str, final: bool) -> str:
        self.held += text
        found = [place for stop in self.stop if (place := self.held.find(stop)) >= 0]
        if found:
            self.stopped = True
            ready, self.held = self.held[: min(found)], ""
            return ready
        waiting = 0 if final else max((overlap(self.held, stop) for stop in self.stop), default=0)
        ready, self.held = self.held[: len(self.held) - waiting], self.held[len(self.held) - waiting :]
        return ready


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


@dataclass
class Sample:
    """One continuation. `text` excludes the prompt; `ended` is end_of_text, stop or length."""

    prompt: str
    number: int
    text: str = ""
    ended: str = "length"
    n_tokens: int = 0
    score: float | None = None  # of beam search: the log-probability in nats, divided by n_tokens ** length_penalty
    piece: str = field(default="", repr=False)  # the text that came with the last step


def prompt_tokens(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The ids of a prompt, as in training: the tokenizer's prefix and those of the text; ids are taken as they are.

    Where that leaves none, it is the start of a document. Raises UserError where the text cannot be encoded.
    """
    tokens = [*tokenizer.prefix, *tokenizer.encode(prompt)] if isinstance(prompt, str) else list(prompt)
    return tokens or list(tokenizer.prefix) or [tokenizer.end_of_text]


def prompt_text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    jobs: Sequence[tuple[Prompt, int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> Iterator[list[Sample]]:
    """Continue prompts: each job is a prompt and the number of its sample, decoded together as one batch.

    Yields the samples after every step, the new text of each in `piece`; the last yield holds them complete.
    An empty prompt is the start of a document. Raises UserError where the tokenizer cannot encode a prompt.
    """
    rows = [Row(prompt_tokens(tokenizer, prompt), random_stream(seed, number)) for prompt, number in jobs]
    samples = [Sample(prompt_text(tokenizer, prompt), number) for prompt, number in jobs]
    streams = {row: TextStream(tokenizer, stop) for row in rows}
    of_row = dict(zip(rows, samples, strict=True))
    model.eval()
    for grown in decode(model, rows, sampling, max_new_tokens, tokenizer.end_of_text, tokenizer.vocab_size):
        for sample in samples:
            sample.piece = ""
        for row in grown:
            extend(of_row[row], row, streams[row])
        yield samples
    for row, sample in of_row.items():
        sample.piece = streams[row].finish()
        sample.text += sample.piece
    yield samples


def extend(sample: Sample, row: Row, stream: TextStream) -> None:
    sample.n_tokens += 1
    if row.finished:
        sample.ended = "end_of_text"
        return
    sample.piece = stream.push(row.tokens[-1])
    sample.text += sample.piece
    if stream.stopped:
        row.finished, sample.ended = True, "stop"
