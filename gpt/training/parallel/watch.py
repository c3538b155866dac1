"""Which processes of a run are gone, and what those that fail leave word of, in the store that all share.

Whoever loses contact with the others, fails, or sees that a process of its own machine has ended notes so; that ends
the waiting of the others in the store. The first of them that asks then finds in the notes who is gone: all but those
who noted why they went.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

ROLL_CALL = 3.0  # seconds in which somebody may note who is gone, once contact is lost
SETTLING = 0.5  # seconds in which others go that ended together with it
MOST_NAMED = 10


@dataclass(frozen=True)
class Peer:
    """A process. `place`: where its id is unique, the same for all processes that see each other; "" if unknown."""

    pid: int
    host: str
    place: str

    @classmethod
    def here(cls) -> Peer:
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            place = f"{boot} {os.readlink('/proc/self/ns/pid')}"
        except OSError:  # not Linux
            place = ""
        return cls(os.getpid(), socket.gethostname(), place)

    def gone(self) -> bool:
        """Whether it has ended; asked in its own place."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state in "ZX"  # zombie, dead

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Watch:
    """What one process sees, notes and reads. `store`: of this attempt at the run alone; `peers`: all, by rank."""

    def __init__(self, store: dist.Store, rank: int, peers: list[Peer]) -> None:
        self.store, self.rank, self.peers = store, rank, peers
        place = peers[rank].place
        self.neighbours = [other for other, peer in enumerate(peers) if place and peer.place == place and other != rank]

    def alarmed(self) -> bool:
        """Whether a process is seen to be gone, or something is noted."""
        return self.store.check(["notes"]) or any(self.peers[rank].gone() for rank in self.neighbours)

    def first_here(self) -> bool:
        """Whether this is the first process of its machine that is left."""
        return all(rank > self.rank or self.peers[rank].gone() for rank in self.neighbours)

    def note(self, rank: int, what: str, words: str = "") -> None:
        line = json.dumps([rank, what, words]) + "\n"
        self.store.append("notes", line)  # type: ignore[attr-defined]

    def notes(self) -> Iterator[tuple[int, str, str]]:
        lines = self.store.get("notes").decode() if self.store.check(["notes"]) else ""
        for line in lines.splitlines():
            rank, what, words = json.loads(line)
            yield rank, what, words

    def note_failure(self, error: BaseException) -> None:
        """Leave word of why this process fails."""
        self.note(self.rank, "failed", str(error).partition("\n")[0] or type(error).__name__)

    def note_loss(self) -> None:
        """Leave word that this process has lost contact, and of whom it sees to be gone."""
        self.note(self.rank, "lost")
        for rank in self.neighbours:
            if self.peers[rank].gone():
                self.note(rank, "gone")

    def roll_call(self, error: BaseException) -> str:
        """Who is gone or has failed, once contact is lost as `error` says; "" where another process has asked already,
        and says it."""
        if self.store.add("asking", 1) > 1:
            return ""
        ends = time.monotonic() + ROLL_CALL
        while not self.named() and time.monotonic() < ends:
            time.sleep(0.05)
        time.sleep(SETTLING)
        found = self.named() or self.unheard() or [f"the processes lost contact: {str(error).partition(chr(10))[0]}"]
        more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
        return "; ".join([*found[:MOST_NAMED], *more])

    def named(self) -> list[str]:
        """A line for each process that ended without a word, or with one."""
        for rank in self.neighbours:
            if self.peers[rank].gone():
                self.note(rank, "gone")
        notes = list(self.notes())
        excused = {rank for rank, what, _ in notes if what != "gone"}
        gone = sorted({rank for rank, _, _ in notes} - excused)
        failed = [f"rank {rank} failed: {words}" for rank, what, words in notes if what == "failed"]
        return [*map(self.silent, gone), *failed]

    def unheard(self) -> list[str]:
        """A line for each process of other machines that has not noted to be there."""
        heard = {self.rank, *self.neighbours, *(rank for rank, _, _ in self.notes())}
        return [self.silent(rank) for rank in range(len(self.peers)) if rank not in heard]

    def silent(self, rank: int) -> str:
        return f"rank {rank} ({self.peers[rank]}) no longer answers"
