"""The curves of a run and their picture, loss.png: of so few points that drawing costs the same at any step.

`train/loss` and `val/loss` are nats a token.
"""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt.text.files import replacing

MOST_LINES = 2000  # of a curve, an even number: twice as many as the picture has columns
STYLES: dict[str, dict[str, Any]] = {
    "train/loss": {"lw": 1, "alpha": 0.6},
    "val/loss": {"lw": 2, "marker": "o", "ms": 3},
}


class Curve:
    """The lines of metrics.jsonl with one metric: all while they are few, then every second, fourth … and the last."""

    def __init__(self, name: str) -> None:
        self.name, self.key = name, f'"{name}":'.encode()
        self.kept: list[bytes] = []
        self.last = b""
        self.stride, self.seen = 1, 0

    def add(self, line: bytes) -> None:
        """Take a line if it has the metric. Parsing waits for the picture: most lines will be in none."""
        if self.key not in line:
            return
        if self.seen % self.stride == 0:
            if len(self.kept) == MOST_LINES:
                self.kept, self.stride = self.kept[::2], 2 * self.stride  # divides `seen`, as the old one did
            self.kept.append(line)
        self.seen, self.last = self.seen + 1, line

    def points(self) -> Iterator[tuple[int, float]]:
        """Steps and values. Lines that are none of metrics, by another hand than ours, are passed over."""
        last_is_kept = (self.seen - 1) % self.stride == 0
        for line in self.kept if last_is_kept else [*self.kept, self.last]:
            try:
                values = json.loads(line)
                yield int(values["step"]), float(values[self.name])
            except (ValueError, TypeError, KeyError):
                continue


def read_curves(path: Path) -> list[Curve]:
    """The curves of the picture as a metrics.jsonl holds them so far."""
    curves = [Curve(name) for name in STYLES]
    with path.open("rb") as file:
        for line in file:
            for curve in curves:
                curve.add(line)
    return curves


def draw_curves(curves: list[Curve], path: Path, title: str) -> None:
    """Plot the curves against the step, replacing the picture in one move."""
    from matplotlib.figure import Figure  # slow to import, so only when a picture is due

    with forgetting():
        figure = Figure(figsize=(7, 4.3), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            if points := list(curve.points()):
                axes.plot(*zip(*points, strict=True), label=curve.name, **STYLES[curve.name])
        axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        with warnings.catch_warnings(), replacing(path) as partial:
            warnings.filterwarnings("ignore", "Glyph")  # a title in a script that the font lacks shows boxes
            figure.savefig(partial, format="png", dpi=120)
        del figure, axes


@contextmanager
def forgetting() -> Iterator[None]:
    """Free what is made within and refers to itself, as a figure and its axes: 2 MB each time, which otherwise waits
    for dozens more. The youngest generation, which is quick to search, has all of it where nothing was collected."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect(0)
