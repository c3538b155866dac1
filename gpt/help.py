"""The text of `--help`: every option with its default, unit, bounds and choices. Imports neither Hydra nor torch."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from gpt.arguments import CONFIGS, Command, Leaf, choices_of, leaves
from gpt.config.sweep import SweepConfig
from gpt.options import defaults, words_of, written

NOTES = (
    "Text, names and paths are taken verbatim after the first '=': commas, braces, quotes and ${...} are plain "
    "characters, and only your shell needs quotes.",
    r"In templates, stop texts and train.sample_prompt, \n, \t and \\ mean a new line, a tab and a backslash; "
    r"sample.py's prompt is verbatim: the shell writes a new line as prompt=$'…\n'.",
    "Lists of files are written '[a.txt,notes/**/*.md]', or one name without brackets; a file that exists under a "
    "name with commas is found; repeating the option adds to the list.",
    "null means none, for options whose default is null.",
)


def help_text(command: Command, script: str, width: int | None = None) -> str:
    """What `--help` prints, wrapped to `width` columns (default: those of the terminal, between 60 and 120)."""
    width = width or min(max(shutil.get_terminal_size().columns, 60), 120)
    many = hasattr(command.kind, "run_dir") and not command.listed
    flags = "[--multirun] [--help]" if many else "[--help]"
    usage = f"usage: python {script} [name=value ...] {flags}"
    parts = [textwrap.fill(usage, width, subsequent_indent="  "), textwrap.fill(command.description, width)]
    if command.examples:
        parts.append("\n".join(["Examples:", *(f"  {example}" for example in command.examples)]))
    parts += _groups(command, width) + _options(command, width) + (_sweep(width) if many else [])
    notes = list(NOTES)
    if many:
        notes.append(
            "--multirun (-m) runs every combination of values separated by commas, as optimizer.lr=3e-4,1e-3, one "
            "after another, each in its own folder. launcher=… runs them as jobs, sweeper=optuna searches intervals, "
            "as optimizer.lr=tag(log,interval(1e-4,1e-2))."
        )
    rows = [textwrap.fill(note, width, initial_indent="  ", subsequent_indent="  ") for note in notes]
    return "\n\n".join([*parts, "\n".join(["Notes:", *rows])]) + "\n"


def default_values(command: Command) -> dict[str, Any]:
    """The defaults, nested: those of the classes, and over them the files of `configs/` chosen by default."""
    values = defaults(command.kind)
    for group, choice in command.groups().items():
        if choice is not None:
            content = yaml.safe_load((CONFIGS / group / f"{choice}.yaml").read_text(encoding="utf-8"))
            _merge(values[group], content or {})
    _merge(values, {name: value for name, value in command.primary().items() if name != "defaults"})
    return values


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping):
            _merge(values[name], value)
        else:
            values[name] = value


def _is_listed(command: Command, name: str) -> bool:
    return not command.listed or name in command.listed or name.partition(".")[0] in command.listed


def _groups(command: Command, width: int) -> list[str]:
    groups = {name: choice for name, choice in command.groups().items() if _is_listed(command, name)}
    rows = [_row(f"{name}={choice or ''}", " | ".join(choices_of(name)), width) for name, choice in groups.items()]
    title = "Choices, each a file configs/<name>/<value>.yaml that sets some of the options below:"
    return ["\n".join([textwrap.fill(title, width), *rows])] if rows else []


def _options(command: Command, width: int) -> list[str]:
    """One paragraph for the options without a group, then one for each group."""
    values, groups = default_values(command), command.groups()
    sections: dict[str, list[str]] = {}
    for leaf in leaves(command.kind):
        group, _, last = leaf.name.rpartition(".")
        if not _is_listed(command, leaf.name) or (last == "name" and group in groups):
            continue
        if group not in sections:
            doc = command.kind.__dataclass_fields__[group].metadata["rule"].doc if group else ""
            sections[group] = [f"{group}: {doc}" if group else "Options, with their defaults:"]
        default = (values[group] if group else values)[last]
        sections[group].append(_row(f"{leaf.name}={written(default)}", _describe(leaf), width))
    return ["\n".join(rows) for rows in sections.values()]


def _sweep(width: int) -> list[str]:
    """A paragraph for each group of `--multirun`'s own options."""
    sections = []
    for group, spec in SweepConfig.__dataclass_fields__.items():
        rows = [f"{group}: {spec.metadata['rule'].doc}"]
        choices = " | ".join(["basic", *choices_of(f"hydra/{group}")])
        rows.append(_row(f"{group}=basic", f"{choices}, each but basic a file of configs/hydra/{group}", width))
        for leaf in leaves(SweepConfig):
            if leaf.name.startswith(f"{group}.") and not leaf.name.endswith(".name"):
                rows.append(_row(f"{leaf.name}={written(leaf.default)}", _describe(leaf), width))
        sections.append("\n".join(rows))
    return sections


def _describe(leaf: Leaf) -> str:
    """The documentation, then in brackets what values are allowed."""
    rule = leaf.rule
    number = {"int": "whole number", "float": "number", "bool": "true or false"}
    kind = next((words for name, words in number.items() if name in str(leaf.hint)), "")
    facts = [rule.unit or kind] if rule.unit or kind else []
    for bound, words in (
        (rule.low, "at least"),
        (rule.above, "above"),
        (rule.high, "at most"),
        (rule.below, "below"),
    ):
        if bound is not None:
            facts.append(f"{words} {bound}")
    facts += [f"or {word}" for word in words_of(leaf.hint)]
    if rule.choices:
        facts.append(" | ".join(rule.choices))
    return rule.doc + (f" [{', '.join(facts)}]" if facts else "")


def _row(left: str, right: str, width: int) -> str:
    """`left`, and `right` wrapped in a second column; on its own line where `left` is too long."""
    column = 36 if width >= 100 else 30
    head = f"  {left}".ljust(column)
    indent = " " * column
    if not head.endswith(" "):
        return f"{head}\n{textwrap.fill(right, width, initial_indent=indent, subsequent_indent=indent)}"
    return textwrap.fill(right, width, initial_indent=head, subsequent_indent=indent)
