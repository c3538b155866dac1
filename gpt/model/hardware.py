"""Where and in which arithmetic a model computes: device, precision, compilation, and the hardware's peak.

Every automatic choice is a pure function of the machine and the model, so that a resumed run makes it again, and
`Hardware.describe` states it in one line.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from gpt.config.device import PRECISIONS
from gpt.model.attention import choose_kernel
from gpt.options import UserError

DTYPES = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16, torch.float16), strict=True))
# Dense bf16 (fp16 before Ampere) peaks in FLOP/s, from NVIDIA's data sheets; the first name that fits counts.
GPU_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
# Below this width the casts around bf16 matrix products cost more than the products save (AMX, torch 2.13).
NARROWEST_BF16_ON_CPU = 256


@dataclass(frozen=True)
class Hardware:
    """A device and how it is used. `precision` is fp32, bf16 or fp16."""

    device: torch.device
    precision: str
    compile: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision: matrix products in `dtype`, weights and sums in fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def describe(self, cached: bool = False) -> str:
        """One line for people; `cached`: of decoding with a KV cache."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_or_mps(self.device)
        kernel = "sdpa" if cached else choose_kernel(self.device, self.dtype)
        compiled = "compiled" if self.compile else "not compiled"
        return f"{name}, {self.precision}, attention by {kernel}, {compiled}"


def cpu_or_mps(device: torch.device) -> str:
    return f"cpu, threads: {torch.get_num_threads()}" if device.type == "cpu" else str(device)


def choose_hardware(device: str, precision: str, width: int, compile: str = "off") -> Hardware:
    """Resolve the options `device`, `precision` and `compile` for a model of `width` features.

    Raises UserError where the machine does not have what was asked for.
    """
    reject_torchrun()
    place = choose_device(device)
    if precision == "auto":
        precision = choose_precision(place, width)
    if precision == "fp16" and place.type != "cuda":
        raise UserError(f"precision=fp16 needs a CUDA device, not {place}; use bf16 or fp32")
    if place.type == "cuda" and precision != "fp32":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    return Hardware(place, precision, compile == "on" or (compile == "auto" and place.type == "cuda"))


def decoding_hardware(device: str, precision: str, width: int) -> Hardware:
    """As `choose_hardware`, for text that a model writes, in weights of `dtype`.

    The automatic precision outside CUDA is fp32, so that cached decoding equals the uncached model to the last digits.
    """
    if precision == "auto" and choose_device(device).type != "cuda":
        precision = "fp32"
    return choose_hardware(device, precision, width)


def reject_torchrun() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("WORLD_SIZE: this version trains in one process; start it with python, not torchrun")


def choose_device(name: str) -> torch.device:
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    kind, _, index = name.partition(":")
    present = {"cpu": True, "mps": has_mps, "cuda": has_cuda and int(index or 0) < torch.cuda.device_count()}
    if not present[kind]:
        raise UserError(f"device={name} is not on this machine; use device=auto or device=cpu")
    return torch.device(name)


def choose_precision(device: torch.device, width: int) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu" and width >= NARROWEST_BF16_ON_CPU and cpu_multiplies_bf16():
        return "bf16"
    return "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether the processor has bf16 matrix or dot-product units (AMX, AVX512-BF16)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def muon_dtype(device: torch.device) -> torch.dtype:
    """The arithmetic of Muon's iteration, which tolerates bf16: that where it is quick, else fp32."""
    quick = choose_precision(device, NARROWEST_BF16_ON_CPU) == "bf16"
    return torch.bfloat16 if quick else torch.float32


def peak_flops(hardware: Hardware) -> float | None:
    """Known (CUDA) or briefly measured (CPU, MPS) peak of matrix products in FLOP/s; None for an unknown GPU."""
    if hardware.device.type == "cuda":
        name = torch.cuda.get_device_name(hardware.device)
        known = next((peak for part, peak in GPU_PEAKS.items() if re.search(rf"\b{part}\b", name)), None)
        return known if hardware.precision != "fp32" else None
    return measure_peak(hardware)


def measure_peak(hardware: Hardware, size: int = 1024, seconds: float = 0.06) -> float:
    """The best rate of a square matrix product, in FLOP/s."""
    a = torch.ones(size, size, device=hardware.device, dtype=hardware.dtype)
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best
