"""A sweep as a search: optuna's study asks for runs, learns what they came to, and is kept in the sweep's folder.

Each run gets a sampler of its own, seeded by the seed and the number of the run, so that a study which was killed and
continued goes on as if nothing had happened: optuna's samplers would begin their random numbers again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.arguments import Command
from gpt.config.sweep import SweeperConfig
from gpt.options import ConfigError, Mistake, UserError, say
from gpt.sweeps.extras import needed
from gpt.sweeps.plan import Run, below, check_sweepable, common_folder, plan_run, without
from gpt.sweeps.results import read_result, short, was_interrupted
from gpt.sweeps.space import Dimension, dimensions

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.samplers import BaseSampler

FILE = "study.journal"
REFUSED = 2  # the exit status of a run whose values do not go together, which is not started


class Study:
    """As `Plan`, the runs that are sought one by one; `runs` are those known so far."""

    def __init__(self, command: Command, argv: Sequence[str], options: SweeperConfig) -> None:
        """Raises `ConfigError`, `UserError`."""
        check_sweepable(command)
        self.command, self.options, self.at_once = command, options, options.n_jobs
        self.space = dimensions(command, argv)
        self.fixed = without(argv, [dimension.name for dimension in self.space])
        self.folder = check_corners(command, self.fixed, self.space)
        self.optuna: Any = needed("optuna", "sweeper=optuna")
        self.runs: list[Run] = []
        self.finished: dict[Path, int] = {}
        self.values: dict[Path, float] = {}  # of the runs that are done
        self.waiting: list[Trial] = []  # begun in an earlier session, and not ended
        self.trials: dict[Path, list[Trial]] = {}  # of the runs that have not ended: each has one, or equal ones

    def open(self) -> None:
        """Open the study in the sweep's folder, or begin one. Raises UserError where it was another study."""
        optuna = self.optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self.folder / FILE
        cut_torn_line(path)
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        try:
            self.study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                study_name="sweep",
                direction=self.options.direction,
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as error:  # JSON, or not the journal's
            raise UserError(f"{path} is damaged ({error}); move it away, and the same command begins again") from None
        self.check_same()
        for frozen in self.study.get_trials(deepcopy=False):
            self.take_over(optuna.Trial(self.study, frozen._trial_id), frozen)

    def check_same(self) -> None:
        """Raises UserError where the study in the folder searched for something else."""
        what: dict[str, Any] = {dimension.name: dimension.text for dimension in self.space}
        what["arguments"] = sorted(without(self.fixed, ["run_dir"]))
        what |= {"sweeper.objective": self.options.objective, "sweeper.direction": self.options.direction}
        before = self.study.user_attrs.get("what")
        if before is None:
            self.study.set_user_attr("what", what)
            return
        names = [name for name in {**before, **what} if before.get(name) != what.get(name)]
        if names:
            changes = "; ".join(f"{name} was {before.get(name)}, is {what.get(name)}" for name in names)
            raise UserError(f"{self.folder / FILE} is a study of something else: {changes}; choose another run_dir")

    def take_over(self, trial: Trial, frozen: Any) -> None:
        """Go on with a trial of an earlier session."""
        if not frozen.state.is_finished():
            self.waiting.append(trial)
            return
        try:
            run = self.run_of(frozen.params)
        except ConfigError:
            return  # as it was refused then
        self.add(run, frozen.user_attrs.get("status", 1))
        if frozen.value is not None:
            self.values[run.folder] = frozen.value

    def next(self) -> Run | None:
        while self.waiting or len(self.study.get_trials(deepcopy=False)) < self.options.n_trials:
            trial = self.waiting.pop(0) if self.waiting else self.ask()
            try:
                run = self.run_of(trial.params)
            except ConfigError as error:
                say(f"trial {trial.number}: {error}")
                self.tell(trial, None, REFUSED)
                continue
            if run.folder in self.values:  # equal to a run that is done
                self.tell(trial, self.values[run.folder], 0)
            elif run.folder in self.trials:
                self.trials[run.folder].append(trial)
            else:
                self.trials[run.folder] = [trial]
                self.add(run)
                return run
        return None

    def ask(self) -> Trial:
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self.sampler(random.Random(f"{self.options.seed}/{number}").getrandbits(32))
        spaces = {dimension.name: dimension.distribution(self.optuna.distributions) for dimension in self.space}
        return self.study.ask(fixed_distributions=spaces)

    def sampler(self, seed: int) -> BaseSampler:
        samplers = self.optuna.samplers
        if self.options.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        # Of runs at once, each counts those that have not ended as bad, and so looks elsewhere.
        return samplers.TPESampler(seed=seed, **({"constant_liar": True} if self.at_once > 1 else {}))

    def run_of(self, params: dict[str, Any]) -> Run:
        """The run with these values. Raises `ConfigError` where they do not go together."""
        swept = {dimension.name: dimension.written(params[dimension.name]) for dimension in self.space}
        return below(self.folder, plan_run(self.command, self.fixed, swept))

    def add(self, run: Run, status: int | None = None) -> None:
        if all(run.folder != other.folder for other in self.runs):
            self.runs.append(run)
        if status is not None:
            self.finished[run.folder] = status

    def ended(self, run: Run, status: int) -> None:
        """Tell the study. A run that was interrupted stays begun, and is continued by the next session."""
        if was_interrupted(status):
            return
        value = self.value_of(run) if status == 0 else None
        if status == 0 and value is None:
            say(f"{run.folder} has no {self.options.objective}, so the search learns nothing from it")
        if value is not None:
            self.values[run.folder] = value
        for trial in self.trials.pop(run.folder):
            self.tell(trial, value, status)

    def value_of(self, run: Run) -> float | None:
        result = read_result(run, 0)
        if self.options.objective == "tokens_per_second":
            return result.tokens_per_second
        if result.best is None:
            return None
        return result.best.loss if self.options.objective == "val/loss" else result.best.bits_per_byte

    def tell(self, trial: Trial, value: float | None, status: int) -> None:
        trial.set_user_attr("status", status)
        self.study.tell(trial, value, None if value is not None else self.optuna.trial.TrialState.FAIL)

    def verdict(self) -> str | None:
        """What was found, in a line; None before any run is done."""
        trials = self.study.get_trials(deepcopy=False)
        if not self.values:
            return None
        best = self.study.best_trial
        values = " ".join(f"{d.name}={d.written(best.params[d.name])}" for d in self.space)
        ended = sum(trial.state.is_finished() for trial in trials)
        return f"best of {ended} trials: {values}, {self.options.objective} {short(best.value)}"


def check_corners(command: Command, fixed: Sequence[str], space: Sequence[Dimension]) -> Path:
    """Validate the ends of each interval and all values of each list, one option at a time, before any run starts.

    Returns the folder of the sweep. Raises `ConfigError` with all mistakes.
    """
    first = {dimension.name: dimension.corners()[0] for dimension in space}
    found: dict[str, Mistake] = {}
    runs = []
    for dimension in space:
        for text in dimension.corners():
            try:
                runs.append(plan_run(command, fixed, {**first, dimension.name: text}))
            except ConfigError as error:
                found.update({str(mistake): mistake for mistake in error.mistakes})
    if found:
        raise ConfigError(list(found.values()))
    return common_folder(runs)


def cut_torn_line(path: Path) -> None:
    """Take away a line that a power cut left unfinished, onto which the next would be written."""
    if not path.is_file() or not (content := path.read_bytes()) or content.endswith(b"\n"):
        return
    with path.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)
