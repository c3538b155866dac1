"""The options of a sweep itself, told apart from those of its runs.

`launcher=submitit_slurm launcher.partition=gpu sweeper=optuna`, or in Hydra's own words `hydra/launcher=submitit_slurm
hydra.launcher.partition=gpu hydra/sweeper=optuna`. They never reach a run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from gpt.arguments import CONFIGS, Arguments, Command, choices_of, leaves, parse
from gpt.config.sweep import SweepConfig
from gpt.options import ConfigError, Mistake, defaults, nearest, read_dict

BASIC = "basic"  # the choice of no file, which Hydra calls so too
OURS = re.compile(r"(?:hydra[./])?(launcher|sweeper)(?=[./=]|$)")


class SweepCommand(Command[SweepConfig]):
    """The part of a command line that is the sweep's."""

    def groups(self) -> dict[str, str | None]:
        return {"launcher": BASIC, "sweeper": BASIC}


SWEEP = SweepCommand(SweepConfig, "train", "A sweep.")


def split(command: Command, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of the sweep, in one spelling, and those of its runs."""
    if not any(leaf.name == "run_dir" for leaf in leaves(command.kind)):
        return [], list(argv)
    ours, others = [], []
    for argument in argv:
        name, equals, text = argument.partition("=")
        if found := OURS.match(argument):
            name = found[1] + name[found.end() :].replace("/", ".")  # hydra/sweeper/sampler=tpe
            ours.append(name + equals + text)
        else:
            others.append(argument)
    return ours, others


def refuse_without_multirun(command: Command, argv: Sequence[str]) -> None:
    """Raises `ConfigError` where a command line without `--multirun` has options of a sweep."""
    ours, _ = split(command, argv)
    if ours:
        message = "is for a sweep; add --multirun, or leave it out"
        pairs = [argument.partition("=") for argument in ours]
        raise ConfigError([Mistake(name, message, text if equals else None) for name, equals, text in pairs])


def load_sweep(command: Command, argv: Sequence[str]) -> tuple[SweepConfig, list[str]]:
    """The sweep that the arguments ask for, and the arguments of its runs. Raises `ConfigError`."""
    ours, others = split(command, argv)
    given = parse(SWEEP, ours)
    values = defaults(SweepConfig)
    for name, choice in given.choices.items():
        merge_file(given, values[name], name, choice)
    whole = {leaf.name: leaf.hint for leaf in leaves(SweepConfig)}
    for name, text in given.ordinary.items():
        group, _, last = name.partition(".")
        values[group][last] = text if whole[name] is str else read_value(text)
    for name, value in given.free.items():
        group, _, last = name.partition(".")
        values[group][last] = value
    config, found = read_dict(SweepConfig, values, given.doubtful)
    if given.mistakes or config is None:
        raise ConfigError([*given.mistakes, *found, *parse(command, others).mistakes])
    return config, others


def merge_file(given: Arguments, values: dict[str, Any], group: str, choice: str) -> None:
    """Put the file of a choice, `configs/hydra/<group>/<choice>.yaml`, over the values of its group."""
    known = [BASIC, *choices_of(f"hydra/{group}")]
    if choice not in known:
        meant = nearest(choice, known)
        hint = f"; did you mean {group}={meant[0]}?" if meant else ""
        given.refuse(group, f"is not one of {', '.join(known)}{hint}", choice)
    elif choice != BASIC:
        path = CONFIGS / "hydra" / group / f"{choice}.yaml"
        values.update(yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def read_value(text: str) -> Any:
    """A number, true or null; anything else stays a text, and its option says what it must be."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
