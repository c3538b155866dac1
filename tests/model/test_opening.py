"""A checkpoint is a model and its tokenizer, wherever the latter is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpt.config import LoRAConfig, TokenizerConfig
from gpt.model.adapters import save_adapters
from gpt.model.huggingface import load_model, save_model
from gpt.model.lora import add_adapters
from gpt.model.opening import find_tokenizer, open_checkpoint
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.vocabularies import build_tokenizer

from .conftest import make_decoder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model folder with the tokenizer of bytes."""
    folder = tmp_path / "base"
    tokenizer = build_tokenizer(TokenizerConfig(name="byte"))
    tokenizer.save(folder)
    save_model(Decoder(make_decoder().config, tokenizer.vocab_size), folder, tokenizer.end_of_text)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """An adapter folder as PEFT writes it: without tokenizer."""
    model = load_model(base)
    add_adapters(model, LoRAConfig(rank=2))
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapters(model, folder, str(base))
    return folder


def test_an_adapter_folder_without_tokenizer_has_that_of_its_base(base: Path, adapter: Path) -> None:
    assert find_tokenizer(base) == base
    assert find_tokenizer(adapter) == base
    folder, model, tokenizer = open_checkpoint(str(adapter))
    assert folder == adapter
    assert tokenizer.name == "byte"
    x = torch.arange(12)[None]
    assert torch.equal(model.eval()(x), load_model(base).eval()(x))  # adapters that have learned nothing yet


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "vocab.txt"])
def test_a_tokenizer_beside_the_adapters_comes_first(name: str, adapter: Path) -> None:
    (adapter / name).touch()
    assert find_tokenizer(adapter) == adapter


def test_no_tokenizer_anywhere_is_said_of_the_base(base: Path, adapter: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    with pytest.raises(UserError, match=f"^{base}: no tokenizer.json there"):
        open_checkpoint(str(adapter))
