"""The machinery of options: dataclass fields with a documented rule, mistakes collected, plain dicts in and out.

A class of options validates itself when it is constructed and raises one `ConfigError` that lists every mistake
(as litgpt's `pretrain.py` does). `gpt/config` declares the options themselves. Neither torch nor Hydra here.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import math
import os
import re
import sys
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

from gpt.elsewhere import translated

LARGEST = 2**63  # what a whole number must stay below, as torch and numpy count in 64 bits


class UserError(Exception):
    """A mistake that the user can mend. The message says how; the command line prints it and exits with 2."""


def say(text: str) -> None:
    """Tell the user, on standard error: standard output is for text that was asked for. Of the processes of a run the
    first speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Tell the user why this process ends, whichever of a run's it is."""
    rank = os.environ.get("RANK", "0")
    try:
        print(text if rank == "0" else f"rank {rank}: {text}", file=sys.stderr, flush=True)
    except BrokenPipeError:  # the exit status still says it
        silence(2)


# How an exhausted memory is reported by torch (CPU, CUDA, MPS), C++, oneDNN, the C library and the dynamic linker.
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|bad_alloc|Cannot allocate memory \(|os error 12\b|"
    r"could not create a (memory|primitive)|failed to map segment",
    re.IGNORECASE,
)


def silence(descriptor: int) -> None:
    """Have what is written there go nowhere, once nobody reads it: Python itself would complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what it came upon while that was handled, says that there is no memory left."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if not isinstance(error, UserError) and OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__context__
    return False


@dataclass(frozen=True)
class Mistake:
    """One wrong option: its dotted name, a sentence with the way out, and its value as it is written."""

    option: str
    message: str
    value: str | None = None  # None: there is none to show; `Options` fills it in

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.option}: {self.message}"
        value = self.value.replace("\n", "\\n")
        return f"{self.option}={value if len(value) <= 80 else value[:79] + '…'}: {self.message}"


class ConfigError(UserError):
    """All mistakes found in a configuration."""

    def __init__(self, mistakes: Sequence[Mistake]):
        self.mistakes = list(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


@dataclass(frozen=True)
class Rule:
    """What a field's values mean and must satisfy. Bounds are inclusive, except `above` and `below`."""

    doc: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    free_text: bool = False  # taken verbatim from the command line, past Hydra's grammar
    escapes: bool = False  # `\n`, `\t` and `\\` in it mean the characters

    def broken_by(self, value: Any) -> str | None:
        """The sentence that says why `value` is not allowed, or None where it is."""
        if value is None or isinstance(value, tuple):
            return None
        if self.choices and value not in self.choices:
            return f"is not one of {', '.join(self.choices)}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return "is not a finite number"
        for bound, holds, words in (
            (self.low, lambda b: value >= b, "at least"),
            (self.high, lambda b: value <= b, "at most"),
            (self.above, lambda b: value > b, "greater than"),
            (self.below, lambda b: value < b, "less than"),
        ):
            if bound is not None and not holds(bound):
                return f"must be {words} {bound:g}"
        return f"is too large; use less than {LARGEST}" if abs(value) >= LARGEST and isinstance(value, int) else None


def option(default: Any, doc: str, **rule: Any) -> Any:
    """A dataclass field with its documentation and its `Rule`."""
    return field(default=default, metadata={"rule": Rule(doc, **rule)})


def group(kind: type, doc: str) -> Any:
    """A dataclass field that holds a group of options."""
    return field(default_factory=kind, metadata={"rule": Rule(doc)})


class Options:
    """Base of every option class: checks each field's `Rule`, then the combinations in `mistakes()`."""

    def __post_init__(self) -> None:
        found = []
        for spec in dataclasses.fields(self):  # type: ignore[arg-type]
            why = spec.metadata["rule"].broken_by(getattr(self, spec.name))
            if why:
                found.append(Mistake(spec.name, why))
        found = found or self.mistakes()  # combinations of bad values would only repeat the message
        if found:
            raise ConfigError([dataclasses.replace(m, value=written(look_up(self, m.option))) for m in found])

    def mistakes(self) -> list[Mistake]:
        """Combinations of fields that cannot be; overridden where there are any."""
        return []


C = TypeVar("C", bound=Options)


def written(value: Any) -> str:
    """A value as the command line takes it: null, true, [a.txt,b.txt], text bare."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    return str(value)


def look_up(config: Any, name: str) -> Any:
    """The value of a dotted name, as `optimizer.lr`."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known dotted names that `name` was probably meant to be, best first, at most three."""
    last = name.rpartition(".")[2]
    known = list(known)
    same = [other for other in known if other.rpartition(".")[2] == last]
    if found := same or translated(name, known):
        return found[:3]

    def likeness(other: str) -> float:
        end = other.rpartition(".")[2]
        whole, part = (difflib.SequenceMatcher(None, *pair).ratio() for pair in ((name, other), (last, end)))
        within = len(last) > 3 and (last in end or end in last)  # warmup, for warmup_steps
        return max(whole, 0.85 * (max(part, 0.9) if within else part))

    best = sorted(((likeness(other), other) for other in known), key=lambda pair: -pair[0])[:3]
    return [other for score, other in best if score >= 0.62 and score >= best[0][0] - 0.1]


