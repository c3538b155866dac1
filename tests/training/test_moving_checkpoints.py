"""Sampling, evaluation and export of a run that goes on: its checkpoints are deleted while they are read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluate import COMMAND as EVALUATE
from evaluate import run as evaluate
from gpt.cli import main
from gpt.config import ExportConfig, SampleConfig
from gpt.inference.console import sample
from gpt.model.huggingface import load_model
from gpt.model.opening import open_checkpoint
from gpt.options import UserError
from gpt.training import evaluate_checkpoint, export_checkpoint
from gpt.training.checkpoints import CheckpointFolder
from gpt.training.export_checkpoint import export
from gpt.training.run import train
from tests.faults.processes import Running, tiny, write_book

from .conftest import MakeConfig


@pytest.fixture
def run_dir(make_config: MakeConfig) -> Path:
    config = make_config(train={"max_steps": 12, "keep_checkpoints": 9, "sample_tokens": 0})
    train(config)
    CheckpointFolder(Path(config.run_dir)).point_best(4)
    return Path(config.run_dir)


def advance_before(owner: Any, name: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the run's best become the next checkpoint, and the former one be deleted, just before the first call of a
    function. Returns an item for each call."""
    function, calls = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 1:
            advance(run_dir)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


def advance(run_dir: Path) -> None:
    checkpoints = CheckpointFolder(run_dir)
    first, second, *_ = checkpoints.steps()
    checkpoints.point_best(second)
    shutil.rmtree(checkpoints.at(first))


def test_an_export_is_of_one_checkpoint(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = advance_before(export_checkpoint, "open_folder", run_dir, monkeypatch)
    assert export(ExportConfig(checkpoint=str(run_dir), output=str(tmp_path / "out"))) == 0
    assert len(calls) == 2
    theirs = load_model(run_dir / "checkpoints/step-00000008").parameters()
    assert all(map(torch.equal, load_model(tmp_path / "out").parameters(), theirs))
    assert "8, of 32 sequences" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "step", "calls"), [("open_folder", 8, 2), ("prepare", 4, 2), ("has_state", 8, 2)])
def test_an_evaluation_is_of_one_checkpoint(
    name: str,
    step: int,
    calls: int,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = CheckpointFolder(run_dir).at(step)
    seen = advance_before(evaluate_checkpoint, name, run_dir, monkeypatch)
    assert main(EVALUATE, evaluate, [f"checkpoint={run_dir}", "device=cpu", "precision=fp32"]) == 0
    assert len(seen) == calls
    shown = capsys.readouterr()
    assert json.loads(shown.out)["checkpoint"] == str(kept.resolve())
    assert f"{kept}: " in shown.err


def steps_done(running: Running) -> int:
    step, _ = running.last_step() or (0, False)
    return step


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="renaming what is open")
def test_readers_of_a_run_that_saves_at_each_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_book(tmp_path / "book.txt")
    running = tiny(
        tmp_path, "run", train__max_steps=10**6, train__checkpoint_every=1, train__keep_checkpoints=1
    ).start()
    run_dir = tmp_path / "run"
    readers: list[Callable[[], Any]] = [
        lambda: open_checkpoint(str(run_dir)),
        lambda: sample(SampleConfig(checkpoint=str(run_dir), prompt="leaf", max_new_tokens=4, device="cpu")),
        lambda: export(ExportConfig(checkpoint=str(run_dir), output=str(tmp_path / "out"))),
    ]
    try:
        assert running.wait_until((run_dir / "checkpoints/best/config.json").is_file)
        before, after, reads = steps_done(running), 0, 0
        while reads < 60 or after < before + 20:  # however slow the disk, as many saves as that
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            readers[reads % len(readers)]()
            reads += 1
            after = steps_done(running)
            assert running.alive
            assert reads < 1000, f"{after - before} steps in {reads} readings"
    except UserError as error:
        pytest.fail(str(error))
    finally:
        running.process.kill()
        running.process.wait()
