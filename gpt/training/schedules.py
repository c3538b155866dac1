"""The learning rate as a pure function of the step.

Sources: cosine: Loshchilov and Hutter 2017 (SGDR), as used by GPT-3; wsd (warm-up, stable, decay): Hu et al. 2024
(MiniCPM).
"""

from __future__ import annotations

import math

from gpt.config import ScheduleConfig


def lr_scale(schedule: ScheduleConfig, step: int, max_steps: int) -> float:
    """Learning rate of update `step` (0 … max_steps - 1) over its peak, in (0, 1]."""
    warmup = min(50, max_steps // 10) if schedule.warmup_steps is None else schedule.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    start = warmup
    if schedule.name == "wsd":
        start = max(start, max_steps - round(schedule.decay_fraction * max_steps))
    if schedule.name == "constant" or step < start:
        return 1.0
    progress = (step - start + 1) / (max_steps - start + 1)  # in (0, 1): the last update still moves
    left = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.name == "cosine" else 1 - progress
    return schedule.final_lr_ratio + (1 - schedule.final_lr_ratio) * left
