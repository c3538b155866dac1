"""Checkpoints are written behind the training, checked when they are read, and passed over where they are damaged."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gpt.model.adapters import open_model
from gpt.model.checksums import SUMS, checked_weights, damage, write_sums
from gpt.options import UserError
from gpt.training import trainer as trainer_module
from gpt.training.checkpoints import publish
from gpt.training.metrics import JsonLines
from gpt.training.run import train
from gpt.training.saving import Writer, copied_model, first_not_finite
from gpt.training.trainer import Trainer

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


@pytest.mark.parametrize("kind", DAMAGES)
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


def test_checksums_open_nothing_outside_of_their_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "model"
    (folder / "trainer").mkdir(parents=True)
    (folder / SUMS).write_text(f"{'0' * 64}  ../secret\n")
    assert damage(folder) == "../secret, of trainer/SHA256SUMS, is missing"


def test_training_goes_on_while_a_checkpoint_is_written(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A writer that is held up until three steps later still writes the weights of its own step."""
    often = {"checkpoint_every": 2, "eval_every": 8, "keep_checkpoints": 9, "max_steps": 8}
    config = make_config("behind", train=often)
    waiting, write, update = threading.Event(), Trainer.write, Trainer.update

    def held_up(self: Trainer, *arguments: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert waiting.wait(20)
        write(self, *arguments)

    def counted(self: Trainer) -> Any:
        result = update(self)
        if self.state.step == 4:  # before the save of this step waits for that of step 2
            waiting.set()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "write", held_up)
        patch.setattr(Trainer, "update", counted)
        assert train(config) == 0
    assert train(make_config("waiting", train=often | {"async_save": False})) == 0
    for step in (2, 4, 6, 8):
        name = f"checkpoints/step-{step:08d}"
        assert files_of(tmp_path / "behind" / name) == files_of(tmp_path / "waiting" / name)


@pytest.mark.parametrize("behind", [True, False])
def test_a_failure_to_write_stops_the_run(
    behind: bool, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    config = make_config(train={"async_save": behind})
    train(config, stop_at=4)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "write_trainer", full_disk)
        with pytest.raises(OSError, match="No space"):
            train(config)
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {"best", "step-00000004"}
    assert train(config) == 0


def test_what_goes_wrong_in_the_thread_is_raised_once() -> None:
    writer = Writer(behind=True)
    writer.run(lambda: None)
    writer.run(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    writer.check()


class Interrupted(threading.Event):
    """An event whose first waits Ctrl-C breaks off."""

    def __init__(self, interrupts: int) -> None:
        super().__init__()
        self.interrupts = interrupts

    def wait(self, timeout: float | None = None) -> bool:
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        self.set()
        return True


@pytest.mark.parametrize(("before", "while_waiting", "exits"), [(0, 1, 0), (0, 2, 1), (1, 0, 0), (1, 1, 1)])
def test_the_writer_is_waited_for_through_an_interrupt_but_not_through_two(
    before: int, while_waiting: int, exits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`before`: the interrupt that ended the training, which is under way while the writer is waited for."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    writer = Writer(behind=True)
    writer.idle = Interrupted(while_waiting)
    try:
        try:
            if before:
                raise KeyboardInterrupt
        finally:
            assert writer.finish() is None
    except KeyboardInterrupt:
        assert before
    assert ended == [130] * exits
    assert writer.idle.is_set()


def test_what_went_wrong_is_not_lost_where_an_interrupt_ends_the_run() -> None:
    writer = Writer(behind=True)
    writer.run(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert isinstance(writer.finish(), ZeroDivisionError)


def test_a_thread_that_cannot_start_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    writer = Writer(behind=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            writer.run(lambda: None)
    assert writer.finish() is None


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


def test_what_the_disk_refuses_is_told_with_its_place(tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*out'"):
        publish(tmp_path / "out", full, tmp_path / "partial")
    lines = JsonLines(tmp_path / "metrics.jsonl", -1)
    lines.file.close()
    lines.file = open("/dev/full", "ab", buffering=0)  # type: ignore[assignment] # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        lines.write({"step": 1})


def test_a_copied_model_shares_nothing_that_trains(make_config: MakeConfig, tmp_path: Path) -> None:
    from gpt.config import LoRAConfig
    from gpt.model.lora import add_adapters
    from gpt.model.transformer import Decoder

    model = Decoder(make_config().model, 257)
    copy = copied_model(model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    assert copy.head.weight is copy.embed.weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    for name, parameter in copy.named_parameters():
        assert torch.equal(parameter, before[name])
    add_adapters(model, LoRAConfig(rank=2))
    copy = copied_model(model)
    for (name, mine), (_, theirs) in zip(copy.named_parameters(), model.named_parameters(), strict=True):
        assert (mine.data_ptr() == theirs.data_ptr()) == (not theirs.requires_grad), name


def test_a_weight_that_is_not_finite_is_named(make_config: MakeConfig) -> None:
    from gpt.model.transformer import Decoder

    model = Decoder(make_config().model, 257)
    assert first_not_finite(model) is None
    with torch.no_grad():
        model.embed.weight.fill_(3e38)  # whose sum overflows, though each is finite
    assert first_not_finite(model) is None
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3, 4] = torch.nan  # type: ignore[union-attr, operator]
    assert first_not_finite(model) == "blocks.1.mlp.up.weight"
