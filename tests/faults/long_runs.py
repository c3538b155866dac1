"""A long run of tiny steps: memory, open files and the cost of a step stay the same, and so does the time to resume."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from gpt.training.curves import draw_curves, read_curves
from tests.faults.findings import Finding
from tests.faults.processes import Job, tiny, write_book

STEPS = 100_000  # at scale 1
FEWEST = 6_000
RESUMED_AT = 1_000  # what a resume at the end is compared to
RESUMES = 3  # of each, the fastest counts
LOG_EVERY = 10
LOOK = 0.05  # seconds between two looks: on a quick machine the shortest run takes few
GROWTH = 0.02  # of resident memory from a tenth of the run on, or
SOME = 20  # samples, to tell growth from
SLACK = 6 * 2**20  # bytes, whatever is more
SLOWER = 1.25  # a step at the end may take so much of the processor's time compared to one at the start
LATER = (
    0.5  # seconds that a resume at the end may take more than an early one, of which three parts in four are imports
)


@dataclass(frozen=True)
class Sample:
    """A process at one moment, as Linux tells: bytes, seconds of the processor."""

    step: int
    resident: int
    descriptors: int
    threads: int
    processor: float
    drawn: bool  # whether there was a picture yet, which needs matplotlib


def findings(scale: float) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        cwd = Path(folder)
        write_book(cwd / "book.txt")
        steps = max(FEWEST, round(STEPS * scale))
        long, short = job(cwd, "long", steps), job(cwd, "short", RESUMED_AT)
        samples = watched(long)
        yield from growth(samples, steps)
        yield drawing(long, steps)
        short.run()
        yield resuming(short, long, steps)


def job(cwd: Path, run_dir: str, steps: int) -> Job:
    every = 1000 if steps >= STEPS / 2 else 250  # so that a short one does it often, too
    return tiny(
        cwd, run_dir, model__n_layer=1, model__n_head=1, model__n_embd=16, model__context_length=8,
        train__batch_size=1, train__log_every=LOG_EVERY, train__eval_every=every, train__checkpoint_every=every,
        train__eval_tokens=100, train__sample_tokens=5, train__max_steps=steps,
    )  # fmt: skip


def watched(training: Job) -> list[Sample]:
    """Run it to its end, looking at it all the while."""
    running, samples = training.start(), []
    while running.sleep(LOOK):
        step, _ = running.last_step() or (0, False)
        try:
            samples.append(sample(running.process.pid, step, (training.run_dir / "loss.png").exists()))
        except (OSError, TypeError):  # it has just ended
            break
    if running.end() != 0:
        raise RuntimeError(running.seen)
    return samples


def sample(pid: int, step: int, drawn: bool) -> Sample:
    folder = Path("/proc", str(pid))
    status = (folder / "status").read_text()
    resident, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))  # type: ignore[index]
    ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
    processor = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return Sample(step, resident * 1024, len(os.listdir(folder / "fd")), threads, processor, drawn)


def growth(samples: list[Sample], steps: int) -> Iterator[Finding]:
    """From a tenth of the run on, once there has been a picture, to its last step: the summary compresses the text.
    Of a run that is too quick for pictures but the last, before matplotlib was imported for that."""
    later = [sample for sample in samples if steps / 10 <= sample.step < steps]
    drawn = [sample for sample in later if sample.drawn]
    if len(drawn) < SOME:
        before = [sample for sample in later if not sample.drawn]
        later = [sample for sample in before if sample.step < before[-1].step]
    else:
        later = drawn
    tenth = max(3, len(later) // 10)  # some, as one may be of the moment that a file is open
    first, last = later[:tenth], later[-tenth:]
    name = f"{steps:,} steps of a tiny model, a line of metrics every {LOG_EVERY}, from step {first[0].step:,} on"

    resident = [max(sample.resident for sample in part) for part in (first, last)]
    grown = resident[1] - resident[0]
    shown = f"resident memory {resident[0] / 2**20:.1f} → {resident[1] / 2**20:.1f} MiB"
    yield Finding(name, shown, grown <= max(SLACK, GROWTH * resident[0]))

    open_files = [min(sample.descriptors for sample in part) for part in (first, last)]  # more while one is read
    threads = [min(sample.threads for sample in part) for part in (first, last)]
    shown = f"open files {open_files[0]} → {open_files[1]}, threads {threads[0]} → {threads[1]}"
    yield Finding(name, shown, open_files[0] == open_files[1] and threads[0] == threads[1])

    paces = sorted(paces_of(later[: len(later) * 3 // 10])), sorted(paces_of(later[-len(later) * 3 // 10 :]))
    early, late = (1e3 * pace[len(pace) // 2] for pace in paces)
    shown = f"the processor's time for a step (logged, evaluated, saved) {early:.2f} → {late:.2f} ms"
    yield Finding(name, shown, late <= SLOWER * early, timed=True)


def paces_of(samples: list[Sample]) -> list[float]:
    """Seconds of the processor for a step, over some seconds each; of a short run, over a third of the samples each."""
    some = samples[:: max(1, min(20, (len(samples) - 1) // 3))]
    return [(b.processor - a.processor) / (b.step - a.step) for a, b in pairwise(some) if b.step > a.step]


def drawing(training: Job, steps: int) -> Finding:
    """The picture of the whole run against that of its first lines."""
    path, few = training.run_dir / "metrics.jsonl", training.cwd / "few.jsonl"
    with path.open("rb") as file:
        few.write_bytes(b"".join(line for line, _ in zip(file, range(3000), strict=False)))
    began = time.perf_counter()
    whole = read_curves(path)
    read = time.perf_counter() - began
    times = []
    for curves in (read_curves(few), whole):
        spent = []
        for _ in range(4):
            began = time.perf_counter()
            draw_curves(curves, training.cwd / "curves.png", "curves")
            spent.append(time.perf_counter() - began)
        times.append(min(spent))
    shown = f"{1e3 * times[0]:.0f} → {1e3 * times[1]:.0f} ms; reading them, once a session, {1e3 * read:.0f} ms"
    name = f"drawing the curves of 3,000 lines of metrics → of {steps // LOG_EVERY:,}"
    return Finding(name, shown, times[1] <= 2 * times[0] and read < 1, timed=True)


def resuming(short: Job, long: Job, steps: int) -> Finding:
    """From the command to the first new step, early and late in a run. Both are extended a few times, in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(RESUMES):
        for training, done, found in zip((short, long), (RESUMED_AT, steps), times, strict=True):
            found.append(resumed(training, done + number * LOG_EVERY))
    early, late = map(min, times)
    shown = f"{early:.2f} s at step {RESUMED_AT:,}, {late:.2f} s at step {steps:,}"
    name = "resuming: from the command to the first new line of metrics"
    return Finding(name, shown, late <= early + LATER, timed=True)


def resumed(training: Job, done: int) -> float:
    began = time.perf_counter()
    running = training.changed(train__max_steps=done + LOG_EVERY).start()
    if not running.wait_for_step(done + LOG_EVERY):
        raise RuntimeError(running.seen)
    seconds = time.perf_counter() - began
    running.end()
    return seconds
