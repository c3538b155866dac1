"""Small decoders of every dialect with weights far from their initial values."""

from __future__ import annotations

import pytest
import torch

from gpt.config import ModelConfig
from gpt.model.transformer import Decoder

VOCAB = 301  # not a multiple of the padding

SHAPES = {
    "gpt2": {"dialect": "gpt2"},
    "gpt2-sinusoidal": {"dialect": "gpt2", "positions": "sinusoidal"},
    "gpt2-untied": {"dialect": "gpt2", "tie_embeddings": False},
    "llama": {"dialect": "llama", "tie_embeddings": False},
    "llama-grouped": {"dialect": "llama", "n_kv_head": 2, "rope_theta": 500.0},
    "qwen3": {"dialect": "qwen3"},
    "qwen3-grouped": {"dialect": "qwen3", "n_kv_head": 1, "head_dim": 10, "n_hidden": 100, "tie_embeddings": False},
}


def make_decoder(context_length: int = 24, n_embd: int = 48, **shape: object) -> Decoder:
    torch.manual_seed(0)
    config = ModelConfig(n_layer=3, n_head=4, n_embd=n_embd, context_length=context_length, **shape)
    model = Decoder(config, VOCAB).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn_like(parameter)
            if name in ("embed.weight", "head.weight"):
                parameter[VOCAB:] = 0
    return model


@pytest.fixture(params=SHAPES, ids=str)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return make_decoder(**SHAPES[request.param])
