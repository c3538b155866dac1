"""Each topic of the fault harness at a small scale: `python -m tests.faults.report` is the whole measurement."""

from __future__ import annotations

import importlib
import os

import pytest

from tests.faults.report import present

SCALES = {
    "kills": 0.03,
    "disks": 0.2,
    "damage": 0.06,
    "collisions": 0.05,
    "nonfinite": 1.0,
}  # seconds to half a minute each


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("topic", [topic for topic in present() if topic in SCALES])
def test_a_small_measurement_finds_all_as_promised(topic: str) -> None:
    found = list(importlib.import_module(f"tests.faults.{topic}").findings(SCALES[topic]))
    assert found
    for finding in found:
        assert finding.ok, f"{finding.done}: {finding.result}\n{finding.seen}"
