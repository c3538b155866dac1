"""Checkpoints of some number of processes, continued, read and exported by another."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpt.config import ExportConfig, RunConfig
from gpt.model.huggingface import load_model
from gpt.training.export_checkpoint import export
from gpt.training.metrics import read_lines
from gpt.training.run import train
from tests.training.conftest import MakeConfig
from tests.training.parallel.conftest import Together

GLOBAL_BATCH, STOP, STEPS = 12, 6, 12


def part(config: RunConfig, world: int, parallel: str, run_dir: Path, stop: int | None) -> int:
    """In one of `world` processes: train up to a step, with the same global batch."""
    split = {"batch_size": 1, "grad_accum_steps": GLOBAL_BATCH // world, "global_batch_size": GLOBAL_BATCH}
    config = replace(config, run_dir=str(run_dir), parallel=parallel, train=replace(config.train, **split))
    return train(config, stop_at=stop)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "dialect"), [("muon", "qwen3"), ("adamw", "gpt2")])
def test_what_four_save_one_two_and_three_continue(
    optimizer: str, dialect: str, make_config: MakeConfig, together: Together, tmp_path: Path
) -> None:
    config = make_config(
        optimizer={"name": optimizer, "lr": 0.005, "matrix_lr": 0.01}, model={"dialect": dialect},
        train={"max_steps": STEPS, "eval_every": 3, "keep_checkpoints": 9},
    )  # fmt: skip
    straight = tmp_path / "straight"
    assert part(config, 1, "auto", straight, None) == 0
    assert together(4, part, config, 4, "fsdp", tmp_path / "four", STOP) == [0] * 4
    saved = tmp_path / f"four/checkpoints/step-{STOP:08d}"
    for name in ("model.safetensors", "trainer/optimizer.safetensors"):
        compare(straight / f"checkpoints/{saved.name}" / name, saved / name, 1e-4)
    for world, parallel in ((1, "auto"), (2, "ddp"), (3, "fsdp")):
        run_dir = tmp_path / f"from-{world}"
        shutil.copytree(tmp_path / "four", run_dir, symlinks=True)
        if world == 1:
            assert part(config, 1, parallel, run_dir, None) == 0
        else:
            assert together(world, part, config, world, parallel, run_dir, None) == [0] * world
        wanted, found = (read_lines(folder / "metrics.jsonl") for folder in (straight, run_dir))
        for a, b in zip(wanted, found, strict=True):
            assert (a["step"], a["tokens"]) == (b["step"], b["tokens"])
            for key in ("train/loss", "val/loss"):
                assert a.get(key) == pytest.approx(b.get(key), abs=1e-5), (world, a["step"], key)
        end = run_dir / f"checkpoints/step-{STEPS:08d}"
        compare(straight / f"checkpoints/{end.name}/model.safetensors", end / "model.safetensors", 1e-4)
        assert export(ExportConfig(checkpoint=str(end), output=str(tmp_path / f"out-{world}"))) == 0
        exported, own = load_model(tmp_path / f"out-{world}"), load_model(end)
        assert all(torch.equal(a, b) for a, b in zip(exported.parameters(), own.parameters(), strict=True))


def compare(one: Path, other: Path, limit: float) -> None:
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(
            b[name], tensor, rtol=limit, atol=limit, msg=lambda text, name=name: f"{name}: {text}"
        )


def in_two_parts(config: RunConfig, run_dir: Path) -> list[int]:
    return [part(config, 2, "fsdp", run_dir, stop) for stop in (4, None)]


@pytest.mark.slow
def test_two_that_stop_and_continue_end_as_two_that_did_not(
    make_config: MakeConfig, together: Together, tmp_path: Path
) -> None:
    """Bit for bit, dropout included, with sampling and evaluation between."""
    config = make_config(model={"dropout": 0.2}, optimizer={"name": "muon"}, train={"max_steps": 8})
    assert together(2, part, config, 2, "fsdp", tmp_path / "straight", None) == [0, 0]
    assert together(2, in_two_parts, config, tmp_path / "broken") == [[0, 0]] * 2
    for name in ("model.safetensors", "trainer/optimizer.safetensors"):
        one, other = (load_file(tmp_path / f"{run}/checkpoints/step-00000008" / name) for run in ("straight", "broken"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    samples = [(tmp_path / f"{run}/samples.jsonl").read_text() for run in ("straight", "broken")]
    assert samples[0] == samples[1]
    assert samples[0].count("\n") == 2


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 4])
def test_two_fine_tune_as_one(
    parallel: str, rank: int, make_config: MakeConfig, together: Together, tmp_path: Path
) -> None:
    """All weights, or adapters on frozen ones; with activation checkpointing, and samples of the best at the end."""
    assert train(make_config("base")) == 0
    options = {"max_steps": 6, "eval_every": 3, "activation_checkpointing": True}
    config = make_config(init_from=str(tmp_path / "base"), lora={"rank": rank}, train=options)
    assert part(config, 1, "auto", tmp_path / "one", None) == 0
    assert together(2, part, config, 2, parallel, tmp_path / "two", None) == [0, 0]
    wanted, found = (read_lines(tmp_path / run / "metrics.jsonl") for run in ("one", "two"))
    assert [line["step"] for line in wanted] == [line["step"] for line in found]
    for a, b in zip(wanted, found, strict=True):
        for key in ("train/loss", "val/loss"):
            assert a.get(key) == pytest.approx(b.get(key), abs=1e-5), (a["step"], key)
