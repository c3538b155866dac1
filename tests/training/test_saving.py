"""Checkpoints are written behind the training, and what goes wrong with that is told."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.training import saving
from gpt.training.checkpoints import publish
from gpt.training.metrics import JsonLines
from gpt.training.run import train
from gpt.training.saving import WholeSaving, Writer, copied_model, first_not_finite
from gpt.training.trainer import Trainer

from .conftest import MakeConfig
from .test_trainer import files_of


def test_training_goes_on_while_a_checkpoint_is_written(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A writer that is held up until three steps later still writes the weights of its own step."""
    often = {"checkpoint_every": 2, "eval_every": 8, "keep_checkpoints": 9, "max_steps": 8}
    config = make_config("behind", train=often)
    waiting, write, update = threading.Event(), WholeSaving.write, Trainer.update

    def held_up(self: WholeSaving, *arguments: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert waiting.wait(20)
        write(self, *arguments)

    def counted(self: Trainer) -> Any:
        result = update(self)
        if self.state.step == 4:  # before the save of this step waits for that of step 2
            waiting.set()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(WholeSaving, "write", held_up)
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
        patch.setattr(saving, "write_trainer", full_disk)
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


def test_a_thread_that_has_started_is_waited_for_whatever_came_upon_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even before it has done anything."""
    start, done = threading._start_new_thread, []  # type: ignore[attr-defined]

    def interrupted(function: Any, arguments: Any, *more: Any) -> None:
        start(lambda: (time.sleep(0.1), function(*arguments)), ())
        raise KeyboardInterrupt

    writer = Writer(behind=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading, "_start_new_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.run(lambda: done.append(time.sleep(0.2)))
    assert writer.finish() is None
    assert done == [None]
