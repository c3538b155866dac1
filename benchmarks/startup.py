"""What a command costs before its first training step and after its last, in seconds of wall time.

    python -m benchmarks.startup --text tinyshakespeare.txt --nanogpt nanoGPT --repeats 5

Times are those at which lines of the command's output arrive: from the start of the process to the line of the first
step, and from that of the last step to the end of the process, which includes an evaluation of a few tokens, a
checkpoint, a sample and the curves. `prepared`: the corpus was tokenized before. Characters of Shakespeare: nanoGPT's
CPU recipe, of which `experiment=shakespeare_char_cpu` is the counterpart, for a few steps. nanoGPT evaluates before its
first step, and here on one batch only; it is prepared by a command of its own, whose time is included where it is not
prepared before.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.side_by_side import ROOT, Results, print_table, spread, write_json
from benchmarks.time_to_loss import NANOGPT_RECIPE

STEPS = 5
EVAL_TOKENS = 2048
STEP = re.compile(r"(?:step|iter) +(\d+):? +loss ")  # of both programs
Times = dict[str, float]


def timed(command: list[str], folder: Path) -> Times:
    """`first`: seconds to the line of the first step; `exit`: from that of the last to the end; `whole`: all."""
    started = time.perf_counter()
    steps, output = [], []
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if STEP.match(line):
                steps.append(time.perf_counter() - started)
    whole = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{''.join(output)[-3000:]}")
    return {"whole": whole} | ({"first": steps[0], "exit": whole - steps[-1]} if steps else {})


def newleaf(options: list[str], prepared: bool, folder: Path) -> Times:
    options = [*options, f"data.prepared_dir={folder / 'prepared'}"]
    if prepared:
        corpus = [option for option in options if option.startswith(("data", "tokenizer"))]
        subprocess.run([sys.executable, str(ROOT / "data/prepare.py"), *corpus], check=True, capture_output=True)
    options += [f"run_dir={folder / 'run'}", f"train.max_steps={STEPS}", "train.log_every=1"]
    options += [f"train.eval_tokens={EVAL_TOKENS}", "schedule.warmup_steps=0"]
    return timed([sys.executable, "-u", str(ROOT / "train.py"), *options], folder)


def nanogpt(checkout: Path, text: Path, prepared: bool, folder: Path) -> Times:
    copy = folder / "nanogpt"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "*.bin", "*.pkl"))
    shutil.copy(text, copy / "data/shakespeare_char/input.txt")
    seconds = timed([sys.executable, "data/shakespeare_char/prepare.py"], copy)["whole"]
    few = ["--eval_iters=1", "--log_interval=1", f"--max_iters={STEPS}", f"--eval_interval={STEPS}"]
    recipe = [option for option in NANOGPT_RECIPE if option.partition("=")[0] not in {f.partition("=")[0] for f in few}]
    times = timed([sys.executable, "-u", "train.py", *recipe, *few, f"--out_dir={folder / 'out'}"], copy)
    return times if prepared else times | {name: times[name] + seconds for name in ("first", "whole")}


def cases(text: Path | None, checkout: Path | None) -> dict[str, Callable[[Path], Times]]:
    """Every row of the table: what to measure in an empty folder."""
    python = [sys.executable, "-u"]
    rows: dict[str, Callable[[Path], Times]] = {
        "import torch": lambda folder: timed([*python, "-c", "import torch"], folder),
        "train.py --help": lambda folder: timed([*python, str(ROOT / "train.py"), "--help"], folder),
        "sample.py --help": lambda folder: timed([*python, str(ROOT / "sample.py"), "--help"], folder),
    }
    for name, prepared in (("", False), (", prepared", True)):
        rows[f"default run{name}"] = partial(newleaf, [], prepared)
        if text is None:
            continue
        characters = ["data=text", f"data.files=[{text}]", "tokenizer=char", "experiment=shakespeare_char_cpu"]
        rows[f"characters{name}"] = partial(newleaf, characters, prepared)
        if checkout:
            rows[f"nanoGPT, characters{name}"] = partial(nanogpt, checkout, text, prepared)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="tiny Shakespeare; without it only the default run is measured")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT; needs --text")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    text, checkout = (path and path.resolve() for path in (arguments.text, arguments.nanogpt))
    results: Results = {name: [] for name in cases(text, checkout)}
    for number in range(arguments.repeats):
        for name, measure in cases(text, checkout).items():
            with tempfile.TemporaryDirectory() as folder:
                results[name].append(measure(Path(folder)))
            print(f"  {number + 1}/{arguments.repeats} {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    rows = [
        [name, *(spread(results, name, key, 2) if key in runs[0] else "" for key in ("whole", "first", "exit"))]
        for name, runs in results.items()
    ]
    print_table(["seconds", "whole process", f"to step 1 of {STEPS}", "last step to exit"], rows)
    write_json(arguments.output, results, steps=STEPS, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
