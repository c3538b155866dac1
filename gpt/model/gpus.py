"""GPUs that are only named: what a plan needs to know of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpt.model.hardware import GPU_PEAKS, known_gpu
from gpt.options import ConfigError, Mistake, nearest

# Memory in GB, from NVIDIA's data sheets; of cards that come with different ones the smallest, unless the name says.
MEMORY = {
    "GB200": 186, "B200": 180, "GH200": 96, "H200 NVL": 141, "H200": 141, "H100 NVL": 94, "H100 PCIe": 80, "H100": 80,
    "A100": 40, "A40": 48, "A30": 24, "A10G": 24, "A10": 24, "L40S": 48, "L40": 48, "L4": 24, "RTX PRO 6000": 96,
    "RTX 6000 Ada": 48, "RTX A6000": 48, "RTX A5000": 24, "RTX 5090": 32, "RTX 5080": 16, "RTX 4090": 24,
    "RTX 4080 SUPER": 16, "RTX 4080": 16, "RTX 3090 Ti": 24, "RTX 3090": 24, "RTX 3080": 10, "V100S": 32,
    "V100-PCIE": 16, "V100": 16, "T4": 16,
}  # fmt: skip
# Bytes a second and direction between the GPUs of one machine: half of what data sheets give for NVLink of SXM modules.
NVLINK = {"GB200": 900e9, "B200": 900e9, "GH200": 450e9, "H200": 450e9, "H100": 450e9, "A100": 300e9, "V100": 150e9}
PCIE = 25e9  # of the others: 16 lanes of PCIe 4, less what its protocol takes
FP16 = ("V100S", "V100-PCIE", "V100", "T4")  # without units for bf16


@dataclass(frozen=True)
class Gpu:
    """`peak` in FLOP/s, `memory` in bytes, `link` in bytes a second to the other GPUs of its machine."""

    name: str
    peak: float
    memory: int
    link: float
    precision: str


def find_gpu(name: str) -> Gpu:
    """What is known of the GPU of this name, as `H100` or `NVIDIA A100-SXM4-80GB`. Raises ConfigError."""
    key = known_gpu(name)
    if key is None:
        known = ", ".join(GPU_PEAKS)
        meant = nearest(name, GPU_PEAKS)
        hint = f"; did you mean {' or '.join(meant)}?" if meant else ""
        raise ConfigError([Mistake("cluster.gpu", f"is not known{hint} Known are: {known}", name)])
    size = re.search(r"(\d+) ?GB", name)
    return Gpu(
        name, GPU_PEAKS[key], int(size[1] if size else MEMORY[key]) * 10**9, NVLINK.get(key, PCIE),
        "fp16" if key in FP16 else "bf16",
    )  # fmt: skip
