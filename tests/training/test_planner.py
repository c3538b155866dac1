"""Plans against models that are built, optimizers that run, and messages that are counted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.cli import main
from gpt.composition import load_config
from gpt.config import RunConfig
from gpt.model.transformer import Decoder
from gpt.options import ConfigError, UserError
from gpt.training import planner as planning
from gpt.training.muon import part_of
from gpt.training.optimizers import Optimizers
from gpt.training.planner import Planner
from gpt.training.rehearsal import LiveBytes
from train import COMMAND, run

SMALL = [
    "plan=true", "tokenizer=byte", "model.n_layer=2", "model.n_embd=64", "model.n_head=4", "model.context_length=32",
    "train.batch_size=4", "cluster.gpu=H100",
]  # fmt: skip


def configured(*options: str) -> RunConfig:
    return load_config(COMMAND, list({option.partition("=")[0]: option for option in [*SMALL, *options]}.values()))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dialect", ["gpt2", "llama", "qwen3"])
def test_a_plan_for_one_process_is_of_what_it_will_hold(optimizer: str, dialect: str) -> None:
    config = configured(f"optimizer={optimizer}", f"model.dialect={dialect}")
    plan = Planner(config).plan(config, 1)
    model = Decoder(config.model, 257)
    optimizers = Optimizers(model, config.optimizer, torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(1.0)
    weights = sum(p.nbytes for p in model.parameters())
    assert (plan.parallel, plan.parameters) == ("alone", model.parameter_count())
    assert plan.parts.weights == plan.parts.gradients == weights
    assert plan.parts.optimizer == sum(tensor.nbytes for tensor in optimizers.state_tensors().values())
    assert plan.communication == {}
    assert plan.flops_per_token == model.flops_per_token()
    least = plan.parts.weights + plan.parts.gradients + plan.parts.optimizer + plan.parts.logits
    assert plan.parts.total > least + 2 * 4 * 32 * 64 * 2  # what two blocks keep of each token, at the very least


@pytest.mark.parametrize(("gpu", "growth"), [("H100", 2.0), ("", 3.5)])
def test_a_gpu_is_planned_with_its_own_attention(gpu: str, growth: float) -> None:
    """That of a CPU in bf16 keeps probabilities, which grow with the square of the context."""
    backward = []
    for length in (1024, 2048):
        options = [f"model.context_length={length}", "train.batch_size=1", "train.precision=bf16", "model.n_head=8"]
        config = configured(*options, f"cluster.gpu={gpu}", "optimizer=adamw")
        backward.append(Planner(config).rehearse(config, 1, "alone").backward)
    assert backward[1] / backward[0] == pytest.approx(growth, rel=0.15)


@pytest.mark.parametrize("world", [3, 1024])
def test_shards_are_those_that_fsdp_deals(world: int) -> None:
    config = configured(f"cluster.gpus={world}", "parallel=fsdp", "optimizer=adamw")
    plan = Planner(config).plan(config, world)
    model = Decoder(config.model, 257)
    rows = sum(part_of(p.shape[0], 0, world) * p[0].nbytes for p in model.parameters())
    assert plan.parts.weights == plan.parts.gradients == rows
    counts = 4 * sum(1 for _ in model.parameters())  # of steps
    assert plan.parts.optimizer == 2 * rows + counts
    assert plan.tokens_per_step == 4 * 32 * world


class Sent(TorchDispatchMode):
    """The bytes that the first of `world` processes sends by the messages of torch.distributed, as rings send them."""

    def __init__(self, world: int) -> None:
        super().__init__()
        self.world, self.bytes = world, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(kind, "to_local") for kind in types):
            return NotImplemented
        name, share = str(func), (self.world - 1) / self.world
        if "_allgather_base_" in name:
            self.bytes += share * args[0].nbytes
        elif "_reduce_scatter_base_" in name or "alltoall_base_" in name:
            self.bytes += share * args[1].nbytes
        elif "c10d" in name and args[0][0].numel() > 1:  # but for the sums of single numbers, losses and norms
            raise AssertionError(f"{name} is not counted")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("reduce_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_fsdp_sends_is_counted(
    optimizer: str, precision: str, reduce_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = 8
    config = configured(
        f"optimizer={optimizer}", f"train.precision={precision}", f"train.reduce_dtype={reduce_dtype}",
        "train.grad_accum_steps=2", f"cluster.gpus={world}", "parallel=fsdp", "tokenizer.vocab_size=512",
        "model.n_layer=8", "tokenizer=bpe",
    )  # fmt: skip
    planner, counted = Planner(config), Sent(world)
    update = planning.Trainer.update

    def counting(self: Any) -> Any:
        with counted:
            return update(self)

    monkeypatch.setattr(planning.Trainer, "update", counting)
    plan = planner.plan(config, world)
    assert sum(plan.communication.values()) == pytest.approx(counted.bytes, rel=0.02)  # rows are padded
    assert ("Muon's updates" in plan.communication) == (optimizer == "muon")


def test_a_slow_network_is_waited_for_and_a_fast_one_hides_behind_the_computing() -> None:
    slow = configured("cluster.gpus=16", "cluster.gbits_per_second=1", "train.grad_accum_steps=2")
    fast = configured("cluster.gpus=16", "cluster.gbits_per_second=1e9", "train.grad_accum_steps=2")
    planner = Planner(slow)
    a, b = planner.plan(slow, 16, "ddp"), planner.plan(fast, 16, "ddp")
    assert a.step_seconds is not None
    assert a.compute_seconds is not None
    assert b.step_seconds is not None
    assert a.compute_seconds == b.compute_seconds == pytest.approx(a.flops_per_token * 8 * 32 / (0.4 * 989e12))
    sent = 2 * 15 / 16 * a.parts.weights + a.communication["Muon's updates"]
    assert a.communication_seconds == pytest.approx(sent / 1.25e8)
    assert a.step_seconds == pytest.approx(a.communication_seconds + a.compute_seconds / 3)
    muon = b.communication["Muon's updates"] / 1.25e17
    assert b.step_seconds == pytest.approx(b.compute_seconds + muon)
    assert planner.plan(slow, 8, "ddp").bandwidth == 450e9  # within one machine


def test_a_deep_model_is_on_the_line_through_shallow_ones() -> None:
    config = configured("model.n_layer=16", "parallel=fsdp", "cluster.gpus=4")
    planner = Planner(config)
    assert planner.rehearse(config, 4, "fsdp") == planner.rehearse_whole(config, 4, "fsdp")


CROWDED = ["model.context_length=512", "train.batch_size=2048", "cluster.gpu=RTX 3080"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (CROWDED, {"train.batch_size"}),
        pytest.param(
            ["model=gpt2-xl", "model.n_layer=16", "tokenizer=gpt2", "cluster.gpu=RTX 3080"],
            {"parallel", "cluster.gpus"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest_that_does(
    options: list[str], expected: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = list({option.partition("=")[0]: option for option in [*SMALL, *options]}.values())
    if options[0].startswith("model="):
        argv = [option for option in argv if not option.startswith(("model.n_embd", "model.n_head"))]
    assert main(COMMAND, run, argv) == 2
    out, err = capsys.readouterr()
    assert "memory" in out
    told = re.search(r"this run does not fit: .* the nearest that fits: (.*)$", err.strip())
    assert told, err
    changes = dict(option.split("=") for option in told[1].split())
    assert expected <= changes.keys()
    kept = [option for option in argv if option.partition("=")[0] not in changes]
    assert main(COMMAND, run, [*kept, *told[1].split()]) == 0


def test_nothing_fits_a_model_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_GPUS", 4)
    config = configured("model.n_embd=8192", "model.n_head=64", "cluster.gpu=RTX 3080")
    assert Planner(config).nearest(config) is None


@pytest.mark.slow
def test_the_nearest_keeps_the_global_batch() -> None:
    config = configured(*CROWDED, "train.batch_size=3000", "train.grad_accum_steps=4")
    found = Planner(config).nearest(config)
    assert found is not None
    train = found.config.train
    assert train.micro_batch < 3000
    assert train.micro_batch * train.grad_accum_steps * found.world == 12000
    more = replace(train, batch_size=next(n for n in range(train.micro_batch + 1, 3001) if 12000 % n == 0))
    assert not Planner(config).plan(replace(config, train=more), 1).fits  # the largest


def test_the_largest_that_fits_is_found_as_by_trying_all(monkeypatch: pytest.MonkeyPatch) -> None:
    planner, splits = Planner(configured()), list(range(1, 9))  # of which only the order counts
    for limit in range(10):
        monkeypatch.setattr(planner, "plan", lambda n, *_: SimpleNamespace(fits=n <= limit, split=n))  # noqa: B023
        found: Any = planner.largest(splits, 1, "alone")  # type: ignore[arg-type]
        assert (found.split if found else None) == max((n for n in splits if n <= limit), default=None)


def test_a_global_batch_is_shared_among_the_gpus() -> None:
    config = configured("train.global_batch_size=64", "cluster.gpus=8", "train.batch_size=4")
    assert (config.train.grad_accum_steps, config.train.global_batch_size) == (2, None)
    assert load_config(COMMAND, ["train.global_batch_size=64"]).train.grad_accum_steps == 8
    for given in (["train.global_batch_size=60"], ["train.global_batch_size=64", "train.grad_accum_steps=3"]):
        with pytest.raises(ConfigError, match=r"is not train.batch_size=4 times train.grad_accum_steps=[13] times"):
            configured(*given, "cluster.gpus=8")
    config = configured("train.global_batch_size=64", "train.grad_accum_steps=2", "cluster.gpus=8")
    assert config.train.grad_accum_steps == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["plan=true", "cluster.gpu=H10"], "did you mean H100"),
        (["cluster.gpu=H100"], "cluster.gpu=H100: is for a plan; add plan=true"),
        (["cluster.mfu=0.5"], "cluster.mfu=0.5: is for a plan; add plan=true"),
        (["plan=true", "train.batch_size=auto", "train.global_batch_size=8"], "a plan needs a number"),
        (["cluster.gpus=2", "cluster.mfu=0.5"], "cluster.mfu=0.5: is for a plan; add plan=true"),
        (["plan=true", "cluster.mfu=1.5"], "must be at most 1"),
    ],
)
def test_what_is_refused(options: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(COMMAND, run, [*options, f"run_dir={tmp_path}/run"]) == 2
    assert says in capsys.readouterr().err


def test_a_plan_is_of_one_process_that_begins_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured()
    with pytest.raises(UserError, match="leave out init_from"):
        planning.plan(replace(config, init_from="gpt2"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"say how many there are to be with cluster\.gpus"):
        planning.plan(config)


def test_a_tensor_given_to_be_written_into_was_there_before() -> None:
    a, out = torch.ones(8, 8), torch.empty(8, 8)
    with LiveBytes() as live:
        torch.mm(a, a, out=out)
    assert live.peak == 0


def test_a_plan_writes_nothing_and_says_what_it_assumes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = [*SMALL, f"run_dir={tmp_path}/run", f"data.prepared_dir={tmp_path}/prepared", "cluster.gpus=1024"]
    assert main(COMMAND, run, argv) == 0
    out = capsys.readouterr().out
    for word in (
        "1,024 × H100",
        "  weights",
        "  optimizer",
        "sum of gradients",
        "GPU hours",
        "compute-optimal",
        "40 %",
    ):
        assert word in out
    assert not list(tmp_path.iterdir())
