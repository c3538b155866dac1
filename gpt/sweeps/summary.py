"""The runs of a sweep side by side: a table on standard error, `sweep.jsonl` and `sweep.png` in their folder.

JSON lines, as all else that runs write: numbers stay numbers and what is missing is null, whatever characters the swept
values have, and `pandas.read_json(path, lines=True)` reads them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from gpt.options import say
from gpt.sweeps.picture import draw_sweep
from gpt.sweeps.results import Result, short, was_interrupted
from gpt.text.files import write_whole


def ranked(results: Sequence[Result]) -> list[Result]:
    """The best loss first; those without one last, in the order of the sweep."""
    return sorted(results, key=lambda result: result.best.loss if result.best else math.inf)


def print_summary(results: Sequence[Result]) -> None:
    """The table of all runs that were started or have left something, and what to do about the others."""
    from rich.console import Console  # not before it is needed: --help does without
    from rich.table import Table

    shown = [result for result in ranked(results) if result.status is not None or result.best]
    if not shown:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in results[0].values:
        table.add_column(name, overflow="fold")
    for name in ("val loss", "bits/byte", "at step", "tokens/s", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    for result in shown:
        table.add_row(*cells(result))
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000  # a file has no edge at which to fold
    console.print(table)
    tell_rest(results)


def cells(result: Result) -> list[str]:
    best = result.best
    figures = [
        best and f"{best.loss:.4f}",
        best and best.bits_per_byte is not None and f"{best.bits_per_byte:.3f}",
        best and f"{best.step:,}",
        result.tokens_per_second is not None and f"{result.tokens_per_second:,.0f}",
        result.seconds is not None and f"{result.seconds:,.{0 if result.seconds >= 10 else 1}f}",
    ]
    return [*map(short, result.values.values()), *(figure or "" for figure in figures), result.state]


def tell_rest(results: Sequence[Result]) -> None:
    """Which runs are not done, and what finishes them."""
    failed = [result for result in results if result.status and not was_interrupted(result.status)]
    if failed:
        listed = ", ".join(f"{result.run.folder} (exit status {result.status})" for result in failed)
        say(f"{len(failed)} of {len(results)} runs failed: {listed}")
    unfinished = sum(result.status is None or was_interrupted(result.status) for result in results)
    if unfinished:
        say(f"{unfinished} of {len(results)} runs are not done. The same command continues.")


def write_summary(folder: Path, results: Sequence[Result]) -> None:
    """Write `sweep.jsonl` and `sweep.png`, where any run has left anything. Raises OSError."""
    if not folder.is_dir():
        return
    write_whole(folder / "sweep.jsonl", [as_line(result) for result in ranked(results)])
    if draw_sweep(ranked(results), folder / "sweep.png", str(folder)):
        say(f"All runs: {folder / 'sweep.jsonl'}, {folder / 'sweep.png'}")


def as_line(result: Result) -> str:
    best = result.best
    values = {
        "run": str(result.run.folder),
        "state": result.state,
        "exit_status": result.status,
        **result.values,
        "val/loss": best and best.loss,
        "val/bits_per_byte": best and best.bits_per_byte,
        "step": best and best.step,
        "tokens_per_second": result.tokens_per_second,
        "seconds": result.seconds,
    }
    return json.dumps(values, ensure_ascii=False) + "\n"
