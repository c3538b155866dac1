"""How long a checkpoint of GPT-2 124M with AdamW's state holds training up, written behind it and waited for."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.faults.findings import Finding
from tests.faults.processes import ROOT, write_book

LARGEST_SHARE = 0.1  # of the time that a save takes which training waits for


def findings(scale: float) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        text, output = write_book(Path(folder, "book.txt")), Path(folder, "saving.json")
        repeats = ["--repeats", str(max(1, round(3 * scale))), "--saves", "3" if scale >= 1 else "1"]
        command = [sys.executable, "-m", "benchmarks.saving", "--text", text, *repeats, "--output", output]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            yield Finding("saving GPT-2 124M (benchmarks.saving)", "not measured", False, done.stderr[-500:])
            return
        results = json.loads(output.read_text(encoding="utf-8"))["results"]
    waiting, behind = (median(one["blocked"] for one in many) for many in results.values())
    yield Finding(
        "a checkpoint of GPT-2 124M with AdamW's state, 1.5 GB",
        f"training waits {behind:.2f} s where it is written behind, {waiting:.2f} s where waited for: "
        f"{100 * behind / waiting:.1f} %",
        behind < LARGEST_SHARE * waiting,
        done.stdout.strip(),
    )