def defaults(kind: type[Options]) -> dict[str, Any]:
    """The nested plain defaults of an option class, also of one that needs some option to be valid."""
    plain: dict[str, Any] = {}
    for spec in dataclasses.fields(kind):  # type: ignore[arg-type]
        if spec.default is dataclasses.MISSING:
            plain[spec.name] = defaults(spec.default_factory)  # type: ignore[arg-type]
        else:
            plain[spec.name] = list(spec.default) if isinstance(spec.default, tuple) else spec.default
    return plain


def to_dict(config: Options) -> dict[str, Any]:
    """The configuration as nested plain dicts that JSON and YAML can hold; tuples become lists."""
    plain: dict[str, Any] = {}
    for spec in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, spec.name)
        if isinstance(value, Options):
            value = to_dict(value)
        plain[spec.name] = list(value) if isinstance(value, tuple) else value
    return plain


def to_yaml(config: Options) -> str:
    """The configuration as YAML, for the `config.yaml` of a run."""
    return yaml.safe_dump(to_dict(config), allow_unicode=True, sort_keys=False, width=10**6)


def from_dict(kind: type[C], mapping: Mapping[str, Any]) -> C:
    """The configuration that `to_dict` or YAML gave; an option that is absent takes its default.

    Raises `ConfigError` with every mistake: unknown names, wrong types, values out of range, combinations.
    """
    config, found = read_dict(kind, mapping)
    if config is None:
        raise ConfigError(found)
    return config


def read_dict(
    kind: type[C], mapping: Mapping[str, Any], doubtful: Collection[str] = (), prefix: str = ""
) -> tuple[C | None, list[Mistake]]:
    """The configuration, or None, and the mistakes.

    `doubtful` options and groups have a mistake that was reported elsewhere. Combinations are judged only in groups
    without a mistaken or doubtful option, so that one mistake is not reported twice.
    """
    specs = {spec.name: spec for spec in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = {str(key): value for key, value in mapping.items() if key not in specs}
    found = [Mistake(prefix + key, unknown_option(key, specs), written(value)) for key, value in unknown.items()]
    values: dict[str, Any] = {}
    sound = not any(f"{name}." == prefix or f"{name.rpartition('.')[0]}.".lstrip(".") == prefix for name in doubtful)
    for name, hint in typing.get_type_hints(kind).items():
        if name not in mapping:
            continue
        value, rule = mapping[name], specs[name].metadata["rule"]
        if not (isinstance(hint, type) and issubclass(hint, Options)):
            try:
                values[name] = convert(value, hint)
                why = rule.broken_by(values[name])
            except ValueError as error:
                why = rule.broken_by("") or str(error)  # a choice is better told than a type
            if why:
                found.append(Mistake(prefix + name, why, written(value)))
        elif isinstance(value, Mapping):
            values[name], inner = read_dict(hint, value, doubtful, f"{prefix}{name}.")
            found += inner
            sound = sound and values[name] is not None
        else:
            found.append(Mistake(prefix + name, "is a group of options, not one value", written(value)))
    if found or not sound:
        return None, found
    try:
        return kind(**values), []
    except ConfigError as error:
        return None, [dataclasses.replace(m, option=prefix + m.option) for m in error.mistakes]


def unknown_option(name: str, known: Iterable[str]) -> str:
    """The sentence about a name that is not an option."""
    meant = nearest(name, known)
    return "there is no such option" + (f"; did you mean {' or '.join(meant)}?" if meant else "")


def convert(value: Any, hint: Any) -> Any:
    """`value`, as YAML or the command line gave it, in the type of its field; `ValueError` says why it cannot be."""
    if special := words_of(hint):
        if value in special:
            return value
        try:
            return convert(value, typing.get_args(hint)[0])
        except ValueError as error:
            raise ValueError(f"{error} or {' or '.join(special)}") from None
    if isinstance(hint, types.UnionType):
        return None if value is None else convert(value, typing.get_args(hint)[0])
    if typing.get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise ValueError("is not a list of texts")
        return tuple(items)
    if hint is str:
        if isinstance(value, bool):
            return "on" if value else "off"  # YAML reads a bare `on` as true
        if isinstance(value, (str, int)):
            return str(value)
        raise ValueError("is not a text; put it in quotes")
    if hint is bool:
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        if written(value).lower() not in words:
            raise ValueError("is not true or false")
        return words[written(value).lower()]
    return _number(value, hint)


def words_of(hint: Any) -> tuple[str, ...]:
    """The words that may stand in the place of a number: of `int | Literal["auto"]`, auto."""
    return tuple(word for part in typing.get_args(hint) for word in typing.get_args(part) if isinstance(word, str))


def _number(value: Any, hint: type) -> int | float:
    what = "a whole number" if hint is int else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"is not {what}")
    if hint is int and isinstance(value, int):
        return value  # past float, which would round a large seed
    try:
        number = float(value)
        if hint is int and not number.is_integer():
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"is not {what}") from None
    return int(number) if hint is int else number
