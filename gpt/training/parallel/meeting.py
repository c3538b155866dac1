"""How the processes of one attempt at a run find each other in a store that outlives attempts.

torchrun keeps its store when it starts the processes again, and there the addresses of dead ones still stand; on
several hosts not even its counts of restarts agree. So each process signs in under a name that no other ever had. Rank
0 makes a list of who has signed in, all who find themselves on it confirm, and when all have, the list is valid.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

POLL = 0.02  # seconds
PATIENCE = 0.5  # seconds after which rank 0 makes another list, if somebody has signed in anew


def meet(store: dist.Store, rank: int, world: int, timeout: timedelta) -> str:
    """A name for this attempt, the same in all its processes. Raises TimeoutError where they do not all come."""
    name, confirmed = uuid.uuid4().hex, ""
    store.set(f"name/{rank}", name)
    ends = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < ends:
        if rank == 0:
            call_the_roll(store, world)
        attempt, _, names = read(store, "list").partition(" ")
        if name in names.split():
            if attempt != confirmed:
                store.set(f"{attempt}/confirmed/{rank}", "")
                confirmed = attempt
            if store.check([f"{attempt}/valid"]):
                return attempt
        time.sleep(POLL)
    missing = [other for other in range(world) if not store.check([f"{confirmed}/confirmed/{other}"])]
    raise TimeoutError(f"after {timeout.total_seconds():.0f} s the ranks {missing} have not come")


def call_the_roll(store: dist.Store, world: int) -> None:
    """List who has signed in, and wait a little for all to confirm."""
    names = [read(store, f"name/{rank}") for rank in range(world)]
    if not all(names):
        return
    attempt = uuid.uuid4().hex
    store.set(f"{attempt}/confirmed/0", "")
    store.set("list", " ".join([attempt, *names]))
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if store.check([f"{attempt}/confirmed/{rank}" for rank in range(world)]):
            store.set(f"{attempt}/valid", "")
            return
        time.sleep(POLL)


def read(store: dist.Store, key: str) -> str:
    """What stands under a key; "" for nothing."""
    return store.get(key).decode() if store.check([key]) else ""
