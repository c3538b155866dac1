"""Checkpoints are checked when they are read, and passed over where they are damaged."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gpt.model import checksums
from gpt.model.adapters import open_model
from gpt.model.checksums import SUMS, checked_weights, damage, write_sums
from gpt.options import UserError
from gpt.training import trainer as trainer_module
from gpt.training.run import train

from .conftest import MakeConfig
from .test_trainer import files_of, metrics

WRITTEN = ["model.safetensors", "tokenizer.json", "config.json"]
WRITTEN += [f"trainer/{name}" for name in ("optimizer.safetensors", "random.safetensors", "state.json", "SHA256SUMS")]


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


DAMAGES: dict[str, Any] = {
    "bit": flip_a_bit,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in ("cut", "empty") else []) for kind in DAMAGES]
)
@pytest.mark.parametrize("file", WRITTEN)
def test_a_damaged_checkpoint_is_named_and_the_one_before_continues(
    file: str, kind: str, make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"max_steps": 6, "eval_every": 2, "sample_tokens": 0}
    assert train(make_config("straight", train=small)) == 0
    assert train(make_config(train=small), stop_at=4) == 0
    checkpoints = tmp_path / "run/checkpoints"
    DAMAGES[kind](checkpoints / "step-00000004" / file)
    assert train(make_config(train=small)) == 0
    said = capsys.readouterr().err
    named = SUMS if file == SUMS else file
    assert f"{checkpoints}/step-00000004 is damaged: " in said
    assert named in said.split("is damaged: ")[1].split("\n")[0]
    assert "continuing at step 2 of 6" in said
    assert (checkpoints / "damaged-00000004").is_dir()
    straight = tmp_path / "straight"
    for link in ("step-00000006", "best"):
        assert files_of(checkpoints / link) == files_of(straight / "checkpoints" / link)
    assert metrics(tmp_path / "run") == metrics(straight)


def test_without_a_whole_checkpoint_nothing_starts_anew(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(train={"max_steps": 8}))
    for folder in (tmp_path / "run/checkpoints").glob("step-*"):
        flip_a_bit(folder / "model.safetensors")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no other checkpoint to continue from \(damaged-00000004, damaged-0.*new"):
            train(make_config())


def test_a_damaged_best_checkpoint_is_set_aside_and_the_best_looked_for_anew(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter([1.0, 2.0, 3.0, 2.5])
    evaluation = trainer_module.Evaluation
    monkeypatch.setattr(trainer_module, "evaluate", lambda *_: evaluation(next(losses), 100, 100))
    config = make_config(train={"keep_checkpoints": 1, "eval_every": 2, "max_steps": 8})
    train(config, stop_at=4)
    checkpoints = tmp_path / "run/checkpoints"
    assert (checkpoints / "best").readlink() == Path("step-00000002")
    flip_a_bit(checkpoints / "step-00000002/model.safetensors")
    assert train(config) == 0
    said = capsys.readouterr().err
    assert "step-00000002 is damaged: model.safetensors does not have the checksum" in said
    assert "The best from now on is looked for anew" in said
    assert "continuing at step 4" in said
    assert (checkpoints / "best").readlink() == Path("step-00000008")


def test_checkpoints_of_the_format_before_checksums_are_taken(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(train={"max_steps": 4}))
    folder = tmp_path / "run/checkpoints/step-00000004"
    (folder / SUMS).unlink()
    state = folder / "trainer/state.json"
    state.write_text(state.read_text().replace('"format": 2', '"format": 1'))
    assert train(make_config()) == 0
    assert not list((tmp_path / "run/checkpoints").glob("damaged-*"))


@pytest.mark.parametrize(
    ("file", "tensors"),
    [
        ("random", {"cpu": torch.zeros(3, dtype=torch.uint8)}),
        ("random", {"gpu": torch.zeros(3)}),
        ("optimizer", {"norm.weight": torch.zeros(3)}),
        ("optimizer", {"norm.weight/exp_avg": torch.zeros(3)}),
        ("optimizer", {"norm.bias/exp_avg": torch.zeros(32)}),
    ],
)
def test_a_trainer_of_another_hand_is_refused(
    file: str, tensors: dict[str, torch.Tensor], make_config: MakeConfig, tmp_path: Path
) -> None:
    train(make_config(train={"max_steps": 4}))
    folder = tmp_path / "run/checkpoints/step-00000004"
    save_file(tensors, folder / f"trainer/{file}.safetensors")
    write_sums(folder)
    with pytest.raises(UserError, match=r"step-00000004 does not fit its run \(.*; choose another run_dir"):
        train(make_config())


def test_sha256sum_agrees(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(train={"max_steps": 1}))
    folder = tmp_path / "run/checkpoints/best"
    assert subprocess.run(["sha256sum", "-c", "--quiet", SUMS], cwd=folder).returncode == 0
    assert damage(folder) is None
    with checked_weights(folder):
        pass
    flip_a_bit(folder / "model.safetensors")
    assert subprocess.run(["sha256sum", "-c", "--status", SUMS], cwd=folder).returncode == 1
    with pytest.raises(UserError, match=r"best is damaged: model\.safetensors does not have the checksum"):
        open_model(folder)


def test_ctrl_c_does_not_wait_for_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / SUMS).touch()
    end = threading.Event()
    monkeypatch.setattr(checksums, "damage", lambda *_: end.wait(60))
    with pytest.raises(KeyboardInterrupt), checked_weights(tmp_path):
        raise KeyboardInterrupt
    assert not end.is_set()
    end.set()


def test_checksums_open_nothing_outside_of_their_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "model"
    (folder / "trainer").mkdir(parents=True)
    (folder / SUMS).write_text(f"{'0' * 64}  ../secret\n")
    assert damage(folder) == "../secret, of trainer/SHA256SUMS, is missing"


def test_a_machine_that_cannot_look_calls_nothing_damaged(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many(path: Path) -> str:
        raise OSError(24, "Too many open files", str(path))

    train(make_config(train={"max_steps": 4}))
    with monkeypatch.context() as patch:
        patch.setattr("gpt.text.checksums.digest", too_many)
        with pytest.raises(OSError, match="Too many open files"):
            train(make_config())
    assert not list((tmp_path / "run/checkpoints").glob("damaged-*"))


def test_out_of_memory_in_a_restore_is_not_blamed_on_the_checkpoint(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    train(make_config(train={"max_steps": 4}))
    monkeypatch.setattr("gpt.training.optimizers.Optimizers.load_state_tensors", too_large)
    assert train(make_config()) == 1
    assert "Out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", [(3,), (3, 6)])
def test_fine_tuning_goes_on_without_its_best_checkpoint(
    damaged: tuple[int, ...], make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    train(make_config("base", train={"max_steps": 2}))
    losses = iter([4.0, 1.0, 2.0, 1.5, 1.6, 1.7])
    evaluation = trainer_module.Evaluation
    monkeypatch.setattr(trainer_module, "evaluate", lambda *_: evaluation(next(losses), 100, 100))
    config = make_config(
        init_from=str(tmp_path / "base/checkpoints/best"),
        train={"keep_checkpoints": 2, "eval_every": 3, "max_steps": 12},
    )
    train(config, stop_at=6)
    for step in damaged:
        flip_a_bit(tmp_path / f"run/checkpoints/step-{step:08d}/model.safetensors")
    if damaged == (3,):
        assert train(config) == 0
        assert "looked for anew" in capsys.readouterr().err
        steps = [line["step"] for line in metrics(tmp_path / "run") if "val/loss" in line]
        assert steps == [0, 3, 6, 9, 12]
    else:
        with pytest.raises(UserError, match="no other checkpoint to continue from"):
            train(config)
        assert not (tmp_path / "run/checkpoints/best").is_symlink()


def test_a_finished_run_stays_so_without_its_best_checkpoint(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter([1.0, 2.0, 3.0])
    evaluation = trainer_module.Evaluation
    monkeypatch.setattr(trainer_module, "evaluate", lambda *_: evaluation(next(losses), 100, 100))
    config = make_config(train={"keep_checkpoints": 1, "eval_every": 2, "early_stop_patience": 2})
    assert train(config) == 0
    flip_a_bit(tmp_path / "run/checkpoints/step-00000002/model.safetensors")
    assert train(config) == 0
    said = capsys.readouterr().err
    assert "step-00000002 is damaged" in said
    assert "is complete" in said
    assert (tmp_path / "run/checkpoints/best").readlink() == Path("step-00000006")
