"""Sweeps as real jobs of submitit's on this machine; for SLURM, the script that a stand-in for sbatch is given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpt.config.sweep import LauncherConfig
from gpt.options import ConfigError
from gpt.sweeps.submitting import Submitit
from tests.scripts import ENVIRONMENT, empty_folder, run_script, write_script

__all__ = ["empty_folder"]  # a fixture

LOCAL = ["-m", "launcher=submitit_local", "run_dir=s"]
LOSS = """
import json, os, signal, time
os.makedirs(config.run_dir, exist_ok=True)
log = open("log", "a")
def note(*words): print(config.seed, *words, file=log, flush=True)
with open(config.run_dir + "/metrics.jsonl", "w") as file:
    file.write(json.dumps({"step": 1, "val/loss": config.seed}) + "\\n")
"""
SAVES = """
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
note("running")
while not stopped: time.sleep(0.01)
note("saved")
return 143
"""


def states(folder: Path) -> list[tuple[int, str]]:
    found = [json.loads(line) for line in (folder / "s/sweep.jsonl").read_text().splitlines()]
    return [(line["seed"], line["state"]) for line in found]


def noted(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


def until(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def begin(*argv: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "script.py", *argv]
    return subprocess.Popen(
        command, env={**ENVIRONMENT, **environment}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_jobs_run_at_once_and_one_fails(empty_folder: Path) -> None:
    body = (
        LOSS
        + """
note(os.environ.get("CUDA_VISIBLE_DEVICES"), len(os.listdir("s")))
if config.seed == 2: raise SystemExit("out of luck" if not os.path.exists("luck") else 0)
while not os.path.isdir("s/seed=2"): time.sleep(0.01)  # the other runs meanwhile
"""
    )
    argv = [*LOCAL, "launcher.array_parallelism=2", "launcher.gpus_per_node=1", "seed=1,2,3"]
    done = run_script(empty_folder, body, argv)
    assert done.returncode == 1
    assert states(empty_folder) == [(1, "done"), (2, "failed with exit status 1"), (3, "done")]
    assert "  out of luck\n" in done.stderr
    assert {line.split()[1] for line in noted(empty_folder)} == {"0", "1"}  # a GPU for each of two
    (empty_folder / "luck").touch()
    done = run_script(empty_folder, body, argv)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in noted(empty_folder)[3:]] == ["2"]  # the finished ones are not run again


def test_ctrl_c_has_the_runs_save(empty_folder: Path) -> None:
    write_script(empty_folder, LOSS + SAVES)
    sweep = begin(*LOCAL, "launcher.array_parallelism=2", "seed=1,2,3")
    until(lambda: len(noted(empty_folder)) == 2)
    os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does, to all processes
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, err
    assert sorted(noted(empty_folder)) == ["1 running", "1 saved", "2 running", "2 saved"]
    assert states(empty_folder) == [(1, "interrupted"), (2, "interrupted"), (3, "not started")]
    assert "3 of 3 runs are not done. The same command continues." in err


def test_the_job_of_a_killed_sweep_is_waited_for(empty_folder: Path) -> None:
    body = (
        LOSS
        + """
from filelock import FileLock
with FileLock(config.run_dir + "/.lock").acquire(timeout=0):
    note("running")
    while not os.path.exists("go"): time.sleep(0.01)
    note("ends")
"""
    )
    write_script(empty_folder, body)
    first = begin(*LOCAL, "seed=1,2")
    until(lambda: noted(empty_folder))
    first.kill()
    first.wait()
    second = begin(*LOCAL, "seed=1,2")
    until(lambda: len(list(empty_folder.glob("s/.submitit/*/*_log.err"))) == 2)
    time.sleep(4)  # in which its run would begin, and find the folder in use
    (empty_folder / "go").touch()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert noted(empty_folder) == ["1 running", "1 ends", "1 running", "1 ends", "2 running", "2 ends"]


def test_a_job_whose_time_is_over_saves_and_goes_on(empty_folder: Path) -> None:
    body = """
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
if os.path.exists("begun"):
    note("goes on")
    return 0
open("begun", "w").close()
os.kill(os.getppid(), signal.SIGUSR2)  # as SLURM would, to the job's own process and to this one
os.kill(os.getpid(), signal.SIGUSR2)
while not stopped: time.sleep(0.01)
note("saved")
return 143
"""
    done = run_script(empty_folder, LOSS + body, [*LOCAL, "seed=1,2"])
    assert noted(empty_folder) == ["1 saved", "1 goes on", "2 goes on"], done.stderr
    assert states(empty_folder) == [(1, "done"), (2, "done")]
    assert done.returncode == 0


def test_the_tasks_of_a_job_are_the_processes_of_a_run(empty_folder: Path) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    body = (
        LOSS
        + f"""
note(*(os.environ[name] for name in {names}))
return 3 if os.environ["RANK"] == "1" and config.seed == 2 else 0
"""
    )
    done = run_script(empty_folder, body, [*LOCAL, "launcher.tasks_per_node=2", "seed=1,2"])
    assert sorted(noted(empty_folder)) == ["1 0 2 0 2", "1 1 2 1 2", "2 0 2 0 2", "2 1 2 1 2"], done.stderr
    assert states(empty_folder) == [(1, "done"), (2, "failed with exit status 3")]


def test_a_search_runs_jobs_at_once(empty_folder: Path) -> None:
    argv = [*LOCAL, "launcher.array_parallelism=2", "sweeper=optuna", "sweeper.n_jobs=2", "sweeper.n_trials=4"]
    done = run_script(empty_folder, LOSS, [*argv, "seed=interval(1,1000)"])
    assert done.returncode == 0, done.stderr
    assert [state for _, state in states(empty_folder)] == ["done"] * 4
    assert "best of 4 trials: seed=" in done.stderr


def test_a_sweep_has_its_folder_for_itself(empty_folder: Path) -> None:
    write_script(empty_folder, LOSS + SAVES)
    first = begin(*LOCAL, "seed=1,2")
    until(lambda: noted(empty_folder))
    second = begin(*LOCAL, "seed=1,2")
    _, err = second.communicate(timeout=60)
    assert (second.returncode, err) == (
        2,
        "script.py: s is in use by another sweep; wait for it, or choose another run_dir\n",
    )
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode == 143


def test_more_gpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    options = LauncherConfig(name="submitit_local", array_parallelism=2, gpus_per_node=1)
    assert [Submitit(options).devices(slot) for slot in (0, 1)] == ["4", "6"]
    with pytest.raises(ConfigError, match="is more than CUDA_VISIBLE_DEVICES=4,6"):
        Submitit(LauncherConfig(name="submitit_local", array_parallelism=3, gpus_per_node=1))
