"""Real processes for the fault harness: tiny models trained on a small corpus, waited for, interrupted and killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("leaf", "branch", "root", "tree", "sun", "rain", "grows", "falls", "and", "月滿西樓")
STEP_LINE = re.compile(r"^step +(\d+)  (val loss|loss)", re.MULTILINE)
TAIL = 8192  # bytes of a log, more than is said between two steps
TIMEOUT = 300.0  # seconds that a process of a tiny run may take on a busy machine

# A run of seconds: two layers of 32, a metric line for each step.
TINY: dict[str, object] = {
    "data": "text", "data.files": "[book.txt]", "data.documents": "blank_line", "data.prepared_dir": "prepared",
    "tokenizer": "byte", "model.n_layer": 2, "model.n_head": 2, "model.n_embd": 32, "model.context_length": 32,
    "optimizer": "adamw", "train.max_steps": 30, "train.batch_size": 4, "train.eval_every": 10,
    "train.checkpoint_every": 5, "train.eval_tokens": 1000, "train.sample_tokens": 8, "train.log_every": 1,
    "train.precision": "fp32", "train.device": "cpu",
}  # fmt: skip


def write_book(path: Path, seed: int = 0, paragraphs: int = 300) -> Path:
    """A text of paragraphs of random words: the same for the same seed."""
    chance = random.Random(seed)
    text = "\n\n".join(" ".join(chance.choices(WORDS, k=60)) for _ in range(paragraphs))
    path.write_text(text + "\n", encoding="utf-8")
    return path


def write_pairs(path: Path, seed: int = 0, count: int = 400) -> Path:
    """JSONL of questions and answers of differing lengths."""
    chance = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            question = f"{number}: " + " ".join(chance.choices(WORDS, k=chance.randint(1, 4)))
            answer = " ".join(chance.choices(WORDS, k=chance.randint(1, 4)))
            file.write(json.dumps({"question": question, "answer": answer}, ensure_ascii=False) + "\n")
    return path


@dataclass(frozen=True)
class Job:
    """A script of Newleaf (or the path of one) and its options, typed in the folder `cwd`; `before` is what the command
    line starts with, as a program that enters a namespace, and `variables` are more of the environment."""

    cwd: Path
    script: str = "train.py"
    options: Mapping[str, object] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def changed(self, **options: object) -> Job:
        """The same with other options: `train__max_steps=9` is train.max_steps."""
        renamed = {name.replace("__", "."): value for name, value in options.items()}
        return replace(self, options={**self.options, **renamed})

    @property
    def run_dir(self) -> Path:
        return self.cwd / str(self.options["run_dir"])

    @property
    def prepared_dir(self) -> Path:
        return self.cwd / str(self.options["data.prepared_dir"])

    def start(self) -> Running:
        arguments = [*self.arguments, *(f"{name}={value}" for name, value in self.options.items())]
        usual = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        logs = self.cwd / "logs"
        logs.mkdir(exist_ok=True)
        log, output = (logs / f"{time.monotonic_ns()}.{suffix}" for suffix in ("txt", "out"))
        with log.open("wb") as errors, output.open("wb") as out:
            process = subprocess.Popen(
                [*self.before, sys.executable, str(ROOT / self.script), *arguments],
                cwd=self.cwd, env={**os.environ, **usual, **self.variables}, stdin=subprocess.DEVNULL,
                stdout=out, stderr=errors,
            )  # fmt: skip
        return Running(process, log, output)

    def run(self) -> Running:
        """Run it to its end."""
        running = self.start()
        running.end()
        return running


def tiny(cwd: Path, run_dir: str, **changes: object) -> Job:
    """A training of `TINY`, with some options changed."""
    return Job(cwd, options=TINY | {"run_dir": run_dir}).changed(**changes)


@dataclass(frozen=True)
class Running:
    """A process that was started, and what it says: standard error in `log`, standard output in `output`."""

    process: subprocess.Popen[bytes]
    log: Path
    output: Path

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def status(self) -> int | None:
        return self.process.returncode

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said

    @property
    def seen(self) -> str:
        """What it said about its end: what follows the last line of a step but for the sample, which is indented; of a
        traceback its last line."""
        lines = [line for line in self.said.split("\n") if line.strip() and not line.startswith("    ")]
        steps = [number for number, line in enumerate(lines) if STEP_LINE.match(line)]
        told = lines[steps[-1] + 1 :] if steps else lines
        return "\n".join(told[-1:] if self.traceback else told[-6:])

    def last_step(self) -> tuple[int, bool] | None:
        """The last step that it told, and whether it was about its evaluation."""
        with self.log.open("rb") as file:  # the end only: this is asked a thousand times a second
            file.seek(max(0, self.log.stat().st_size - TAIL))
            told = STEP_LINE.findall(file.read().decode("utf-8", errors="replace"))
        return (int(told[-1][0]), told[-1][1] == "val loss") if told else None

    def wait_until(self, condition: Callable[[], bool], every: float = 0.002) -> bool:
        """Whether the condition came true while the process lived."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if not self.alive or time.monotonic() > deadline:
                return False
            time.sleep(every)
        return True

    def wait_for_step(self, step: int) -> bool:
        return self.wait_until(lambda: (self.last_step() or (-1, False))[0] >= step, every=0.01)

    def sleep(self, seconds: float) -> bool:
        """Whether the process still lives after so many seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def end(self, *signals: signal.Signals, gap: float = 0.0) -> int:
        """Send signals, `gap` seconds apart, and wait for the end; the exit status."""
        for number, name in enumerate(signals):
            if number and not self.sleep(gap):
                break
            self.process.send_signal(name)
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.process.args!r} did not end within {TIMEOUT:g} s:\n{self.said}") from None

    def kill(self) -> int:
        return self.end(signal.SIGKILL)


def one_line(running: Running, *statuses: int) -> bool:
    """Whether a process ended with one of these exit statuses, a message and no traceback."""
    return running.status in statuses and not running.traceback and bool(running.seen)


def heed_interrupts() -> None:
    """Have children heed SIGINT, which a shell has its background jobs ignore, and those their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
