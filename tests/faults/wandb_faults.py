"""Weights & Biases that is out of reach, silent, dying or broken: a run is refused at once, or goes on to its end."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.findings import Finding
from tests.faults.processes import ROOT, Job, Running, tiny, write_book
from tests.faults.wandb_server import WandbServer

KEY = "5ec7e75ec7e75ec7e75ec7e75ec7e75ec7e75ec7"  # as long as one
NOWHERE = "http://127.0.0.1:9"
STEPS = 400
AT_THE_START, AT_THE_END = 100.0, 90.0  # seconds within which a run is refused, or has ended after its last step
SHORT = {"WANDB_INIT_TIMEOUT": "4", "WANDB_FINISH_TIMEOUT": "4"}  # seconds, of a test


@dataclass(frozen=True)
class Scenario:
    """What happens to a run that reports to Weights & Biases, and what must come of it."""

    name: str
    status: int
    says: str
    url: str | None = None  # of the server, where it is not the stand-in
    before: Callable[[WandbServer], None] | None = None  # what befalls it before the run begins
    during: Callable[[WandbServer, Running], None] | None = None  # once it is under way
    kept: int = STEPS  # steps at least that can be sent later; wandb writes a few at a time


def kill_service(server: WandbServer, running: Running) -> None:
    """Kill wandb's own process, which is a child of the run's."""
    for entry in Path("/proc").iterdir():
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == running.process.pid and "wandb-core" in (entry / "cmdline").read_text():
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, IndexError):
            continue


SCENARIOS = (
    Scenario("all is well", 0, "Sample: python sample.py"),
    Scenario("nobody listens", 2, "use wandb.mode=offline", url=NOWHERE),
    Scenario("a server that accepts and never answers", 2, "use wandb.mode=offline", before=WandbServer.hang),
    Scenario("the server dies in mid-run", 0, "wandb sync ", during=lambda s, _: s.die()),
    Scenario("the server hangs from mid-run on", 0, "wandb sync ", during=lambda s, _: s.hang()),
    Scenario("wandb's own process is killed in mid-run", 0, "wandb sync ", during=kill_service, kept=0),
)


def findings(scale: float) -> Iterator[Finding]:
    """Every scenario, below scale 1 with short limits; then a wandb that cannot be imported."""
    with tempfile.TemporaryDirectory() as folder:
        for number, scenario in enumerate(SCENARIOS):
            cwd = Path(folder, str(number))
            cwd.mkdir()
            yield play(scenario, cwd, {} if scale >= 1 else SHORT)
        cwd = Path(folder, "broken")
        cwd.mkdir()
        yield import_broken(cwd)


def job(cwd: Path, url: str, limits: dict[str, str]) -> Job:
    write_book(cwd / "book.txt")
    training = tiny(cwd, "run", wandb__mode="online", train__max_steps=STEPS, train__eval_every=100)
    return replace(training, variables=variables(url) | limits)


def variables(url: str) -> dict[str, str]:
    return {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}


def play(scenario: Scenario, cwd: Path, limits: dict[str, str]) -> Finding:
    began = time.monotonic()
    with WandbServer() as server:
        training = job(cwd, scenario.url or server.url, limits)
        if scenario.before:
            scenario.before(server)
        running = training.start()
        if scenario.during:
            running.wait_until(lambda: server.began and (running.last_step() or (0, False))[0] > 0, every=0.02)
            scenario.during(server, running)
        running.wait_for_step(STEPS)
        trained = time.monotonic()
        status = running.end()
    seconds = time.monotonic() - (trained if status == 0 else began)
    faults = [] if status == scenario.status else [f"status {status}, not {scenario.status}"]
    faults += [] if scenario.says in running.said else [f"does not say {scenario.says!r}"]
    faults += ["a traceback"] if running.traceback else []
    faults += [f"the key is in {name}" for name in holding(KEY, cwd)]
    faults += lost(training, server, scenario) if status == 0 else unclean(training)
    faults += sending_fails(scenario, running, cwd) if scenario.during else []
    faults += [f"{seconds:.0f} s"] if seconds > (AT_THE_END if status == 0 else AT_THE_START) else []
    took = f"status {status} {seconds:.0f} s after {'the last step' if status == 0 else 'the start'}"
    return Finding(f"wandb.mode=online, {scenario.name}", "; ".join([took, *faults]), not faults, own_words(running))


def lost(training: Job, server: WandbServer, scenario: Scenario) -> list[str]:
    """What is missing of a finished run, and what of it the server should have."""
    lines = (training.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    faults = [] if len(lines) == STEPS + 4 else [f"{len(lines)} lines of metrics"]
    if not scenario.during and set(server.steps) != set(range(1, STEPS + 1)):
        faults.append(f"the server got {len(set(server.steps))} steps")
    return faults


def sending_fails(scenario: Scenario, running: Running, cwd: Path) -> list[str]:
    """What is wrong with the command that the run told at its end, with a server that is well again."""
    said = re.search("To send what wandb has kept: wandb (.+)", running.said)
    if said is None:
        return ["tells no way to send the rest"]
    with WandbServer() as server:
        subprocess.run(
            [sys.executable, "-m", "wandb", *shlex.split(said[1])],
            cwd=cwd, env={**os.environ, **variables(server.url)}, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
    return [] if len(server.steps) >= scenario.kept else [f"sending it later gave {len(server.steps)} steps"]


def unclean(training: Job) -> list[str]:
    """What a refused run leaves behind."""
    return [f"{training.run_dir.name} is there"] if training.run_dir.exists() else []


def holding(secret: str, folder: Path) -> list[str]:
    """The files below a folder that hold a secret."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in files if secret.encode() in path.read_bytes()]


def own_words(running: Running) -> str:
    """What the console says of the trouble: not wandb's own lines, nor those of steps."""
    lines = re.sub(r"\x1b\[[\d;]*m", "", running.said).splitlines()
    return "\n".join(
        line for line in lines if "wandb.mode" in line or "Weights & Biases" in line or line.startswith("Every figure")
    )


def import_broken(cwd: Path) -> Finding:
    """A wandb that raises when it is imported."""
    (cwd / "modules" / "wandb").mkdir(parents=True)
    (cwd / "modules" / "wandb" / "__init__.py").write_text("raise ImportError('no module named protobuf')\n")
    training = job(cwd, NOWHERE, {"PYTHONPATH": f"{cwd / 'modules'}{os.pathsep}{ROOT}"})
    running = training.run()
    faults = [] if running.status == 2 else [f"status {running.status}, not 2"]
    faults += (
        []
        if "wandb cannot be imported: no module named protobuf; install it again" in running.said
        else ["does not say why"]
    )
    faults += (["a traceback"] if running.traceback else []) + unclean(training)
    result = "; ".join([f"status {running.status}", *faults])
    return Finding("wandb.mode=online, wandb cannot be imported", result, not faults, own_words(running))
