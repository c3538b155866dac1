"""Processes that prepare one corpus together, and meet in the files of one folder, on whatever machines they are.

Work is dealt out beforehand: process i of n makes parts i, i + n, i + 2n, … What one needs of another's it waits for,
and says so. Who fails leaves a note, by which the others end too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpt.options import UserError

POLL_SECONDS = 0.5
REPORT_SECONDS = 10.0
FAILURE_SECONDS = 30.0  # that one waits before it believes another's note: who is started again needs to remove it
OLD_FAILURE_SECONDS = 600.0  # where that is older than this process: of jobs sent again, some start late

Report = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Which of the processes this is, from 0 on."""

    index: int = 0
    count: int = 1

    def own(self, n_parts: int) -> range:
        return range(self.index, n_parts, self.count)


class OthersFinished(Exception):
    """What was to be made together is there."""


class Cooperation:
    """This process's side of it. `folder` is where they meet, and `place` is there once all is done."""

    def __init__(self, folder: Path, place: Path, shard: Shard, report: Report):
        self.folder, self.place, self.shard = folder, place, shard
        self.report = report
        self.reported = time.monotonic()
        self.note = self._note_of(shard.index)
        self.old: dict[Path, int] = {}  # notes that were there before this process, and their times

    def _note_of(self, index: int) -> Path:
        return self.folder / f"failed-{index}-of-{self.shard.count}.txt"

    def begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.note.unlink(missing_ok=True)
        for index in range(self.shard.count):
            with suppress(FileNotFoundError):
                self.old[self._note_of(index)] = self._note_of(index).stat().st_mtime_ns

    def fail(self, error: BaseException) -> None:
        """Tell the others, if the disk has room for it."""
        with suppress(OSError):
            self.note.write_text(str(error), encoding="utf-8", errors="replace")

    def report_sometimes(self, line: Callable[[], str]) -> None:
        if time.monotonic() - self.reported > REPORT_SECONDS:
            self.reported = time.monotonic()
            self.report(line())

    def collect(self, find: Callable[[int], T | None], numbers: Iterable[int], what: str) -> list[T]:
        """What `find` gives for each part, as soon as it gives something for all.

        Raises UserError where another process has failed, and OthersFinished.
        """
        found: dict[int, T] = {}
        missing = list(numbers)
        started = time.monotonic()
        while True:
            for number in missing:
                one = find(number)
                if one is not None:
                    found[number] = one
            missing = [number for number in missing if number not in found]
            if not missing:
                return [found[number] for number in sorted(found)]
            self._wait(missing, what, time.monotonic() - started)

    def _wait(self, missing: list[int], what: str, waited: float) -> None:
        if self.place.is_dir():
            raise OthersFinished
        shards = sorted({number % self.shard.count for number in missing})
        if self.shard.index in shards:  # it does not wait for others before it has made all of its own
            raise UserError(f"{self.folder}: what was finished there has been removed meanwhile; run again")
        hint = ""
        if waited > FAILURE_SECONDS:
            failure = next(filter(None, (self._failure(index, waited) for index in shards)), "")
            hint = f" ({failure or 'started with the same options, on the same files?'})"
        names = ", ".join(map(str, shards[:10])) + (" …" if len(shards) > 10 else "")
        self.report_sometimes(lambda: f"Waiting for {what}, by shard {names} of {self.shard.count}{hint} …")
        time.sleep(POLL_SECONDS)

    def _failure(self, index: int, waited: float) -> str:
        """In words, that a shard had failed before this process began: it may yet be started again; "" where it has
        not. Raises UserError where it has failed since, or was not started again."""
        note = self._note_of(index)
        try:
            since, said = note.stat().st_mtime_ns != self.old.get(note), note.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        if since or waited > OLD_FAILURE_SECONDS:
            raise UserError(f"shard={index}/{self.shard.count} has failed: {said}")
        return f"start shard={index}/{self.shard.count} again, which has failed: {said}"
