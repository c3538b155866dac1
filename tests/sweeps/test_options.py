"""The options of a sweep itself: both spellings, the ready files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt.arguments import choices_of
from gpt.config.sweep import SweepConfig
from gpt.help import help_text
from gpt.options import ConfigError
from gpt.sweeps.options import load_sweep
from tests.scripts import SAMPLE, TRAIN, empty_folder, run_script

__all__ = ["empty_folder"]  # a fixture


def test_both_spellings_mean_the_same() -> None:
    ours = [
        "launcher=submitit_slurm",
        "launcher.partition=gpu,big",
        "sweeper=optuna",
        "sweeper.sampler=random",
        "seed=1",
    ]
    hydras = [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu,big",
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=random",
        "seed=1",
    ]
    found, others = load_sweep(TRAIN, ours)
    assert (found, others) == load_sweep(TRAIN, hydras)
    assert others == ["seed=1"]
    assert (found.launcher.name, found.launcher.partition, found.launcher.timeout_min) == (
        "submitit_slurm",
        "gpu,big",
        720,
    )
    assert (found.sweeper.name, found.sweeper.sampler, found.sweeper.n_trials) == ("optuna", "random", 20)
    assert load_sweep(TRAIN, ["seed=1,2"]) == (SweepConfig(), ["seed=1,2"])


@pytest.mark.parametrize("group", ["launcher", "sweeper"])
def test_every_ready_file_is_valid(group: str) -> None:
    for choice in choices_of(f"hydra/{group}"):
        config, _ = load_sweep(TRAIN, [f"{group}={choice}"])
        assert getattr(config, group).name == choice


def test_values_take_the_types_of_their_options() -> None:
    argv = [
        "launcher=submitit_slurm",
        "launcher.mem_gb=1.5e1",
        "launcher.gpus_per_node=null",
        "launcher.setup=module load a",
    ]
    launcher = load_sweep(TRAIN, [*argv, "launcher.setup=export B=1", "launcher.sbatch=reservation=mine"])[0].launcher
    assert (launcher.mem_gb, launcher.gpus_per_node) == (15.0, None)
    assert (launcher.setup, launcher.sbatch) == (("module load a", "export B=1"), ("reservation=mine",))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["launcher=slurm"], "launcher=slurm: is not one of basic, submitit_local, submitit_slurm; did you mean"),
        (["launcher.partition=gpu"], "launcher.partition=gpu: does nothing without launcher="),
        (["launcher=submitit_local", "launcher.nodes=2"], "launcher.nodes=2: is for launcher=submitit_slurm"),
        (["launcher=submitit_local", "launcher.jobs=2"], "launcher.jobs=2: there is no such option"),
        (["launcher=submitit_slurm", "launcher.mem_gb=much"], "launcher.mem_gb=much: is not a number"),
        (["launcher=submitit_slurm", "launcher.sbatch=x"], "'x' is not name=value"),
        (["launcher=submitit_slurm", "launcher.timeout_min=2"], "is not before the end of launcher.timeout_min=2"),
        (["sweeper.n_trials=3"], "sweeper.n_trials=3: does nothing without sweeper=optuna"),
        (["sweeper=optuna", "sweeper.n_trials=0"], "sweeper.n_trials=0: must be at least 1"),
        (["sweeper=optuna", "sweeper.n_jobs=2"], "is more than launcher.array_parallelism=1 runs at once"),
        (["sweeper=optuna", "sweeper.pruner=median"], "sweeper.pruner=median: there is no such option"),
        (["sweeper.name=optuna"], "sweeper.name=optuna: is chosen as sweeper=optuna"),
    ],
)
def test_mistakes_of_a_sweep_s_options(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(TRAIN, argv)
    assert words in str(caught.value)
    assert len(caught.value.mistakes) == 1


def test_mistakes_are_listed_with_those_of_the_runs() -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(TRAIN, ["launcher=slurm", "optimiser.lr=1"])
    assert [mistake.option for mistake in caught.value.mistakes] == ["launcher", "optimiser.lr"]


@pytest.mark.parametrize("argument", ["launcher=submitit_slurm", "hydra.sweeper.n_trials=3", "hydra/sweeper=optuna"])
def test_without_multirun_they_are_refused(argument: str, empty_folder: Path) -> None:
    done = run_script(empty_folder, "pass", [argument])
    assert done.returncode == 2
    assert f"{argument.removeprefix('hydra')[1:] if 'hydra' in argument else argument}: is for a sweep" in done.stderr


@pytest.mark.parametrize(("option", "module"), [("launcher=submitit_local", "submitit"), ("sweeper=optuna", "optuna")])
def test_a_missing_extra_is_named(option: str, module: str, empty_folder: Path) -> None:
    (empty_folder / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    done = run_script(empty_folder, "pass", ["-m", option, "seed=1,2"], path=empty_folder)
    assert done.returncode == 2
    assert f"{option} needs {module}, which is not installed: pip install 'newleaf-gpt[sweep]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (empty_folder / "runs").exists()


def test_help_lists_them_for_train_only() -> None:
    text = help_text(TRAIN, "train.py", 100)
    for words in ("launcher.partition=", "sweeper.n_trials=20", "submitit_slurm", "basic | optuna"):
        assert words in text
    assert "sweeper" not in help_text(SAMPLE, "sample.py", 100)
