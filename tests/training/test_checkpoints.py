"""A published folder is whole and durable or not there; a state that a stranger wrote is not trusted."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from gpt.config import RunConfig
from gpt.options import UserError, to_dict
from gpt.text import durable
from gpt.training import checkpoints
from gpt.training.checkpoints import CheckpointFolder, TrainerState, publish, read_state, write_trainer

STATE = TrainerState(
    step=4, sequences=16, best_loss=2.0, best_bits_per_byte=3.0, best_step=4, elapsed_seconds=1.5,
    base={"hub": None, "loss": 3, "bits_per_byte": 4.0, "samples": ["a"]}, wandb_id="abc", config=to_dict(RunConfig()),
)  # fmt: skip


def fill(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text("text")


def test_all_is_flushed_before_the_name_and_the_name_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []

    def record(folder: Path) -> None:
        flushed.append((folder.name, (tmp_path / "out").exists()))

    for module in (checkpoints, durable):
        monkeypatch.setattr(module, "flush_folder", record)
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "left by a killed process").touch()
    publish(tmp_path / "out", fill, partial)
    assert flushed == [("inner", False), ("partial", False), (tmp_path.name, True)]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "out", "out/inner", "out/inner/file",
    ]  # fmt: skip


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "full"), ValueError("bug"), SafetensorError("x")])
@pytest.mark.parametrize("at", ["write", "flush", "rename"])
def test_a_failure_leaves_no_trace(
    failure: BaseException, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise failure

    if at == "flush":
        monkeypatch.setattr(checkpoints, "flush", fail)
    if at == "rename":
        monkeypatch.setattr(Path, "rename", fail)
    expected = OSError if isinstance(failure, SafetensorError) else type(failure)
    with pytest.raises(expected):
        publish(tmp_path / "a" / "b" / "out", fail if at == "write" else fill, tmp_path / "a" / "b" / "partial")
    assert not list(tmp_path.iterdir())


def test_a_step_is_published(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.publish(3, fill) == tmp_path / "checkpoints" / "step-00000003"
    assert folder.steps() == [3]


def write(folder: Path, **changes: Any) -> None:
    write_trainer(folder, STATE, {}, {"cpu": torch.zeros(1)})
    (folder / "trainer" / "state.json").write_text(json.dumps({"format": 1} | asdict(STATE) | changes))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    assert read_state(tmp_path) == STATE
    (tmp_path / "new").mkdir()
    write_trainer(tmp_path / "new", TrainerState(), {}, {"cpu": torch.zeros(1)})
    assert read_state(tmp_path / "new") == TrainerState()


DAMAGE: list[dict[str, Any]] = [
    {"step": None},
    {"step": "4"},
    {"step": True},
    {"step": 4.5},
    {"best_step": "x"},
    {"best_step": None},
    {"best_loss": None},
    {"best_loss": []},
    {"wandb_id": 3},
    {"elapsed_seconds": "x"},
    {"scaler": None},
    {"identity": "x"},
    {"skipped": [3]},
    {"skipped": [[1, 2, 3]]},
    {"skipped": [[1, "x"]]},
    {"identity": {"init_from": 3}},
    {"base": []},
    {"base": {"loss": 1.0}},
    {"base": {"loss": 1.0, "bits_per_byte": "x", "samples": []}},
    {"base": {"loss": 1.0, "bits_per_byte": 1.0, "samples": [1]}},
    {"base": {"loss": 1.0, "bits_per_byte": 1.0, "samples": [], "hub": 1}},
    {"config": []},
    {"config": {"data": []}},
    {"config": {"data": {"files": 3}}},
    {"config": {"data": {"files": [3]}}},
    {"config": {"data": {"path": {}}}},
    {"config": {"init_from": 3}},
    {"config": {"seed": [1]}},
    {"unknown": 1},
]


@pytest.mark.parametrize("changes", DAMAGE, ids=str)
def test_a_state_of_wrong_types_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, **changes)
    with pytest.raises(UserError, match=r"state\.json cannot be read .* delete .* or only .*trainer to use the model"):
        read_state(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{}", "[" * 100_000, "\xff"], ids=lambda text: text[:5])
def test_a_file_that_holds_no_state_is_refused(text: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "trainer" / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        read_state(tmp_path)
