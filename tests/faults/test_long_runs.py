"""The shortest of the long runs. `long_runs.findings(1)` is the whole."""

from __future__ import annotations

import sys

import pytest

from tests.faults.long_runs import findings


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_does_not_grow() -> None:
    found = list(findings(0))
    assert [finding.timed for finding in found] == [False, False, True, True, True]
    assert not [finding for finding in found if not finding.ok and not finding.timed]
