"""What the fault harness finds: each topic module of this folder yields findings, `report.py` prints them.

A topic module has `findings(scale)`: `scale` 1.0 is the whole measurement, less a smaller one (fewer kills, less time).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was done, what came of it in figures, whether that is as promised."""

    done: str
    result: str
    ok: bool
    seen: str = ""  # what the user sees on the console, verbatim
    timed: bool = False  # a judgement of times, which others who use the machine disturb: a report tells, no test
