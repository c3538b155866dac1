"""Which runs a sweep has. Expected values are written out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt.composition import load_config
from gpt.options import ConfigError
from gpt.sweeps.plan import plan_runs
from tests.scripts import SAMPLE, TRAIN, empty_folder

__all__ = ["empty_folder"]  # a fixture


def planned(*argv: str) -> dict[str, tuple[str, ...]]:
    """The folders of a sweep's runs, and their arguments."""
    return {str(run.folder): run.arguments for run in plan_runs(TRAIN, argv).runs}


def test_the_plan_of_a_sweep() -> None:
    plan = planned("optimizer.lr=3e-4,1e-3", "optimizer=adamw,muon", "wandb.project=a,b", "seed=2")
    assert list(plan) == [
        "runs/stdlib-mini/optimizer=adamw,optimizer.lr=0.0003",
        "runs/stdlib-mini/optimizer=adamw,optimizer.lr=0.001",
        "runs/stdlib-mini/optimizer=muon,optimizer.lr=0.0003",
        "runs/stdlib-mini/optimizer=muon,optimizer.lr=0.001",
    ]
    config = load_config(TRAIN, plan["runs/stdlib-mini/optimizer=muon,optimizer.lr=0.0003"])
    assert (config.optimizer.name, config.optimizer.lr, config.seed) == ("muon", 3e-4, 2)
    assert config.run_dir == "runs/stdlib-mini/optimizer=muon,optimizer.lr=0.0003"
    assert config.wandb.project == "a,b"  # free text is never swept


def test_a_sweep_extends_a_given_folder_and_joins_equal_values() -> None:
    assert list(planned("run_dir=my runs", "seed=1,1e0,2")) == ["my runs/seed=1", "my runs/seed=2"]
    assert list(planned("seed=range(1,3)")) == ["runs/stdlib-mini/seed=1", "runs/stdlib-mini/seed=2"]


@pytest.mark.parametrize("models", ["mini,modern", "modern,mini"])
def test_runs_of_several_models_lie_in_one_folder_that_their_order_does_not_change(models: str) -> None:
    plan = plan_runs(TRAIN, [f"model={models}", "seed=1,2"])
    folders = {"runs/stdlib-mini/model=mini,seed=1", "runs/stdlib-mini/model=modern,seed=2"}
    assert folders <= {str(run.folder) for run in plan.runs}
    assert plan.folder == Path("runs/stdlib-mini")
    assert all(run.folder.parent == plan.folder for run in plan.runs)
    assert all(load_config(TRAIN, run.arguments).run_dir == str(run.folder) for run in plan.runs)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["seed=1"], "no option has several values"),
        (["seed=1,-2"], "seed=-2: must be at least 0"),
        (["optimizer=adamw,sgd"], "optimizer=sgd: is not one of adamw, muon"),
        (["seed=1,2", "lr=3"], "lr=3: there is no such option; did you mean optimizer.lr?"),
        (["seed=1,2", "seed=3"], "seed=3: was also given as seed=1,2; give it once"),
        (["seed=interval(1,2)", "optimizer=adamw,muon"], "seed=interval(1,2): is no list of at most 1000 values"),
    ],
)
def test_mistakes_of_a_sweep(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_runs(TRAIN, argv)
    assert words in str(caught.value)
    assert len(caught.value.mistakes) == 1


def test_no_sweep_without_runs_or_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="only train"):
        plan_runs(SAMPLE, ["checkpoint=x", "top_k=1,2"])
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="torchrun"):
        plan_runs(TRAIN, ["seed=1,2"])
