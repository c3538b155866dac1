"""The processes of a run, as torchrun or a scheduler starts them: who they are, and what they agree on.

A run is started in each process alike, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in the
environment. Rank 0 speaks and writes for all. What the host needs to agree on goes through the store that torchrun
keeps, or over gloo from memory to memory, so that no GPU has to wait for it.

A process that fails leaves word of why in the store. The others notice by the connection that it loses, at once over
gloo, within `TIMEOUT` over NCCL (launchers kill sooner), or by their `Watch` while they wait in the store; then one of
them says who it was. A process that has lost contact ends at once: that is how those learn of it who wait for it. Where
all others wait in the store, a process that dies alone on its machine is noticed by the launcher only.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gpt.config.device import processes
from gpt.options import UserError, ran_out_of_memory
from gpt.training.parallel.meeting import meet
from gpt.training.parallel.watch import Peer, Watch

TIMEOUT = timedelta(minutes=10)  # longest that a process waits for the others in the middle of training
PATIENCE = timedelta(days=3)  # and while one of them prepares a corpus
LONGEST_PAUSE = 0.5  # seconds between two looks into the store
LEAVING = timedelta(seconds=10)  # for which the process that keeps the store waits for the others, at the end
# How gloo and NCCL report that another process is gone.
LOST = re.compile(r"Connection (closed|reset|refused)|\bgloo\b|NCCL|Broken pipe|[Tt]imed out|connectFullMesh|Socket")
T = TypeVar("T")


class Told(Exception):
    """This process ends with `status`, and why has been said."""

    def __init__(self, status: int, message: str = "what went wrong has been said") -> None:
        super().__init__(message)
        self.status = status


class Elsewhere(Told):
    """Another process of the run has failed, and says why itself."""

    def __init__(self, status: int) -> None:
        super().__init__(status, "another process of the run has failed")


class Failed(Exception):
    """Another process, for which this one waited, has failed or is gone."""


class Ranks:
    """One process alone: there is nobody to agree with."""

    rank, world, local_rank, local_world = 0, 1, 0, 1
    main = True  # whether it speaks and writes
    lost_contact = False  # whether another process is gone, as this one has noticed

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; a tensor on the device, or on the CPU."""
        return tensor

    def all_true(self, here: bool) -> bool:
        """Whether this holds in every process."""
        return here

    def gather(self, here: T) -> list[T]:
        """What each process has, by rank."""
        return [here]

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` gives in rank 0, in all."""
        return make()

    def one_by_one(self, make: Callable[[], T]) -> T:
        """What `make` gives in each process: first in rank 0, then in one of every other host, then in all others."""
        return make()

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """What is done within succeeds in all processes, or fails in all: raises `Elsewhere` where it has failed in
        another only, or in several and another tells."""
        yield

    def seed(self, seed: int, step: int) -> None:
        """Give each process random numbers of its own for a step, whatever came before; a process alone goes on with
        the one stream that its checkpoints keep."""

    def begin_largest(self, number: int) -> Callable[[], int]:
        """Starts to find the largest of the numbers of all processes; call what is returned for the result."""
        return lambda: number

    def leave(self) -> None:
        """Wait for the others, at the end."""

    def means_loss(self, error: BaseException) -> bool:
        """Whether an error means that another process is gone."""
        return False

    def notice(self, error: BaseException) -> None:
        """Leave word of the error that ends this process, so that nobody waits for it."""

    def why_lost(self) -> str:
        """Once contact is lost: who is gone, and what they left word of; "" where another process says that."""
        return ""


class Group(Ranks):
    """One of several processes. Raises UserError where the environment does not say how to find the others."""

    def __init__(self, device: torch.device) -> None:
        try:
            self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
            self.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']}: the environment does not say how the processes find each "
                f"other ({error}); start them with torchrun, or leave out WORLD_SIZE"
            ) from None
        self.store = dist.PrefixStore(meet(store, self.rank, self.world, TIMEOUT), store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.world, timeout=TIMEOUT)
        self.main, self.device, self.phase = self.rank == 0, device, 0
        self.told: BaseException | None = None  # of which the others know already
        self.noticed = self.lost_contact = False
        self.keeper = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # whether rank 0, not torchrun, is it
        self.watch = Watch(self.store, self.rank, self.gather(Peer.here()))

    def sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def all_true(self, here: bool) -> bool:
        return int(self.sum(torch.tensor(int(here)))) == self.world

    def from_main(self, make: Callable[[], T]) -> T:
        with self.agreeing():
            box: list[Any] = [make() if self.main else None]
        dist.broadcast_object_list(box)
        found: T = box[0]
        return found

    def gather(self, here: T) -> list[T]:
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, here)
        return found

    def one_by_one(self, make: Callable[[], T]) -> T:
        found: list[T] = []
        for turn in (self.rank == 0, self.local_rank == 0 and self.rank != 0, self.local_rank != 0):
            with self.agreeing():
                if turn:
                    found.append(make())
        return found[0]

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        error: BaseException | None = None
        try:
            yield
        except Elsewhere:  # of a phase within, which has ended this one too
            raise
        except Exception as failure:
            if failure is self.told or self.means_loss(failure):  # of which the others learn otherwise
                raise
            error = failure
        self.phase += 1
        try:
            teller, status = self.verdict(status_of(error))
        except Exception:  # contact is lost, or an alarm has come
            if error is None:
                raise
            raise error from None
        if status:
            self.part()
        self.conclude(error, teller, status)

    def verdict(self, status: int) -> tuple[int, int]:
        """The first process that failed in this phase, and its status; 0 for none."""
        self.store.set(f"phase/{self.phase}/{self.rank}", str(status))
        if self.main:
            statuses = [int(self.read(f"phase/{self.phase}/{rank}")) for rank in range(self.world)]
            teller = next((rank for rank, status in enumerate(statuses) if status), 0)
            self.store.set(f"phase/{self.phase}/verdict", f"{teller} {statuses[teller]}")
        first, _, found = self.read(f"phase/{self.phase}/verdict").partition(" ")
        return int(first), int(found)

    def conclude(self, error: BaseException | None, teller: int, status: int) -> None:
        """Raise what ends a phase in which `teller` was the first to fail, with this status; nothing for 0."""
        if not status:
            return
        if error is None or teller != self.rank:
            raise Elsewhere(status) from error
        self.told = error
        raise error

    def part(self) -> None:
        """The last verdict has been read. The process that keeps the store leaves when all have."""
        with suppress(Exception):
            self.store.set(f"left/{self.rank}", "")
            if self.main and self.keeper:
                self.store.wait([f"left/{rank}" for rank in range(self.world)], LEAVING)

    def read(self, key: str) -> str:
        """What another process has put into the store, once it is there. Raises `Failed` where it will not come."""
        ends, pause = time.monotonic() + PATIENCE.total_seconds(), 0.001
        while not self.store.check([key]):
            given_up = self.watch.alarmed() or time.monotonic() > ends
            if given_up and not self.store.check([key]):  # the alarm may follow what was put there
                raise Failed("another process has not come")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return self.store.get(key).decode()

    def seed(self, seed: int, step: int) -> None:
        torch.manual_seed(hash((seed, step, self.rank)) % 2**63)  # of integers, so the same in every process

    def begin_largest(self, number: int) -> Callable[[], int]:
        box = torch.tensor(number)
        work = dist.all_reduce(box, dist.ReduceOp.MAX, async_op=True)

        def result() -> int:
            work.wait()
            return int(box)

        return result

    def leave(self) -> None:
        with self.agreeing():
            pass
        self.part()
        dist.destroy_process_group()

    def means_loss(self, error: BaseException) -> bool:
        if isinstance(error, (Failed, dist.DistError)):
            return True
        told = isinstance(error, RuntimeError) and not ran_out_of_memory(error)
        return told and bool(LOST.search(str(error)))

    def notice(self, error: BaseException) -> None:
        if self.noticed:
            return
        self.noticed, self.lost_contact = True, self.means_loss(error)
        if self.lost_contact:
            with suppress(ValueError):  # not in the main thread
                # torchrun sends it to all when one is gone, and kills them 30 s later: time to say which.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
        what = "left" if isinstance(error, Told) else "lost" if self.lost_contact else "failed"
        words = "" if isinstance(error, Failed) else str(error).partition("\n")[0] or type(error).__name__
        with suppress(Exception):  # the store may be gone
            self.watch.note(self.rank, what, words)

    def why_lost(self) -> str:
        try:
            said = self.watch.roll_call()
            if self.main and self.keeper:
                self.watch.stay(LEAVING.total_seconds())
            return said
        except Exception:  # without the store, the first process of each machine says so
            if any(rank < self.rank for rank in self.watch.neighbours if not (self.keeper and rank == 0)):
                return ""
            keeper = self.watch.name(0) if self.keeper else "torchrun"
            return f"contact is lost with the others, and with the store that {keeper} keeps for them"


def status_of(error: BaseException | None) -> int:
    """With which a process ends for an error: 2 where the user can mend it; 0 for none."""
    return 0 if error is None else 2 if isinstance(error, UserError) else 1


def join(device: torch.device) -> Ranks:
    """The processes of this run, of which this is one."""
    return Group(device) if processes() > 1 else Ranks()
