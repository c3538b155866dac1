"""One thread for every test: the models are tiny, and threads that wait for each other take longer than they help."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the processes tests start

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def gpt2_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has tiktoken find GPT-2's vocabulary on this machine; the tests use no network."""
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        if not (SHARED / "tiktoken").is_dir():
            pytest.skip("GPT-2's vocabulary is not on this machine (TIKTOKEN_CACHE_DIR)")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
