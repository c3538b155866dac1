"""Texts that tear encodings and regular expressions apart, and real ones that every machine has."""

from __future__ import annotations

import inspect
import random

ODD = [
    "the quick brown fox", " don't", "'LL", "'ſ", "ﬀ", "ß", "李白", "床前明月光，疑是地上霜。", "こんにちは", "한국어",
    "مرحبا", "é", "e\u0301", "\u0301", "👩‍👩‍👧", "🇩🇪", "𝒳", "\u200b", "\ufeff", "\u2028", "\x85", "\xa0",
    "\u3000", "\0", "\x1b[0m", "\x1c", "\r\n", "\n", "\n\n", "\r", "\t", "  ", "     ", " \n ", "1234567",
    "٣", "½", "_", "!!!", "...", "#$%", "<|endoftext|>", "<|", "def f(x):\n    return x\n", "\U0010ffff",
]  # fmt: skip


def random_text(rng: random.Random, pieces: int) -> str:
    """A chain of odd bits and of random characters from anywhere in Unicode."""

    def anything() -> str:
        point = rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x110000)])
        return chr(point) if not 0xD800 <= point < 0xE000 else "\ud7ff"

    return "".join(rng.choice([rng.choice(ODD), anything()]) for _ in range(pieces))


def real_text() -> str:
    """Some hundred kilobytes of English and Python that every machine has."""
    import argparse
    import subprocess
    import typing

    return "".join(inspect.getsource(module) for module in (argparse, random, subprocess, typing))
