"""The picture of a sweep: the validation loss of every run, and the best loss against what was swept.

Losses are nats a token.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt.sweeps.results import Result, short
from gpt.text.files import replacing

NAMED = 10  # runs with a colour and a place in the legend, the best; the others are grey
MOST_POINTS = 1000  # of a curve: more than the picture has columns
MOST_MARKERS = 50  # on a curve
MOST_LINES = 8  # of best losses; with more of them, colours tell the loss where two options were swept
DECADE = 10.0  # numbers that span more than a factor of it get a logarithmic axis


def draw_sweep(results: Sequence[Result], path: Path, title: str) -> bool:
    """Draw the runs, the best first, replacing the picture in one move. Returns whether there was anything to draw."""
    from matplotlib.figure import Figure  # slow to import

    measured = [result for result in results if result.best]
    if not measured:
        return False
    swept = numeric_options(results)
    panels = 2 if len(swept) in (1, 2) and len(measured) > 1 else 1
    figure = Figure(figsize=(7 * panels, 4.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    draw_curves(axes[0], measured)
    if panels == 2:
        if len(swept) == len(measured[0].values) == 2 and len(by_others(measured, swept[0])) > MOST_LINES:
            draw_plane(axes[1], measured, swept)
        else:
            draw_against(axes[1], measured, swept[0])
    figure.suptitle(title)
    with warnings.catch_warnings(), replacing(path) as partial:
        warnings.filterwarnings("ignore", "Glyph")  # a title in a script that the font lacks shows boxes
        figure.savefig(partial, format="png", dpi=120)
    return True


def draw_curves(axes: Any, results: Sequence[Result]) -> None:
    """The validation loss of each run against the step; [0] is the best run."""
    for place, result in reversed(list(enumerate(results))):  # the best one on top
        stride = -(-len(result.evaluations) // MOST_POINTS)
        points = [(point.step, point.loss) for point in result.evaluations[::stride]]
        style: dict[str, Any] = {"lw": 1, "color": "0.8"}
        if place < NAMED:
            style = {"lw": 1.5, "color": f"C{place}", "label": label(result)}
            style |= {"marker": "o", "ms": 3} if len(points) <= MOST_MARKERS else {}
        axes.plot(*zip(*points, strict=True), **style)
    axes.set(xlabel="step", ylabel="validation loss (nats per token)")
    scale(axes.set_yscale, [point.loss for result in results for point in result.evaluations])
    axes.grid(alpha=0.3, which="both")
    handles, labels = axes.get_legend_handles_labels()
    more = f"best {NAMED} of {len(results)}" if len(results) > NAMED else None
    axes.legend(handles[::-1], labels[::-1], fontsize="x-small", title=more, title_fontsize="x-small")


def label(result: Result) -> str:
    """As in the legend: the swept values and the best loss."""
    assert result.best is not None
    return f"{listed(result.values)}: {result.best.loss:.4f}"


def listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={short(value)}" for name, value in values.items())


def draw_against(axes: Any, results: Sequence[Result], option: str) -> None:
    """The best loss against a numeric option: a line for each combination of the other values, where these are few."""
    lines = by_others(results, option)
    for name, group in lines.items():
        points = sorted((result.values[option], result.best.loss) for result in group if result.best)
        style = {"lw": 1.5, "label": name} if len(lines) <= MOST_LINES else {"ls": "none", "color": "C0"}
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, **style)
    axes.set(xlabel=option, ylabel="best validation loss (nats per token)")
    scale(axes.set_xscale, [result.values[option] for result in results])
    scale(axes.set_yscale, [result.best.loss for result in results if result.best])
    axes.grid(alpha=0.3, which="both")
    if 1 < len(lines) <= MOST_LINES:
        axes.legend(fontsize="x-small")


def by_others(results: Sequence[Result], option: str) -> dict[str, list[Result]]:
    """The runs by what was swept besides `option`, as a legend has it; the best first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        others = {name: value for name, value in result.values.items() if name != option}
        groups.setdefault(listed(others), []).append(result)
    return groups


def draw_plane(axes: Any, results: Sequence[Result], swept: Sequence[str]) -> None:
    """The best loss as a colour, over both options; a star at the best run."""
    from matplotlib.colors import LogNorm, Normalize

    xs, ys = ([result.values[name] for result in results] for name in swept)
    losses = [result.best.loss for result in results if result.best]
    norm = (LogNorm if spans_a_decade(losses) else Normalize)(min(losses), max(losses))
    points = axes.scatter(xs, ys, c=losses, norm=norm, cmap="viridis_r", s=40)
    axes.plot(xs[0], ys[0], marker="*", ms=16, mfc="none", mec="C3", ls="none", label="best")
    axes.set(xlabel=swept[0], ylabel=swept[1])
    scale(axes.set_xscale, xs)
    scale(axes.set_yscale, ys)
    axes.grid(alpha=0.3)
    axes.figure.colorbar(points, ax=axes, label="best validation loss (nats per token)")
    axes.legend(fontsize="x-small")


def numeric_options(results: Sequence[Result]) -> list[str]:
    """The swept options whose values are numbers in all runs, those with most of them first."""
    names = [name for name in results[0].values if all(is_number(result.values[name]) for result in results)]
    return sorted(names, key=lambda name: -len({result.values[name] for result in results}))


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def scale(set_scale: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where the values span more than a decade."""
    if spans_a_decade(values):
        set_scale("log")


def spans_a_decade(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > DECADE * min(values)
