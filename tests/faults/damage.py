"""Damaged files: of the newest, the best, all checkpoints, of the prepared corpus; another version's state; clocks.

The promise: a damaged newest checkpoint is named and set aside, and the run continues from the one before and ends with
the same weights. What cannot be continued is refused with a message, and nothing is lost by that.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.faults.compare import (
    CHECKPOINTS,
    STATE,
    best_name,
    check_checkpoint,
    differences,
    files_of,
    step_folders,
    write_sums,
)
from tests.faults.findings import Finding
from tests.faults.processes import ROOT, Job, Running, one_line, tiny, write_book

SEED = 20261
AT_ONCE = 2  # processes
FUTURE = 2**32 + 2**31  # seconds since 1970: in 2174, beyond 32 bits
# A clock that jumps by up to ten days with each look, to and fro.
JUMPING = """
import random, time
_real, _chance = time.time, random.Random(0)
time.time = lambda: _real() + _chance.uniform(-864000, 864000)
"""


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flipped(file: Path) -> None:
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def deleted(file: Path) -> None:
    file.unlink()


def zeroed(file: Path) -> None:
    """As some file systems leave a file after a loss of power."""
    file.write_bytes(bytes(file.stat().st_size))


DAMAGES: tuple[Callable[[Path], None], ...] = (truncated, flipped, deleted, zeroed)


@dataclass(frozen=True)
class Halfway:
    """A run that ended at its checkpoint 20 or 25 of 30, to be copied, and the same to its end."""

    job: Job  # of the run to its end
    folder: Path  # the run folder as it was halfway

    def copy(self, name: str) -> Job:
        job = self.job.changed(run_dir=name)
        shutil.copytree(self.folder, job.run_dir, symlinks=True)
        return job

    @property
    def newest(self) -> str:
        return step_folders(self.folder)[-1].name


Case = tuple[Halfway, str, Callable[[Path], None]]  # the run, the name of a file, what happens to it


def findings(scale: float) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="newleaf-damage-") as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        cwd = Path(folder)
        write_book(cwd / "book.txt")
        job = tiny(cwd, "undisturbed", train__keep_checkpoints=9)
        assert job.run().status == 0
        halves = [halfway(job, last) for last in (20, 25)]  # the newest is the best, and is not
        names = (f"case-{number}" for number in itertools.count())
        yield from pool.map(newest_damaged, some(newest_cases(halves), scale), names)
        scenarios = (
            best_damaged, all_damaged, another_version, future_times, jumping_clock, edited_corpus,
        )  # fmt: skip
        yield from pool.map(corpus_damaged, some(corpus_cases(halves[1]), scale), names)
        yield from pool.map(lambda scenario: scenario(halves[1]), scenarios)


def halfway(job: Job, last: int) -> Halfway:
    """The run as a kill after its checkpoint `last` leaves it: later ones and the end are not there yet."""
    folder = job.cwd / f"halfway-{last}"
    shutil.copytree(job.run_dir, folder, symlinks=True)
    for path in step_folders(folder):
        if int(path.name.removeprefix("step-")) > last:
            shutil.rmtree(path)
    state = json.loads((step_folders(folder)[-1] / STATE).read_text(encoding="utf-8"))
    best = folder / CHECKPOINTS / "best"
    best.unlink()
    best.symlink_to(f"step-{state['best_step']:08d}", target_is_directory=True)
    return Halfway(job, folder)


def newest_cases(halves: list[Halfway]) -> list[Case]:
    """Every file of the newest checkpoint with every damage."""
    return [
        (half, name, damage)
        for half in halves
        for name in sorted(files_of(step_folders(half.folder)[-1]))
        for damage in DAMAGES
    ]


def corpus_cases(half: Halfway) -> list[Case]:
    """The same of the prepared corpus."""
    return [(half, name, damage) for name in sorted(files_of(prepared_corpus(half))) for damage in DAMAGES]


def some(cases: list[Case], scale: float) -> list[Case]:
    """A part of the cases, drawn by chance; all at scale 1."""
    return random.Random(SEED).sample(cases, min(len(cases), max(3, round(scale * len(cases)))))


def newest_damaged(case: Case, run_dir: str) -> Finding:
    half, name, damage = case
    job = half.copy(run_dir)
    folder = job.run_dir / CHECKPOINTS / half.newest
    damage(folder / name)
    hurt = digest(folder)
    running = job.run()
    wrong = differences(half.job.run_dir, job.run_dir) if running.status == 0 else []
    if running.status != 0 or running.traceback:
        wrong.append(f"ended with status {running.status}")
    if half.newest not in running.said:
        wrong.append(f"{half.newest} is not named")
    if hurt not in {digest(path) for path in (job.run_dir / CHECKPOINTS).iterdir() if path.name[:5] != "step-"}:
        wrong.append("what was damaged is not kept under another name")
    what = "newest and best" if best_name(half.folder) == half.newest else "newest"
    return told(
        f"{name} of the {what} checkpoint {damage.__name__}",
        running,
        wrong,
        "continued from the one before",
        half.newest,
    )


def told(done: str, running: Running, wrong: list[str], right: str, about: str = "") -> Finding:
    """A finding; the user sees the lines about `about`, where the process went on, else its end."""
    lines = [line for line in running.said.splitlines() if about and about in line]
    seen = "\n".join(lines[:3]) if running.status == 0 and lines else running.seen
    return Finding(done, "; ".join(wrong[:3]) or right, ok=not wrong, seen=seen)


def digest(folder: Path) -> str:
    """Of all names and contents in a folder."""
    made = hashlib.sha256()
    for name in sorted(files_of(folder)):
        made.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return made.hexdigest()


def best_damaged(half: Halfway) -> Finding:
    """The best is older than the newest, from which the run goes on."""
    job = half.copy("best-damaged")
    best = best_name(job.run_dir)
    assert best != half.newest
    truncated(job.run_dir / CHECKPOINTS / best / "model.safetensors")
    sampled = Job(job.cwd, "sample.py", {"checkpoint": job.run_dir, "max_new_tokens": 3, "device": "cpu"})
    before = sampled.run()
    running = job.run()
    wrong = [] if one_line(before, 2) else [f"sample.py of it ended with status {before.status}"]
    if running.status != 0 or running.traceback:
        wrong.append(f"training ended with status {running.status}")
    else:
        wrong += differences(half.job.run_dir, job.run_dir)
        check_checkpoint(job.run_dir / CHECKPOINTS / "best")
        wrong += [] if sampled.run().status == 0 else ["sample.py of the run fails afterwards"]
    if best not in running.said:
        wrong.append(f"{best} is not named")
    return told("model.safetensors of an older best checkpoint truncated", running, wrong, "continued", best)


def all_damaged(half: Halfway) -> Finding:
    job = half.copy("all-damaged")
    for folder in step_folders(job.run_dir):
        truncated(folder / "trainer/optimizer.safetensors")
    folders = step_folders(job.run_dir)
    hurt = {digest(folder) for folder in folders}
    running = job.run()
    wrong = [] if one_line(running, 2) else [f"ended with status {running.status}"]
    kept = {digest(path) for path in (job.run_dir / CHECKPOINTS).iterdir()}
    if hurt - kept:
        wrong.append(f"{len(hurt - kept)} of {len(hurt)} checkpoints are gone")
    return told(f"all {len(folders)} checkpoints damaged", running, wrong, "refused, and nothing deleted")


def another_version(half: Halfway) -> Finding:
    job = half.copy("another-version")
    state = job.run_dir / CHECKPOINTS / half.newest / STATE
    state.write_text(json.dumps(json.loads(state.read_text(encoding="utf-8")) | {"format": 99}), encoding="utf-8")
    write_sums(job.run_dir / CHECKPOINTS / half.newest)
    before = digest(job.run_dir / CHECKPOINTS)
    running = job.run()
    wrong = [] if one_line(running, 2) else [f"ended with status {running.status}"]
    if digest(job.run_dir / CHECKPOINTS) != before:
        wrong.append("the checkpoints were changed")
    return told("state.json of another version", running, wrong, "refused, and nothing changed")


def future_times(half: Halfway) -> Finding:
    job = half.copy("future").changed(data__files="[future.txt]")
    shutil.copyfile(job.cwd / "book.txt", job.cwd / "future.txt")
    for path in [job.cwd / "future.txt", *job.run_dir.rglob("*"), job.run_dir]:
        os.utime(path, (FUTURE, FUTURE), follow_symlinks=False)
    return same_end("files of a time to come", half, job)


def jumping_clock(half: Halfway) -> Finding:
    site = half.job.cwd / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(JUMPING, encoding="utf-8")
    job = half.copy("jumping")
    return same_end("a clock that jumps by days", half, Job(
        job.cwd, options=job.options, variables={"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    ))  # fmt: skip


def same_end(done: str, half: Halfway, job: Job) -> Finding:
    running = job.run()
    wrong = differences_but_paths(half, job) if running.status == 0 else [f"status {running.status}"]
    return Finding(done, "; ".join(wrong[:3]) or "continued as undisturbed", not wrong, running.seen if wrong else "")


def edited_corpus(half: Halfway) -> Finding:
    """The text changes between two sessions, and back."""
    job = half.copy("edited").changed(data__files="[edited.txt]")
    text = (job.cwd / "book.txt").read_text(encoding="utf-8")
    book = job.cwd / "edited.txt"
    book.write_text(text + "\n\nand one leaf more\n", encoding="utf-8")
    refused = job.run()
    wrong = [] if one_line(refused, 2) and "corpus" in refused.seen else [f"ended with status {refused.status}"]
    book.write_text(text, encoding="utf-8")
    again = job.run()
    if again.status != 0:
        wrong.append(f"with the text as it was: status {again.status}: {again.seen}")
    else:
        wrong += differences_but_paths(half, job)
    return told("the corpus edited between two sessions", refused, wrong, "refused; continued when it was put back")


def prepared_corpus(half: Halfway) -> Path:
    return next(half.job.prepared_dir.glob("text-*"))


def corpus_damaged(case: Case, run_dir: str) -> Finding:
    """The user then does as told, and deletes the folder."""
    half, name, damage = case
    prepared = prepared_corpus(half).name
    job = half.copy(run_dir).changed(data__prepared_dir=f"prepared-{run_dir}")
    shutil.copytree(half.job.prepared_dir, job.prepared_dir)
    damage(job.prepared_dir / prepared / name)
    running = job.run()
    done = f"{name} of the prepared corpus {damage.__name__}"
    if running.status == 0 and not differences_but_paths(half, job):
        return Finding(done, "did not matter: the run ended as undisturbed", ok=True)
    wrong = [] if one_line(running, 2) else [f"ended with status {running.status}"]
    if f"delete {job.prepared_dir / prepared}" not in running.seen:
        wrong.append("the way out is not told")
    shutil.rmtree(job.prepared_dir / prepared)
    again = job.run()
    wrong += differences_but_paths(half, job) if again.status == 0 else [f"made again: status {again.status}"]
    return told(done, running, wrong, "refused; made again, it ended as undisturbed")


def differences_but_paths(half: Halfway, job: Job) -> list[str]:
    """How a run differs from the undisturbed one, but for the names of the corpus and of where it is prepared."""
    options = ("config.data.files", "config.data.prepared_dir")
    found = differences(half.job.run_dir, job.run_dir)
    return [line for line in found if not any(name in line for name in options)]
