"""A whole training run: corpus, model and run folder together, from the first word on the console to the last."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from filelock import AcquireReturnProxy, FileLock, Timeout

from gpt.config import RunConfig
from gpt.config.device import processes
from gpt.model.hardware import Hardware, choose_hardware
from gpt.model.huggingface import CONFIG_FILE
from gpt.options import UserError, complain, ran_out_of_memory, say, to_yaml
from gpt.text.batches import TrainingData, counted_tokens, training_data
from gpt.text.durable import flush_folder
from gpt.text.files import appears, check_writable_folder, write_whole
from gpt.text.shards import Corpus, prepare
from gpt.training.batch_size import Trainers
from gpt.training.checkpoints import CheckpointFolder
from gpt.training.finite import Diverged
from gpt.training.initial import check_initial
from gpt.training.interrupts import Interrupts
from gpt.training.memory import Memory, predict_memory, predictable
from gpt.training.out_of_memory import explain, explain_building
from gpt.training.parallel.ranks import Ranks, Told, join
from gpt.training.report import Reporter, Silent
from gpt.training.rollback import left_out, verdict, why
from gpt.training.summary import print_start, print_summary
from gpt.training.trainer import Trainer


def train(config: RunConfig, stop_at: int | None = None) -> int:
    """Start or continue the run that `config` describes, with the other processes of torchrun. Returns the exit status.

    0: the run is complete; 1: it diverged, ran out of memory, or lost a process; 130, 138 or 143: it was interrupted
    and can be continued. `stop_at`: the step after which to save and stop as if interrupted, with status 0. Raises
    UserError.
    """
    hardware = choose_hardware(config.train.device, config.train.precision, config.model.n_embd, config.train.compile)
    ranks = join(hardware.device)
    try:
        with ending_if_lost(ranks):
            status = train_together(config, hardware, ranks, stop_at)
            ranks.leave()
            return status
    except Told as error:  # the others are not waited for: they may be in the middle of a step, and wait for this one
        return error.status


@contextmanager
def ending_if_lost(ranks: Ranks) -> Iterator[None]:
    """Lets the others know at once of what goes wrong within. Where that is the loss of another, says so, and ends this
    process, with status 1."""
    try:
        yield
    except BaseException as error:
        ranks.notice(error)
        if not ranks.means_loss(error):
            raise
        try:
            if why := ranks.why_lost():
                complain(f"{why}. The same command continues from the last checkpoint.")
        finally:
            leave_at_once(1)


def leave_at_once(status: int) -> NoReturn:
    """End this process, whose threads may wait for others that are gone, and would be waited for at the usual end."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def train_together(config: RunConfig, hardware: Hardware, ranks: Ranks, stop_at: int | None) -> int:
    """As `train`, in each of its processes."""
    run_dir = Path(config.run_dir).expanduser()
    with ranks.agreeing():
        check_run_dir(config, run_dir)
    corpus = ranks.one_by_one(lambda: prepare(config.data, config.tokenizer, say))
    everyones = ranks.gather((corpus.fingerprint, corpus.tokenizer.fingerprint))
    with ranks.agreeing():
        check_same(corpus, everyones)
        config = checked(config, corpus)
    created = ranks.from_main(lambda: make_run_dir(run_dir))
    with ranks.agreeing():
        if not appears(run_dir):
            raise UserError(f"run_dir={run_dir} is on rank 0's host only; give a folder that all hosts share")
    trainers = Trainers(config, corpus, hardware, run_dir, say, ranks)
    try:
        with ExitStack() as held:
            with ranks.agreeing():
                if ranks.main:
                    held.enter_context(lock(run_dir))
            with ending_if_lost(ranks):  # while nobody else may have the run
                try:
                    return train_locked(trainers.make, run_dir, stop_at, ranks)
                except BaseException as error:
                    ranks.notice(error)  # now, not when a checkpoint is complete
                    raise
                finally:
                    trainers.finish()
    except UserError:
        if ranks.main and created and not CheckpointFolder(run_dir).path.exists():
            shutil.rmtree(run_dir)  # nothing has happened there
        raise
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        ranks.notice(error)
        complain(explain(error, trainers.current) if trainers.current else explain_building(config, corpus))
        raise Told(1) from error


