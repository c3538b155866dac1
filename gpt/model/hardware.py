"""Where and in which arithmetic a model computes: device, precision, compilation, and the hardware's peak.

Every automatic choice is a pure function of the machine and the model, so that a resumed run makes it again, and
`Hardware.describe` states it in one line.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import torch

from gpt.config import ModelConfig
from gpt.config.device import PRECISIONS, processes
from gpt.model.attention import choose_kernel, sdpa_backend
from gpt.options import UserError

DTYPES = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16, torch.float16), strict=True))
# Dense peaks of matrix products in bf16 (fp16 before Ampere) with sums in fp32, in FLOP/s; the first name that fits
# counts. From NVIDIA's data sheets, halved where those count structured sparsity; of RTX cards from the appendices of
# the GA102, AD102 and RTX Blackwell whitepapers. Check: SMs * products a clock and SM * 2 * boost clock, with 1,024
# products on A100, 2,048 on H100, 512 on A6000 and its like, and 256 on GeForce, whose sums in fp32 go at half speed:
# an RTX 4090 has 128 * 256 * 2 * 2.52 GHz = 165e12.
GPU_PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX PRO 6000": 504e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX A5000": 111e12,
    "RTX 5090": 210e12,
    "RTX 5080": 113e12,
    "RTX 4090": 165e12,
    "RTX 4080 SUPER": 104e12,
    "RTX 4080": 97e12,
    "RTX 3090 Ti": 80e12,
    "RTX 3090": 71e12,
    "RTX 3080": 60e12,
    "V100S": 130e12,
    "V100-PCIE": 112e12,
    "V100": 125e12,
    "T4": 65e12,
}
NOT_WHOLE = re.compile(r"\b(Laptop|Max-Q|MIG)\b")  # a slower card of the same name, or a slice of one
# Below this width the casts around bf16 matrix products cost what the products save (AMX, torch 2.13).
NARROWEST_BF16_ON_CPU = 128


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

    def describe(self, head_width: int, cached: bool = False) -> str:
        """One line for people; `cached`: of decoding with a KV cache."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_or_mps(self.device)
        kernel = "sdpa" if cached else choose_kernel(self.device, self.dtype)
        if kernel == "sdpa" and self.device.type == "cuda":
            kernel = sdpa_backend(self.device, self.dtype, head_width)
        parts = [name, self.precision, f"attention by {kernel}", "compiled" if self.compile else "not compiled"]
        if self.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
            parts.append("TF32 for what stays fp32")
        return ", ".join(parts)


def cpu_or_mps(device: torch.device) -> str:
    return f"cpu, threads: {torch.get_num_threads()}" if device.type == "cpu" else str(device)


def choose_hardware(device: str, precision: str, width: int, compile: str = "off") -> Hardware:
    """Resolve the options `device`, `precision` and `compile` for a model of `width` features.

    Raises UserError where the machine does not have what was asked for.
    """
    place = choose_device(device)
    if precision == "auto":
        precision = choose_precision(place, width)
    if precision == "fp16" and place.type != "cuda":
        raise UserError(f"precision=fp16 needs a CUDA device, not {place}; use bf16 or fp32")
    if place.type == "cpu":
        keep_freed_memory()
        if compile == "on" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
            raise UserError("train.compile=on needs a C++ compiler, g++ or clang++; install one, or use off")
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


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones, instead of returning it to the system.

    Every step makes the same large tensors again, and each page that comes anew costs a fault: with GPT-2's logits
    that is a third of a step. Elsewhere than with glibc, nothing happens. Source: mallopt(3).
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
    with suppress(OSError, AttributeError, TypeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(mmap_max, 0)
        glibc.mallopt(trim_threshold, 2**31 - 1)
        glibc.mallopt(top_pad, 64 * 2**20)


def choose_device(name: str) -> torch.device:
    """The device of an option. Of several processes on a host, each takes its own GPU."""
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    if processes() > 1 and name != "cpu":
        if name != "cuda":
            raise UserError(f"device={name} is for one process; with torchrun use device=cuda or device=cpu")
        local_rank, count = os.environ.get("LOCAL_RANK", "0"), torch.cuda.device_count()
        if has_cuda and int(local_rank) >= count:
            raise UserError(
                f"LOCAL_RANK={local_rank}: this machine has {count} GPUs, one for each process; start at most so many "
                f"on it, with torchrun --nproc-per-node {count}"
            )
        name = f"cuda:{local_rank}"
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


def muon_dtype(hardware: Hardware) -> torch.dtype:
    """The arithmetic of Muon's iteration, which tolerates bf16: in mixed precision that where it is quick, else fp32.

    In fp32 it stays, so that a run is the same however its matrices are dealt to processes: in bf16 their products
    round differently with the number of them in a batch.
    """
    quick = choose_precision(hardware.device, NARROWEST_BF16_ON_CPU) == "bf16"
    return torch.bfloat16 if quick and hardware.precision != "fp32" else torch.float32


def peak_flops(hardware: Hardware) -> float | None:
    """Known (CUDA) or briefly measured (CPU, MPS) peak of matrix products in FLOP/s; None for an unknown GPU."""
    if hardware.device.type == "cuda":
        name = torch.cuda.get_device_name(hardware.device)
        return gpu_peak(name) if hardware.precision != "fp32" else None
    return measure_peak(hardware)


def gpu_peak(name: str) -> float | None:
    """The entry of `GPU_PEAKS` for a device with this name, in FLOP/s; None where there is none."""
    return GPU_PEAKS.get(known_gpu(name) or "")


def known_gpu(name: str) -> str | None:
    """The name in `GPU_PEAKS` of a device that CUDA calls `name`; None where there is none."""
    if NOT_WHOLE.search(name):
        return None
    return next((part for part in GPU_PEAKS if re.search(rf"\b{part}\b(?! (?:Ti|SUPER|D)\b)", name)), None)


def measure_peak(hardware: Hardware, size: int = 1024, seconds: float = 0.06) -> float:
    """The best rate of a square matrix product, in FLOP/s."""
    a = torch.ones(size, size, device=hardware.device, dtype=hardware.dtype)
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best


def check_memory(config: ModelConfig, vocab_size: int) -> None:
    """Raise UserError where the weights alone, in fp32, exceed this machine's memory, before any is asked for."""
    width, head = config.n_embd, config.head_width
    layer = width * ((2 * config.n_head + 2 * config.kv_heads) * head + 2 * config.hidden_width)
    tables = vocab_size * (1 if config.tie_embeddings else 2) * width
    tables += config.context_length * (2 * head if config.position_kind == "rotary" else width)
    needed, there = 4 * (config.n_layer * layer + tables), physical_memory()
    if there is not None and needed > there:
        shape = f"n_layer={config.n_layer}, n_embd={width}, context_length={config.context_length}"
        raise UserError(
            f"a model of {shape} and {vocab_size:,} tokens takes {needed / 1e9:,.0f} GB for its weights, and this "
            f"machine has {there / 1e9:,.0f} GB of memory; use a smaller model"
        )


def physical_memory() -> int | None:
    """Bytes of this machine's memory; None where the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
