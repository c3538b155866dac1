"""The decoding loop: prompts → tokens → text, cached, batched and streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from gpt.inference.draft import MOST_GUESSES, Draft
from gpt.inference.prefill import prefill, refill
from gpt.inference.rows import Row, choose, tokens_seen
from gpt.inference.sampling import Sampling, random_stream
from gpt.model.transformer import Decoder
from gpt.text.tokenizers import Tokenizer

Prompt: TypeAlias = str | Sequence[int]  # a text, or token ids


def decode(
    model: Decoder,
    rows: Sequence[Row],
    sampling: Sampling,
    max_new_tokens: int,
    end_of_text: int,
    vocab_size: int | None = None,
    draft: Draft | None = None,
) -> Iterator[list[Row]]:
    """Append tokens to the rows, yielding after each token the rows that grew.

    A row ends with the token `end_of_text`, which is appended, or when it is marked finished. Ids from `vocab_size` on
    are never chosen: released models often have more rows than their tokenizer has tokens. A `draft` (see `draft.py`)
    decides how fast tokens come, not which, but for what fp32's last bits decide.
    """
    mode = torch.no_grad() if model.sharded else torch.inference_mode()  # whose tensors training could not use again
    return mode(steps)(model, rows, sampling, max_new_tokens, end_of_text, vocab_size, draft)


def steps(
    model: Decoder,
    rows: Sequence[Row],
    sampling: Sampling,
    max_new_tokens: int,
    end_of_text: int,
    vocab_size: int | None,
    draft: Draft | None,
) -> Iterator[list[Row]]:
    """As `decode`, which sees to gradients."""
    if max_new_tokens < 1 or not rows:
        return
    active, prompts = list(rows), [row.tokens for row in rows]
    limits = {row: len(row.tokens) + max_new_tokens for row in rows}
    logits, cache = prefill(model, prompts, max_new_tokens + (0 if draft is None else MOST_GUESSES))
    seen = tokens_seen(prompts, model.vocab_size, logits.device) if sampling.repetition_penalty != 1 else None
    logits = logits[:, None]  # [B, n + 1, V]: after the newest token of each row, and after each of n guesses
    guesses: list[list[int]] = [[] for _ in active]

    def is_over(row: Row) -> bool:
        return row.finished or len(row.tokens) == limits[row]

    while True:
        before = [len(row.tokens) for row in active]
        yield from grow(active, logits[..., :vocab_size], guesses, sampling, seen, end_of_text, is_over)
        kept = [i for i, row in enumerate(active) if not is_over(row)]
        if not kept:
            return
        n_guesses = logits.shape[1] - 1
        n_grown = [len(row.tokens) - n for row, n in zip(active, before, strict=True)]
        cache.forget([n_guesses + 1 - n for n in n_grown])  # the guesses that were wrong
        if len(kept) < len(active):
            active, n_grown = [active[i] for i in kept], [n_grown[i] for i in kept]
            cache.select_rows(kept)
            seen = None if seen is None else seen[kept]
        refill(model, [row.tokens for row in active], cache)
        guesses = [[] for _ in active]
        if draft is not None:
            draft.pace.learn(n_guesses, n_grown)
            most = max(limits[row] - len(row.tokens) for row in active) - 1
            n = min(draft.pace.n_guesses(len(active)), most, model.config.context_length - max(cache.lengths) - 1)
            if n:
                guesses = draft.guess(active, cache, n, sampling, seen, vocab_size)
        fed = [[row.tokens[-1], *guessed] for row, guessed in zip(active, guesses, strict=True)]
        logits = model(torch.tensor(fed, device=logits.device), cache=cache).float()


def grow(
    rows: Sequence[Row],
    logits: Tensor,
    guesses: Sequence[Sequence[int]],
    sampling: Sampling,
    seen: Tensor | None,
    end_of_text: int,
    is_over: Callable[[Row], bool],
) -> Iterator[list[Row]]:
    """Append the token that follows by logits [B, n + 1, V], and those after each guess that was right, to each row.

    Yields after each token the rows that grew; `seen` counts it.
    """
    growing = list(range(len(rows)))
    for place in range(logits.shape[1]):
        grown = [rows[i] for i in growing]
        chosen = choose(logits[growing, place], grown, sampling, None if seen is None else seen[growing])
        for row, token in zip(grown, chosen, strict=True):
            row.tokens.append(token)
            row.finished = token == end_of_text
        if seen is not None:
            seen[growing, chosen] = True
        yield grown
        growing = [i for i in growing if not is_over(rows[i]) and guesses[i][place : place + 1] == rows[i].tokens[-1:]]
        if not growing:
            return


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
    draft: Draft | None = None,
) -> Iterator[list[Sample]]:
    """Continue prompts: each job is a prompt and the number of its sample, decoded together as one batch.

    Yields the samples after every step, the new text of each in `piece`; the last yield holds them complete.
    An empty prompt is the start of a document. Raises UserError where the tokenizer cannot encode a prompt.
    """
    prompts = [(prompt_tokens(tokenizer, prompt), number) for prompt, number in jobs]
    rows = [Row(tokens, random_stream(seed, number, tokens)) for tokens, number in prompts]
    samples = [Sample(prompt_text(tokenizer, prompt), number) for prompt, number in jobs]
    streams = {row: TextStream(tokenizer, stop) for row in rows}
    of_row = dict(zip(rows, samples, strict=True))
    model.eval()
    if draft is not None:
        draft.model.eval()
    for grown in decode(model, rows, sampling, max_new_tokens, tokenizer.end_of_text, tokenizer.vocab_size, draft):
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