def check_same(corpus: Corpus, everyones: list[tuple[str, str]]) -> None:
    """Raises UserError where processes have prepared different text, or other tokens of it: `everyones` are their
    fingerprints, by rank."""
    if other := [rank for rank, found in enumerate(everyones) if found != everyones[0]]:
        raise UserError(
            f"the corpus {corpus.folder.name} of rank {', '.join(map(str, other[:10]))} differs from that of rank 0: "
            "its host has other files (data=stdlib: another Python), or prepared them with another tokenizer; give all "
            "the same, or let them share data.prepared_dir"
        )


def checked(config: RunConfig, corpus: Corpus) -> RunConfig:
    """The configuration of a run on this corpus, once nothing speaks against it. Raises UserError."""
    check_held_out(corpus, config.model.context_length)
    if config.init_from:
        check_initial(config, corpus.tokenizer)
    if processes() > 1 and config.train.batch_size != "auto":  # so that a checkpoint tells it to any number of them
        config = replace(config, train=replace(config.train, global_batch_size=config.train.global_batch))
    config = with_max_epochs(config, corpus)  # refuses a corpus that is too short
    if config.train.sample_prompt:
        corpus.tokenizer.encode(config.train.sample_prompt)  # a prompt that cannot be encoded is refused now
    return config


def make_run_dir(run_dir: Path) -> bool:
    """Make the folder of a run; whether it is new. Raises UserError."""
    created = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={run_dir} cannot be made ({error.strerror}); choose another run_dir") from None
    if created:
        flush_folder(run_dir.parent)
    return created


def lock(run_dir: Path) -> AcquireReturnProxy:
    """The folder of a run for this process alone, to release with `with`. Raises UserError."""
    try:
        return FileLock(run_dir / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"run_dir={run_dir} is in use by another process; wait for it, or choose another run_dir"
        ) from None


def restored(make_trainer: Callable[[], Trainer], run_dir: Path, ranks: Ranks) -> tuple[Trainer, bool]:
    """A trainer where the newest checkpoint that is whole leaves off, and whether there was one; damage is told."""
    for line in ranks.from_main(CheckpointFolder(run_dir).set_damaged_aside):
        say(line)
    trainer = make_trainer()
    found = trainer.restore()
    for line in trainer.damage:
        say(line)
    return trainer, found


def train_locked(make_trainer: Callable[[], Trainer], run_dir: Path, stop_at: int | None, ranks: Ranks) -> int:
    """A session of a run; of one that rolls back, as many as it takes."""
    trainer, state_before = restored(make_trainer, run_dir, ranks)
    if trainer.done:
        say(f"{trainer.run_dir} is complete: {complete(trainer)}")
        if ranks.main:
            print_summary(trainer, [])
        return 0
    config, memory = trainer.config, None
    if ranks.main:
        write_whole(trainer.run_dir / "config.yaml", [to_yaml(config)])
        memory = predict_memory(trainer) if predictable(trainer) else None
        print_start(trainer, memory)
    if state_before:
        changed = f", with {'; '.join(trainer.changes)}" if trainer.changes else ""
        say(f"continuing at step {trainer.state.step:,} of {config.train.max_steps:,}{changed}")
    with Interrupts(stop_at, ranks) as interrupts:
        rolled_back = False
        while True:
            diverged = fit(trainer, interrupts, memory, rolled_back)
            if diverged is None:
                break
            say(why(trainer, diverged))
            trainer.writer.wait()  # what it is writing is a checkpoint to go back to
            rolled_back, said = verdict(trainer, diverged)
            say(said)
            if not rolled_back:
                return 1
            # As another process would: nothing that has been computed since the checkpoint is left.
            state, skipped = trainer.state, [*trainer.state.skipped, left_out(trainer, diverged)]
            del trainer, diverged
            trainer, _ = restored(make_trainer, run_dir, ranks)
            trainer.state.rollbacks, trainer.state.skipped = state.rollbacks + 1, skipped
            trainer.state.wandb_id = state.wandb_id
    if not trainer.done:
        say(f"Stopped after step {trainer.state.step:,} and saved. The same command continues.")
        return interrupts.exit_status
    if trainer.stopped_early:
        say(f"Stopped early: {complete(trainer)}")
    samples = trainer.samples_of_best() if trainer.state.base else []
    if ranks.main:
        print_summary(trainer, samples)
    return 0


