"""Bad input to every command: `CASES`, each of which must be refused, and `FINE`, odd input that must be taken.

What is refused ends with status 2 and one message that names the option or file, the value and the way out; no
traceback, nothing written, nothing lost. The modules `bad_…` hold the cases.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.faults.findings import Finding
from tests.faults.lab import PREPARED, SCRIPTS, TRAIN, Outcome, attempt_process, copy_of, make_stock

Spoil = Callable[[Path], object]

USUAL = {
    "train": [*TRAIN, "run_dir=new"],
    "prepare": [each for each in TRAIN if not each.startswith(("train.", "model."))],
    "sample": ["checkpoint=run", "max_new_tokens=2"],
    "evaluate": ["checkpoint=run", "max_tokens=50", f"data.prepared_dir={PREPARED}", "device=cpu"],
    "export": ["checkpoint=run", "output=out"],
}


@dataclass(frozen=True)
class Case:
    """A command, the arguments beside the usual ones (a `-` before a name takes a usual one out), what it must say, and
    what is done to the folder first. `slow`: it takes seconds."""

    name: str
    command: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]
    spoil: Spoil | None = None
    slow: bool = False

    @property
    def argv(self) -> list[str]:
        names = {each.partition("=")[0].lstrip("-") for each in self.arguments if not each.startswith("--")}
        kept = [each for each in USUAL[self.command] if each.partition("=")[0] not in names]
        return kept + [each for each in self.arguments if each.startswith("--") or not each.startswith("-")]

    def faults(self, outcome: Outcome) -> list[str]:
        """What is not as promised, in words."""
        if outcome.crash:
            return [f"it broke: {outcome.crash.strip().splitlines()[-1][:200]}"]
        found = [] if outcome.status == 2 else [f"exit status {outcome.status}"]
        found += [f"does not say {words!r}" for words in self.says if words not in outcome.err]
        messages = outcome.err.count(f"{Path(SCRIPTS[self.command]).name}: ") + outcome.err.count(" in the options:")
        found += [] if messages == 1 else [f"{messages} messages"]
        found += [f"changed {', '.join(outcome.changed)}"] if outcome.changed else []
        return found + (["wrote to standard output"] if outcome.out else [])


@dataclass(frozen=True)
class Fine:
    """Odd input that is taken: `right` looks at what came out."""

    name: str
    command: str
    arguments: tuple[str, ...]
    right: Callable[[Path, Outcome], bool]
    spoil: Spoil | None = None
    slow: bool = False

    @property
    def argv(self) -> list[str]:
        return Case(self.name, self.command, self.arguments, ()).argv


def bad(name: str, command: str, *arguments: str, says: str | Sequence[str], spoil: Spoil | None = None) -> Case:
    return Case(name, command, arguments, (says,) if isinstance(says, str) else tuple(says), spoil)


TABLES = ("options", "combinations", "places", "texts", "records", "corpora", "models", "weights", "companions")


def all_cases() -> list[Case]:
    return [case for name in TABLES for case in importlib.import_module(f"tests.faults.bad_{name}").CASES]


def findings(scale: float) -> Iterator[Finding]:
    """Real processes: all cases at scale 1, evenly chosen ones below."""
    cases = [case for case in all_cases() if "\0" not in "".join(case.argv)]  # which no command line can hold
    chosen = cases[:: max(1, round(1 / max(scale, 0.01)))]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "stock").mkdir()
        make_stock(root / "stock")

        def run(numbered: tuple[int, Case]) -> tuple[Case, list[str], str]:
            number, case = numbered
            folder = copy_of(root / "stock", root / str(number))
            if case.spoil:
                case.spoil(folder)
            outcome = attempt_process(case.command, case.argv, folder)
            return case, case.faults(outcome), outcome.err

        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(run, enumerate(chosen)))
    for command in SCRIPTS:
        mine = [each for each in done if each[0].command == command]
        if not mine:
            continue
        failed = [each for each in mine if each[1]]
        shown = "\n".join(f"{case.name}: {'; '.join(faults)}\n{err}" for case, faults, err in failed[:5])
        yield Finding(
            f"bad input to {SCRIPTS[command]}, as real processes",
            f"{len(mine) - len(failed)} of {len(mine)} refused with status 2, one message, nothing written or lost",
            not failed,
            shown or mine[0][2],
        )
