"""Runs the fault harness and tells what it found: `python -m tests.faults.report --help`.

Every topic of this folder that is there is run, in the order of `TOPICS`; the exit status is 1 where anything is not as
promised. `--output` keeps the findings, the machine, the versions and the times as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.findings import Finding
from tests.faults.processes import ROOT, heed_interrupts

TOPICS = (
    "kills", "disks", "damage", "collisions", "saving", "memory", "nonfinite", "bad_inputs", "strangers", "fuzz",
    "long_runs", "wandb_faults",
)  # fmt: skip
WIDTH = 160  # of a report in a file
PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "filelock", "hydra-core")


@dataclass(frozen=True)
class Entry:
    """A finding, the topic that it is of, and the seconds that it took."""

    topic: str
    finding: Finding
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    heed_interrupts()
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    began, about = time.time(), machine()
    console.print("\n".join(f"{name:<10} {value}" for name, value in about.items()))
    entries: list[Entry] = []
    for topic in arguments.only or present():
        console.rule(topic, align="left")
        for entry in run_topic(topic, arguments.scale):
            entries.append(entry)
            show(console, entry)
    console.rule("summary", align="left")
    console.print(summary(entries))
    bad = [entry for entry in entries if not entry.finding.ok]
    console.print(f"{len(entries)} findings, {len(bad)} not as promised, in {time.time() - began:,.0f} s")
    for entry in bad:
        console.print(f"  {entry.topic}: {entry.finding.done}: {entry.finding.result}")
    if arguments.output:
        save(Path(arguments.output), about, arguments.scale, entries, time.time() - began)
    return 1 if bad or not entries else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.faults.report", description="Newleaf's fault harness.")
    made.add_argument(
        "--scale", type=float, default=1.0, help="1.0: the whole measurement; less: fewer kills, less time"
    )
    made.add_argument("--only", type=names, help=f"topics, separated by commas, of {', '.join(TOPICS)}; default: all")
    made.add_argument("--output", help="file for the findings as JSON")
    return made


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in present()]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: there are {', '.join(present())}")
    return chosen


def present() -> list[str]:
    """The topics whose module is there."""
    return [topic for topic in TOPICS if importlib.util.find_spec(f"tests.faults.{topic}")]


def run_topic(topic: str, scale: float) -> Iterator[Entry]:
    """The findings of a topic as they come. What breaks in the harness itself is a finding that is not ok."""
    last = time.perf_counter()
    try:
        for finding in importlib.import_module(f"tests.faults.{topic}").findings(scale):
            yield Entry(topic, finding, time.perf_counter() - last)
            last = time.perf_counter()
    except Exception:
        trace = traceback.format_exc()
        yield Entry(topic, Finding("the harness itself", "broke", ok=False, seen=trace), time.perf_counter() - last)


def show(console: Console, entry: Entry) -> None:
    """A row for a finding, and below it what the user sees."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(width=3)
    table.add_column(ratio=2)
    table.add_column(ratio=5)
    table.add_column(width=7, justify="right")
    finding = entry.finding
    table.add_row("ok" if finding.ok else "NOT", finding.done, finding.result, f"{entry.seconds:.1f} s")
    for line in finding.seen.strip().splitlines():
        table.add_row("", "", f"│ {line}", "")
    console.print(table)


def summary(entries: Sequence[Entry]) -> Table:
    table = Table("topic", "findings", "not as promised", "seconds")
    for topic in dict.fromkeys(entry.topic for entry in entries):
        mine = [entry for entry in entries if entry.topic == topic]
        bad = sum(not entry.finding.ok for entry in mine)
        table.add_row(topic, str(len(mine)), str(bad), f"{sum(entry.seconds for entry in mine):,.0f}")
    return table


def machine() -> dict[str, str]:
    """What the findings were made on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return {
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "commit": commit.stdout.strip() or "unknown",
        "began": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def save(path: Path, about: dict[str, str], scale: float, entries: Sequence[Entry], seconds: float) -> None:
    findings = [{"topic": entry.topic, "seconds": entry.seconds} | asdict(entry.finding) for entry in entries]
    content = about | {"scale": scale, "seconds": seconds, "findings": findings}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
