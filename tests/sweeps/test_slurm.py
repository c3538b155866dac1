"""Sweeps in SLURM, of which there is none here: stand-ins for its commands keep the scripts and run them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.scripts import empty_folder, write_script
from tests.sweeps.test_submitting import LOSS, begin, noted, states, until

__all__ = ["empty_folder"]  # a fixture

SLURM = ["-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "run_dir=s"]
COMMANDS = {
    "sbatch": """
        if [ -e full ]; then echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1; fi
        id=$((100 + $(ls jobs | wc -l)))
        cp "$1" jobs/$id
        export SLURM_JOB_ID=$id SLURM_JOB_NODELIST=localhost SLURM_NTASKS=${TASKS:-1} SLURM_JOB_NUM_NODES=1
        setsid bash jobs/$id > jobs.log 2>&1 < /dev/null &
        echo "Submitted batch job $id"
    """,
    "srun": """
        while [[ $1 == -* ]]; do [[ $1 == --output || $1 == --error ]] && shift; shift; done
        for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
        wait
    """,
    "sacct": 'echo "JobID|State|NodeList"; for id in $(ls jobs); do echo "$id|RUNNING|here"; done',
}


@pytest.fixture
def slurm(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a machine on which SLURM's commands are."""
    for name in ("bin", "jobs"):
        (empty_folder / name).mkdir()
    for name, body in COMMANDS.items():
        (empty_folder / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (empty_folder / "bin" / name).chmod(0o755)
    return {"PATH": f"{empty_folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def test_the_script_of_a_job_and_its_run(empty_folder: Path, slurm: dict[str, str]) -> None:
    write_script(
        empty_folder, LOSS + 'note(*(os.environ.get(n) for n in ("RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES")))'
    )
    argv = [
        *SLURM, "launcher.tasks_per_node=2", "launcher.mem_gb=20", "launcher.setup=export CUDA_VISIBLE_DEVICES=0,1",
        "launcher.sbatch=reservation=mine", "seed=1,2",
    ]  # fmt: skip
    sweep = begin(*argv, **slurm, TASKS="2")
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 0, err
    assert sorted(noted(empty_folder)) == [f"{seed} {rank} 2 0,1" for seed in (1, 2) for rank in (0, 1)]
    scripts = [(empty_folder / f"jobs/{number}").read_text() for number in (100, 101)]
    for flag in (
        "partition=gpu", "time=720", "gpus-per-node=1", "cpus-per-task=8", "ntasks-per-node=2", "nodes=1", "mem=20480M",
        "signal=USR2@120", "requeue", "dependency=singleton", "reservation=mine", "open-mode=append",
    ):  # fmt: skip
        assert f"#SBATCH --{flag}\n" in scripts[0]
    assert "\nexport CUDA_VISIBLE_DEVICES=0,1\n" in scripts[0]
    assert "--cpus-per-task=8 " in next(line for line in scripts[0].splitlines() if line.startswith("srun "))
    names = [line for script in scripts for line in script.splitlines() if "--job-name=newleaf-" in line]
    assert len(set(names)) == 2  # a name for each run, so that singleton holds for it alone
    again = begin(*argv, **slurm)
    again.communicate(timeout=60)
    assert (again.returncode, len(list((empty_folder / "jobs").iterdir()))) == (0, 2)


def test_jobs_stay_when_the_sweep_is_interrupted(empty_folder: Path, slurm: dict[str, str]) -> None:
    write_script(empty_folder, LOSS + 'note("running")\nwhile not os.path.exists("go"): time.sleep(0.01)')
    sweep = begin(*SLURM, "launcher.array_parallelism=2", "seed=1,2,3", **slurm)
    until(lambda: len(noted(empty_folder)) == 2)
    sweep.send_signal(signal.SIGINT)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert "SLURM keeps the jobs of this sweep: 100 101. The same command waits for them; scancel 100 101 ends" in err
    again = begin(*SLURM, "launcher.array_parallelism=2", "seed=1,2,3", **slurm)
    (empty_folder / "go").touch()
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert "it has job 100 already" in err
    assert sorted(noted(empty_folder)) == ["1 running", "2 running", "3 running"]
    assert states(empty_folder) == [(1, "done"), (2, "done"), (3, "done")]


def test_a_job_that_is_refused_and_a_machine_without_slurm(empty_folder: Path, slurm: dict[str, str]) -> None:
    write_script(empty_folder, LOSS)
    (empty_folder / "full").touch()
    refused = begin(*SLURM, "seed=1,2", **slurm)
    _, err = refused.communicate(timeout=60)
    assert refused.returncode == 2
    assert "script.py: sbatch refused a job: sbatch: error: invalid partition specified: gpu; see launcher.*\n" in err
    elsewhere = begin(*SLURM, "seed=1,2")
    _, err = elsewhere.communicate(timeout=60)
    assert elsewhere.returncode == 2
    assert "launcher=submitit_slurm: there is no sbatch and no srun here; start the sweep on a machine of" in err
    assert "Traceback" not in err
