"""What a job of submitit's does: it runs `train.py` for one run of a sweep, and passes signals on to it.

submitit pickles a `RunJob`, and one process for each task of the job calls it. When SLURM announces the end of the
job's time by SIGUSR2, submitit calls `checkpoint`, in task 0, and queues the job again; the run then continues.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import submitit
from filelock import FileLock, Timeout

from gpt.sweeps.results import was_interrupted

POLL_SECONDS = 0.05
# After a SIGTERM of SLURM's: what cancels the job or queues it again also kills it, some 30 s later, and so there is no
# result that would look like the end of the run.
PATIENCE_SECONDS = 120.0


class RunJob:
    """The command of a run, to be called in each task of its job; returns its exit status."""

    def __init__(self, command: Sequence[str], folder: Path, here: str, devices: str | None) -> None:
        """`here`: the working folder. `devices`: what CUDA_VISIBLE_DEVICES is for the run; None: as the job has it."""
        self.command, self.folder, self.here, self.devices = list(command), folder, here, devices
        self.process: subprocess.Popen[bytes] | None = None
        self.told = False

    def __call__(self) -> int:
        job = submitit.JobEnvironment()
        local = job.name() == "local"
        signal.signal(signal.SIGTERM, self.stop)
        if job.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if local and job.global_rank == 0:
            self.wait_for_others()
        if self.told:
            return 128 + signal.SIGTERM
        self.process = subprocess.Popen(
            self.command, cwd=self.here, env=self.environment(local), preexec_fn=ignore_announcement
        )
        while (status := self.process.poll()) is None:
            if self.told:
                self.process.terminate()
                self.told = False
            time.sleep(POLL_SECONDS)
        if not local and was_interrupted(status):
            time.sleep(PATIENCE_SECONDS)
        return status

    def environment(self, local: bool) -> dict[str, str]:
        """submitit's local jobs see no GPU unless they ask for some; ours see those of the sweep."""
        environment = dict(os.environ)
        if local:
            environment.pop("CUDA_VISIBLE_DEVICES", None)
        if self.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices
        return environment

    def wait_for_others(self) -> None:
        """Wait while the run's folder is in use: by the job of a sweep that was killed, and which it has survived."""
        lock = self.folder / ".lock"
        while lock.is_file() and not self.told:
            try:
                with FileLock(lock).acquire(timeout=0):
                    return
            except Timeout:
                time.sleep(POLL_SECONDS)

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.told = True

    def checkpoint(self) -> Any:
        """Has the run save and end, and returns what is to be called when the job goes on."""
        if self.process:
            self.process.terminate()
            with suppress(ChildProcessError):  # it has ended by itself
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        again = RunJob(self.command, self.folder, self.here, self.devices)
        return submitit.helpers.DelayedSubmission(again)


def ignore_announcement() -> None:
    """SLURM sends it to all processes of the job, and to `train.py` it would mean to die."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
