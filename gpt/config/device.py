"""What every command that computes has to say about devices."""

from __future__ import annotations

from gpt.options import Mistake


def device_mistakes(device: str) -> list[Mistake]:
    kind, _, index = device.partition(":")
    if kind in ("auto", "cpu", "mps") and not index and ":" not in device:
        return []
    if kind == "cuda" and (":" not in device or index.isdecimal()):
        return []
    return [Mistake("device", "is not one of auto, cpu, cuda, cuda:N, mps")]
