"""What a larger corpus costs: memory and a kill while it is prepared, then the start of training on it.

    python -m benchmarks.large_corpus --sizes 200,2000

Corpora of JSON lines as in `benchmarks.tokenize`, with GPT-2's tokens. Each is prepared once without a break, and once
killed (SIGKILL) when half of its parts are done and started again: `made again` counts finished parts whose files the
second process wrote anew. Then a small model trains on it: seconds from the command to its first step, in turns. Memory
is the peak that preparing holds beyond mapped files (sampled, Linux only).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import ROOT, Results, print_table, spread, write_json
from benchmarks.startup import EVAL_TOKENS, STEP
from benchmarks.tokenize import SAMPLE_SECONDS, python_library, tree_bytes, write_corpus

SMALL = ["model.n_layer=1", "model.n_head=2", "model.n_kv_head=2", "model.n_embd=64", "train.batch_size=4"]


def watched(command: list[str], until: Callable[[], bool] = lambda: False) -> dict[str, float]:
    """Run a command to its end, or kill it as soon as `until` says: seconds, and peak memory in MB."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            if until():
                process.kill()
            time.sleep(SAMPLE_SECONDS)
        assert process.stderr is not None
        if process.returncode > 0:
            sys.exit(f"{' '.join(command)} failed:\n{process.stderr.read().decode()[-3000:]}")
    return {"seconds": time.perf_counter() - started, "peak_mb": peak / 1e6}


def prepare(corpus: list[str], prepared: Path) -> dict[str, Any]:
    """Prepare without a break, then with a kill in the middle, and leave the folder there."""
    command = [sys.executable, str(ROOT / "data/prepare.py"), *corpus]
    whole = watched(command)
    n_parts = len(list(prepared.glob("*/train-*.bin")))
    shutil.rmtree(prepared)
    done = lambda: list(prepared.glob(".*.tmp/parts/done-*.json"))  # noqa: E731
    before = watched(command, lambda: 2 * len(done()) >= n_parts)["seconds"]
    kept = {f"train-{marker.name[5:10]}.bin" for marker in done()}
    written = {path.name: path.stat().st_mtime_ns for path in prepared.glob(".*.tmp/train-*.bin") if path.name in kept}
    after = watched(command)["seconds"]
    now = {path.name: path.stat().st_mtime_ns for path in prepared.glob("*/train-*.bin")}
    again = sum(now[name] != stamp for name, stamp in written.items())
    return whole | {"parts": n_parts, "before": before, "kept": len(kept), "again": again, "after": after}


def start(corpus: list[str], folder: Path) -> dict[str, float]:
    """Seconds to the line of the first step."""
    options = [*corpus, *SMALL, f"run_dir={folder / 'run'}", "train.max_steps=5", "train.log_every=1"]
    options += [f"train.eval_tokens={EVAL_TOKENS}", "schedule.warmup_steps=0"]
    started, first = time.perf_counter(), None
    command = [sys.executable, "-u", str(ROOT / "train.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if first is None and STEP.match(line):
                first = time.perf_counter() - started
    shutil.rmtree(folder / "run")
    if process.returncode or first is None:
        sys.exit(f"{' '.join(command)} failed")
    return {"first": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="200,2000", help="MB, separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="of the start of training")
    parser.add_argument("--folder", type=Path, help="where corpora are made, and removed again")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    sizes = arguments.sizes.split(",")
    prepared: dict[str, dict[str, Any]] = {}
    starts: Results = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        corpora = {}
        for size in sizes:
            file, folder = Path(work) / f"{size}.jsonl", Path(work) / f"prepared-{size}"
            write_corpus(file, int(size), python_library())
            corpora[size] = ["data=jsonl", f"data.files=[{file}]", "tokenizer=gpt2", f"data.prepared_dir={folder}"]
            prepared[size] = prepare(corpora[size], folder)
            print(f"  {size} MB: {prepared[size]}", file=sys.stderr, flush=True)
        for _ in range(arguments.repeats):
            for size in sizes:
                starts[size].append(start(corpora[size], Path(work)))
    rows = []
    for size in sizes:
        one = prepared[size]
        killed = f"{one['before']:.1f} + {one['after']:.1f}", f"{one['again']} of {one['kept']}"
        row = [size, f"{one['seconds']:.1f}", f"{one['peak_mb']:.0f}", *killed, spread(starts, size, "first", 2)]
        rows.append(row)
    print_table(["MB", "seconds", "peak MB", "killed, again: s", "made again", "first step: s"], rows)
    write_json(arguments.output, {"preparation": prepared, "start": starts}, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
