"""Runs that are killed at random instants and started again until they are done, against the same run undisturbed.

Each configuration is trained once in peace; then the same command runs in other folders and is killed again and
again: at any instant of its life, and aimed at the moments that a checkpoint is written, the model is evaluated, the
corpus is prepared, or the process starts. When the run is done, the next begins, until the kills are used up.
"""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.compare import broken_checkpoints, differences
from tests.faults.configurations import CONFIGURATIONS, configured
from tests.faults.findings import Finding
from tests.faults.processes import Job, Running

SEED = 20260
KILLS = 30  # of each configuration, at scale 1
MANY = 20  # in all: so many must tell of runs at every stage
AT_ONCE = 2  # configurations
MOST_KILLS_A_RUN = 12  # after so many a run is left to end, so that each is compared
QUIET = 5.0  # seconds within which a second Ctrl-C must have ended the process

SIGNALS = {"SIGKILL": 70, "SIGTERM": 12, "SIGINT": 10, "SIGINT twice": 8}  # and how often
AIMS = {"any instant": 25, "training": 35, "a checkpoint": 20, "an evaluation": 8, "the corpus": 6, "the start": 6}
STATUSES = {  # that a process may end with: by the signal itself before it listens, by its own decision after
    "SIGKILL": {-signal.SIGKILL}, "SIGTERM": {143, -signal.SIGTERM},
    "SIGINT": {130, -signal.SIGINT}, "SIGINT twice": {130, -signal.SIGINT},
}  # fmt: skip


@dataclass
class Tally:
    """What came of the kills of one configuration."""

    name: str
    runs: int = 0
    late: int = 0  # signals that found the process ended
    signals: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)  # by signal

    @property
    def kills(self) -> int:
        return self.signals.total()


@dataclass(frozen=True)
class Pace:
    """What an undisturbed run took, in seconds, and its steps."""

    start: float
    training: float
    steps: int

    def left(self, done: int) -> float:
        return self.training * max(0.0, 1 - done / self.steps)


def findings(scale: float) -> Iterator[Finding]:
    kills, seed = max(3, round(KILLS * scale)), SEED
    with tempfile.TemporaryDirectory(prefix="newleaf-kills-") as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        chosen = list(CONFIGURATIONS)[: max(2, round(len(CONFIGURATIONS) * 10 * scale))]
        campaigns = [
            pool.submit(campaign, name, Path(folder) / name, kills, seed + number) for number, name in enumerate(chosen)
        ]
        tallies = []
        for done in as_completed(campaigns):
            tallies.append(done.result())
            yield report(tallies[-1])
    yield total(tallies, seed)


def report(tally: Tally) -> Finding:
    wrong = f"{len(tally.wrong)} differences from the undisturbed run: {'; '.join(tally.wrong[:3])}"
    result = (
        f"{tally.runs} runs killed {tally.kills} times ({listed(tally.signals)}; {tally.late} signals came too late): "
        + (wrong if tally.wrong else "each ended byte for byte as undisturbed")
    )
    seen = "\n".join(f"[{name}] {text}" for name, text in tally.seen.items())
    return Finding(f"{tally.name}: killed and continued", result, not tally.wrong and tally.runs > 0, seen)


def total(tallies: list[Tally], seed: int) -> Finding:
    phases = sum((tally.phases for tally in tallies), Counter())
    begun = sum(count for phase, count in phases.items() if phase not in ("starting", "preparing the corpus"))
    kills, runs = phases.total(), sum(tally.runs for tally in tallies)
    wrong = sum(len(tally.wrong) for tally in tallies)
    result = (
        f"{kills} kills in {runs} runs of {len(tallies)} configurations, {begun} after training began, by phase: "
        f"{listed(phases)}; {wrong} lost or repeated batches, broken checkpoints or other differences"
    )
    telling = kills < MANY or 2 * begun >= kills  # of few, chance may have all come before training begins
    return Finding(f"all kills (seed {seed})", result, not wrong and telling)


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def campaign(name: str, cwd: Path, kills: int, seed: int) -> Tally:
    """Train a configuration undisturbed, then kill it `kills` times over as many runs as that takes."""
    chance, tally = random.Random(seed), Tally(name)
    job = configured(name, cwd)
    pace = undisturbed(job)
    while tally.kills < kills and tally.runs < kills:
        killed = job.changed(run_dir=f"killed-{tally.runs:03d}")
        most = tally.kills + min(MOST_KILLS_A_RUN, kills - tally.kills)
        while tally.kills < most and not disturb(killed, pace, chance, tally):
            pass
        last = killed.run()
        if last.status != 0 or last.traceback:
            tally.wrong.append(f"{killed.run_dir.name} ended with status {last.status}: {last.seen}")
        else:
            tally.wrong += [f"{killed.run_dir.name}: {line}" for line in differences(job.run_dir, killed.run_dir)]
        left = [path.name for path in killed.prepared_dir.glob(".*.tmp")]
        tally.wrong += [f"left behind: {name}" for name in left]
        tally.runs += 1
        shutil.rmtree(killed.run_dir)
    return tally


