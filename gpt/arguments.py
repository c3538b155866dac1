"""What may stand on a command line and what stood there: `name=value` arguments, sorted before Hydra sees any.

Three kinds of argument: a choice from a folder of `configs/` (`data=text`), an ordinary value in Hydra's grammar
(`optimizer.lr=3e-4`), and free text (prompts, templates, paths), which is taken verbatim from the first `=` on,
since Hydra's grammar rejects most commas, braces and quotes. Mistakes are collected, not raised.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import yaml

from gpt.elsewhere import translated
from gpt.options import C, Mistake, Options, Rule, nearest, unknown_option

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NONE = "null"  # the choice of no file from a group
LONGEST_PATH = 4096  # bytes in Linux; longer text is not looked up on disk


@dataclass(frozen=True)
class Leaf:
    """One option: its dotted name, type, default and rule."""

    name: str
    hint: Any
    default: Any
    rule: Rule

    @property
    def optional(self) -> bool:
        return types.NoneType in typing.get_args(self.hint)

    @property
    def many(self) -> bool:
        return typing.get_origin(self.hint) is tuple


def leaves(kind: type[Options], prefix: str = "") -> Iterator[Leaf]:
    """Every option of a class, those of its groups included."""
    hints = typing.get_type_hints(kind)
    for spec in dataclasses.fields(kind):  # type: ignore[arg-type]
        if isinstance(hints[spec.name], type) and issubclass(hints[spec.name], Options):
            yield from leaves(hints[spec.name], f"{prefix}{spec.name}.")
        else:
            yield Leaf(prefix + spec.name, hints[spec.name], spec.default, spec.metadata["rule"])


@dataclass(frozen=True)
class Implication:
    """Where `option` is given, `group` is `choice` unless the arguments choose another."""

    option: str
    group: str
    choice: str


@dataclass(frozen=True)
class Command(Generic[C]):
    """A script's command line: the class of its options, and `configs/<config>.yaml`, which it starts from."""

    kind: type[C]
    config: str
    description: str
    examples: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()  # names and groups that `--help` lists; empty: all
    # Completes the composed values, nested as the options are, given the names of the options and groups that the
    # arguments (or files that they chose) set. Raises UserError.
    adopt: Callable[[dict[str, Any], set[str]], None] | None = None
    implications: tuple[Implication, ...] = ()
    # Called before words take the place of numbers (train.batch_size=auto), with the values composed without them. It
    # may change these, or refuse arguments.
    before_words: Callable[[dict[str, Any], Arguments], None] | None = None

    def implied(self, given: Arguments) -> dict[str, str]:
        """The choices that follow from the arguments, where nothing was chosen from those groups."""
        found: dict[str, str] = {}
        for rule in self.implications:
            text = (given.free | given.ordinary).get(rule.option, "")
            if text not in ("", "0", "null") and rule.group not in given.choices:
                found.setdefault(rule.group, rule.choice)
        return found

    def primary(self) -> dict[str, Any]:
        """The content of `configs/<config>.yaml`."""
        return yaml.safe_load((CONFIGS / f"{self.config}.yaml").read_text(encoding="utf-8"))

    def groups(self) -> dict[str, str | None]:
        """The groups of files in `configs/` that can be chosen from, and the default choice."""
        entries = [entry for entry in self.primary()["defaults"] if isinstance(entry, dict)]
        return {name: choice for entry in entries for name, choice in entry.items()}


def choices_of(group: str) -> list[str]:
    """The files of a group in `configs/`, without their suffix."""
    folder = CONFIGS / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


@dataclass
class Arguments:
    """The arguments by kind, their mistakes, and the options and groups on which those mistakes cast doubt."""

    choices: dict[str, str] = field(default_factory=dict)
    ordinary: dict[str, str] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    doubtful: set[str] = field(default_factory=set)

    def refuse(self, name: str, message: str, value: str | None = None, doubtful: Sequence[str] = ()) -> None:
        self.mistakes.append(Mistake(name, message, value))
        self.doubtful.update(doubtful or (name,))


def parse(command: Command, argv: Sequence[str]) -> Arguments:
    """Sorts the arguments; nothing is converted yet, except that free text gets its escapes and lists."""
    given = Arguments()
    options = {leaf.name: leaf for leaf in leaves(command.kind)}
    groups = command.groups()
    seen: dict[str, str] = {}
    for argument in argv:
        name, equals, text = argument.partition("=")
        leaf = options.get(name)
        if not equals or (leaf is None and name not in groups):
            _refuse_name(given, argument, [*options, *groups])
        elif not _is_utf8(text):
            given.refuse(name, "is not valid UTF-8; type it in a terminal that is set to UTF-8", ascii(text)[1:-1])
        elif "\0" in text:
            given.refuse(name, "holds a NUL character, which no text or path may; leave it out", ascii(text)[1:-1])
        elif leaf is not None and leaf.rule.free_text and leaf.many:
            given.free[name] = given.free.get(name, ()) + _items(leaf, text)
        elif seen.setdefault(name, text) != text:
            given.refuse(name, f"was also given as {name}={seen[name]}; give it once", text)
        elif leaf is None:
            given.choices[name] = text
        elif leaf.rule.free_text:
            given.free[name] = _one(leaf, text)
        elif name.endswith(".name") and name.removesuffix(".name") in groups:
            given.refuse(name, f"is chosen as {name.removesuffix('.name')}={text}", text)
        else:
            given.ordinary[name] = text
    return given


