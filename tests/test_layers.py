"""The arrows of the house, checked on the syntax trees of `gpt/`: a room imports only from rooms to its left.

`gpt/config` knows nothing of the others, no torch and no Hydra; only `gpt/composition.py` knows
Hydra; no part of the door loads torch, and only `gpt/sweeps` uses `gpt/text`; `gpt/text` works without torch.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("elsewhere", "options", "signals", "config", "text", "model", "inference", "training")
DOOR = ("arguments", "help", "composition", "sweeps", "cli")  # the command line, in the order of its own arrows
HYDRA = ("hydra", "omegaconf")


def imports(source: str, module: str) -> list[str]:
    """The dotted names that the source of `module` imports anywhere, functions included; relative ones resolved."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                base = ".".join([*package, *([base] if base else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def violations(module: str, source: str) -> list[str]:
    """What in the source of `module`, a dotted name as `gpt.text.shards`, goes against the arrows."""
    room = [*module.split("."), ""][1]
    if room in DOOR:
        allowed = {
            "elsewhere",
            "options",
            "signals",
            "config",
            *DOOR[: DOOR.index(room) + 1],
            *(("text",) if room == "sweeps" else ()),
        }
        forbidden = {"torch"} if room == "composition" else {"torch", *HYDRA}
    elif room in ROOMS:
        allowed = set(ROOMS[: ROOMS.index(room)]) if room == "options" else set(ROOMS[: ROOMS.index(room) + 1])
        forbidden = {*HYDRA, *(("torch",) if room in ("options", "signals", "config", "text") else ())}
    else:
        return [] if room in ("", "__init__") else [f"{module} is in no room of the house"]
    found = []
    for name in imports(source, module):
        top, _, rest = name.partition(".")
        if top in forbidden or (top == "gpt" and rest.split(".")[0] not in allowed):
            found.append(f"{module} imports {name}")
    return found


def modules() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "gpt").rglob("*.py"))
    return sorted(".".join(path.parts) for path in paths)


@pytest.mark.parametrize("module", modules())
def test_imports_follow_the_arrows(module: str) -> None:
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    assert violations(module, source) == []


def test_the_house_is_where_this_test_looks() -> None:
    assert {"gpt.config.model", "gpt.cli"} <= set(modules())


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gpt.config", "import torch"),
        ("gpt.config", "import omegaconf.errors"),
        ("gpt.config", "from gpt.text import shards"),
        ("gpt.config", "from . import cli"),
        ("gpt.text.shards", "import torch.utils.data"),
        ("gpt.text.shards", "def late():\n    from torch import nn"),
        ("gpt.text.shards", "from ..model import loss"),
        ("gpt.text.shards", "from gpt import model"),
        ("gpt.model.loss", "from gpt.training.trainer import fit"),
        ("gpt.model.loss", "from hydra import compose"),
        ("gpt.inference.decode", "import gpt.training.trainer"),
        ("gpt.training.trainer", "from omegaconf import OmegaConf"),
        ("gpt.training.trainer", "from gpt.cli import main"),
        ("gpt.help", "import hydra"),
        ("gpt.cli", "import hydra"),
        ("gpt.composition", "from gpt.cli import main"),
        ("gpt.cli", "def late():\n    import torch"),
        ("gpt.cli", "from gpt.model.loss import loss"),
        ("gpt.cli", "from gpt.text.files import write_whole"),
        ("gpt.sweeps.summary", "from gpt.training.metrics import read_lines"),
        ("gpt.utilities", "x = 1"),
    ],
)
def test_a_violation_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gpt.text.shards", "import numpy\nfrom gpt.config import DataConfig\nfrom . import documents"),
        ("gpt.training.trainer", "import torch\nfrom ..inference import decode\nfrom gpt.config import RunConfig"),
        ("gpt.composition", "def late():\n    from hydra import compose\nfrom gpt.config import RunConfig"),
        ("gpt.sweeps.summary", "from gpt.text.files import write_whole\nfrom gpt.sweeps.results import Result"),
    ],
)
def test_a_lawful_import_is_not(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_all_can_be_imported_where_signals_of_posix_are_not() -> None:
    """As on Windows."""
    lacking = "del signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGKILL, signal.SIGHUP"
    loading = "import train, sample, evaluate, export, gpt.training.run, gpt.sweeps.study"
    subprocess.run([sys.executable, "-c", f"import signal; {lacking}; {loading}"], cwd=ROOT, check=True)
