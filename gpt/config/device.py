"""What several commands say alike: which checkpoint, on which device, in which arithmetic."""

from __future__ import annotations

import os

from gpt.options import Mistake

PRECISIONS = ("fp32", "bf16", "fp16")
CHECKPOINT = (
    "a run folder, one of its checkpoints, any model folder in the gpt2, llama or qwen3 dialect, an adapter folder, "
    "or a Hub id (ID@REVISION pins it)"
)
QUANTIZE = "none, int8 or int4: weights of linear layers, on the processor; the rest is computed in fp32"
QUANTIZED = ("none", "int8", "int4")


def processes() -> int:
    """How many processes share this run, as torchrun tells each of them."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdecimal() and int(count) else 1


def checkpoint_mistakes(checkpoint: str) -> list[Mistake]:
    if checkpoint:
        return []
    return [Mistake("checkpoint", "is missing; give a run, a model folder or a Hub id, as checkpoint=runs/stdlib-mini")]


def device_mistakes(device: str) -> list[Mistake]:
    kind, _, index = device.partition(":")
    if kind in ("auto", "cpu", "mps") and not index and ":" not in device:
        return []
    if kind == "cuda" and (":" not in device or index.isdecimal()):
        return []
    return [Mistake("device", "is not one of auto, cpu, cuda, cuda:N, mps")]


def quantize_mistakes(quantize: str, precision: str) -> list[Mistake]:
    if quantize == "none" or precision in ("auto", "fp32"):
        return []
    return [Mistake("quantize", f"computes all else in fp32; leave out precision={precision}, or quantize")]