def check_choices(command: Command, given: Arguments) -> None:
    """Takes out choices that have no file in `configs/`, as mistakes."""
    for group, choice in list(given.choices.items()):
        known = [*choices_of(group), *([NONE] if command.groups()[group] is None else [])]
        if choice not in known:
            meant = nearest(choice, known)
            hint = f"; did you mean {group}={meant[0]}?" if meant else ""
            given.refuse(group, f"is not one of {', '.join(known)}{hint}", choice)
            del given.choices[group]


def _refuse_name(given: Arguments, argument: str, known: list[str]) -> None:
    """Adds the mistake of an argument whose name is none of `known`, or that is not `name=value`."""
    name, equals, text = argument.partition("=")
    bare = name.lstrip("+~-").replace("-", "_")
    inside = [other for other in known if other.startswith(f"{bare}.")]
    meant = [bare] if bare in known else nearest(bare, known) if bare else []
    value = text if equals else None
    same = not translated(bare, known)  # of another tool's option the value may be another
    written = f"{meant[0] if meant else bare or 'name'}={(same and text) or 'value'}"
    if name[:1] in ("+", "~"):
        given.refuse(name, f"options are written name=value, without {name[0]}, as {written}", value, meant)
    elif name.startswith("-"):
        given.refuse(name, f"there is no such flag; options are written name=value, as {written}", value, meant)
    elif inside:
        given.refuse(name, f"is a group of options; set one of them, as {inside[0]}=value", value, inside)
    elif not equals:
        if not meant and "checkpoint" in known and os.path.exists(argument):
            meant, written = ["checkpoint"], f"checkpoint={argument}"
        hint = f"; did you mean {written}?" if meant else ", and values that contain blanks in quotes"
        given.refuse(argument, f"options are written name=value{hint}", None, meant)
    else:
        given.refuse(name, unknown_option(name, known), text, meant)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # the shell's bytes were something else
        return False
    return True


def _one(leaf: Leaf, text: str) -> str | None:
    """A free text. `null` means none for an optional name or path, and is the word in anything that may be prose."""
    if leaf.optional and not leaf.rule.escapes and text == "null":
        return None
    return _unescaped(text) if leaf.rule.escapes else text


def _items(leaf: Leaf, text: str) -> tuple[str, ...]:
    """The items that one mention of a list option adds: one text where escapes count, else a list of names."""
    return (_unescaped(text),) if leaf.rule.escapes else tuple(split_names(text))


def _unescaped(text: str) -> str:
    r"""`\n`, `\t` and `\\` become the characters; other backslashes stay."""
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], text)


def split_names(text: str) -> list[str]:
    """The file names in `[a.txt,notes/**/*.md]`; without the brackets the whole text is one name.

    What exists on disk wins: the longest run of items, commas included, that is a path is one name. Otherwise
    blanks around an item go, and so does a pair of quotes around it, inside which a comma does not separate.
    """
    if os.path.exists(text) or not (text.startswith("[") and text.endswith("]")):
        return [text] if text else []
    segments = text[1:-1].split(",")
    names: list[str] = []
    starts: dict[str, set[str]] = {}
    first = 0
    while first < len(segments):
        name, used = _first_name(segments, first, starts)
        names += [name] if name else []
        first += used
    return names


def _first_name(segments: list[str], first: int, starts: dict[str, set[str]]) -> tuple[str, int]:
    """The name that begins with segment `first`, and how many segments it takes. `starts`: see `_may_go_on`."""
    start, end = segments[first], first + 1
    runs = [start]
    quote = start.strip()[:1] if start.strip()[:1] in ("'", '"') else ""
    if quote or any(_may_go_on(way, starts) for way in {start, start.lstrip()}):
        while end < len(segments) and len(runs[-1]) < LONGEST_PATH:
            runs.append(f"{runs[-1]},{segments[end]}")
            end += 1
    for used, run in reversed(list(enumerate(runs, 1))):
        for name in (run, run.strip()):
            if name and os.path.exists(name):
                return name, used
    if quote:
        for used, run in enumerate(runs, 1):
            name = run.strip()
            if len(name) > 1 and name.endswith(quote):
                return name[1:-1], used
    return start.strip(), 1


def _may_go_on(start: str, starts: dict[str, set[str]]) -> bool:
    """Whether something on disk begins as `start` and goes on with a comma: else thousands of names would cost millions
    of looks at the disk. `starts` keeps what each folder's names have before their commas."""
    folder, last = os.path.split(start)
    if folder not in starts:
        try:
            names = [name for name in os.listdir(folder or ".") if "," in name]
        except (OSError, ValueError):
            names = []
        starts[folder] = {_alike(name[:at]) for name in names for at, letter in enumerate(name) if letter == ","}
    return _alike(last) in starts[folder]


def _alike(name: str) -> str:
    """The same for all spellings of a name that some file system takes for one."""
    return unicodedata.normalize("NFC", name).casefold()
