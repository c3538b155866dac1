"""Several processes against one: the same losses, the same held-out loss, the same order of the data."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.config import RunConfig
from gpt.text import windows
from gpt.training.metrics import read_lines
from gpt.training.run import train
from tests.training.conftest import MakeConfig
from tests.training.parallel.conftest import Together

STEPS, GLOBAL_BATCH = 50, 8
ALL_KINDS = list(product(("adamw", "muon"), ("gpt2", "qwen3")))


def configured(config: RunConfig, world: int, parallel: str, name: str) -> RunConfig:
    """The same run for so many processes, with the same global batch, in micro-batches of 1 or 2 sequences."""
    size = 1 if world == 4 else 2
    split = {"batch_size": size, "grad_accum_steps": GLOBAL_BATCH // world // size, "global_batch_size": GLOBAL_BATCH}
    run_dir = Path(config.run_dir).with_name(name)
    return replace(config, run_dir=str(run_dir), parallel=parallel, train=replace(config.train, **split))


def all_kinds(configs: list[RunConfig], world: int, parallel: str) -> list[list[int]]:
    """Train each, in this process as one of `world`; the sequences that it was fed in each."""
    fed: list[list[int]] = []
    plain = windows.WindowData.batch

    def watched(self: Any, first: int, count: int) -> Any:
        fed[-1] += range(first, first + count)
        return plain(self, first, count)

    windows.WindowData.batch = watched  # type: ignore[method-assign]
    for number, config in enumerate(configs):
        fed.append([])
        assert train(configured(config, world, parallel, f"{parallel}-{world}-{number}")) == 0
    return fed


def configs_of(make_config: MakeConfig, kinds: list[tuple[str, str]]) -> list[RunConfig]:
    train_options = {"max_steps": STEPS, "eval_every": 25, "log_every": 1, "eval_tokens": 500, "sample_tokens": 3}
    return [
        make_config(
            optimizer={"name": optimizer, "lr": 0.005, "matrix_lr": 0.01},
            model={"dialect": dialect, "n_embd": 30, "n_head": 3 if dialect == "gpt2" else 1, "head_dim": 10},
            train=train_options,
        )
        for optimizer, dialect in kinds
    ]


def losses(config: RunConfig, name: str) -> dict[tuple[int, str], float]:
    lines = read_lines(Path(config.run_dir).with_name(name) / "metrics.jsonl")
    keys = ("train/loss", "train/grad_norm", "val/loss", "val/bits_per_byte")
    return {(line["step"], key): line[key] for line in lines for key in keys if key in line}


@pytest.mark.parametrize(
    ("world", "parallel", "kinds"),
    [
        (2, "ddp", [("muon", "qwen3")]),
        (2, "fsdp", [("muon", "gpt2")]),
        *(
            pytest.param(world, parallel, ALL_KINDS, marks=pytest.mark.slow)
            for world, parallel in product((2, 4), ("ddp", "fsdp"))
        ),
    ],
)
def test_any_number_of_processes_trains_the_same(
    world: int, parallel: str, kinds: list[tuple[str, str]], make_config: MakeConfig, together: Together
) -> None:
    """Widths are no multiple of the number of processes, so that some hold fewer rows, or none."""
    configs = configs_of(make_config, kinds)
    alone = all_kinds(configs, 1, "auto")
    fed = together(world, all_kinds, configs, world, parallel)
    for number, config in enumerate(configs):
        steps = np.array([rank[number] for rank in fed]).reshape(world, STEPS, -1)
        order = np.sort(steps.transpose(1, 0, 2).reshape(STEPS, -1), axis=1)  # of each step, over all processes
        assert order.tolist() == np.array(alone[number]).reshape(STEPS, -1).tolist()
        wanted, found = losses(config, f"auto-1-{number}"), losses(config, f"{parallel}-{world}-{number}")
        assert wanted.keys() == found.keys()
        for place, value in wanted.items():
            limit = 1e-5 if place[1] != "train/grad_norm" else 1e-3
            assert found[place] == pytest.approx(value, abs=limit), (kinds[number], place)


@pytest.mark.slow
@pytest.mark.parametrize(("dialect", "reduce_dtype"), [("gpt2", "fp32"), ("qwen3", "fp32"), ("qwen3", "bf16")])
def test_shards_in_mixed_precision_learn_as_one_process_does(
    dialect: str, reduce_dtype: str, make_config: MakeConfig, together: Together
) -> None:
    """The weights of blocks travel in bf16 then, those of their norms too, so the two differ in rounding."""
    (config,) = configs_of(make_config, [("adamw", dialect)])
    config = replace(config, train=replace(config.train, precision="bf16", reduce_dtype=reduce_dtype))
    all_kinds([config], 1, "auto")
    together(2, all_kinds, [config], 2, "fsdp")
    wanted, found = losses(config, "auto-1-0"), losses(config, "fsdp-2-0")
    assert wanted.keys() == found.keys()
    for place, value in wanted.items():
        if place[1].endswith("/loss"):
            assert found[place] == pytest.approx(value, abs=0.02), place
