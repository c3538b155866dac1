"""Two network namespaces as two hosts, which share nothing but the files: one training, also after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.training.parallel.test_failures import (
    REPOSITORY,
    ending,
    last_weights,
    options,
    process_of_rank,
    straight,
    wait_for_step,
)

__all__ = ["options", "straight"]  # fixtures
HOSTS = {"newleaf-1": "10.77.0.1", "newleaf-2": "10.77.0.2"}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("ip") is None, reason="there is no iproute2")]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def leave(name: str) -> None:
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    first, second = HOSTS
    try:
        for name in HOSTS:
            leave(name)  # of tests that were killed
            ip("netns", "add", name)
        ip("link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second)
        for name, address in HOSTS.items():
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr!r}")
    yield
    for name in HOSTS:
        leave(name)


def torchrun_on(name: str, options: list[str]) -> subprocess.Popen[str]:
    """Two of the four processes, on one of the hosts."""
    first = next(iter(HOSTS))
    command = [
        "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2",
        "--max-restarts=2", "--rdzv-backend=c10d", "--rdzv-id=newleaf", f"--rdzv-endpoint={HOSTS[first]}:29500",
        f"--local-addr={HOSTS[name]}", f"--rdzv-conf=is_host={int(name == first)}",
        str(REPOSITORY / "train.py"), *options,
    ]  # fmt: skip
    environment = os.environ | {"GLOO_SOCKET_IFNAME": name}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_two_hosts_run_one_training_also_after_a_kill(
    hosts: None, options: Callable[..., list[str]], straight: Callable[[str], list[bytes]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "hosts"
    with ExitStack() as stack:
        processes = [stack.enter_context(ending(torchrun_on(name, options("hosts", "parallel=ddp")))) for name in HOSTS]
        wait_for_step(run_dir, 17, processes[0])
        os.kill(process_of_rank(3, run_dir), signal.SIGKILL)
        said = [process.communicate(timeout=240)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
    assert any("rank 3 (process " in words and "no longer answers" in words for words in said), said
    assert last_weights(run_dir) == straight("parallel=ddp")
