"""Searches with the real optuna, over scripts whose loss is known, as real processes that fail, are killed, go on."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from gpt.config.sweep import SweeperConfig
from gpt.options import ConfigError, UserError
from gpt.sweeps.plan import Run
from gpt.sweeps.study import Study
from tests.scripts import TRAIN, empty_folder, run_script

__all__ = ["empty_folder"]  # a fixture

LR = "optimizer.lr=tag(log,interval(1e-4,1e-2))"
BODY = """
import json, math, os, signal
os.makedirs(config.run_dir, exist_ok=True)
print(config.run_dir, flush=True)
{first}
loss = 2 + abs(math.log(config.optimizer.lr / 2e-3)) + config.optimizer.weight_decay
with open(config.run_dir + "/metrics.jsonl", "w") as file:
    file.write(json.dumps({{"step": 1, "val/loss": loss, "val/bits_per_byte": loss / 2}}) + "\\n")
"""
# Once, when so many runs have been begun:
ONCE = """
if len(os.listdir("{folder}")) >= {count} and not os.path.exists("once"):
    open("once", "w").close()
    {what}
"""


def search(folder: Path, *argv: str, first: str = "") -> Any:
    return run_script(folder, BODY.format(first=first), ["-m", "sweeper=optuna", *argv])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def opened(*argv: str, **options: Any) -> Study:
    study = Study(TRAIN, argv, SweeperConfig(name="optuna", **options))
    study.folder.mkdir(parents=True, exist_ok=True)
    study.open()
    return study


def end(study: Study, run: Run, loss: float, status: int = 0) -> None:
    """As if the run had come to this."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "val/loss": loss}) + "\n")
    study.ended(run, status)


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_as_if_nothing_had_happened(empty_folder: Path) -> None:
    argv = [LR, "optimizer.weight_decay=choice(0,0.1)", "sweeper.n_trials=12"]  # the first ten are random
    undisturbed = search(empty_folder, *argv, "run_dir=a")
    assert undisturbed.returncode == 0, undisturbed.stderr
    kill = ONCE.format(folder="b", count=8, what="os.kill(os.getppid(), signal.SIGKILL)\n    os._exit(1)")
    killed = search(empty_folder, *argv, "run_dir=b", first=kill)
    assert killed.returncode == -9
    done = search(empty_folder, *argv, "run_dir=b", first=kill)
    assert done.returncode == 0, done.stderr
    losses = [[line["val/loss"] for line in lines(empty_folder / f"{name}/sweep.jsonl")] for name in "ab"]
    assert losses[0] == losses[1]
    runs = (killed.stdout + done.stdout).split()
    assert len(runs) == len(set(runs)) + 1  # only what was running was begun again


def test_a_run_that_was_interrupted_is_continued_and_one_more_may_be_asked_for(empty_folder: Path) -> None:
    interrupted = search(empty_folder, LR, "sweeper.n_trials=2", "run_dir=b", first="return 143")
    assert interrupted.returncode == 1
    assert "2 of 2 runs are not done. The same command continues." in interrupted.stderr
    done = search(empty_folder, LR, "sweeper.n_trials=2", "run_dir=b")
    assert (done.returncode, done.stdout) == (0, interrupted.stdout)
    again = search(empty_folder, LR, "sweeper.n_trials=2", "run_dir=b")
    assert (again.returncode, again.stdout) == (0, "")
    assert "best of 2 trials: optimizer.lr=" in again.stderr
    more = search(empty_folder, LR, "sweeper.n_trials=3", "run_dir=b")
    assert (more.returncode, len(more.stdout.split())) == (0, 1)


def test_a_run_that_fails_teaches_nothing_and_is_not_repeated(empty_folder: Path) -> None:
    failing = "if config.optimizer.lr > 1e-3: return 7"
    done = search(empty_folder, LR, "sweeper.n_trials=5", "run_dir=a", first=failing)
    assert done.returncode == 1
    found = lines(empty_folder / "a/sweep.jsonl")
    states = {line["state"] for line in found}
    assert states == {"done", "failed with exit status 7"}
    assert all((line["optimizer.lr"] > 1e-3) == (line["exit_status"] == 7) for line in found)
    again = search(empty_folder, LR, "sweeper.n_trials=5", "run_dir=a")
    assert (again.returncode, again.stdout) == (1, "")
    assert [line["exit_status"] for line in lines(empty_folder / "a/sweep.jsonl")] == [
        line["exit_status"] for line in found
    ]


def test_equal_runs_are_one(empty_folder: Path) -> None:
    done = search(empty_folder, "optimizer.weight_decay=0,0.1", "sweeper.n_trials=6", "run_dir=a")
    assert sorted(done.stdout.split()) == ["a/optimizer.weight_decay=0.0", "a/optimizer.weight_decay=0.1"]
    assert "best of 6 trials: optimizer.weight_decay=0, val/loss" in done.stderr


