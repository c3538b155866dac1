"""Sinks of metrics: JSON lines and the console. (`curves.py` has loss.png, `wandb_run.py` Weights & Biases.)

A sink that is switched off does nothing (as torchtitan's metrics), so whoever logs never asks. `train/loss` and
`val/loss` are nats a token, `val/bits_per_byte` bits a UTF-8 byte, `train/tokens_per_second` counts training alone,
`train/mfu` is a share of the hardware's peak in 0 … 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt.text.durable import flush_folder
from gpt.text.files import naming

LONGEST_LINE = 2**16  # bytes, of most files of lines: the last of a longer one is found by reading all


class JsonLines:
    """One JSON object with its `step` a line."""

    def __init__(self, path: Path, from_step: int, n_bytes: int | None = None) -> None:
        """Continue a file after `from_step`: the last step of what was restored, or -1 where nothing was. Lines of
        later steps, which will be done again, are cut off.

        `n_bytes`: how long the file was at that step, so that its lines need not be read again; None where unknown.
        """
        is_new = not path.exists()
        self.path = path
        self.file: BinaryIO = path.open("ab+")
        self.file.truncate(kept_bytes(self.file, from_step, n_bytes))
        self.file.seek(0, os.SEEK_END)
        if is_new:
            flush_folder(path.parent)

    def write(self, values: Mapping[str, Any]) -> bytes:
        """Append a line, and return it."""
        line = (json.dumps(values, ensure_ascii=False) + "\n").encode()
        with naming(self.path):
            self.file.write(line)
            self.file.flush()
        return line

    def sync(self) -> int:
        """Wait until every line is on the disk. Returns the bytes of the file."""
        with naming(self.path):
            os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        with naming(self.path):
            self.file.close()


def kept_bytes(file: BinaryIO, from_step: int, n_bytes: int | None) -> int:
    """How much of a file of lines belongs to what was restored, as `JsonLines` has it.

    What the checkpoint remembers is believed where the file is so long and a line of its step, or of one before, ends
    there. A file that somebody has changed since is read, up to the first line that is none, or of a later step.
    """
    if from_step < 0:
        return 0
    if n_bytes is not None and is_end(file, n_bytes, from_step):
        return n_bytes
    end = file.seek(0)
    for line in file:
        step = step_of(line)
        if line.strip() and (step is None or step > from_step):
            break
        end += len(line)
    return end


def is_end(file: BinaryIO, n_bytes: int, from_step: int) -> bool:
    """Whether a line of `from_step` or of a step before ends after so many bytes, or the file begins there."""
    if not 0 < n_bytes <= file.seek(0, os.SEEK_END):
        return n_bytes == 0
    file.seek(max(0, n_bytes - LONGEST_LINE))
    tail = file.read(min(n_bytes, LONGEST_LINE))
    step = step_of(tail[tail.rfind(b"\n", 0, -1) + 1 :])
    return step is not None and step <= from_step


def step_of(line: bytes) -> int | None:
    """The step of a line of metrics; None where it is none, as the last one of a process that was killed."""
    values = parsed(line)
    return values["step"] if values and line.endswith(b"\n") else None


def parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line of metrics; None where it is none."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines; [] where there is no file. Those that are no lines of metrics are left out."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [values for line in file if (values := parsed(line))]


class StandardError(Console):
    """`reader_went_away` is called where a pipe is closed at its other end: rich itself would end the process."""

    def __init__(self, reader_went_away: Callable[[], None]) -> None:
        super().__init__(stderr=True, highlight=False, emoji=False, soft_wrap=True)
        self.on_broken_pipe = reader_went_away  # type: ignore[method-assign]


class ProgressLine:
    """The console, on standard error: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, max_steps: int, step: int, reader_went_away: Callable[[], None]) -> None:
        """`reader_went_away` is called where a pipe for the console has nobody left who reads it."""
        self.console = StandardError(reader_went_away)
        self.live = self.console.is_terminal
        columns = (
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.live, transient=True)
        self.task = self.progress.add_task("", total=max_steps, completed=step)
        self.progress.start()

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def describe(self, step: int, text: str, seconds_left: float) -> None:
        """Show the newest figures of training."""
        self.progress.update(self.task, description=text)
        if not self.live:
            self.say(f"step {step:>6}  {text}  {duration(seconds_left)} left")

    def say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False)

    def close(self) -> None:
        self.progress.stop()


def duration(seconds: float) -> str:
    """For people: `42 s`, `3 min 20 s`, `5 h 12 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(n_bytes: float) -> str:
    """For people: `640 MiB`, `5.1 GiB`."""
    return f"{n_bytes / 2**20:,.0f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.1f} GiB"
