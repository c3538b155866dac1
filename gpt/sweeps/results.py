"""What a run of a sweep came to, read from the files that it left, whole or not: metrics.jsonl and config.yaml.

Losses are nats a token, `bits_per_byte` bits a UTF-8 byte, speeds tokens a second.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpt.options import written
from gpt.signals import SIGNALS, UNREAD
from gpt.sweeps.plan import Run

INTERRUPTED = {128 + number for number in (*SIGNALS, UNREAD)}  # what train.py exits with once it has saved


@dataclass(frozen=True)
class Evaluation:
    step: int
    loss: float
    bits_per_byte: float | None


@dataclass(frozen=True)
class Result:
    """A run, how it ended (None: it was not started) and what its files say."""

    run: Run
    status: int | None
    values: dict[str, Any]  # of the swept options, as the run took them
    evaluations: list[Evaluation] = field(default_factory=list)  # those with finite losses
    tokens_per_second: float | None = None  # the median
    seconds: float | None = None  # of training and evaluation, over all sessions

    @property
    def best(self) -> Evaluation | None:
        return min(self.evaluations, key=lambda evaluation: evaluation.loss, default=None)

    @property
    def state(self) -> str:
        if self.status is None:
            return "not started"
        if self.status == 0:
            return "done"
        return "interrupted" if was_interrupted(self.status) else f"failed with exit status {self.status}"


def was_interrupted(status: int) -> bool:
    """Whether a signal ended a process, which a negative status says, or it ended itself for one."""
    return status in INTERRUPTED or status < 0


def read_result(run: Run, status: int | None) -> Result:
    """What the run left. Files that are missing or damaged leave gaps; nothing is raised for them."""
    values = values_taken(run)
    evaluations, speeds, seconds = [], [], None
    for line in lines_of(run.folder / "metrics.jsonl"):
        step, loss = line.get("step"), number(line.get("val/loss"))
        if isinstance(step, int) and loss is not None:
            evaluations.append(Evaluation(step, loss, number(line.get("val/bits_per_byte"))))
        if (speed := number(line.get("train/tokens_per_second"))) is not None:
            speeds.append(speed)
        if (elapsed := number(line.get("elapsed_seconds"))) is not None:
            seconds = elapsed
    return Result(run, status, values, evaluations, statistics.median(speeds) if speeds else None, seconds)


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, as far as it can be read; what is none is passed over."""
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    values = json.loads(line)
                except (ValueError, RecursionError):  # cut by a kill, or damaged
                    continue
                if isinstance(values, dict):
                    yield values
    except OSError:
        return


def number(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # thousands of digits
        return None


def values_taken(run: Run) -> dict[str, Any]:
    """The swept values as the run's config.yaml has them (what train.batch_size=auto came to), else as planned."""
    try:
        content = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        content = None
    return {name: taken(content, name, planned) for name, planned in run.values.items()}


def taken(content: Any, name: str, planned: Any) -> Any:
    for part in name.split("."):
        if not isinstance(content, Mapping) or part not in content:
            return planned
        content = content[part]
    return planned if isinstance(content, (Mapping, list)) else content  # a group has a choice, not a value


def short(value: Any) -> str:
    """A value for people: of a float that was drawn at random, four figures."""
    return f"{value:.4g}" if isinstance(value, float) else written(value)
