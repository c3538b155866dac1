"""Composition: YAML files and arguments become one validated, frozen configuration, or one list of mistakes.

The only file that imports Hydra and OmegaConf, and only when it composes, so `--help` answers at once. Hydra's
compose API is used, not `@hydra.main`, which would write `outputs/` and take over logging. The defaults of
`gpt/config` enter Hydra as a plain dict; `gpt/config` converts and judges what comes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import yaml

from gpt.arguments import CONFIGS, NONE, Arguments, Command, check_choices, leaves, parse
from gpt.options import C, ConfigError, Mistake, UserError, defaults, read_dict, words_of

MOST_VALUES = 1000  # of one option, and runs of one sweep


def load_config(command: Command[C], argv: Sequence[str]) -> C:
    """The configuration that the arguments ask for. Raises `ConfigError` with all mistakes in them."""
    given = parse(command, argv)
    for name, text in [*given.choices.items(), *given.ordinary.items()]:
        if swept_values(name, text) is not None:
            given.refuse(name, "is several values; give one, or add --multirun to run them all", text)
            (given.choices if name in given.choices else given.ordinary).pop(name)
    check_choices(command, given)
    for name, choice in command.implied(given).items():
        given.choices[name] = choice
    if "experiment" in given.doubtful:  # any option may hang on it
        given.doubtful.update(command.groups())
    values = _compose(command, given)
    if command.adopt and not given.mistakes:
        try:
            command.adopt(values, _names_set(given))
        except ConfigError as error:
            given.mistakes += error.mistakes
        except UserError as error:  # of a file or a download
            option, _, message = str(error).partition(": ")
            if option.partition("=")[0] not in given.free:
                raise
            given.mistakes.append(Mistake(option, message))  # listed with those of the other options
    config, found = read_dict(command.kind, values, given.doubtful)
    if given.mistakes or config is None:
        raise ConfigError([*given.mistakes, *found])
    return config


def _compose(command: Command, given: Arguments) -> dict[str, Any]:
    """Hydra's composition of files, choices and ordinary values, as plain dicts, with the free text put in."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    overrides = [f"{name}={choice}" for name, choice in given.choices.items() if choice != NONE]  # the default
    literal = dict(given.free)
    words = {leaf.name: words_of(leaf.hint) for leaf in leaves(command.kind)}
    spoken = {name for name, text in given.ordinary.items() if text in words.get(name, ())}
    for name, text in given.ordinary.items():
        if name in spoken or _override(f"{name}={text}") is None:
            literal[name] = text  # not Hydra's grammar, so not a number or word: its type will say what it must be
        else:
            overrides.append(f"{name}={text}")
    ConfigStore.instance().store(name=f"{command.config}_options", node=defaults(command.kind))
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = compose(command.config, overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(
            f"{CONFIGS}: the configuration files do not fit together: {' '.join(str(error).split())}"
        ) from error
    choices = composed.hydra.runtime.choices
    default_run = f"runs/{choices.get('data')}-{choices.get('model')}"
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    values = _plain(composed, given)
    if spoken and command.before_words:
        command.before_words(values, given)
    for name, value in literal.items():
        group, _, last = name.rpartition(".")
        (values[group] if group else values)[last] = value
    if values.get("run_dir") == "":
        values["run_dir"] = default_run
    return values


def _plain(node: Any, given: Arguments, prefix: str = "") -> dict[str, Any]:
    """The node as plain dicts; an interpolation that leads nowhere becomes a mistake."""
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plain: dict[str, Any] = {}
    for key in node:
        try:
            value = node[key]
            plain[key] = OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value
        except OmegaConfBaseException:
            raw = str(dict(OmegaConf.to_container(node, resolve=False))[key])  # type: ignore[arg-type]
            given.refuse(f"{prefix}{key}", "refers to something that is not there; write the value itself", raw)
            continue
        if isinstance(value, DictConfig):
            plain[key] = _plain(value, given, f"{prefix}{key}.")
    return plain


def _override(argument: str) -> Any:
    """Hydra's reading of `name=value`, or None where it is not in its grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(argument)
    except (HydraException, RecursionError, ValueError):  # brackets in brackets in brackets; thousands of digits
        return None


def swept_values(name: str, text: str) -> list[str] | None:
    """The values, as text, where Hydra's grammar reads several: `1,2`, `range(1,3)`; [] if none, or no end."""
    from hydra.errors import HydraException

    override = _override(f"{name}={text}")
    if override is None or not override.is_sweep_override():
        return None
    try:
        values = list(islice(override.sweep_string_iterator(), MOST_VALUES + 1))
    except (HydraException, ValueError):  # ValueError: a range with a step of 0
        return []
    return list(dict.fromkeys(values)) if len(values) <= MOST_VALUES else []


@dataclass(frozen=True)
class Space:
    """What a search may try of an option: one of `values`, as text, or, without those, all from `low` to `high`."""

    values: tuple[str, ...] = ()
    ordered: bool = False  # the values are numbers at equal distances
    low: float = 0.0
    high: float = 0.0
    log: bool = False  # equally likely at each order of magnitude


def search_space(name: str, text: str) -> Space | None:
    """What Hydra's grammar reads: `interval(1,2)`, `tag(log,interval(1,2))`, `range(1,3)`, `choice(1,2)` or `1,2`; None
    if one value. Raises `ConfigError`."""
    override = _override(f"{name}={text}")
    if override is None or not override.is_sweep_override():
        return None
    sweep = override.value()
    interval = override.is_interval_sweep()
    if unknown := sweep.tags - {"log"} or (set() if interval else sweep.tags):
        message = "is the only tag, of interval(…), as tag(log,interval(1e-4,1e-2))"
        raise ConfigError([Mistake(name, f"has the tag {', '.join(sorted(unknown))}; log {message}", text)])
    if interval:
        return Space(low=sweep.start, high=sweep.end, log="log" in sweep.tags)
    values = swept_values(name, text)
    if not values:
        raise ConfigError([Mistake(name, f"is no list of at most {MOST_VALUES} values, as 3e-4,1e-3", text)])
    return Space(tuple(values), override.is_range_sweep())


def _names_set(given: Arguments) -> set[str]:
    """Options and groups that the arguments set, or the files that they chose."""
    chosen = {group: choice for group, choice in given.choices.items() if choice != NONE}
    names = {*chosen, *given.ordinary, *given.free}
    for group, choice in chosen.items():
        names.update(_names_in_file(group, choice))
    return names


def _names_in_file(group: str, choice: str) -> Iterator[str]:
    """Options and groups that a file of `configs/` sets, and those on which it builds."""
    content = yaml.safe_load((CONFIGS / group / f"{choice}.yaml").read_text(encoding="utf-8")) or {}
    for entry in content.pop("defaults", ()):
        if isinstance(entry, Mapping):
            yield from (key.removeprefix("override /") for key in entry)
        elif entry != "_self_":
            yield from _names_in_file(group, entry)
    yield from _leaf_names(content, "" if group == "experiment" else f"{group}.")


def _leaf_names(content: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaf_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name
