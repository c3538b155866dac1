"""The decoder against Hugging Face transformers on the same weights, and against itself without a cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.config import ModelConfig
from gpt.model import transformer
from gpt.model.huggingface import load_model, save_model
from gpt.model.kv_cache import KVCache
from gpt.model.transformer import Decoder, sinusoids

from .conftest import VOCAB

transformers = pytest.importorskip("transformers")


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_transformers_loads_a_saved_model_with_equal_logits(decoder: Decoder, tmp_path: Path) -> None:
    save_model(decoder, tmp_path, end_of_text=0)
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading
    assert theirs.num_parameters() == decoder.parameter_count() + (
        decoder.sinusoids.numel() if decoder.config.position_kind == "sinusoidal" else 0
    )
    x = tokens(2, 24)
    torch.testing.assert_close(decoder(x), theirs.eval()(x).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_what_transformers_saves_is_loaded_with_equal_logits(decoder: Decoder, tmp_path: Path) -> None:
    save_model(decoder, tmp_path, end_of_text=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    theirs.save_pretrained(tmp_path / "again")
    x = tokens(2, 24)
    torch.testing.assert_close(load_model(tmp_path / "again").eval()(x), theirs(x).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_saving_and_loading_keeps_every_bit(decoder: Decoder, tmp_path: Path) -> None:
    save_model(decoder, tmp_path, end_of_text=0)
    again = load_model(tmp_path)
    for name, parameter in again.named_parameters():
        if name != "positions.weight" or decoder.config.position_kind == "learned":
            assert torch.equal(parameter, decoder.get_parameter(name)), name


@torch.no_grad()
def test_cached_logits_equal_uncached_ones(decoder: Decoder) -> None:
    x = tokens(2, 24)
    whole = decoder(x)
    cache = KVCache(decoder.config, 2, 24, "cpu", torch.float32)
    parts = [decoder(x[:, :7], cache=cache), decoder(x[:, 7:12], cache=cache)]
    parts += [decoder(x[:, [t]], cache=cache) for t in range(12, 24)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=0)
    assert cache.lengths == [24, 24]


@torch.no_grad()
def test_rows_of_different_lengths_give_what_each_gives_alone(decoder: Decoder) -> None:
    x = tokens(3, 24)
    cache = KVCache(decoder.config, 3, 24, "cpu", torch.float32)
    starts = [5, 11, 1]
    for row, start in enumerate(starts):
        alone = KVCache(decoder.config, 1, start, "cpu", torch.float32)
        decoder(x[[row], :start], cache=alone)
        cache.fill_row(row, alone)
    for step in range(6):
        new = torch.stack([x[row, start + step] for row, start in enumerate(starts)])[:, None]
        logits = decoder(new, cache=cache)
        for row, start in enumerate(starts):
            alone_logits = decoder(x[[row], : start + step + 1])[0, -1]
            torch.testing.assert_close(logits[row, 0], alone_logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_token_sees_no_later_one(decoder: Decoder) -> None:
    x, changed = tokens(1, 24), tokens(1, 24)
    changed[:, 15:] = (changed[:, 15:] + 1) % VOCAB
    assert torch.equal(decoder(x)[:, :15], decoder(changed)[:, :15])


def test_loss_is_the_sum_over_counted_tokens_and_ignores_padding_of_the_vocabulary(decoder: Decoder) -> None:
    x, targets = tokens(2, 24), tokens(2, 24).roll(1, dims=1)
    targets[0, :5] = -100
    log_probabilities = F.log_softmax(decoder(x).double(), dim=-1)
    expected = -sum(log_probabilities[b, t, targets[b, t]] for b in range(2) for t in range(24) if targets[b, t] >= 0)
    loss = decoder(x, targets)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    loss.backward()
    assert decoder.head.weight.grad is not None
    assert not decoder.head.weight.grad[VOCAB:].any()
    assert decoder(x).shape[-1] == VOCAB


@pytest.mark.parametrize("positions", [1, 5, 24, 47, 48, 2048])
def test_without_gradients_few_logits_are_held_at_once(
    decoder: Decoder, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "LOSS_POSITIONS", positions)
    x, targets = tokens(2, 24), tokens(2, 24).roll(1, dims=1)
    targets[0, :5] = -100
    whole = decoder(x, targets)
    with torch.no_grad(), Largest(decoder.head.weight) as largest:
        loss = decoder(x, targets)
    torch.testing.assert_close(loss, whole.detach(), rtol=1e-6, atol=0)
    assert largest.rows == min(positions, 48)


class Largest(TorchDispatchMode):
    """The most logits over the padded vocabulary, in rows, that any operation makes."""

    def __init__(self, head: torch.Tensor) -> None:
        super().__init__()
        self.head, self.rows = head, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        logits = isinstance(made, torch.Tensor) and made.shape[-1:] == self.head.shape[:1]
        if logits and made.untyped_storage().data_ptr() != self.head.untyped_storage().data_ptr():  # no view of it
            self.rows = max(self.rows, made.numel() // len(self.head))
        return made


def test_more_tokens_than_the_context_are_refused(decoder: Decoder) -> None:
    with pytest.raises(ValueError, match="25 tokens exceed the context length 24"):
        decoder(tokens(1, 25))


def test_each_block_starts_as_the_identity() -> None:
    model = Decoder(ModelConfig(n_layer=2, n_embd=64, context_length=8), 100)
    x = torch.randn(1, 8, 64)
    assert torch.equal(model.blocks[0](x, model.rotary[:, :8], 0, None, None), x)


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(50, 8) / (0.02 * 2**0.5)
    for position in (0, 1, 49):
        for i in range(4):
            angle = torch.tensor(position / 10000 ** (2 * i / 8))
            torch.testing.assert_close(table[position, 2 * i], angle.sin(), atol=1e-4, rtol=0)
            torch.testing.assert_close(table[position, 2 * i + 1], angle.cos(), atol=1e-4, rtol=0)


def test_counts_of_gpt2_small() -> None:
    config = ModelConfig(dialect="gpt2", n_layer=12, n_head=12, n_embd=768, context_length=1024)
    with torch.device("meta"):
        model = Decoder(config, 50257)
    assert model.parameter_count() == 124_439_808  # as published
    multiplied = 124_439_808 - 1024 * 768 - 12 * (9 * 768 + 4 * 768) - 2 * 768  # without positions, biases and norms
    assert model.flops_per_token() == 6 * multiplied + 12 * 12 * 768 * 1024


def test_dropout_acts_in_training_only() -> None:
    config = ModelConfig(n_layer=1, n_embd=64, context_length=8)
    model = Decoder(dataclasses.replace(config, dropout=0.5), 100)
    x = tokens(1, 8) % 100
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
