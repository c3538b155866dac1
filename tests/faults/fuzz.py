"""Fuzzing of everything that reads what others wrote: `python -m tests.faults.fuzz --minutes 30`.

The property: whatever the input, a reader gives a result or raises `UserError`; nothing else is raised, no process
dies, nothing takes seconds or gigabytes. Targets take turns, each turn in a process of its own with a new seed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from gpt.options import UserError
from tests.faults.findings import Finding
from tests.faults.fuzz_targets import Target, targets
from tests.faults.lab import make_stock
from tests.faults.processes import ROOT

SECONDS = 5.0  # of the processor that one input may take; of the clock ten times as many, as others use the machine too
PATIENCE = 180.0  # seconds that a turn may take
MEMORY = 3 * 2**30  # bytes that one turn may ask for


class Hang(BaseException):
    """An input took longer than it may."""


@dataclass
class Turn:
    """What one turn of a target came to."""

    executions: int = 0
    refused: int = 0  # of them, with a UserError
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)


def check(target: Target, value: Any, turn: Turn, last: Path | None = None) -> None:
    """Give one input to a target. Raises what a reader must not raise, or `Hang`."""
    if last is not None:
        last.write_text(repr(value), encoding="utf-8", errors="backslashreplace")  # for when the process dies
    turn.executions += 1
    started = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
    try:
        target.read(value)
    except UserError as error:
        turn.refused += 1
        if not str(error).strip():
            raise ValueError("an error without a message") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        turn.slowest = max(turn.slowest, time.process_time() - started)


def run_examples(target: Target, turn: Turn, examples: int, number: int | None, last: Path | None = None) -> None:
    """Try so many inputs; with `number` those of that seed, else always the same."""

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=number is None, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )  # fmt: skip
    @given(target.inputs)
    def test(value: Any) -> None:
        check(target, value, turn, last)

    def on_alarm(*_: object) -> None:
        raise Hang(f"more than {SECONDS} s")

    before = {alarm: signal.signal(alarm, on_alarm) for alarm in (signal.SIGALRM, signal.SIGPROF)}
    try:
        (test if number is None else seed(number)(test))()
    finally:
        for alarm, handler in before.items():
            signal.signal(alarm, handler)


def take_turn(target: Target, seconds: float, last: Path) -> Turn:
    """Fuzz a target in this process for a while."""
    turn, until = Turn(), time.monotonic() + seconds
    while time.monotonic() < until:
        number = random.SystemRandom().getrandbits(32)
        try:
            run_examples(target, turn, 100, number, last)
        except BaseException as error:  # also `Hang`, and the panics of libraries written in Rust
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if f"{os.sep}gpt{os.sep}" in frame.filename] or frames[-1:]
            place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}"
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            notes = " ".join(getattr(error, "__notes__", [])) or last.read_text(encoding="utf-8", errors="replace")
            turn.failures.append(f"{place}: {said} | {notes[:600]}")
    return turn


def in_child(work: Callable[[], Turn], last: Path) -> Turn:
    """`work` in a process of its own, with a limit on its memory; one that dies is a failure, and so is one that is
    not heard of for `PATIENCE`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with contextlib.suppress(ValueError):
            held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
        try:
            turn = work()
            with os.fdopen(writer, "w") as pipe:
                json.dump(vars(turn), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    if not select.select([reader], [], [], PATIENCE)[0]:  # in C code, no alarm reaches Python
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if text:
        return Turn(**json.loads(text))
    return Turn(failures=[f"the process died (status {status}) on {last.read_text(errors='replace')[:2000]}"])


def campaign(minutes: float, say: Callable[[str], None], only: str = "", slice_seconds: float = 6) -> list[Finding]:
    """Fuzz every target in turn until the time is over."""
    with tempfile.TemporaryDirectory() as name, Path(os.devnull).open("w") as null:
        folder, last = Path(name), Path(name) / "last"
        last.write_text("")
        (folder / "stock").mkdir()
        with contextlib.redirect_stderr(null), contextlib.redirect_stdout(null):
            make_stock(folder / "stock")
        here = Path.cwd()
        os.chdir(folder / "stock")
        chosen = [target for target in targets(folder / "stock", folder / "scratch") if only in target.name]
        totals = {target.name: Turn() for target in chosen}
        until = time.monotonic() + 60 * minutes
        try:
            while time.monotonic() < until:
                for target in chosen:
                    left = until - time.monotonic()
                    if left <= 0:
                        break
                    turn = in_child(partial(take_turn, target, min(slice_seconds, left), last), last)
                    add(totals[target.name], turn)
                    for failure in turn.failures:
                        say(f"!! {target.name}: {failure}")
                say(summary(totals))
        finally:
            os.chdir(here)
    return [
        Finding(
            f"fuzzing {name}",
            f"{turn.executions:,} inputs, {turn.refused:,} refused, the slowest {turn.slowest:.1f} s, "
            f"{len(set(turn.failures))} findings",
            not turn.failures,
            "\n".join(f"{count}x {failure}" for failure, count in Counter(turn.failures).most_common(5)),
        )
        for name, turn in totals.items()
    ]


def add(total: Turn, turn: Turn) -> None:
    total.executions += turn.executions
    total.refused += turn.refused
    total.slowest = max(total.slowest, turn.slowest)
    total.failures += turn.failures


def summary(totals: dict[str, Turn]) -> str:
    executions = sum(turn.executions for turn in totals.values())
    return f"{executions:,} executions, {sum(len(turn.failures) for turn in totals.values())} failing so far"


def findings(scale: float) -> Iterator[Finding]:
    """At scale 1 half an hour; in a process of its own, since one that has used OpenMP's threads cannot be forked."""
    minutes = max(0.5, 30 * scale)
    command = [sys.executable, "-m", "tests.faults.fuzz", "--minutes", str(minutes)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )  # fmt: skip
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    found = [(mark, *text.split(": ", 1)) for mark, text in (line for line in lines if line[0] in ("ok", "!!"))]
    seen = "\n".join(text for mark, text in lines if text.startswith("!! "))
    yield from (Finding(what, came, mark == "ok", "" if mark == "ok" else seen) for mark, what, came in found)
    total = sum(int(came.split(" inputs")[0].replace(",", "")) for _, _, came in found)
    yield Finding(f"all fuzzing, {minutes:g} minutes", f"{total:,} inputs", bool(found), done.stderr[-500:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--only", default="", help="a part of a target's name")
    options = parser.parse_args()
    os.environ |= {"RUST_BACKTRACE": "0", "HF_HUB_OFFLINE": "1"}  # no name may lead to the network
    say = lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)  # noqa: E731
    found = campaign(options.minutes, say, options.only)
    for each in found:
        print(f"{'ok' if each.ok else '!!'} {each.done}: {each.result}")
    return int(not all(each.ok for each in found))


if __name__ == "__main__":
    sys.exit(main())
