"""A model of ours beside transformers' model of the same weights, and what the latter generates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.config import ModelConfig
from gpt.model.huggingface import save_model
from gpt.model.transformer import Decoder

VOCAB = 101
x86 = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="int8 and int4 need an x86 processor"
)
DIALECTS: dict[str, dict[str, Any]] = {
    "gpt2": {"dialect": "gpt2", "tie_embeddings": False},
    "llama": {"dialect": "llama", "tie_embeddings": False},
    "qwen3": {"dialect": "qwen3", "tie_embeddings": False, "n_kv_head": 2},
}
Generated = list[tuple[list[int], float]]  # continuations and their scores, best first


def varied_decoder(vocab_size: int = VOCAB, context_length: int = 64, std: float = 0.3, **shape: Any) -> Decoder:
    """A decoder with weights so large that its likeliest continuations do not just repeat one token."""
    torch.manual_seed(0)
    config = ModelConfig(n_layer=2, n_head=4, n_embd=32, context_length=context_length, **shape)
    model = Decoder(config, vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += std * torch.randn_like(parameter)
    return model


def random_prompt(length: int, vocab_size: int = VOCAB) -> list[int]:
    return torch.randint(0, vocab_size, (length,), generator=torch.Generator().manual_seed(length)).tolist()


class Peers:
    """The same weights twice."""

    def __init__(self, model: Decoder, folder: Path) -> None:
        transformers = pytest.importorskip("transformers")
        save_model(model, folder, end_of_text=0)
        self.model = model
        self.theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def generate(self, prompt: list[int], end_of_text: int, n_new: int, **options: Any) -> Generated:
        """What transformers' `generate` gives without sampling, each cut behind its first `end_of_text`."""
        tokens, n_beams = torch.tensor([prompt]), options.get("num_beams", 1)
        made = self.theirs.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=n_new,
            eos_token_id=end_of_text, pad_token_id=end_of_text, early_stopping=False,
            num_return_sequences=n_beams, return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
        new = [row[len(prompt) :].tolist() for row in made.sequences]
        cut = [row[: row.index(end_of_text) + 1] if end_of_text in row else row for row in new]
        scores = getattr(made, "sequences_scores", torch.zeros(len(cut))).tolist()
        return list(zip(cut, scores, strict=True))


@pytest.fixture(scope="session")
def make_peers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Peers]:
    made: dict[str, Peers] = {}

    def make(dialect: str) -> Peers:
        if dialect not in made:
            made[dialect] = Peers(varied_decoder(**DIALECTS[dialect]), tmp_path_factory.mktemp(dialect))
        return made[dialect]

    return make


@pytest.fixture(params=DIALECTS)
def peers(request: pytest.FixtureRequest, make_peers: Callable[[str], Peers]) -> Peers:
    return make_peers(request.param)
