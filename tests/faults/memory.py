"""Processes of a limited address space (`ulimit -v`) run out of memory: what the user reads, and what then helps."""

from __future__ import annotations

import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from .findings import Finding

ROOT = Path(__file__).resolve().parent.parent.parent
MIB = 2**20
# Deep and narrow: a quarter of a gigabyte of activations, and little to compute.
RUN = (
    "data=text", "data.files=[book.txt]", "data.prepared_dir=prepared", "tokenizer=byte", "optimizer=adamw",
    "model.n_embd=64", "model.n_layer=12", "model.n_head=1", "model.context_length=256", "schedule.warmup_steps=1",
    "train.max_steps=2", "train.eval_every=2", "train.log_every=1", "train.sample_tokens=5", "train.eval_tokens=1000",
    "train.precision=fp32", "train.device=cpu",
)  # fmt: skip
LARGE = "train.batch_size=16"
# What a process has taken when it begins to train, and what all of it comes to later.
BEFORE_TRAINING = """
import re, torch, gpt.training.run, matplotlib.pyplot
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    torch.zeros(2, 2) @ torch.zeros(2, 2)
torch.randn(512, 512) @ torch.randn(512, 512)
print(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
ENOUGH, LITTLE = 210 * MIB, 20 * MIB  # more than that


class Machine:
    """A folder in which commands are run in an address space of so many bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        words = random.Random(0).choices(["leaf", "branch", "root", "tree", "sun", "rain"], k=10_000)
        (folder / "book.txt").write_text(" ".join(words))
        # Twice: a process that is the first to import all this compiles it, and takes more.
        self.base = min(int(self.run(None, "-c", BEFORE_TRAINING).stdout) * 1024 for _ in range(2))

    def run(self, room: int | None, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python with so many bytes besides what any training process takes; None: without a limit."""

        def limit() -> None:
            if room is not None:
                resource.setrlimit(resource.RLIMIT_AS, (self.base + room,) * 2)

        # Each thread takes address space that it does not use; few of them make this alike on all machines.
        variables = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=os.environ | variables, capture_output=True,
            encoding="utf-8", timeout=600, check=False, preexec_fn=limit,
        )  # fmt: skip

    def train(self, room: int | None, run_dir: str, *options: str) -> subprocess.CompletedProcess[str]:
        given = {option.split("=")[0]: option for option in (*RUN, *options)}
        return self.run(room, str(ROOT / "train.py"), *given.values(), f"run_dir={run_dir}")

    def split(self, run_dir: str) -> list[str]:
        """How the run of a folder splits its updates, as options."""
        train = yaml.safe_load((self.folder / run_dir / "config.yaml").read_text())["train"]
        return [f"train.{name}={train[name]}" for name in ("batch_size", "grad_accum_steps")]


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.rstrip().rpartition("\n")[2]


def finding(what: str, done: subprocess.CompletedProcess[str], status: int, *words: str) -> Finding:
    """Whether a process ended with a status, without a traceback and with such words on the console."""
    silent = "Traceback" not in done.stderr
    ok = done.returncode == status and silent and all(word in done.stderr for word in words)
    result = f"exit status {done.returncode}{'' if silent else ', with a traceback'}"
    return Finding(what, result, ok, last_line(done) if ok else done.stderr)


def findings(scale: float) -> Iterator[Finding]:
    """Below `scale` 1.0 without what happens to other commands than train.py."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        yield from a_new_run(machine)
        yield from a_continued_run(machine)
        yield finding(
            "train.batch_size=auto where not one sequence fits", machine.train(LITTLE, "none", "train.batch_size=auto"),
            2, "train.batch_size=auto: even 1 sequence at a time needs about",
        )  # fmt: skip
        if scale >= 1:
            yield from other_commands(machine)


def a_new_run(machine: Machine) -> Iterator[Finding]:
    short = machine.train(ENOUGH, "new", LARGE)
    yield finding(
        f"{LARGE} in too little memory", short, 1, "WARNING: only", "Out of memory after step 0", "starts again"
    )
    yield from advice_followed(machine, "new", short)
    automatic = machine.train(ENOUGH, "auto", "train.batch_size=auto", "train.global_batch_size=16")
    done = finding("train.batch_size=auto in the same memory", automatic, 0, "train.batch_size=auto: ")
    told = next(line for line in automatic.stderr.splitlines() if "auto: " in line)
    yield Finding(
        done.done, f"{done.result}, {' '.join(machine.split('auto'))}", done.ok, told if done.ok else done.seen
    )


def a_continued_run(machine: Machine) -> Iterator[Finding]:
    assert machine.train(None, "old", LARGE).returncode == 0
    short = machine.train(ENOUGH, "old", LARGE, "train.max_steps=4")
    intact = "step-00000002, is intact: the same command with these options in place of its own continues"
    yield finding("a run continued in less memory", short, 1, "Out of memory after step 2", intact)
    yield from advice_followed(machine, "old", short, "train.max_steps=4")


def advice_followed(
    machine: Machine, run_dir: str, short: subprocess.CompletedProcess[str], *options: str
) -> Iterator[Finding]:
    advised = re.findall(r"train\.(?:batch_size|grad_accum_steps)=\d+", last_line(short))
    done = finding("the same command as advised", machine.train(ENOUGH, run_dir, *options, *advised), 0)
    same = bool(advised) and machine.split(run_dir) == advised
    yield Finding(done.done, f"{done.result}, {' '.join(advised)}", done.ok and same, done.seen)


def other_commands(machine: Machine) -> Iterator[Finding]:
    """With batches for which no machine has the memory."""
    checkpoint, small = "checkpoint=new", "needs less"
    many = ("prompt=leaf", "num_samples=100000", "batch_size=100000", "max_new_tokens=200")
    yield finding(
        "sample.py with too many samples at once", machine.run(ENOUGH, str(ROOT / "sample.py"), checkpoint, *many),
        1, "sample.py: out of memory", small,
    )  # fmt: skip
    text = ("part=all", "data=text", "data.files=[book.txt]", "data.prepared_dir=prepared")
    windows = ("stride=1", "batch_size=50000")
    yield finding(
        "evaluate.py with too large a batch",
        machine.run(ENOUGH, str(ROOT / "evaluate.py"), checkpoint, *text, *windows),
        1, "evaluate.py: out of memory", small,
    )  # fmt: skip
