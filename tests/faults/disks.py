"""Disks that fill up at any point, files that may not grow, folders that may not be written: what a user sees, and that
the same command continues to the same weights when there is space again.

The disk is a small tmpfs in a mount namespace of its own, which an ordinary user may make too where the system allows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tests.faults.compare import CHECKPOINTS, broken_checkpoints, differences, step_folders
from tests.faults.findings import Finding
from tests.faults.processes import Job, Running, one_line, tiny, write_book

DISK_BYTES = 64 * 2**20
AMOUNTS = 12  # of free space, at scale 1
STEPS = 30


def findings(scale: float) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="newleaf-disks-") as folder:
        cwd = Path(folder)
        write_book(cwd / "book.txt")
        straight = tiny(cwd, "undisturbed", train__max_steps=STEPS)
        assert straight.run().status == 0
        yield file_size_limit(straight)
        try:
            with namespace() as room:
                yield from full_disks(straight, room, max(2, round(AMOUNTS * scale)))
                yield from read_only_folders(straight, room)
        except Unavailable as error:
            yield Finding("full disks and folders that may not be written", f"skipped: {error}", ok=True)


class Unavailable(Exception):
    """This system makes no mount namespaces for us."""


class Namespace:
    """A mount namespace, held by a process that sleeps in it. Disks that are mounted there end with it."""

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self.holder = holder
        self.disks: list[Path] = []

    def inside(self, job: Job) -> Job:
        """The same job with the mounts of this namespace."""
        change_folder = ("sh", "-c", 'cd "$0" && exec "$@"', str(job.cwd))
        return replace(job, before=(*self.entering, *change_folder))

    @property
    def entering(self) -> tuple[str, ...]:
        return ("nsenter", "-t", str(self.holder.pid), "-U", "-m", "--preserve-credentials")

    def mount(self, *arguments: str) -> None:
        done = subprocess.run([*self.entering, "mount", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"mount {' '.join(arguments)}: {done.stderr.strip()}")

    def disk(self, folder: Path) -> Path:
        """Mount an empty disk of `DISK_BYTES` on a folder; where it is seen from outside."""
        folder.mkdir(exist_ok=True)
        self.mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder))
        return self.seen_from_outside(folder)

    def seen_from_outside(self, folder: Path) -> Path:
        return Path(f"/proc/{self.holder.pid}/root") / folder.relative_to("/")

    @contextmanager
    def read_only(self, folder: Path) -> Iterator[None]:
        self.mount("--bind", str(folder), str(folder))
        self.mount("-o", "remount,bind,ro", str(folder))
        try:
            yield
        finally:
            subprocess.run([*self.entering, "umount", str(folder)], check=True)


@contextmanager
def namespace() -> Iterator[Namespace]:
    try:
        holder = subprocess.Popen(
            ["unshare", "-Urm", "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise Unavailable(str(error)) from None
    assert holder.stdin
    assert holder.stdout
    assert holder.stderr
    try:
        if holder.stdout.readline() != b"ready\n":
            raise Unavailable(holder.stderr.read().decode().strip())
        yield Namespace(holder)
    finally:
        holder.stdin.close()
        holder.wait()


def fill(disk: Path, free: int) -> None:
    """Leave so many bytes of a disk, rounded to its blocks."""
    status = os.statvfs(disk)
    blocks = status.f_bavail - free // status.f_bsize
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):  # others may be writing too
        for _ in range(blocks):
            file.write(bytes(status.f_bsize))


def make_space(disk: Path) -> None:
    (disk / "filler").unlink()


def size_of(folder: Path) -> int:
    """Bytes of the blocks that a folder's files take."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def continued(straight: Job, job: Job, run: Path) -> list[str]:
    """How the same command, given again, differs from the undisturbed run; `run` is where its folder is seen."""
    again = job.run()
    if again.status != 0 or again.traceback:
        return [f"continuing ended with status {again.status}: {again.seen}"]
    return differences(straight.run_dir, run)


def judged(done: str, stopped: Running, statuses: tuple[int, ...], wrong: list[str], more: str = "") -> Finding:
    """The finding of one fault: how the process ended, and what was wrong later."""
    end = f"status {stopped.status}" + (", a traceback" if stopped.traceback else "")
    result = f"{end}{more}; " + ("; ".join(wrong[:3]) if wrong else "the same command then gave identical weights")
    return Finding(done, result, one_line(stopped, *statuses) and not wrong, stopped.seen)


def file_size_limit(straight: Job) -> Finding:
    """A file that may not grow as large as the optimizer's tensors."""
    largest = (step_folders(straight.run_dir)[-1] / "trainer/optimizer.safetensors").stat().st_size
    job = straight.changed(run_dir="limited")
    stopped = replace(job, before=("prlimit", f"--fsize={largest // 2}")).run()
    wrong = broken_checkpoints(job.run_dir) + continued(straight, job, job.run_dir)
    return judged("files limited to half an optimizer.safetensors", stopped, (1,), wrong)