def fit(trainer: Trainer, interrupts: Interrupts, memory: Memory | None, rolled_back: bool) -> Diverged | None:
    """Train to the end, an interrupt, or a number that is not finite, which is returned."""
    reporter: Reporter | Silent = Silent()
    if trainer.ranks.main:
        reporter = Reporter(
            trainer.config, trainer.run_dir, trainer.state, trainer.model, trainer.hardware,
            trainer.data.tokens_per_sequence, interrupts.reader_went_away, memory.peak if memory else None,
            rolled_back,
        )  # fmt: skip
    with reporter, ExitStack() as closing:
        closing.callback(trainer.feed.close)
        try:
            trainer.fit(reporter, interrupts)
        except Diverged as error:
            return error
    return None


def with_max_epochs(config: RunConfig, corpus: Corpus) -> RunConfig:
    """The configuration whose max_steps ends the run no later than its max_epochs. Raises UserError where the corpus
    is too short to train on."""
    train = config.train
    data = training_data(corpus.train, config.model.context_length, config.seed, train.global_batch)
    if train.max_epochs is None:
        return config
    return replace(config, train=replace(train, max_steps=min(train.max_steps, epoch_steps(config, data))))


def epoch_steps(config: RunConfig, data: TrainingData) -> int:
    """Updates in `train.max_epochs` passes over the training data."""
    assert config.train.max_epochs is not None
    return math.ceil(config.train.max_epochs * data.sequences_per_epoch / config.train.global_batch)


def complete(trainer: Trainer) -> str:
    """Why a finished run is finished, and how it goes on."""
    state, train = trainer.state, trainer.config.train
    if trainer.stopped_early:
        return (
            f"{state.bad_evaluations} evaluations without a better loss; raise train.early_stop_patience="
            f"{train.early_stop_patience}, or set it to null, to go on."
        )
    if train.max_epochs is not None and train.max_steps == epoch_steps(trainer.config, trainer.data):
        done = state.sequences / trainer.data.sequences_per_epoch
        more = f"train.max_epochs={2 * max(done, train.max_epochs):.3g}"
        return f"train.max_epochs={train.max_epochs:g} ended it after {state.step:,} steps; extend it with {more}"
    more = f"train.max_steps={2 * state.step}"
    return f"{state.step:,} steps done, train.max_steps={train.max_steps}; extend it with {more}"


def check_run_dir(config: RunConfig, run_dir: Path) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir={run_dir} is a file; choose another run_dir")
    nearest = next(folder for folder in (run_dir, *run_dir.parents) if folder.exists())
    try:
        check_writable_folder(nearest, run_dir.name)
    except OSError as error:  # now, not after a corpus has been prepared for it
        raise UserError(
            f"run_dir={run_dir}: nothing can be written to {nearest} ({error.strerror}); choose another run_dir"
        ) from None
    if (run_dir / CONFIG_FILE).is_file():
        raise UserError(f"run_dir={run_dir} is a model folder, and would no longer mean that model; choose another")
    if config.resume == "never" and CheckpointFolder(run_dir).latest():
        raise UserError(f"resume=never: run_dir={run_dir} holds checkpoints already; choose another run_dir")


def check_held_out(corpus: Corpus, context_length: int) -> None:
    if not counted_tokens(corpus.val, context_length):
        raise UserError(
            "the validation split holds no token to predict; raise data.val_fraction, give data.val_files, or, where "
            f"prompts fill it, raise model.context_length={context_length}"
        )
