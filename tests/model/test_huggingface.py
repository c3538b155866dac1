"""What is refused when a model folder is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt.model.huggingface import find_model, load_model, save_model
from gpt.options import UserError

from .conftest import make_decoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(make_decoder(dialect="llama", n_kv_head=2), tmp_path, end_of_text=0)
    return tmp_path


def edit_config(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "mamba", "model_type='mamba' is not one of gpt2, llama, qwen3"),
        ("hidden_act", "relu", "hidden_act='relu'"),
        ("attention_bias", True, "attention_bias=True"),
        ("rope_scaling", {"type": "yarn"}, "rope_scaling="),
        ("rope_parameters", {"rope_type": "llama3"}, "rope_parameters.rope_type='llama3'"),
        ("num_attention_heads", 0, "n_head"),
        ("num_hidden_layers", "many", "num_hidden_layers"),
        ("hidden_size", None, "hidden_size"),
        ("vocab_size", "x", "vocab_size"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(folder: Path, key: str, value: object, message: str) -> None:
    edit_config(folder, **{key: value})
    with pytest.raises(UserError) as error:
        load_model(folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)


def test_tensors_that_do_not_fit_are_all_listed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.extra"] = torch.zeros(1)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_model(folder)
    for part in ("model.norm.weight is missing", "model.extra is unknown", "up_proj.weight has shape [2, 2]"):
        assert part in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x80\x04\x95\x00\x00", b"\xff" * 64])
def test_a_file_that_is_not_safetensors_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_broken_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(folder)


def test_find_model_says_what_is_wrong_with_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    for name, message in (("none", "no such folder"), ("file", "a file"), ("empty", "no checkpoint"), ("young", "yet")):
        with pytest.raises(UserError, match=message):
            find_model(tmp_path / name)
