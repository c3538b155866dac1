"""The runs of a sweep, each in a process of its own, until all have ended or a signal comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from gpt.arguments import Command
from gpt.options import say
from gpt.signals import NotedSignals
from gpt.sweeps.plan import Plan, Run, plan_runs
from gpt.sweeps.results import read_result
from gpt.sweeps.summary import print_summary, write_summary

CTRL_C = (128 + signal.SIGINT, -signal.SIGINT)  # how a run ends that has got one
POLL_SECONDS = 0.05
ECHO = 1.0  # seconds in which a run ends by the terminal's own Ctrl-C if it is not training yet


def run_sweep(command: Command, argv: Sequence[str]) -> int:
    """Runs each combination of swept values; then, however that went, compares them.

    Returns the exit status: 0, or 1 where any run is not done, or 128 plus the number of the signal that came.
    """
    plan = plan_runs(command, argv)
    with Interrupts() as interrupts:
        statuses = run_all(plan, interrupts)
        results = [read_result(run, statuses.get(run.folder)) for run in plan.runs]
        print_summary(results)
        write_summary(plan.folder, results)
    if interrupts.received:
        return interrupts.exit_status
    return 1 if len(statuses) < len(plan.runs) or any(statuses.values()) else 0


def run_all(plan: Plan, interrupts: Interrupts) -> dict[Path, int]:
    """Run them one after another. Returns the exit statuses of those that were started."""
    statuses: dict[Path, int] = {}
    for number, run in enumerate(plan.runs, 1):
        say(f"run {number} of {len(plan.runs)}: {run.folder}")
        statuses[run.folder] = status = interrupts.wait(start(run))
        if status in CTRL_C:
            interrupts.note(signal.SIGINT)
        if interrupts.received:
            break
    return statuses


def start(run: Run) -> subprocess.Popen[bytes]:
    """This interpreter with its flags and this script again, with the arguments of the run."""
    return subprocess.Popen([*sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])], *run.arguments])


class Interrupts(NotedSignals):
    """While entered, signals are only noted, and what runs gets time to save."""

    since = 0.0  # by the monotonic clock, that of the first

    def note(self, number: int, frame: FrameType | None = None) -> None:
        if self.received is None:
            self.since = time.monotonic()
        super().note(number, frame)

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """The exit status of a run, which is told once when a signal comes.

        It is told by SIGTERM, and a little later: the terminal sends Ctrl-C to all processes, and a second SIGINT
        would end the run at once.
        """
        told = False
        while (status := process.poll()) is None:
            if self.received and not told and time.monotonic() - self.since > ECHO:
                process.send_signal(signal.SIGTERM)
                told = True
            time.sleep(POLL_SECONDS)
        return status
