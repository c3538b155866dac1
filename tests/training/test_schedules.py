"""Learning rates against their formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from gpt.config import ScheduleConfig
from gpt.training.schedules import lr_scale

NAMES = ("cosine", "linear", "wsd", "constant")


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_is_linear_and_every_step_moves(name: str) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=10)
    scales = [lr_scale(schedule, step, 100) for step in range(100)]
    assert scales[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert max(scales) <= 1
    assert min(scales) > 0


def test_cosine() -> None:
    schedule = ScheduleConfig(name="cosine", warmup_steps=0, final_lr_ratio=0.1)
    for step in range(50):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step + 1) / 51)) / 2
        assert lr_scale(schedule, step, 50) == pytest.approx(expected)


def test_linear_ends_at_the_final_ratio() -> None:
    schedule = ScheduleConfig(name="linear", warmup_steps=0, final_lr_ratio=0.25)
    scales = [lr_scale(schedule, step, 1000) for step in range(1000)]
    assert scales[-1] == pytest.approx(0.25, abs=1e-3)
    steps = [b - a for a, b in pairwise(scales)]
    assert max(steps) == pytest.approx(min(steps))


def test_wsd_is_stable_then_decays() -> None:
    schedule = ScheduleConfig(name="wsd", warmup_steps=5, decay_fraction=0.2)
    scales = [lr_scale(schedule, step, 100) for step in range(100)]
    assert scales[5:80] == [1.0] * 75
    assert all(b < a for a, b in pairwise(scales[79:]))


def test_warm_up_by_default_is_a_tenth_and_at_most_fifty_steps() -> None:
    for max_steps, expected in ((5, 0), (100, 10), (10_000, 50)):
        rising = sum(lr_scale(ScheduleConfig(name="constant"), step, max_steps) < 1 for step in range(max_steps))
        assert rising == expected
