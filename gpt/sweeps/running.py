"""The runs of a sweep, each in a process of its own, until all have ended or a signal comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from filelock import FileLock, Timeout

from gpt.arguments import Command
from gpt.config.sweep import LauncherConfig
from gpt.options import UserError, say
from gpt.signals import NotedSignals
from gpt.sweeps.options import load_sweep
from gpt.sweeps.plan import Plan, Run, plan_runs
from gpt.sweeps.results import read_result
from gpt.sweeps.study import Study
from gpt.sweeps.submitting import Submitit
from gpt.sweeps.summary import print_summary, write_summary

CTRL_C = (128 + signal.SIGINT, -signal.SIGINT)  # how a run ends that has got one
POLL_SECONDS = 0.05
ECHO = 1.0  # seconds in which a run ends by the terminal's own Ctrl-C if it is not training yet


def run_sweep(command: Command, argv: Sequence[str]) -> int:
    """Runs each combination of swept values, or those that a search asks for; then, however that went, compares them.

    Returns the exit status: 0, or 1 where any run is not done, or 128 plus the number of the signal that came.
    """
    options, argv = load_sweep(command, argv)
    searching = options.sweeper.name == "optuna"
    plan = Study(command, argv, options.sweeper) if searching else plan_runs(command, argv)
    launcher = launcher_of(options.launcher)
    with alone(plan, launcher), Interrupts() as interrupts:
        statuses = run_all(plan, launcher, interrupts)
        results = [read_result(run, statuses.get(run.folder)) for run in plan.runs]
        print_summary(results)
        if isinstance(plan, Study) and (verdict := plan.verdict()):
            say(verdict)
        write_summary(plan.folder, results)
    if interrupts.received:
        return interrupts.exit_status
    return 1 if len(statuses) < len(plan.runs) or any(statuses.values()) else 0


@contextmanager
def alone(plan: Plan | Study, launcher: Launcher) -> Iterator[None]:
    """Opens what is kept in the sweep's folder, for this process alone. Raises UserError."""
    if isinstance(plan, Plan) and isinstance(launcher, Here):
        yield  # nothing is
        return
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(plan.folder / ".sweep.lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"{plan.folder} is in use by another sweep; wait for it, or choose another run_dir") from None
    with held:
        if isinstance(plan, Study):
            plan.open()
        if isinstance(launcher, Submitit):
            launcher.open(plan.folder)
        yield


def run_all(plan: Plan | Study, launcher: Launcher, interrupts: Interrupts) -> dict[Path, int]:
    """Run them, as many at once as both allow. Returns the exit statuses of those that were started."""
    statuses, working = dict(plan.finished), dict[Path, tuple[Run, Started]]()
    told, at_once = False, min(plan.at_once, launcher.at_once)
    while True:
        while len(working) < at_once and not interrupts.received and (run := plan.next()):
            say(f"run {plan.runs.index(run) + 1}{of_all(plan)}: {run.folder}")
            working[run.folder] = run, launcher.start(run)
        if not working:
            return statuses
        if interrupts.received and launcher.leave([started for _, started in working.values()]):
            return statuses
        if interrupts.received and not told and time.monotonic() - interrupts.since > ECHO:
            # SIGTERM, and a little later: the terminal sends Ctrl-C to all processes, and a second SIGINT would end the
            # run at once.
            told = True
            for _, started in working.values():
                started.stop()
        ended = [(run, status) for run, started in working.values() if (status := started.poll()) is not None]
        for run, status in ended:
            del working[run.folder]
            statuses[run.folder] = status
            plan.ended(run, status)
            if status in CTRL_C:
                interrupts.note(signal.SIGINT)
        if not ended:
            time.sleep(launcher.poll_seconds)


def of_all(plan: Plan | Study) -> str:
    return f" of {len(plan.runs) if isinstance(plan, Plan) else plan.options.n_trials}"


class Interrupts(NotedSignals):
    """While entered, signals are only noted, and what runs gets time to save."""

    since = 0.0  # by the monotonic clock, that of the first

    def note(self, number: int, frame: FrameType | None = None) -> None:
        if self.received is None:
            self.since = time.monotonic()
        super().note(number, frame)


class Started(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Its exit status, or None while it has none."""

    def stop(self) -> None:
        """Have it save and end."""


class Launcher(Protocol):
    """What starts runs: `at_once` of them, asked for their ends every `poll_seconds`."""

    at_once: int
    poll_seconds: float

    def start(self, run: Run) -> Started: ...

    def leave(self, jobs: Any) -> bool:
        """Whether what was started goes on without this process, when that is told to end."""


class Process:
    """A run on this terminal."""

    def __init__(self, run: Run) -> None:
        """This interpreter with its flags and this script again, with the arguments of the run."""
        self.process = subprocess.Popen([*sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])], *run.arguments])
        self.poll = self.process.poll

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)


class Here:
    """Starts one run after another on this terminal."""

    at_once, poll_seconds = 1, POLL_SECONDS

    def start(self, run: Run) -> Process:
        return Process(run)

    def leave(self, jobs: Any) -> bool:
        return False


def launcher_of(options: LauncherConfig) -> Here | Submitit:
    """Raises UserError where what it needs is not here."""
    return Here() if options.name == "basic" else Submitit(options)
