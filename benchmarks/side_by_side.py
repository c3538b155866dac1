"""What every benchmark shares: contenders in turn, each repetition in its own process, median and spread, a table.

A benchmark module is its own worker: `python -m benchmarks.NAME --worker CONTENDER …` does one repetition and prints
one JSON object as the last line of standard output. A fresh process each time makes peak memory meaningful, and taking
turns spreads the moods of a shared machine over all contenders.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "tiktoken", "tokenizers", "datasets", "transformers", "ctranslate2")
Results = dict[str, list[dict[str, Any]]]  # contender → one object a repetition


def in_turn(contenders: Mapping[str, Sequence[str]], repeats: int, folder: Path = ROOT) -> Results:
    """Run every contender's command once, then all again, `repeats` times; what each printed last, parsed."""
    results: Results = {name: [] for name in contenders}
    for number in range(repeats):
        for name, command in contenders.items():
            results[name].append(last_object(command, folder))
            print(f"  {number + 1}/{repeats} {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    return results


def last_object(command: Sequence[str], folder: Path = ROOT) -> dict[str, Any]:
    """The JSON object on the last line of a command's standard output. Exits where the command fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def worker(module: str, *arguments: object) -> list[str]:
    """The command that runs one repetition of a contender of `benchmarks.<module>`."""
    return [sys.executable, "-m", f"benchmarks.{module}", "--worker", *map(str, arguments)]


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    if sys.platform == "linux":  # which counts into ru_maxrss the peak of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def median(results: Results, name: str, key: str) -> float:
    return statistics.median(result[key] for result in results[name])


def spread(results: Results, name: str, key: str, digits: int = 0) -> str:
    """`median (least–most)`."""
    values = [result[key] for result in results[name]]
    middle, least, most = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least}–{most})"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table on standard output, ready for the README."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, cores, memory, versions."""
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
    }


def processor_name() -> str:
    """The processor's name and, where Linux tells, its bf16 units."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"model name\s*:\s*(.*)", info)
    units = [unit for unit in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni") if unit in info]
    return f"{name[1] if name else platform.machine()} ({', '.join(units) or 'no bf16 units'})"


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_json(path: Path | None, results: Any, **conditions: Any) -> None:
    """All figures with the machine and the conditions, where `--output` asks for them."""
    if path:
        whole = {"machine": machine(), "conditions": conditions, "results": results}
        path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
