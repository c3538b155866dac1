"""The sinks of metrics: JSON lines, the console, loss.png and Weights & Biases.

A sink that is switched off does nothing (as torchtitan's metrics), so whoever logs never asks. `train/loss` and
`val/loss` are nats a token, `val/bits_per_byte` bits a UTF-8 byte, `train/tokens_per_second` counts training alone,
`train/mfu` is a share of the hardware's peak in 0 … 1.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt.config import RunConfig
from gpt.options import UserError, to_dict
from gpt.text.files import write_whole

Values = Mapping[str, float]


class JsonLines:
    """One JSON object with its `step` a line."""

    def __init__(self, path: Path, from_step: int) -> None:
        """Continue a file after `from_step`: the last step of what was restored, or -1 where nothing was. Lines of
        later steps, which will be done again, are dropped."""
        write_whole(path, (dump(line) for line in read_lines(path) if line["step"] <= from_step))
        self.file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        self.file.write(dump(values))
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def dump(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines up to the first that is none, as a last line that a kill cut short; [] where
    there is no file."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
        try:
            line = json.loads(text or "{}")
        except ValueError:
            break
        if text and not (isinstance(line, dict) and isinstance(line.get("step"), int)):
            break
        lines += [line] if text else []
    return lines


class ProgressLine:
    """The console, on standard error: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, max_steps: int, step: int) -> None:
        self.console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
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


class Wandb:
    """A Weights & Biases run, or nothing where `wandb.mode=disabled`."""

    def __init__(self, config: RunConfig, run_dir: Path, run_id: str | None) -> None:
        self.run: Any = None
        if config.wandb.mode != "disabled":
            import wandb  # slow to import, so only where it is asked for

            try:
                self.run = self.start(config, run_dir, run_id)
            except wandb.errors.Error as error:
                raise UserError(
                    f"wandb.mode={config.wandb.mode}: {error}; run `wandb login`, or use wandb.mode=offline or disabled"
                ) from None

    def start(self, config: RunConfig, run_dir: Path, run_id: str | None) -> Any:
        import wandb

        return wandb.init(
            project=config.wandb.project,
            mode=config.wandb.mode,  # type: ignore[arg-type]
            dir=run_dir,
            id=run_id,
            name=run_dir.name,
            resume="allow",
            config=to_dict(config),
        )

    @property
    def id(self) -> str | None:
        return None if self.run is None else self.run.id

    def log(self, step: int, values: Values) -> None:
        if self.run is not None:
            self.run.log(dict(values), step=step)

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


def draw_losses(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    """Plot train/loss and val/loss against the step, replacing the picture in one move."""
    from matplotlib.figure import Figure  # slow to import, so only when a picture is due

    figure = Figure(figsize=(7, 4.3), layout="constrained")
    axes = figure.subplots()
    for name, style in (("train/loss", {"lw": 1, "alpha": 0.6}), ("val/loss", {"lw": 2, "marker": "o", "ms": 3})):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    partial = path.with_name("." + path.name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a title in a script that the font lacks shows boxes
        figure.savefig(partial, format="png", dpi=120)
    partial.replace(path)
