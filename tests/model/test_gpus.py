"""What is known of GPUs that are only named."""

from __future__ import annotations

import pytest

from gpt.model.gpus import MEMORY, find_gpu
from gpt.model.hardware import GPU_PEAKS
from gpt.options import ConfigError


@pytest.mark.parametrize(
    ("name", "gigabytes", "tflops", "precision"),
    [
        ("H100", 80, 989, "bf16"),
        ("NVIDIA H100 80GB HBM3", 80, 989, "bf16"),  # as torch.cuda.get_device_name says
        ("NVIDIA A100-SXM4-40GB", 40, 312, "bf16"),
        ("A100-80GB", 80, 312, "bf16"),
        ("RTX 4090", 24, 165, "bf16"),
        ("Tesla T4", 16, 65, "fp16"),
        ("Tesla V100-SXM2-32GB", 32, 125, "fp16"),
    ],
)
def test_known_gpus(name: str, gigabytes: int, tflops: int, precision: str) -> None:
    gpu = find_gpu(name)
    assert (gpu.name, gpu.memory, gpu.peak, gpu.precision) == (name, gigabytes * 10**9, tflops * 1e12, precision)


def test_each_gpu_with_a_peak_has_a_memory() -> None:
    assert MEMORY.keys() == GPU_PEAKS.keys()
    for name in GPU_PEAKS:
        assert find_gpu(name).memory == MEMORY[name] * 10**9


def test_links_are_faster_within_modules_than_over_pcie() -> None:
    assert find_gpu("H100").link == 450e9  # NVLink 4: 900 GB/s in both directions together
    assert find_gpu("H100 PCIe").link == find_gpu("RTX 4090").link == 25e9


@pytest.mark.parametrize(("name", "meant"), [("H10", "H100"), ("RTX 4091", "RTX 4090"), ("abacus", "")])
def test_an_unknown_gpu_is_refused_with_those_that_are_known(name: str, meant: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_gpu(name)
    message = str(error.value)
    assert f"cluster.gpu={name}" in message
    assert "Known are: GB200" in message
    assert meant in message.partition("Known are")[0]
    assert ("did you mean" in message) == bool(meant)
