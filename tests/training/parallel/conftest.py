"""Several processes on this machine, which train together over gloo."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

Together = Callable[..., list[Any]]
LONGEST = 240  # seconds for which a test waits for its processes


@pytest.fixture
def together() -> Together:
    """Calls a function of a test's module in several processes at once; what it returned in each, by rank.

    `together(4, function, *arguments)`. A process that raises fails the test, with its traceback.
    """

    def run(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        context = multiprocessing.get_context("spawn")
        port = free_port()
        results = context.SimpleQueue()
        jobs = [
            context.Process(target=called, args=(rank, count, port, results, function, arguments), daemon=True)
            for rank in range(count)
        ]
        for job in jobs:
            job.start()
        found: dict[int, Any] = {}
        ends = time.monotonic() + LONGEST
        while len(found) < count and time.monotonic() < ends:
            if results.empty():
                time.sleep(0.05)
            else:
                found |= [results.get()]
        for job in jobs:
            job.join(5)
            job.kill()
        assert len(found) == count, f"ranks {set(range(count)) - found.keys()} are still at it"
        for rank, (kind, value) in sorted(found.items()):
            assert kind == "returned", f"rank {rank}:\n{value}"
        return [found[rank][1] for rank in range(count)]

    return run


def called(rank: int, count: int, port: int, results: Any, function: Callable[..., Any], arguments: Any) -> None:
    os.environ |= environment(rank, count, port)
    try:
        results.put((rank, ("returned", function(*arguments))))
    except BaseException:
        results.put((rank, ("raised", traceback.format_exc())))


def free_port() -> int:
    """Below those that the system gives to whoever asks for any: until it is used, others are being given theirs."""
    while True:
        port = random.randint(10_000, 30_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """As torchrun gives it to a process."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
