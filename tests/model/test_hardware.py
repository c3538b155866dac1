"""How device and precision are chosen, and what is refused."""

from __future__ import annotations

import pytest
import torch

from gpt.model import hardware
from gpt.model.hardware import choose_hardware, choose_precision, measure_peak
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


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        choose_hardware("cpu", "fp32", 64)


def test_what_was_asked_for_is_used_and_said() -> None:
    chosen = choose_hardware("cpu", "bf16", 64, "on")
    assert chosen.dtype is torch.bfloat16
    assert "bf16, attention by blocked, compiled" in chosen.describe(head_width=64)
    with chosen.autocast():
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype is torch.bfloat16
    assert measure_peak(choose_hardware("cpu", "fp32", 64), size=64, seconds=0.01) > 1e6
