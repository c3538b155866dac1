"""Loss and bits per byte on held-out text, and what general compressors reach on the same bytes.

`loss` is the mean over every evaluated token in nats, from non-overlapping windows with dropout off: deterministic,
and the same whatever the batch size. Bits per byte divide the same sum by the UTF-8 bytes that the tokens stand
for, which makes tokenizers comparable (Gao et al. 2020, The Pile, section 3.1). Of prompt/completion pairs, only
completions count, in tokens and in bytes.
"""

from __future__ import annotations

import gzip
import lzma
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from gpt.model.hardware import Hardware
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.batches import IGNORE, Batch, val_batches
from gpt.text.streams import PairStream, TokenStream
from gpt.text.tokenizers import Tokenizer
from gpt.training.parallel.ranks import Ranks

LARGEST_EXPONENT = math.log(sys.float_info.max)
LARGEST_COMPRESSED = 32 * 2**20  # bytes; xz takes about a second for each MB


@dataclass(frozen=True)
class Evaluation:
    """`loss` in nats a token, over `n_tokens` tokens that stand for `n_bytes` bytes of text."""

    loss: float
    n_tokens: int
    n_bytes: float

    @property
    def bits_per_byte(self) -> float:
        return self.loss * self.n_tokens / math.log(2) / self.n_bytes if self.n_bytes else math.nan

    @property
    def perplexity(self) -> float:
        """e to the `loss`: of how many equally likely tokens the model would be as unsure."""
        return math.inf if self.loss > LARGEST_EXPONENT else math.exp(self.loss)


@torch.no_grad()
def evaluate(
    model: Decoder,
    split: TokenStream,
    tokenizer: Tokenizer,
    hardware: Hardware,
    batch_size: int,
    max_tokens: int | None = None,
    stride: int | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Evaluate on all tokens of a split that count, or on the first `max_tokens` of them. With `ranks`, all call it,
    each computes a share of the batches, and all get the same result.

    `stride`: by how many tokens the windows of a stream move (1 … context length); below the context length they
    overlap, and each token sees more context. Raises UserError where no token counts, ValueError as `val_batches` does.
    """
    was_training = model.training
    model.eval()
    lengths = tokenizer.token_bytes
    sums = torch.zeros(3, dtype=torch.float64)  # loss, tokens, bytes
    batches = val_batches(split, model.config.context_length, batch_size, max_tokens, stride)
    for (inputs, targets), counts in shared_out(batches, ranks or Ranks()):
        with hardware.autocast():
            loss = model(torch.from_numpy(inputs).to(hardware.device), torch.from_numpy(targets).to(hardware.device))
        counted = targets[targets != IGNORE]
        # Not every tokenizer knows the bytes of a token; then each stands for the mean of the split.
        n_bytes = float(lengths[counted].sum()) if lengths is not None else len(counted) * split.mean_bytes
        if counts:
            sums += torch.tensor([loss.item(), len(counted), n_bytes], dtype=torch.float64)
    model.train(was_training)
    total, n_tokens, n_bytes = (ranks or Ranks()).sum(sums).tolist()
    if not n_tokens:
        raise UserError(
            f"nothing to evaluate: no held-out token counts with model.context_length={model.config.context_length}; "
            "give more held-out text, or shorter prompts"
        )
    return Evaluation(total / n_tokens, round(n_tokens), n_bytes)


def shared_out(batches: Iterable[Batch], ranks: Ranks) -> Iterator[tuple[Batch, bool]]:
    """A process's share of batches that are dealt out in turn, and whether each counts: where the last round has too
    few, the others repeat its first, so that all compute as many, as a sharded model needs them to."""
    rest = iter(batches)
    while dealt := list(islice(rest, ranks.world)):
        has_own = ranks.rank < len(dealt)
        yield dealt[ranks.rank if has_own else 0], has_own


def compressors(split: TokenStream, tokenizer: Tokenizer, max_tokens: int | None = None) -> dict[str, float] | None:
    """Bits per byte of `gzip -9` and `xz -9` on the evaluated text.

    None where that is too long, or has no bytes, or is of pairs, whose completions follow from more than themselves.
    """
    n_tokens = len(split) if max_tokens is None else min(len(split), max_tokens + 1)
    if isinstance(split, PairStream) or tokenizer.token_bytes is None:
        return None
    if n_tokens * split.mean_bytes > LARGEST_COMPRESSED:
        return None
    text = tokenizer.decode(split.read(0, n_tokens).tolist()).encode("utf-8")
    if not text:
        return None
    # No dictionary longer than the text: xz takes eleven times as much memory, and 674 MiB for that of -9.
    xz = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": min(2**26, max(2**12, len(text)))}]
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz -9": len(lzma.compress(text, filters=xz))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}
