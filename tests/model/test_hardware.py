"""How device and precision are chosen, and what is refused."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt.model import hardware
from gpt.model.attention import sdpa_backend
from gpt.model.hardware import GPU_PEAKS, choose_device, choose_hardware, choose_precision, gpu_peak, measure_peak
from gpt.options import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("units", "width", "expected"), [(True, 512, "bf16"), (True, 64, "fp32"), (False, 512, "fp32")]
)
def test_the_cpu_takes_bf16_only_where_it_is_quicker(
    units: bool, width: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_multiplies_bf16", lambda: units)
    assert choose_precision(CPU, width) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_old_gpus_take_fp16(capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision(GPU, 64) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_device_is_refused() -> None:
    with pytest.raises(UserError, match="device=cuda is not on this machine"):
        choose_hardware("cuda", "auto", 64)


def test_fp16_needs_cuda() -> None:
    with pytest.raises(UserError, match="precision=fp16 needs a CUDA device"):
        choose_hardware("cpu", "fp16", 64)


def test_each_process_of_a_host_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:3")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device=cuda:1 is for one process"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="LOCAL_RANK=3: this machine has 2 GPUs"):
        choose_device("auto")


def test_what_was_asked_for_is_used_and_said() -> None:
    chosen = choose_hardware("cpu", "bf16", 64, "on")
    assert chosen.dtype is torch.bfloat16
    assert "bf16, attention by blocked, compiled" in chosen.describe(head_width=64)
    with chosen.autocast():
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype is torch.bfloat16
    assert measure_peak(choose_hardware("cpu", "fp32", 64), size=64, seconds=0.01) > 1e6


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("NVIDIA GeForce RTX 3090 Ti", 80),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 504),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("NVIDIA GeForce RTX 3080 Ti", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4080 SUPER", 104),
    ],
)
def test_peaks_are_those_of_the_named_gpu(name: str, teraflops: float | None) -> None:
    assert gpu_peak(name) == (teraflops and teraflops * 1e12)


@pytest.mark.parametrize(  # SMs, products a clock and SM with sums in fp32, boost clock in GHz: NVIDIA's whitepapers
    ("name", "units", "products", "clock"),
    [
        ("A100", 108, 1024, 1.41),
        ("H100", 132, 2048, 1.83),
        ("RTX 3090", 82, 256, 1.695),
        ("RTX 4090", 128, 256, 2.52),
        ("RTX 5090", 170, 256, 2.407),
        ("RTX A6000", 84, 512, 1.8),
        ("RTX 6000 Ada", 142, 512, 2.505),
        ("L40S", 142, 512, 2.52),
    ],
)
def test_peaks_follow_from_units_and_clocks(name: str, units: int, products: int, clock: float) -> None:
    assert GPU_PEAKS[name] == pytest.approx(2 * units * products * clock * 1e9, rel=0.015)


def test_the_attention_kernel_is_torchs_own_choice() -> None:
    assert sdpa_backend(CPU, torch.float32, 64) == "flash"
    with sdpa_kernel(SDPBackend.MATH):
        assert sdpa_backend(CPU, torch.float32, 64) == "math"


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc gives large blocks back"
)
def test_freed_memory_is_kept_on_a_cpu() -> None:
    code = """
import resource, torch
from gpt.model.hardware import choose_hardware
if KEEP: choose_hardware("cpu", "fp32", 64)
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4): torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {}
    for keep in (False, True):
        command = [sys.executable, "-c", code.replace("KEEP", str(keep))]
        faults[keep] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults[True] < faults[False] / 2  # now and then a small block lies in the way


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"train\.compile=on needs a C\+\+ compiler.*use off"):
        choose_hardware("cpu", "fp32", 64, "on")
    assert not choose_hardware("cpu", "fp32", 64, "auto").compile
