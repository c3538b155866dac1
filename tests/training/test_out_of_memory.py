"""A run that is out of memory says what it took and with which options it fits, and these do."""

from __future__ import annotations

import errno
import re
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.cli import main
from gpt.options import UserError, ran_out_of_memory
from gpt.training import batch_size, memory, out_of_memory, run
from gpt.training.run import train
from gpt.training.summary import describe_memory
from gpt.training.trainer import Trainer
from sample import COMMAND

from ..faults.memory import findings
from .conftest import MakeConfig
from .test_trainer import metrics

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError(ALLOCATOR),
        RuntimeError("[enforce fail at CPUAllocator.cpp:68] . DefaultCPUAllocator: not enough memory: you tried …"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_what_an_exhausted_memory_looks_like(error: Exception) -> None:
    assert ran_out_of_memory(error)
    last = ValueError("of cleaning up")
    last.__context__ = error
    assert ran_out_of_memory(last)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
        UserError("run_dir=out of memory/1 is a file; choose another run_dir"),
    ],
)
def test_what_is_another_mistake(error: Exception) -> None:
    assert not ran_out_of_memory(error)


def test_the_allocator_really_says_so() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**52)
    assert ran_out_of_memory(error.value)


def run_out(
    monkeypatch: pytest.MonkeyPatch, step: int, above: int, error: Exception | None = None
) -> list[weakref.ref[torch.Tensor]]:
    """Have the update after `step` fail where a micro-batch has more sequences than `above`. Returns what it held."""
    update, held = Trainer.update, list[weakref.ref[torch.Tensor]]()

    def failing(self: Trainer) -> Any:
        activations = torch.ones(1000)
        if self.state.step == step and self.config.train.micro_batch > above:
            held.append(weakref.ref(activations))
            raise error or RuntimeError(ALLOCATOR)
        return update(self)

    monkeypatch.setattr(Trainer, "update", failing)
    return held


def pretend(monkeypatch: pytest.MonkeyPatch, available: int, takes: dict[str, int]) -> None:
    """A process that needs `takes["batch_size"]` bytes for each sequence, and so many times more with other options."""
    for module in (batch_size, out_of_memory, memory):
        monkeypatch.setattr(module, "available_memory", lambda _: available)
    monkeypatch.setattr(out_of_memory, "peak_memory", lambda _: available)

    def needed(_: Trainer, batch: int, others: dict[str, Any]) -> int:
        return batch * takes["batch_size"] // max([takes.get(name, 1) for name in others], default=1)

    for module in (batch_size, out_of_memory):
        monkeypatch.setattr(module, "needed_memory", needed)


def typed_options(told: str) -> dict[str, Any]:
    """The options of `train` in a message, as a configuration takes them."""
    words = {"true": True, "false": False, "null": None}
    found = re.findall(r"train\.(\w+)=(\w+)", told)
    return {name: words[value] if value in words else int(value) for name, value in found}


MIB = 2**20


