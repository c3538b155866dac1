"""Who of a run's processes is still there, and word of why one fails, through the store that they share.

A thread of each process shows life every second, so that those count as present that wait for others, and looks for the
next process's. Whoever fails, loses contact, or finds that the next one has been silent raises an alarm; the threads
answer it, and the first process that asks says who does not.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

import torch.distributed as dist

PULSE = 1.0  # seconds between two signs of life
SILENCE = 600.0  # seconds without one, after which a process counts as lost
SILENCE_AT_END = 15.0  # once it shall end: a launcher asks all to when one is gone, and kills some 30 s later
ROLL_CALL = 5 * PULSE  # for the others to answer
LEAVING = 10.0  # seconds for which the process that keeps the store waits for the others, at the end
MOST_NAMED = 10


class Watch:
    """The part of one process. `store`: of this attempt at the run alone."""

    def __init__(self, store: dist.Store, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        store.set(f"who/{rank}", f"process {os.getpid()} on {socket.gethostname()}")
        self.silence, self.over = SILENCE, threading.Event()
        own: dist.Store = store.clone()  # type: ignore[attr-defined]  # as one that waits holds its store's lock
        self.thread = threading.Thread(target=self.look, args=(own,), name="watch", daemon=True)
        self.thread.start()

    def look(self, store: dist.Store) -> None:
        """Show life, answer an alarm, and raise one where the next process is silent; in the thread."""
        following = f"pulse/{(self.rank + 1) % self.world}"
        beats, seen, since, answered = 0, "", time.monotonic(), False
        with suppress(Exception):  # without the store nobody can be told; the next who needs it will see
            while not self.over.wait(PULSE):
                beats += 1
                store.set(f"pulse/{self.rank}", str(beats))
                if not answered and store.check(["alarm"]):
                    store.set(f"here/{self.rank}", "")
                    answered = True
                found = store.get(following).decode() if store.check([following]) else ""
                if found != seen:
                    seen, since = found, time.monotonic()
                elif time.monotonic() - since > self.silence:
                    store.set("alarm", "")

    def asked_to_end(self) -> None:
        """A signal has asked this process to end."""
        self.silence = min(self.silence, SILENCE_AT_END)

    def alarmed(self) -> bool:
        """Whether a process has failed, or is gone."""
        return self.store.check(["alarm"])

    def tell(self, error: BaseException) -> None:
        """Leave word of why this process fails."""
        self.store.set(f"failed/{self.rank}", str(error).partition("\n")[0] or type(error).__name__)
        self.store.set("alarm", "")

    def roll_call(self, error: BaseException) -> str:
        """Who is gone, and what they left word of, once contact is lost as `error` says; "" where another process has
        asked already, and says it."""
        self.store.set(f"here/{self.rank}", "")
        self.store.set("alarm", "")
        if self.store.add("asking", 1) > 1:
            return ""
        time.sleep(ROLL_CALL)
        ranks = range(self.world)
        told = [rank for rank in ranks if self.store.check([f"failed/{rank}"])]
        if told:
            return listed(f"rank {rank} failed: {self.store.get(f'failed/{rank}').decode()}" for rank in told)
        missing = [rank for rank in ranks if not self.store.check([f"here/{rank}"])]
        if missing:
            return listed(f"rank {rank} ({self.who(rank)}) no longer answers" for rank in missing)
        return f"the processes lost contact: {str(error).partition(chr(10))[0]}"

    def who(self, rank: int) -> str:
        return self.store.get(f"who/{rank}").decode() if self.store.check([f"who/{rank}"]) else "never seen"

    def close(self) -> None:
        """End the thread, at the end of the run in this process, whatever that is."""
        self.over.set()
        self.thread.join(LEAVING)
        with suppress(Exception):  # the store may be gone
            self.store.set(f"here/{self.rank}", "")
            self.store.set(f"left/{self.rank}", "")
            if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # the store ends with it
                self.wait_for_leaving()

    def wait_for_leaving(self) -> None:
        ends = time.monotonic() + LEAVING
        for rank in range(self.world):
            while not self.store.check([f"left/{rank}"]) and time.monotonic() < ends:
                time.sleep(0.02)


def listed(words: Iterable[str]) -> str:
    found = list(words)
    more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
    return "; ".join([*found[:MOST_NAMED], *more])
