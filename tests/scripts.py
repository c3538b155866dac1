"""Commands, and scripts of a few lines around them, for the tests of the door."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gpt.cli import Command
from gpt.config import RunConfig, SampleConfig

ROOT = Path(__file__).resolve().parent.parent
TRAIN = Command(RunConfig, "train", "Train.", ("python train.py",))
SAMPLE = Command(SampleConfig, "sample", "Sample.")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in an empty folder, which composition must leave empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


SCRIPT = """
import sys
from gpt.cli import Command, leave, main
from gpt.config import RunConfig, SampleConfig

def run(config):
    {body}

if __name__ == "__main__":
    leave(main(Command({kind}, "{config}", "A script."), run))
"""


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}


def write_script(folder: Path, body: str, kind: str = "RunConfig") -> None:
    config = "train" if kind == "RunConfig" else "sample"
    body = textwrap.indent(textwrap.dedent(body), "    ").strip()
    (folder / "script.py").write_text(SCRIPT.format(body=body, kind=kind, config=config))


def run_script(
    folder: Path, body: str, argv: Sequence[str], kind: str = "RunConfig", pipe: str = "", path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a script whose `run(config)` is `body`, in `folder`; modules are also sought in `path`."""
    write_script(folder, body, kind)
    command: Any = [sys.executable, "script.py", *argv]
    if pipe:
        command = ["bash", "-c", f'"$@" | {pipe}; exit ${{PIPESTATUS[0]}}', "bash", *command]
    environment = ENVIRONMENT if path is None else {**ENVIRONMENT, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