def full_disks(straight: Job, room: Namespace, amounts: int) -> Iterator[Finding]:
    disk = room.disk(straight.cwd / "disk")
    checkpoint = size_of(step_folders(straight.run_dir)[-1])
    for number in range(amounts):
        free = round(2.9 * checkpoint * (number + 0.5) / amounts)
        yield checkpoint_on_a_full_disk(straight, room, disk, free, checkpoint)
    prepared = size_of(next(straight.prepared_dir.glob("text-*")))
    for share in (0.0, 0.3, 0.9)[: max(1, amounts // 4)]:
        yield preparation_on_a_full_disk(straight, room, disk, round(share * prepared), share)
    yield metrics_on_a_full_disk(straight, room, disk)


def checkpoint_on_a_full_disk(straight: Job, room: Namespace, disk: Path, free: int, checkpoint: int) -> Finding:
    """Space for a part of the checkpoints of a run, so that writing one of its files finds none."""
    job = room.inside(straight.changed(run_dir="disk/filled"))
    fill(disk, free)
    stopped = job.run()
    run = disk / "filled"
    kept = len(step_folders(run))
    wrong = broken_checkpoints(run) + [f"left: {path.name}" for path in (run / CHECKPOINTS).glob("partial-*")]
    make_space(disk)
    wrong += continued(straight, job, run)
    shutil.rmtree(run, ignore_errors=True)
    done = f"a disk with space for {free / checkpoint:.1f} checkpoints"
    return judged(done, stopped, (1,), wrong, f", {kept} whole checkpoints kept")


def preparation_on_a_full_disk(straight: Job, room: Namespace, disk: Path, free: int, share: float) -> Finding:
    prepared = f"disk/prepared-{free}"
    job = room.inside(straight.changed(run_dir="disk/filled", data__prepared_dir=prepared))
    fill(disk, free)
    stopped = job.run()
    made = disk / Path(prepared).name
    wrong = [f"left: {path.name}" for path in made.glob("*") if not path.name.endswith(".lock")]
    if (disk / "filled").exists():
        wrong.append("the run folder was made")
    make_space(disk)
    straight = straight.changed(data__prepared_dir=prepared)
    wrong += [line for line in continued(straight, job, disk / "filled") if "prepared_dir" not in line]
    shutil.rmtree(disk / "filled", ignore_errors=True)
    return judged(f"a disk with space for {share:.0%} of the prepared corpus", stopped, (1, 2), wrong)


def metrics_on_a_full_disk(straight: Job, room: Namespace, disk: Path) -> Finding:
    """No space at all, from a moment between two checkpoints on."""
    late = {"train__max_steps": 300, "train__eval_every": 300, "train__checkpoint_every": 300}
    straight = straight.changed(run_dir="undisturbed-late", **late)
    assert straight.run().status == 0
    job = room.inside(straight.changed(run_dir="disk/filled"))
    running = job.start()
    reached = running.wait_for_step(10)
    fill(disk, 0)
    running.end()
    wrong = [] if reached else ["it ended before the disk was full"]
    make_space(disk)
    wrong += continued(straight, job, disk / "filled")
    shutil.rmtree(disk / "filled", ignore_errors=True)
    return judged("a disk that is full while metrics are written", running, (1,), wrong)


def read_only_folders(straight: Job, room: Namespace) -> Iterator[Finding]:
    half = straight.changed(run_dir="read-only")
    running = half.start()
    running.wait_until(lambda: len(step_folders(half.run_dir)) > 1)
    running.kill()
    inside = room.inside(half)
    with room.read_only(half.run_dir):
        stopped = inside.run()
    wrong = continued(straight, half, half.run_dir)
    yield judged("a run folder that may not be written", stopped, (1, 2), wrong)

    parent = straight.cwd / "parent"
    parent.mkdir()
    new = straight.changed(run_dir="parent/new")
    with room.read_only(parent):
        stopped = room.inside(new).run()
    yield judged("a run folder that may not be made", stopped, (1, 2), continued(straight, new, new.run_dir))

    with room.read_only(straight.prepared_dir):
        ready = room.inside(straight.changed(run_dir="ready")).run()
    wrong = [f"status {ready.status}: {ready.seen}"] if ready.status else []
    wrong = wrong or differences(straight.run_dir, straight.cwd / "ready")
    yield Finding(
        "a corpus that is ready in a folder that may not be written",
        "; ".join(wrong[:3]) or "trained as undisturbed", ok=not wrong,
    )  # fmt: skip

    empty = straight.cwd / "empty"
    empty.mkdir()
    job = straight.changed(run_dir="unprepared", data__prepared_dir="empty")
    with room.read_only(empty):
        stopped = room.inside(job).run()
    wrong = ["the run folder was made"] if job.run_dir.exists() else []
    wrong += [line for line in continued(straight, job, job.run_dir) if "prepared_dir" not in line]
    yield judged("a corpus to prepare in a folder that may not be written", stopped, (1, 2), wrong)
