"""A run that reports to Weights & Biases, with a server that dies under it and short limits. All scenarios are in
`wandb_faults.findings`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.wandb_faults import SCENARIOS, SHORT, Scenario, play

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="wandb's process is found in /proc")]


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.during], ids=lambda s: s.name)
def test_a_run_outlives_its_trouble(scenario: Scenario, tmp_path: Path) -> None:
    finding = play(scenario, tmp_path, SHORT)
    assert finding.ok, finding
