"""Options of a sweep (`train.py --multirun`): what starts its runs, and what chooses their values."""

from __future__ import annotations

from dataclasses import dataclass

from gpt.options import Mistake, Options, defaults, group, option, to_dict

SLURM_ONLY = (
    "nodes", "cpus_per_task", "mem_gb", "partition", "account", "qos", "constraint", "exclude", "nodelist", "gres",
    "job_name", "setup", "sbatch",
)  # fmt: skip
WEEK = 7 * 24 * 60


@dataclass(frozen=True)
class LauncherConfig(Options):
    """What starts the runs of a sweep."""

    name: str = option(
        "basic",
        "basic: one run after another, on this terminal; submitit_local: jobs on this machine; submitit_slurm: jobs of "
        "SLURM, submitted from here",
        choices=("basic", "submitit_local", "submitit_slurm"),
    )
    array_parallelism: int = option(1, "runs at once", unit="jobs", low=1)
    nodes: int = option(1, "slurm: machines of one run", low=1)
    tasks_per_node: int = option(1, "processes of one run on each machine, as torchrun would start them", low=1)
    gpus_per_node: int | None = option(
        None,
        "GPUs of one run on each machine; null: slurm: none is asked for; local: all that this process sees, shared by "
        "the runs at once",
        low=0,
    )
    cpus_per_task: int | None = option(None, "slurm: cores of one process", low=1)
    mem_gb: float | None = option(None, "slurm: memory of one run on each machine", unit="GB", above=0)
    timeout_min: int = option(
        WEEK, "time of one job, after which its run saves and is queued again", unit="minutes", low=1
    )
    signal_delay_s: int = option(120, "how long before that the run is told to save", unit="seconds", low=1)
    max_num_timeout: int = option(100, "how often one run may be queued again for want of time", low=0)
    partition: str = option("", "slurm: partition; empty: the cluster's default, as in all that follow", free_text=True)
    account: str = option("", "slurm: whom to bill", free_text=True)
    qos: str = option("", "slurm: quality of service", free_text=True)
    constraint: str = option("", "slurm: features that the machines must have", free_text=True)
    exclude: str = option("", "slurm: machines not to use", free_text=True)
    nodelist: str = option("", "slurm: machines to use", free_text=True)
    gres: str = option("", "slurm: generic resources, as gpu:a100:2", free_text=True)
    job_name: str = option("newleaf", "slurm: how names of jobs begin", free_text=True)
    setup: tuple[str, ...] = option(
        (), "slurm: a line of shell before the run, as 'module load cuda'; again for more", free_text=True, escapes=True
    )
    sbatch: tuple[str, ...] = option(
        (), "slurm: another parameter of sbatch, as reservation=mine; again for more", free_text=True, escapes=True
    )

    def mistakes(self) -> list[Mistake]:
        usual, given = defaults(LauncherConfig), to_dict(self)
        changed = [name for name in given if name != "name" and given[name] != usual[name]]
        if self.name == "basic":
            return [Mistake(n, "does nothing without launcher=submitit_local or submitit_slurm") for n in changed]
        found = []
        if self.name == "submitit_local":
            found = [Mistake(n, "is for launcher=submitit_slurm; leave it out") for n in changed if n in SLURM_ONLY]
        if self.signal_delay_s >= 60 * self.timeout_min:
            found.append(Mistake("signal_delay_s", f"is not before the end of launcher.timeout_min={self.timeout_min}"))
        found += [Mistake("sbatch", f"{text!r} is not name=value") for text in self.sbatch if "=" not in text]
        return found


@dataclass(frozen=True)
class SweeperConfig(Options):
    """What chooses the values of a sweep."""

    name: str = option(
        "basic",
        "basic: every combination of the values; optuna: a search that learns from the runs before (optuna's study)",
        choices=("basic", "optuna"),
    )
    n_trials: int = option(20, "runs in the whole study", low=1, high=10_000)
    n_jobs: int = option(1, "runs at once, which do not know of each other; the launcher must allow as many", low=1)
    objective: str = option(
        "val/loss",
        "what is sought the best of: the best val/loss (nats a token), its val/bits_per_byte, or the median of "
        "tokens_per_second",
        choices=("val/loss", "val/bits_per_byte", "tokens_per_second"),
    )
    direction: str = option("minimize", "whether less of it is better, or more", choices=("minimize", "maximize"))
    sampler: str = option(
        "tpe", "tpe: tree-structured Parzen estimator, after 10 random runs; random", choices=("tpe", "random")
    )
    seed: int = option(1337, "seed of the search: the same results before a run lead to the same run", low=0)

    def mistakes(self) -> list[Mistake]:
        if self.name != "basic":
            return []
        usual = defaults(SweeperConfig)
        return [
            Mistake(name, "does nothing without sweeper=optuna")
            for name, value in to_dict(self).items()
            if value != usual[name]
        ]


@dataclass(frozen=True)
class SweepConfig(Options):
    """What `--multirun` takes besides the options of its runs."""

    launcher: LauncherConfig = group(LauncherConfig, "--multirun: what starts the runs")  # noqa: RUF009
    sweeper: SweeperConfig = group(SweeperConfig, "--multirun: what chooses their values")  # noqa: RUF009

    def mistakes(self) -> list[Mistake]:
        jobs, most = self.sweeper.n_jobs, self.launcher.array_parallelism
        if jobs <= most:
            return []
        way = "raise that" if self.launcher.name != "basic" else "add launcher=submitit_local and raise that"
        return [Mistake("sweeper.n_jobs", f"is more than launcher.array_parallelism={most} runs at once; {way}")]