def test_the_advice_continues_the_run_to_the_same_results(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train(make_config("straight", train={"batch_size": 6})) == 0
    run_out(monkeypatch, step=9, above=2)
    pretend(monkeypatch, 500 * MIB, {"batch_size": 150 * MIB})
    capsys.readouterr()
    assert train(make_config("short", train={"batch_size": 6})) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == (
        "Out of memory after step 9: 500 MiB at most so far, 900 MiB estimated, 500 MiB available. "
        "train.batch_size=3 train.grad_accum_steps=2 keeps the same global batch and needs about 450 MiB. "
        f"The last checkpoint, {tmp_path}/short/checkpoints/step-00000008, is intact: the same command with these "
        "options in place of its own continues."
    )
    assert train(make_config("short", train={"batch_size": 6} | typed_options(told))) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "train.batch_size=2 train.grad_accum_steps=3 keeps" in told, "the estimate fitted and was wrong"
    assert train(make_config("short", train={"batch_size": 6} | typed_options(told))) == 0
    for mine, expected in zip(metrics(tmp_path / "short"), metrics(tmp_path / "straight"), strict=True):
        assert mine == pytest.approx(expected, rel=2e-4)


NOTHING = "Only a smaller model, or a model.context_length below 16, needs less. There is no checkpoint yet."


@pytest.mark.parametrize(
    ("options", "takes", "advice"),
    [
        ({}, {"async_save": 2}, "train.batch_size=1 train.grad_accum_steps=4 train.async_save=false keeps"),
        ({"async_save": False}, {"activation_checkpointing": 4}, "steps=2 train.activation_checkpointing=true keeps"),
        ({"eval_batch_size": 9}, {"eval_batch_size": 10}, "grad_accum_steps=1 train.eval_batch_size=null keeps"),
        ({"activation_checkpointing": True}, {}, NOTHING),
    ],
)
def test_the_nearest_way_out(
    options: dict[str, Any],
    takes: dict[str, int],
    advice: str,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_out(monkeypatch, step=1, above=0, error=torch.OutOfMemoryError("CUDA out of memory."))
    pretend(monkeypatch, 500 * MIB, {"batch_size": 900 * MIB} | takes)
    assert train(make_config(train=options)) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert advice in told
    assert "There is no checkpoint yet" in told
    assert ("starts again" in told) == ("keeps" in told)


def test_what_failed_is_freed_before_looking_for_a_way(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = run_out(monkeypatch, step=1, above=0)
    seen = []

    def look(trainer: Trainer, _: int) -> tuple[str, str]:
        state = trainer.optimizers.state_tensors()
        seen.extend([held[0](), len(state), [p.grad for p in trainer.model.parameters() if p.grad is not None]])
        return "", ""

    monkeypatch.setattr(out_of_memory, "find_way", look)
    assert train(make_config()) == 1
    assert seen == [None, 0, []]


def test_a_device_without_estimates_is_told_the_next_split(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_out(monkeypatch, step=1, above=0, error=RuntimeError("MPS backend out of memory"))
    monkeypatch.setattr(out_of_memory, "PREDICTABLE", ())
    for size, advice in (
        (6, "train.batch_size=3 train.grad_accum_steps=2 keeps"),
        (1, "activation_checkpointing=true needs"),
    ):
        assert train(make_config(train={"batch_size": size})) == 1
        assert advice in capsys.readouterr().err


def test_no_memory_to_look_for_a_way(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_out(monkeypatch, step=1, above=0)
    monkeypatch.setattr(out_of_memory, "find_way", lambda *_: (_ for _ in ()).throw(MemoryError))
    assert train(make_config()) == 1
    assert re.search(r"after step 1: .* at most so far\. Only a smaller model", capsys.readouterr().err)


def test_a_model_that_cannot_be_made(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpt.training.trainer.build_model", lambda *_: torch.empty(2**52))
    assert train(make_config(model={"n_embd": 1024, "n_layer": 3})) == 1
    assert re.search(r"while the model was made: its [\d,]+ weights alone take 1\d\d MiB", capsys.readouterr().err)


def test_a_complete_run_says_that_it_is(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "print_summary", lambda *_: torch.empty(2**52))
    assert train(make_config()) == 1
    assert re.search(r"after the last step.*The run is complete: .*step-00000012\.$", capsys.readouterr().err)


def test_other_errors_keep_their_traceback(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out(monkeypatch, step=1, above=0, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        train(make_config())


def test_the_table_warns_of_a_run_that_may_not_fit() -> None:
    parts = {"process": 100, "weights": 200, "optimizer": 0, "step": 700, "evaluation": 0, "allowance": 0}
    fits = {name: size * MIB for name, size in parts.items()} | {"so_far": 0}
    assert "WARNING" not in describe_memory(memory.Memory(**fits, available=1000 * MIB))
    assert "WARNING" not in describe_memory(memory.Memory(**fits))
    told = describe_memory(memory.Memory(**fits, available=999 * MIB))
    assert "WARNING: only 999 MiB are available" in told


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(ALLOCATOR)])
def test_sampling_without_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(_: object) -> int:
        raise error

    assert main(COMMAND, failing, ["checkpoint=x", "prompt=x"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "a smaller batch_size or model needs less" in told
    assert ("(DefaultCPUAllocator: can't allocate" in told) == bool(str(error))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space")
def test_real_processes_under_a_limit() -> None:
    found = list(findings(0.5))
    assert len(found) > 4
    for one in found:
        assert one.ok, one
