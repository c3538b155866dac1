"""Which processes of a run are gone, and what those that end leave word of, in the store that all share.

Whoever fails, leaves, loses contact with the others, or then sees that a process of its own machine is gone, notes so;
that ends the waiting of the others in the store. The first of them that asks finds in the notes who is gone: all that
were seen to be and noted nothing themselves.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

ROLL_CALL = 10.0  # seconds in which the others may note what they know, once contact is lost
MOST_NAMED = 10


@dataclass(frozen=True)
class Peer:
    """A process. `place`: the same for all processes that see each other in /proc; "" where it sees none."""

    pid: int
    host: str
    place: str = ""
    started: bytes = b""  # as /proc tells it, since a number may come again

    @classmethod
    def here(cls) -> Peer:
        pid, place = os.getpid(), ""
        with suppress(OSError):  # not Linux
            if os.readlink("/proc/self") == str(pid):  # it may show the processes of another namespace
                boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
                place = f"{boot} {os.readlink('/proc/self/ns/pid')}"
        return cls(pid, socket.gethostname(), place, process_state(pid)[1] if place else b"")

    def gone(self) -> bool:
        """Whether it has ended, as far as can be seen in its own place."""
        try:
            state, started = process_state(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return True
        except OSError:  # no descriptor left, say
            return False
        return state in b"ZX" or started != self.started  # zombie, dead, another

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def process_state(pid: int) -> tuple[bytes, bytes]:
    """The state of a process, and when it was started. Raises OSError. See proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0], fields[19]


class Watch:
    """What one process sees, notes and reads. `store`: of this attempt at the run alone; `peers`: all, by rank."""

    def __init__(self, store: dist.Store, rank: int, peers: list[Peer]) -> None:
        self.store, self.rank, self.peers = store, rank, peers
        place = peers[rank].place
        self.neighbours = [other for other, peer in enumerate(peers) if place and peer.place == place and other != rank]
        self.seen: set[int] = set()  # neighbours noted to be gone

    def alarmed(self) -> bool:
        """Whether a process is seen to be gone, or something is noted."""
        return self.store.check(["notes"]) or any(self.peers[rank].gone() for rank in self.neighbours)

    def note(self, rank: int, what: str, words: str = "") -> None:
        """Of itself a process notes that it has "failed", has "lost" contact, or has "left" because another failed; of
        a neighbour that it is "gone"."""
        line = json.dumps([rank, what, words]) + "\n"
        self.store.append("notes", line)  # type: ignore[attr-defined]

    def notes(self) -> Iterator[tuple[int, str, str]]:
        lines = self.store.get("notes").decode() if self.store.check(["notes"]) else ""
        for line in lines.splitlines():
            rank, what, words = json.loads(line)
            yield rank, what, words

    def note_gone(self) -> None:
        for rank in self.neighbours:
            if rank not in self.seen and self.peers[rank].gone():
                self.seen.add(rank)
                self.note(rank, "gone")

    def roll_call(self) -> str:
        """Who is gone or has failed, once contact is lost; "" where another process has asked already, and says it."""
        if self.store.add("asking", 1) > 1:
            return ""
        ends = time.monotonic() + ROLL_CALL
        self.note_gone()
        while not (found := self.named()) and self.unheard() and time.monotonic() < ends:
            time.sleep(0.05)
            self.note_gone()
        found = found or [f"nothing is heard of {self.name(rank)}" for rank in self.unheard()] or [self.first_loss()]
        self.store.set("found", "")  # nothing more is read
        more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
        return "; ".join([*found[:MOST_NAMED], *more])

    def named(self) -> list[str]:
        """A line for each process that is gone without a word, and for each that has failed."""
        notes = list(self.notes())
        excused = {rank for rank, what, _ in notes if what != "gone"}
        gone = sorted({rank for rank, _, _ in notes} - excused)
        failed = {rank: words for rank, what, words in notes if what == "failed"}
        return [
            *(f"{self.name(rank)} no longer answers" for rank in gone),
            *(f"rank {rank} failed: {words}" for rank, words in failed.items()),
        ]

    def unheard(self) -> list[int]:
        """The processes that have noted nothing, and that no neighbour has noted to be gone."""
        heard = {rank for rank, _, _ in self.notes()}
        return [rank for rank in range(len(self.peers)) if rank not in heard]

    def first_loss(self) -> str:
        words = (words for _, what, words in self.notes() if what == "lost" and words)
        return f"the processes lost contact: {next(words, 'each waited for another')}"

    def name(self, rank: int) -> str:
        return f"rank {rank} ({self.peers[rank]})"

    def stay(self, seconds: float) -> None:
        """Wait until all others have noted why they end, or are gone, and one knows who is, as they need the store."""
        ends = time.monotonic() + seconds
        while (self.unheard() or not self.store.check(["found"])) and time.monotonic() < ends:
            time.sleep(0.05)
            self.note_gone()
