"""How much memory this process may hold in all: the least that the machine, its container and its limits leave."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from gpt.model.process import proc_status, resident_memory

ROOT = Path("/")  # of the files in which Linux tells
# Per cgroup version: where it is mounted, the limit, the use, and in memory.stat what the kernel gives back when asked.
CGROUPS = {
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
LIMITS = {"Max address space": "VmSize", "Max data size": "VmData"}  # RLIMIT_AS and RLIMIT_DATA, and what counts there


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process may hold on the device, with what it holds already; None where nobody says (MPS, and a
    CPU with another system than Linux)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    held = resident_memory() if device.type == "cpu" else None
    if held is None:
        return None
    rooms = [*machine_room(), *cgroup_rooms(), *limit_rooms()]
    return held + max(0, min(rooms)) if rooms else None


def has_room(device: torch.device, size: int) -> bool:
    """Whether so many bytes more are available; true where nobody says."""
    available, held = available_memory(device), resident_memory() if device.type == "cpu" else 0
    return available is None or available - (held or 0) > size


def read(path: str) -> str:
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except OSError:
        return ""


def machine_room() -> Iterator[int]:
    """What the machine can give without swapping."""
    if found := re.search(r"^MemAvailable:\s+(\d+) kB", read("proc/meminfo"), re.MULTILINE):
        yield int(found[1]) * 1024


def cgroup_rooms() -> Iterator[int]:
    """What each cgroup of this process leaves: its own, and those around it. In a container they may have the names
    that they have outside, so that only the outermost is found."""
    for line in read("proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        version = 2 if (number, controllers) == ("0", "") else 1 if "memory" in controllers.split(",") else None
        if version is None:
            continue
        mount, limit, usage, returned = CGROUPS[version]
        inner = Path("sys/fs/cgroup") / mount / path.lstrip("/")
        for folder in (inner, *inner.parents):
            most, used = read(f"{folder}/{limit}").strip(), read(f"{folder}/{usage}").strip()
            if most.isdecimal() and used.isdecimal():  # else "max", or no such cgroup here
                files = re.search(rf"^{returned} (\d+)", read(f"{folder}/memory.stat"), re.MULTILINE)
                yield int(most) - int(used) + (int(files[1]) if files else 0)


def limit_rooms() -> Iterator[int]:
    """What the limits of the process itself leave (`ulimit -v`, `ulimit -d`)."""
    text = read("proc/self/limits")
    for name, counted in LIMITS.items():
        found, used = re.search(rf"^{name}\s+(\d+)", text, re.MULTILINE), proc_status(counted)
        if found and used is not None:
            yield int(found[1]) - used
