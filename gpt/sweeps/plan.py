"""Which runs a sweep has: every combination of the swept values, validated before any starts."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from gpt.arguments import Command, leaves, parse
from gpt.composition import MOST_VALUES, load_config, swept_values
from gpt.options import ConfigError, Mistake, look_up, written


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its folder, the other arguments that make it, and the swept options in the sweep's order."""

    folder: Path
    others: tuple[str, ...]
    values: dict[str, Any]  # of an option as its type has it, of a group the choice

    @property
    def arguments(self) -> tuple[str, ...]:
        return (*self.others, f"run_dir={self.folder}")


class Plan:
    """The runs of a sweep, all in folders below `folder`."""

    at_once = sys.maxsize  # no run waits for what another comes to

    def __init__(self, folder: Path, runs: list[Run]) -> None:
        self.folder, self.runs = folder, runs
        self.finished: dict[Path, int] = {}  # exit statuses from earlier sessions; a run that is done says so itself
        self.coming = iter(runs)

    def next(self) -> Run | None:
        """The next run to start, or None: there is none, or none before another has ended."""
        return next(self.coming, None)

    def ended(self, run: Run, status: int) -> None:
        """Take note of how a run ended."""


def plan_runs(command: Command, argv: Sequence[str]) -> Plan:
    """Every combination of the swept values.

    The values make the folder, `runs/stdlib-mini/optimizer.lr=0.001`, so the same sweep again continues each run.
    All combinations are validated before any starts: raises `ConfigError` with their mistakes.
    """
    check_sweepable(command)
    given = parse(command, argv)
    found = {str(mistake): mistake for mistake in given.mistakes}
    swept: dict[str, list[str]] = {}
    for name, text in [*given.choices.items(), *given.ordinary.items()]:
        values = swept_values(name, text)
        if values:
            swept[name] = values
        elif values is not None:
            searched = "; sweeper=optuna searches an interval" if "interval" in text else ""
            message = f"is no list of at most {MOST_VALUES} values, as 3e-4,1e-3{searched}"
            raise ConfigError([Mistake(name, message, text)])
    if math.prod(map(len, swept.values())) > MOST_VALUES:
        raise ConfigError([Mistake("--multirun", f"makes more than {MOST_VALUES} runs; give fewer values")])
    if not swept and not found:
        raise ConfigError([Mistake("--multirun", "no option has several values, as optimizer.lr=3e-4,1e-3")])
    fixed = without(argv, swept)
    runs: list[Run] = []
    for combination in product(*swept.values()):
        try:
            runs.append(plan_run(command, fixed, dict(zip(swept, combination, strict=True))))
        except ConfigError as error:
            found.update({str(mistake): mistake for mistake in error.mistakes})
    if found:
        raise ConfigError(list(found.values()))
    folder = common_folder(runs)
    return Plan(folder, list({run.folder: run for run in (below(folder, run) for run in runs)}.values()))


def common_folder(runs: Iterable[Run]) -> Path:
    """Of all runs of a sweep: swept choices of data and model, after which a run is named, give each another."""
    return min(run.folder.parent for run in runs)


def below(folder: Path, run: Run) -> Run:
    """The run, with its folder in this one."""
    return replace(run, folder=folder / run.folder.name)


def without(argv: Sequence[str], names: Collection[str]) -> list[str]:
    """The arguments that do not set one of these options."""
    return [argument for argument in argv if argument.partition("=")[0] not in names]


def check_sweepable(command: Command) -> None:
    """Raises `ConfigError` where there is nothing that could have several runs, or torchrun runs it."""
    if not any(leaf.name == "run_dir" for leaf in leaves(command.kind)):
        raise ConfigError([Mistake("--multirun", "only train.py has runs; give one value to each option")])
    if "RANK" in os.environ:
        raise ConfigError([Mistake("--multirun", "starts its runs itself and does not go with torchrun")])


def plan_run(command: Command, fixed: Sequence[str], swept: dict[str, str]) -> Run:
    """The run with these values, as the command line writes them, of the swept options. Raises `ConfigError`."""
    arguments = [*fixed, *(f"{name}={text}" for name, text in swept.items())]
    config = load_config(command, arguments)
    groups = command.groups()
    # The value as it was understood, so that 1e-3 and 0.001 are the same run.
    values = {name: text if name in groups else look_up(config, name) for name, text in swept.items()}
    name = ",".join(f"{name}={written(value)}" for name, value in values.items())
    folder = Path(look_up(config, "run_dir")).expanduser() / name.replace("/", "-")
    return Run(folder, tuple(without(arguments, ["run_dir"])), values)
