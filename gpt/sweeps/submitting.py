"""The runs of a sweep as jobs of submitit's, on this machine or in SLURM.

`<sweep>/.submitit` holds submitit's own files, the logs of the jobs, and `runs.jsonl`: which job each run has had and
how it ended, so that the same command neither repeats what is done nor submits again what is still in the queue.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt.config.sweep import LauncherConfig
from gpt.options import ConfigError, Mistake, UserError, say
from gpt.sweeps.extras import needed
from gpt.sweeps.plan import Run
from gpt.sweeps.results import lines_of, was_interrupted

FOLDER = ".submitit"
SBATCH = {"tasks_per_node": "ntasks_per_node", "timeout_min": "time"}  # what sbatch calls them
LOG_LINES = 5  # of a run that failed


class Submitit:
    """Starts runs as jobs, which in SLURM stay when the sweep's process ends."""

    def __init__(self, options: LauncherConfig) -> None:
        """Raises `UserError` where submitit or SLURM is not here, `ConfigError` for GPUs that are not."""
        self.options, self.at_once = options, options.array_parallelism
        self.stays = options.name == "submitit_slurm"
        self.poll_seconds = 1.0 if self.stays else 0.1
        self.submitit = needed("submitit", f"launcher={options.name}")
        missing = [name for name in ("sbatch", "srun") if not shutil.which(name)]
        if self.stays and missing:
            raise UserError(
                f"launcher={options.name}: there is no {' and no '.join(missing)} here; start the sweep on a machine "
                "of the cluster, or use launcher=submitit_local"
            )
        self.seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.check_gpus()
        self.slots: list[int] = []

    def check_gpus(self) -> None:
        wanted = (self.options.gpus_per_node or 0) * self.at_once
        if not self.stays and self.seen is not None and wanted > len(listed(self.seen)):
            message = f"times launcher.array_parallelism={self.at_once} is more than CUDA_VISIBLE_DEVICES={self.seen}"
            raise ConfigError([Mistake("launcher.gpus_per_node", message, str(self.options.gpus_per_node))])

    def open(self, folder: Path) -> None:
        """Begin or continue the sweep in a folder. Raises UserError where SLURM's parameters are none."""
        self.folder = folder / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "runs.jsonl"
        self.records = {line["run"]: line for line in lines_of(self.path) if isinstance(line.get("run"), str)}
        self.slots = list(range(self.at_once))
        limits = {"max_num_timeout": self.options.max_num_timeout}
        kind = self.submitit.SlurmExecutor if self.stays else self.submitit.LocalExecutor
        self.executor = kind(folder=self.folder.absolute() / "%j", **limits)
        self.executor.update_parameters(**(self.for_slurm() if self.stays else self.for_local()))

    def for_local(self) -> dict[str, Any]:
        names = ("timeout_min", "signal_delay_s", "tasks_per_node")
        return {name: getattr(self.options, name) for name in names}

    def for_slurm(self) -> dict[str, Any]:
        names = (
            "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "timeout_min", "signal_delay_s",
            "partition", "account", "qos", "constraint", "exclude", "nodelist", "gres",
        )  # fmt: skip
        given = {name: getattr(self.options, name) for name in names}
        parameters = {SBATCH.get(name, name): value for name, value in given.items() if value not in (None, "")}
        if self.options.mem_gb:
            parameters["mem"] = f"{math.ceil(1024 * self.options.mem_gb)}M"
        if self.options.setup:
            parameters["setup"] = list(self.options.setup)
        if self.options.cpus_per_task:  # since version 22.05 srun does not know sbatch's
            parameters["srun_args"] = [f"--cpus-per-task={self.options.cpus_per_task}"]
        others = dict(text.lstrip("-").split("=", 1) for text in self.options.sbatch)
        # Of jobs with one name, one runs at a time: never two in one run's folder, whatever became of the sweep.
        parameters["additional_parameters"] = {"requeue": True, "dependency": "singleton", **others}
        return parameters

    def start(self, run: Run) -> Job:
        record = self.records.get(str(run.folder), {})
        same = record.get("arguments") == list(run.arguments)
        if same and record.get("status") == 0:
            return Job(self, run, None)
        if self.stays and same and (job := self.still_there(record)):
            say(f"  it has job {job.job_id} already")
            return Job(self, run, job)
        slot = self.slots.pop(0)
        job = self.submit(run, slot)
        say(f"  job {job.job_id}, log {job.paths.stderr}")
        self.record(run, job=job.job_id)
        return Job(self, run, job, slot)

    def still_there(self, record: dict[str, Any]) -> Any:
        """The job of an earlier session that SLURM still knows and has not ended; None if there is none."""
        if not isinstance(record.get("job"), str) or "status" in record:
            return None
        tasks = range(self.options.nodes * self.options.tasks_per_node)
        job = self.submitit.SlurmJob(self.executor.folder, record["job"], list(tasks))
        ended_well = job.done(force_check=True) and all(task(job, n).paths.result_pickle.exists() for n in tasks)
        return job if ended_well or (not job.done() and job.state.upper() != "UNKNOWN") else None

    def submit(self, run: Run, slot: int) -> Any:
        from gpt.sweeps.job import RunJob  # needs submitit

        command = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])], *run.arguments]
        job = RunJob(command, run.folder, os.getcwd(), None if self.stays else self.devices(slot))
        if not self.stays:
            return self.submit_shielded(job)
        name = hashlib.sha256(str(run.folder.absolute()).encode()).hexdigest()[:10]
        self.executor.update_parameters(job_name=f"{self.options.job_name}-{name}")
        try:
            with self.submitit.helpers.clean_env():  # a sweep may itself be in a job
                return self.executor.submit(job)
        except (self.submitit.core.utils.FailedJobError, RuntimeError) as error:
            reason = str(error).strip().splitlines()
            raise UserError(f"sbatch refused a job: {reason[-1] if reason else error}; see launcher.*") from None

    def submit_shielded(self, job: Any) -> Any:
        """Submit to this machine. The terminal sends Ctrl-C also to submitit's own processes, which would kill the run
        before it has saved; they inherit that it is ignored."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return self.executor.submit(job)
        finally:
            signal.signal(signal.SIGINT, before)

    def devices(self, slot: int) -> str | None:
        """The GPUs of the run in this slot, as CUDA_VISIBLE_DEVICES has them; None: all."""
        count = self.options.gpus_per_node
        if count is None:
            return self.seen
        mine = range(slot * count, (slot + 1) * count)
        return ",".join(map(str, mine) if self.seen is None else [listed(self.seen)[n] for n in mine])

    def record(self, run: Run, **what: Any) -> None:
        line = {"run": str(run.folder), "arguments": list(run.arguments), **what}
        self.records[str(run.folder)] = line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def leave(self, jobs: Sequence[Job]) -> bool:
        """Whether the jobs go on when this process ends, which is said."""
        ids = " ".join(job.job.job_id for job in jobs if job.job)
        if self.stays and ids:
            say(f"SLURM keeps the jobs of this sweep: {ids}. The same command waits for them; scancel {ids} ends them.")
        return self.stays


class Job:
    """A run that was started; `job` is submitit's, None for one that was done before."""

    def __init__(self, launcher: Submitit, run: Run, job: Any, slot: int | None = None) -> None:
        self.launcher, self.run, self.job, self.slot = launcher, run, job, slot

    def poll(self) -> int | None:
        """The exit status, None while there is none."""
        if self.job is None:
            return 0
        if not self.job.done():
            return None
        status = self.status()
        self.launcher.record(self.run, job=self.job.job_id, status=status)
        if self.slot is not None:
            self.launcher.slots.append(self.slot)
        if status and not was_interrupted(status):
            for line in (self.job.stderr() or "").strip().splitlines()[-LOG_LINES:]:
                say(f"  {line}")
        return status

    def status(self) -> int:
        """Of the job's tasks, the first exit status that is not 0."""
        errors = self.launcher.submitit.core.utils
        tasks = [task(self.job, number) for number in range(self.job.num_tasks)]
        if not self.launcher.stays and not all(one.paths.result_pickle.exists() for one in tasks):
            return -signal.SIGKILL  # on this machine a result is there at once, or never
        try:
            return next((status for one in tasks if (status := one.result())), 0)
        except errors.FailedJobError as error:
            return 128 + signal.SIGTERM if "not requeued because" in str(error) else 1
        except errors.UncompletedJobError:
            say(f"job {self.job.job_id} has ended without a result ({self.job.state}), see {self.job.paths.stderr}")
            return -signal.SIGKILL

    def stop(self) -> None:
        """Have the run save and end: submitit's process passes the signal on to its tasks, and these to the run."""
        if not self.job.done():
            os.kill(int(self.job.job_id), signal.SIGTERM)


def task(job: Any, number: int) -> Any:
    return job.task(number)


def listed(devices: str) -> list[str]:
    return [device for device in devices.split(",") if device]