@pytest.mark.slow
def test_what_is_drawn(empty_folder: Path) -> None:
    study = opened(
        LR, "model.n_layer=interval(1.5,3)", "seed=range(2,9,3)", "train.grad_clip=range(0,1,0.25)",
        "optimizer=adamw,muon", "run_dir=a", n_trials=200, sampler="random",
    )  # fmt: skip
    runs = [run for _ in range(200) if (run := study.next())]
    assert study.next() is None
    drawn = {name: [run.values[name] for run in runs] for name in runs[0].values}
    assert set(drawn["model.n_layer"]) == {2, 3}
    assert set(drawn["seed"]) == {2, 5, 8}
    assert set(drawn["train.grad_clip"]) == {0.0, 0.25, 0.5, 0.75}
    assert set(drawn["optimizer"]) == {"adamw", "muon"}
    assert all(1e-4 <= lr <= 1e-2 for lr in drawn["optimizer.lr"])
    assert statistics.median(map(math.log10, drawn["optimizer.lr"])) == pytest.approx(-3, abs=0.25)  # linear: -2.3


@pytest.mark.slow
def test_the_search_learns(empty_folder: Path) -> None:
    def seek(sampler: str) -> float:
        study = opened("optimizer.lr=interval(0.001,1)", f"run_dir={sampler}", n_trials=40, sampler=sampler)
        found = []
        while run := study.next():
            found.append((run.values["optimizer.lr"] - 0.3) ** 2)
            end(study, run, found[-1])
        assert study.verdict() is not None
        return statistics.median(found[20:])

    assert seek("tpe") < seek("random") / 3


def test_a_direction_and_an_objective_are_kept(empty_folder: Path) -> None:
    study = opened("seed=1,2", "run_dir=a", n_trials=8, direction="maximize")
    while run := study.next():
        end(study, run, run.values["seed"])
    assert "seed=2, val/loss 2" in str(study.verdict())
    for options, argv, words in (
        ({}, "seed=1,2", "sweeper.direction was maximize, is minimize"),
        ({"direction": "maximize"}, "seed=1,2,3", "seed was 1,2, is 1,2,3"),
        ({"direction": "maximize", "objective": "tokens_per_second"}, "seed=1,2", "sweeper.objective was val/loss"),
    ):
        with pytest.raises(UserError, match=words):
            opened(argv, "run_dir=a", **options)
    with pytest.raises(UserError, match="arguments was"):
        opened("seed=1,2", "run_dir=a", "train.max_steps=5", direction="maximize")


def test_a_torn_line_of_the_journal_is_no_end(empty_folder: Path) -> None:
    study = opened("seed=1,2", "run_dir=a", n_trials=3)
    run = study.next()
    assert run
    end(study, run, 1.0)
    path = empty_folder / "a/study.journal"
    path.write_bytes(path.read_bytes() + b'{"op_code": 5, "wor')
    again = opened("seed=1,2", "run_dir=a", n_trials=3)
    assert again.finished == {run.folder: 0}
    assert again.next() is not None
    path.write_bytes(b"no journal\n" * 3)
    with pytest.raises(UserError, match="damaged"):
        opened("seed=1,2", "run_dir=a")


def test_values_that_do_not_go_together_are_a_failed_trial(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = opened("schedule.warmup_steps=5,50", "train.max_steps=100,10", "run_dir=a", n_trials=12, sampler="random")
    folders = set()
    while run := study.next():
        folders.add(run.folder.name)
        end(study, run, 1.0)
    assert folders == {f"schedule.warmup_steps={w},train.max_steps={m}" for w, m in ((5, 10), (5, 100), (50, 100))}
    assert "schedule.warmup_steps=50: is more than train.max_steps=10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["seed=1"], "sweeper=optuna: has nothing to seek"),
        (["optimizer=interval(1,2)"], "optimizer=interval(1,2): is an interval of what is no number"),
        (["train.device=interval(1,2)"], "is an interval of what is no number"),
        (["optimizer.lr=tag(log,interval(0,1))"], "must begin above 0"),
        (["seed=interval(1.2,1.8)"], "holds no whole number"),
        (["optimizer.lr=interval(2,1)"], "ends before it begins"),
        (["optimizer.lr=interval(1,inf)"], "has an end that is not a finite number"),
        (["optimizer.lr=tag(foo,interval(1,2))"], "has the tag foo; log is the only tag"),
        (["optimizer.lr=interval(-1,1)"], "optimizer.lr=-1.0: must be greater than 0"),
        (["optimizer=adamw,sgd"], "optimizer=sgd: is not one of adamw, muon"),
        (["seed=range(0,1e12)"], "is no list of at most 1000 values"),
    ],
)
def test_mistakes_of_a_search(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Study(TRAIN, argv, SweeperConfig(name="optuna"))
    assert words in str(caught.value)
    assert len(caught.value.mistakes) == 1
