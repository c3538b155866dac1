"""Which of the many limits on a process counts: files as Linux writes them, made up, and the real ones of a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt.model import available
from gpt.model.available import available_memory

CPU = torch.device("cpu")
MIB = 2**20
UNLIMITED = "Max data size             unlimited            unlimited            bytes     \n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root folder of a machine with 1,000 MiB available, on which this process holds 50."""
    monkeypatch.setattr(available, "ROOT", tmp_path)
    monkeypatch.setattr(available, "resident_memory", lambda: 50 * MIB)
    monkeypatch.setattr(available, "proc_status", {"VmSize": 300 * MIB, "VmData": 100 * MIB}.get)
    write(tmp_path, "proc/meminfo", f"MemTotal:    9999999 kB\nMemAvailable:    {1000 * 1024} kB\n")
    write(tmp_path, "proc/self/limits", UNLIMITED)
    return tmp_path


def write(root: Path, path: str, text: object) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n")


def cgroup(root: Path, folder: str, names: tuple[str, str], limit: object, used: int, stat: str) -> None:
    for name, value in zip((*names, "memory.stat"), (limit, used * MIB, stat), strict=True):
        write(root, f"sys/fs/cgroup/{folder}/{name}", value)


V2, V1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_without_limits_it_is_what_the_machine_has(machine: Path) -> None:
    assert available_memory(CPU) == 1050 * MIB


@pytest.mark.parametrize("outer", [False, True], ids=["own", "of-the-parent"])
def test_a_cgroup_of_version_2(machine: Path, outer: bool) -> None:
    write(machine, "proc/self/cgroup", "0::/a/b")
    limits = (400 * MIB, "max") if outer else ("max", 400 * MIB)
    for folder, limit in zip(("a", "a/b"), limits, strict=True):
        cgroup(machine, folder, V2, limit, 150, f"anon 7\ninactive_file {20 * MIB}\nactive_file 9")
    assert available_memory(CPU) == (50 + 400 - 150 + 20) * MIB


@pytest.mark.parametrize("seen_from_inside", [False, True])
def test_a_cgroup_of_version_1(machine: Path, seen_from_inside: bool) -> None:
    """In a container the path is often that of outside, and only the mount itself is there."""
    write(machine, "proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/abc\n0::/")
    folder = "memory" if seen_from_inside else "memory/docker/abc"
    cgroup(machine, folder, V1, 300 * MIB, 150, f"inactive_file 1\ntotal_inactive_file {30 * MIB}")
    assert available_memory(CPU) == (50 + 300 - 150 + 30) * MIB


@pytest.mark.parametrize(
    ("name", "room"), [("Max address space", 900 - 300), ("Max data size", 900 - 100), ("Max stack size", 1000)]
)
def test_limits_of_the_process(machine: Path, name: str, room: int) -> None:
    write(machine, "proc/self/limits", f"{name:<26}{900 * MIB:<21}unlimited            bytes     ")
    assert available_memory(CPU) == (50 + room) * MIB


def test_what_is_exceeded_leaves_nothing_more(machine: Path) -> None:
    write(machine, "proc/self/cgroup", "0::/")
    cgroup(machine, "", V2, 100 * MIB, 150, "")
    assert available_memory(CPU) == 50 * MIB


def test_nobody_says(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory(torch.device("mps")) is None
    (machine / "proc/meminfo").unlink()
    assert available_memory(CPU) is None
    monkeypatch.setattr(available, "resident_memory", lambda: None)
    assert available_memory(CPU) is None


REAL = """
import resource, torch
from gpt.model.available import available_memory
before = available_memory(torch.device("cpu"))
size = {"AS": "VmSize", "DATA": "VmData"}
for name, counted in size.items():
    from gpt.model.process import proc_status, resident_memory
    limit = getattr(resource, f"RLIMIT_{name}")
    resource.setrlimit(limit, (proc_status(counted) + 100 * 2**20,) * 2)
    print(available_memory(torch.device("cpu")) - resident_memory(), before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.slow
def test_the_limits_of_a_real_process() -> None:
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        room, before = map(int, line.split())
        assert room == pytest.approx(100 * MIB, abs=5 * MIB)
        assert before > room
