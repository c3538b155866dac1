"""The memory that this process holds, and has held."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> int | None:
    """Most memory this process has held so far, in bytes: of the GPU, or resident; None where unknown (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        return proc_status("VmHWM")  # into ru_maxrss it counts the peak of the process that started this one
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int | None:
    """Memory that this process holds now, in bytes; None where the system does not say (other than Linux)."""
    return proc_status("VmRSS")


def proc_status(name: str) -> int | None:
    """A size, in bytes, that Linux keeps about this process."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
