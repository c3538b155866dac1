"""`train.batch_size=auto`: which split it takes, what it keeps the same, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gpt.composition import load_config
from gpt.config import TrainConfig
from gpt.model.hardware import choose_hardware
from gpt.options import ConfigError, UserError, from_dict
from gpt.text.shards import prepare
from gpt.training import batch_size, memory
from gpt.training.batch_size import RESERVE, Trainers, largest_fit, needed_memory, refuse_unpredictable
from gpt.training.checkpoints import read_state
from gpt.training.run import train
from gpt.training.trainer import Trainer
from train import COMMAND

from .conftest import MakeConfig
from .test_trainer import crash_at, files_of, metrics

AUTO: dict[str, Any] = {"batch_size": "auto", "global_batch_size": 12}


def make_trainer(make_config: MakeConfig, **changes: Any) -> Trainer:
    config = make_config(**changes)
    hardware = choose_hardware("cpu", "fp32", config.model.n_embd)
    return Trainers(config, prepare(config.data, config.tokenizer), hardware, Path(config.run_dir), print).make()


def pretend(monkeypatch: pytest.MonkeyPatch, available: int, a_sequence: int | None = None) -> None:
    """Make so many bytes available; with `a_sequence`, a run takes so many for each sequence, and 1,000."""
    for module in (batch_size, memory):
        monkeypatch.setattr(module, "available_memory", lambda _: available)
        monkeypatch.setattr(module, "has_room", lambda *_: False)
    if a_sequence:
        monkeypatch.setattr(batch_size, "needed_memory", lambda _, batch, others: 1000 + batch * a_sequence)


@pytest.mark.parametrize(
    ("arguments", "whole"),
    [
        ([], 8),
        (["train.grad_accum_steps=3"], 24),
        (["train.global_batch_size=30"], 30),
        (["experiment=shakespeare_char_cpu"], 24),
        (["experiment=finetune"], 8),
        (["experiment=finetune", "train.grad_accum_steps=4"], 16),
    ],
)
def test_an_update_is_what_it_is_without_auto(arguments: list[str], whole: int) -> None:
    config = load_config(COMMAND, ["train.batch_size=auto", *arguments])
    assert (config.train.batch_size, config.train.global_batch) == ("auto", whole)
    if "global" not in str(arguments):
        assert load_config(COMMAND, arguments).train.global_batch == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.batch_size=automatic"], "train.batch_size=automatic: is not a whole number or auto"),
        (["train.batch_size=0"], "train.batch_size=0: must be at least 1"),
        (["train.batch_size=auto", "train.global_batch_size=0"], "train.global_batch_size=0: must be at least 1"),
        (["train.global_batch_size=32", "train.grad_accum_steps=2"], "set grad_accum_steps=4, or use batch_size=auto"),
        (["train.global_batch_size=12"], "12: is not batch_size=8 times grad_accum_steps=1; use batch_size=auto"),
        (
            ["train.batch_size=auto", "train.global_batch_size=12", "train.grad_accum_steps=3"],
            "train.grad_accum_steps=3: follows from train.batch_size=auto; leave it out",
        ),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(COMMAND, arguments)
    assert message in str(error.value)
    assert len(error.value.mistakes) == 1


def test_auto_needs_to_know_the_global_batch() -> None:
    with pytest.raises(ConfigError, match=r"give train\.global_batch_size"):
        from_dict(TrainConfig, {"batch_size": "auto"})
    assert from_dict(TrainConfig, {"batch_size": 4, "grad_accum_steps": 2, "global_batch_size": 8}).global_batch == 8


@pytest.mark.parametrize("whole", [1, 7, 12, 36])
def test_the_largest_divisor_that_fits(whole: int, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(make_config, train={"batch_size": whole})
    pretend(monkeypatch, 0, a_sequence=10)
    for fitting in range(whole + 2):
        for below in (None, 4):
            allowed = [n for n in range(1, fitting + 1) if whole % n == 0 and (below is None or n < below)]
            found = largest_fit(trainer, 1000 + 10 * fitting + 9, below)
            assert (found.batch if found else None) == (max(allowed) if allowed else None)
            assert found is None or (found.batch * found.count, found.needed) == (whole, 1000 + 10 * found.batch)


def test_a_run_takes_the_split_that_the_rehearsal_says(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trainer = make_trainer(make_config, train={"batch_size": 12})
    monkeypatch.setattr(memory, "LIBRARIES", 0)  # which would hide so small a model
    monkeypatch.setattr(Trainer, "process_memory", property(lambda _: 0, lambda *_: None), raising=False)
    takes = {batch: needed_memory(trainer, batch, {}) for batch in (1, 2, 3, 4, 6, 12)}
    assert sorted(takes.values()) == list(takes.values())
    pretend(monkeypatch, round((takes[3] + takes[4]) / 2 / (1 - RESERVE)))
    assert train(make_config(train=AUTO | {"max_steps": 4})) == 0
    assert "train.batch_size=auto: 3 sequences × 4 micro-batches, about " in capsys.readouterr().err
    expected = {"batch_size": 3, "grad_accum_steps": 4, "global_batch_size": None}
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["train"]
    state = read_state(tmp_path / "run/checkpoints/step-00000004")
    assert saved | expected == saved
    assert state.config["train"] | expected == saved
    assert state.sequences == 4 * 12


def test_a_continued_run_keeps_its_split_and_so_its_bits(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train(make_config("straight", train={"batch_size": 2, "grad_accum_steps": 6})) == 0
    pretend(monkeypatch, 1200, a_sequence=36)
    with monkeypatch.context() as patch:
        crash_at(patch, 7)
        with pytest.raises(RuntimeError, match="killed"):
            train(make_config("killed", train=AUTO))
    assert "auto: 2 sequences × 6 micro-batches, about" in capsys.readouterr().err
    pretend(monkeypatch, 10**6, a_sequence=36)
    assert train(make_config("killed", train=AUTO)) == 0
    told = capsys.readouterr().err
    assert "train.batch_size=auto: 2 sequences × 6 micro-batches, as this run began" in told
    assert "there, " not in told, "nothing has changed"
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert files_of(killed / "checkpoints/best") == files_of(straight / "checkpoints/best")
    assert metrics(killed) == metrics(straight)
    with_another = make_config("killed", train=AUTO | {"global_batch_size": 24, "max_steps": 14})
    assert train(with_another) == 0
    assert "auto: 24 sequences × 1 micro-batch, about" in capsys.readouterr().err


def test_what_surely_fits_is_not_rehearsed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_size, "predict_memory", None)
    assert make_trainer(make_config, train=AUTO).config.train.batch_size == 12
    assert "12 sequences × 1 micro-batch, less than 512 MiB besides the process of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"with train.async_save=false train.activation_checkpointing=true as many as 4 fit$"),
        ({"async_save": False}, r"with train.activation_checkpointing=true as many as 4 fit$"),
        ({"eval_batch_size": 9}, r"with train.eval_batch_size=null as many as 12 fit$"),
        ({"activation_checkpointing": True}, "a smaller model, or a model.context_length below 16, needs less$"),
    ],
)
def test_where_not_even_one_fits(
    changes: dict[str, Any], message: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, 1000)
    takes = {"eval_batch_size": 10, "activation_checkpointing": 200, "async_save": 2000}
    monkeypatch.setattr(
        batch_size, "needed_memory", lambda _, batch, others: takes[list(others)[-1]] * batch if others else 2000
    )
    with pytest.raises(UserError, match=message) as error:
        train(make_config(train=AUTO | changes))
    assert "even 1 sequence at a time needs about 0 MiB" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_device_that_cannot_be_predicted_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"device mps of this system.*give a number, as train.batch_size=8"):
        refuse_unpredictable(torch.device("mps"))
    monkeypatch.setattr(batch_size, "available_memory", lambda _: None)  # a CPU with another system
    with pytest.raises(UserError, match="device cpu"):
        refuse_unpredictable(torch.device("cpu"))


def gradients(trainer: Trainer) -> tuple[float, list[torch.Tensor]]:
    """The loss and the gradients of the first update."""
    found: list[torch.Tensor] = []

    def keep(*_: Any) -> None:
        found.extend(p.grad.clone() for p in trainer.model.parameters() if p.grad is not None)

    trainer.optimizers.step = keep  # type: ignore[method-assign]
    loss, _, _ = trainer.update()
    return loss.item(), found


@pytest.mark.parametrize("kind", ["stream", "pairs"])
def test_every_split_gives_the_same_loss_and_gradient(kind: str, make_config: MakeConfig, tmp_path: Path) -> None:
    """In fp32 to 1e-5 of the largest number of each gradient: only the order of sums differs."""
    changes: dict[str, Any] = {"model": {"dialect": "gpt2"}}
    if kind == "pairs":
        lines = [f'{{"q": "{"leaf " * (n % 7)}?", "a": "{"tree " * (n % 5)}."}}' for n in range(200)]
        (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
        changes["model"]["context_length"] = 64
        changes["data"] = {"name": "pairs", "files": [str(tmp_path / "pairs.jsonl")], "prompt": "{q}"}
        changes["data"]["completion"] = "{a}"
    found = []
    for batch in (12, 6, 4, 3, 2, 1):
        train_options = {"batch_size": batch, "grad_accum_steps": 12 // batch}
        trainer = make_trainer(make_config, train=train_options, **changes)
        with torch.no_grad():
            for parameter in trainer.model.parameters():  # blocks do nothing at first
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        found.append(gradients(trainer))
    whole, *others = found
    assert whole[1]
    for loss, parts in others:
        assert loss == pytest.approx(whole[0], rel=1e-6)
        for mine, expected in zip(parts, whole[1], strict=True):
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
