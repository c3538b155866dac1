"""A run whose Weights & Biases server dies under it, with short limits. `wandb_faults` has the other scenarios."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.wandb_faults import SCENARIOS, SHORT, play


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="wandb's process is found in /proc")
def test_a_run_outlives_its_server(tmp_path: Path) -> None:
    (scenario,) = (scenario for scenario in SCENARIOS if scenario.name == "the server dies in mid-run")
    finding = play(scenario, tmp_path, SHORT)
    assert finding.ok, finding