def undisturbed(job: Job) -> Pace:
    """Train without a disturbance; how long that took."""
    began = time.monotonic()
    running = job.start()
    assert running.wait_until(lambda: running.last_step() is not None, every=0.01), running.said
    first = time.monotonic()
    assert running.end() == 0, running.said
    last = running.last_step()
    assert last is not None
    return Pace(first - began, time.monotonic() - first, last[0])


def disturb(job: Job, pace: Pace, chance: random.Random, tally: Tally) -> bool:
    """Start the run (again), and end it with a signal at a moment drawn from `chance`. Whether it was done by then."""
    aim, how = drawn(AIMS, chance), drawn(SIGNALS, chance)
    if aim == "the corpus":
        shutil.rmtree(job.prepared_dir, ignore_errors=True)
    old = unfinished(job)
    running = job.start()
    wait(running, job, aim, pace, old, chance)
    phase = phase_of(running, job, old)
    if not running.alive:
        tally.late += 1
        return ended_well(running, tally)
    sent = time.monotonic()
    numbers = [signal.Signals[how.split()[0]]] * (2 if how == "SIGINT twice" else 1)
    status = running.end(*numbers, gap=chance.uniform(0, 0.05))
    if status == 0:
        tally.late += 1
        return ended_well(running, tally)
    if how == "SIGKILL":
        phase = phase_of(running, job, old)  # the last that it did, which cannot have changed any more
    tally.signals[how] += 1
    tally.phases[phase] += 1
    told = f"{how} while {phase}: status {status}"
    in_python = phase == "starting" and how.startswith("SIGINT") and running.traceback
    if status not in STATUSES[how] and not in_python:  # before there is a line of ours: then Python's own status is 1
        tally.wrong.append(f"{told}, said {running.seen}")
    if running.traceback and phase != "starting":
        tally.wrong.append(f"{told}, with a traceback: {running.seen}")
    if how == "SIGINT twice" and time.monotonic() - sent > QUIET:
        tally.wrong.append(f"{told}, after {time.monotonic() - sent:.1f} s")
    if phase == "training" and how != "SIGKILL":
        tally.seen.setdefault(how, running.seen)
    tally.wrong += [f"{told}: {line}" for line in broken_checkpoints(job.run_dir)]
    return False


def ended_well(running: Running, tally: Tally) -> bool:
    if running.process.wait() != 0:
        tally.wrong.append(f"ended by itself with status {running.status}: {running.seen}")
    return True


def wait(running: Running, job: Job, aim: str, pace: Pace, old: set[str], chance: random.Random) -> None:
    """Until the moment to strike, or the process's end."""
    if aim == "the start":
        running.sleep(chance.uniform(0, 0.5))
    elif aim == "the corpus":
        if running.wait_until(lambda: preparing(unfinished(job) - old), every=0.001):
            running.sleep(chance.uniform(0, 0.08))
    elif aim == "any instant":
        running.sleep(chance.uniform(0, pace.start + pace.left(done(job))))
    elif running.wait_until(lambda: running.last_step() is not None):
        running.sleep(chance.uniform(0, 0.8 * pace.left(done(job))))
        if aim == "a checkpoint" and running.wait_until(lambda: bool(unfinished(job) - old), every=0.0005):
            running.sleep(chance.choice([0, chance.uniform(0, 0.015)]))
        elif aim == "an evaluation" and running.wait_until(lambda: evaluating(running, job), every=0.001):
            running.sleep(chance.uniform(0, 0.03))


def phase_of(running: Running, job: Job, old: set[str]) -> str:
    """What a process was doing, from what it has said and what lies unfinished in its folders."""
    new = unfinished(job) - old
    if preparing(new):
        return "preparing the corpus"
    if running.last_step() is None:
        return "starting"
    if new:
        return "tidying checkpoints" if any("old" in name or "best" in name for name in new) else "writing a checkpoint"
    return "evaluating" if evaluating(running, job) else "training"


def preparing(new: set[str]) -> bool:
    return any(name.startswith(".") for name in new)


def evaluating(running: Running, job: Job) -> bool:
    """Whether the last that was told is a step whose evaluation has not been told."""
    last = running.last_step()
    return last is not None and not last[1] and last[0] % int(str(job.options["train.eval_every"])) == 0


def unfinished(job: Job) -> set[str]:
    """Corpora and checkpoints that are being written or deleted, each with what tells it from one of the same name
    before."""
    found = set()
    for path in (*job.prepared_dir.glob(".*.tmp"), *(job.run_dir / "checkpoints").glob("partial-*")):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # it has its name now
        found.add(f"{path.name} {status.st_ino} {status.st_ctime_ns}")
    return found


def done(job: Job) -> int:
    """The step of the newest checkpoint."""
    names = [path.name.removeprefix("step-") for path in (job.run_dir / "checkpoints").glob("step-*")]
    return max((int(name) for name in names), default=0)


def drawn(weights: dict[str, int], chance: random.Random) -> str:
    return chance.choices(list(weights), list(weights.values()))[0]
