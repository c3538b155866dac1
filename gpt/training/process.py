"""What a training process holds besides its model: random generators and memory."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of every generator that training draws from, as bytes."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what `random_states` gave; a state of another kind of device is left alone."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


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
