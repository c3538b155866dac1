"""A corpus and a configuration small enough to train in a second."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt.config import RunConfig
from gpt.options import from_dict

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def corpus_files(tmp_path: Path) -> Path:
    """A folder of 40 documents of words."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    chance = random.Random(0)
    words = ["leaf", "branch", "root", "葉", "tree", "sun", "rain", "grows", "falls", "and"]
    for number in range(40):
        (folder / f"{number}.txt").write_text(" ".join(chance.choices(words, k=60)) + ".\n", encoding="utf-8")
    return folder


@pytest.fixture
def make_config(tmp_path: Path, corpus_files: Path) -> MakeConfig:
    """A configuration with some options changed: `make_config(train={"max_steps": 3})`."""

    def make(name: str = "run", **changes: Any) -> RunConfig:
        groups: dict[str, Any] = {
            "run_dir": str(tmp_path / name),
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 16},
            "tokenizer": {"name": "byte"},
            "data": {"name": "text", "files": [str(corpus_files)], "prepared_dir": str(tmp_path / "prepared")},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "train": {"max_steps": 12, "batch_size": 4, "eval_every": 4, "log_every": 1, "sample_tokens": 5}
            | {"precision": "fp32", "eval_tokens": 200, "device": "cpu"},
        }
        for group, options in changes.items():
            groups[group] = groups.get(group, {}) | options if isinstance(options, dict) else options
        return from_dict(RunConfig, groups)

    return make
