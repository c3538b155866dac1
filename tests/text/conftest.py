"""Tokenizers and corpora for the tests of the text room."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from odd_texts import ODD, real_text

from gpt.config import TokenizerConfig
from gpt.text.tokenizers import Tokenizer
from gpt.text.vocabularies import build_tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def build() -> Callable[[str], Tokenizer]:
    """Tokenizers by name, each made once. gpt2 needs tiktoken's files on disk, as tests use no network."""
    made: dict[str, Tokenizer] = {}
    text = real_text() + "".join(ODD) * 20

    def get(name: str) -> Tokenizer:
        if name == "gpt2" and not os.environ.get("TIKTOKEN_CACHE_DIR"):
            if not (SHARED / "tiktoken").is_dir():
                pytest.skip("GPT-2's vocabulary is not on this machine (TIKTOKEN_CACHE_DIR)")
            os.environ["TIKTOKEN_CACHE_DIR"] = str(SHARED / "tiktoken")
        if name not in made:
            config = TokenizerConfig(name=name)
            made[name] = build_tokenizer(config, characters=set(text), texts=lambda: [text], vocab_size=1200)
        return made[name]

    return get


@pytest.fixture
def shared_data() -> Path:
    """The folder with whole corpora, on machines that have it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no corpora beside this checkout")
    return SHARED / "data"
