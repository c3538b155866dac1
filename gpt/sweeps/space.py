"""What a search may try, option by option, in the types of the options."""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt.arguments import Command, leaves, parse
from gpt.composition import Space, search_space
from gpt.options import ConfigError, Mistake

FIGURES = 6  # of a number that is drawn: enough to tell runs apart, and to read in the name of a folder


@dataclass(frozen=True)
class Dimension:
    """One option that is sought, what the command line says of it, and what that means."""

    name: str
    text: str
    space: Space
    whole: bool  # only whole numbers

    def distribution(self, distributions: Any) -> Any:
        """The same in the terms of `optuna.distributions`."""
        space = self.space
        if not space.values:
            kind = distributions.IntDistribution if self.whole else distributions.FloatDistribution
            return kind(*self.ends(), log=space.log)
        if space.ordered and len(space.values) > 1:  # by its index, as sums of decimal steps are not exact
            return distributions.IntDistribution(0, len(space.values) - 1)
        return distributions.CategoricalDistribution(space.values)

    def ends(self) -> tuple[float, float]:
        space = self.space
        return (math.ceil(space.low), math.floor(space.high)) if self.whole else (space.low, space.high)

    def written(self, value: Any) -> str:
        """A value that was drawn, as the command line has it."""
        if self.space.values:
            return self.space.values[value] if isinstance(value, int) else value
        if self.whole:
            return str(int(value))
        low, high = self.ends()
        return str(min(max(float(f"{value:.{FIGURES}g}"), low), high))

    def corners(self) -> Sequence[str]:
        """The values, or the ends of an interval."""
        return self.space.values or [self.written(end) for end in self.ends()]


def dimensions(command: Command, argv: Sequence[str]) -> list[Dimension]:
    """The options that are to be sought. Raises `ConfigError` with all mistakes in them."""
    given = parse(command, argv)
    found, space = list(given.mistakes), []
    hints = {leaf.name: leaf.hint for leaf in leaves(command.kind)}
    for name, text in [*given.choices.items(), *given.ordinary.items()]:
        try:
            read = search_space(name, text)
        except ConfigError as error:
            found += error.mistakes
            continue
        if read is None:
            continue
        hint = hints.get(name)  # a group has none
        kinds = {hint, *typing.get_args(hint)}
        dimension = Dimension(name, text, read, int in kinds)
        if why := None if read.values else interval_mistake(dimension, kinds):
            found.append(Mistake(name, why, text))
        space.append(dimension)
    if not space and not found:
        message = (
            "has nothing to seek; give an option an interval or several values, as optimizer.lr=interval(1e-4,1e-2)"
        )
        found.append(Mistake("sweeper", message, "optuna"))
    if found:
        raise ConfigError(found)
    return space


def interval_mistake(dimension: Dimension, kinds: set[Any]) -> str | None:
    """Why an interval is none of this option's, or None."""
    space = dimension.space
    if not kinds & {int, float}:
        return "is an interval of what is no number; give the values, as choice(a,b)"
    if not (math.isfinite(space.low) and math.isfinite(space.high)):
        return "has an end that is not a finite number"
    if space.log and space.low <= 0:
        return "must begin above 0, as each order of magnitude is equally likely"
    low, high = dimension.ends()
    return None if low <= high else "holds no whole number" if dimension.whole else "ends before it begins"
