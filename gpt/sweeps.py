"""`--multirun`: every combination of several values as a run of its own, one after another."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from gpt.arguments import Command, leaves, parse
from gpt.composition import MOST_VALUES, load_config, swept_values
from gpt.options import ConfigError, Mistake, look_up, say, written


def run_sweep(command: Command, argv: Sequence[str]) -> int:
    """Runs each combination of swept values in a process of its own; 1 where any failed."""
    runs = plan_runs(command, argv)
    start = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]  # the interpreter, its flags and the script
    failed = []
    for number, (folder, arguments) in enumerate(runs.items(), 1):
        say(f"run {number} of {len(runs)}: {folder}")
        status = _wait([*start, *arguments])
        if status in (130, -signal.SIGINT):
            return 130
        if status:
            failed.append(f"{folder} (exit status {status})")
    if failed:
        say(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")
    return 1 if failed else 0


def plan_runs(command: Command, argv: Sequence[str]) -> dict[str, list[str]]:
    """The folder of each run of a sweep, and its arguments.

    The swept values make the folder, `runs/stdlib-mini/optimizer.lr=0.001`, so the same sweep again continues
    each run. All combinations are validated before any starts: raises `ConfigError` with their mistakes.
    """
    if not any(leaf.name == "run_dir" for leaf in leaves(command.kind)):
        raise ConfigError([Mistake("--multirun", "only train.py has runs; give one value to each option")])
    if "RANK" in os.environ:
        raise ConfigError([Mistake("--multirun", "starts its runs itself and does not go with torchrun")])
    given = parse(command, argv)
    found = {str(mistake): mistake for mistake in given.mistakes}
    swept: dict[str, list[str]] = {}
    for name, text in [*given.choices.items(), *given.ordinary.items()]:
        values = swept_values(name, text)
        if values:
            swept[name] = values
        elif values is not None:
            raise ConfigError([Mistake(name, f"is no list of at most {MOST_VALUES} values, as 3e-4,1e-3", text)])
    if math.prod(map(len, swept.values())) > MOST_VALUES:
        raise ConfigError([Mistake("--multirun", f"makes more than {MOST_VALUES} runs; give fewer values")])
    if not swept and not found:
        raise ConfigError([Mistake("--multirun", "no option has several values, as optimizer.lr=3e-4,1e-3")])
    fixed = [argument for argument in argv if argument.partition("=")[0] not in swept]
    runs: dict[str, list[str]] = {}
    for combination in product(*swept.values()):
        arguments = fixed + [f"{name}={value}" for name, value in zip(swept, combination, strict=True)]
        try:
            config = load_config(command, arguments)
        except ConfigError as error:
            found.update({str(mistake): mistake for mistake in error.mistakes})
            continue
        # The value as it was understood, so that 1e-3 and 0.001 are the same run.
        known = {name: value for name, value in zip(swept, combination, strict=True) if name in given.choices}
        parts = [f"{name}={known.get(name) or written(look_up(config, name))}".replace("/", "-") for name in swept]
        folder = str(Path(look_up(config, "run_dir")) / ",".join(parts))
        kept = [argument for argument in arguments if not argument.startswith("run_dir=")]
        runs[folder] = [*kept, f"run_dir={folder}"]
    if found:
        raise ConfigError(list(found.values()))
    return runs


def _wait(arguments: list[str]) -> int:
    """Runs a process to its end and returns its status. It gets our Ctrl-C and SIGTERM, and time to finish on them."""
    process = subprocess.Popen(arguments)
    interrupted = False

    def stop(number: int, frame: object) -> None:
        process.send_signal(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            try:
                status = process.wait()
                return 130 if interrupted else status
            except KeyboardInterrupt:  # the terminal sends Ctrl-C to both processes
                interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)
