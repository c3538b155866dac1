"""A whole training run: corpus, model and run folder together, from the first word on the console to the last."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from gpt.config import RunConfig
from gpt.model.hardware import choose_hardware
from gpt.model.huggingface import CONFIG_FILE
from gpt.options import UserError, to_yaml
from gpt.text.batches import TrainingData, counted_tokens, training_data
from gpt.text.shards import Corpus, prepare
from gpt.training.checkpoints import CheckpointFolder
from gpt.training.initial import check_initial
from gpt.training.interrupts import Interrupts
from gpt.training.memory import predict_memory, predictable
from gpt.training.report import Reporter
from gpt.training.summary import print_start, print_summary
from gpt.training.trainer import Diverged, Trainer


def train(config: RunConfig) -> int:
    """Start or continue the run that `config` describes. Returns the exit status.

    0: the run is complete; 1: it diverged; 130 or 143: it was interrupted and can be continued. Raises UserError.
    """
    run_dir = Path(config.run_dir).expanduser()
    hardware = choose_hardware(config.train.device, config.train.precision, config.model.n_embd, config.train.compile)
    check_run_dir(config, run_dir)
    corpus = prepare(config.data, config.tokenizer, say)
    check_held_out(corpus, config.model.context_length)
    if config.init_from:
        check_initial(config, corpus.tokenizer)
    config = with_max_epochs(config, corpus)  # refuses a corpus that is too short
    if config.train.sample_prompt:
        corpus.tokenizer.encode(config.train.sample_prompt)  # a prompt that cannot be encoded is refused now
    created = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={run_dir} cannot be made ({error.strerror}); choose another run_dir") from None
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            return train_locked(Trainer(config, corpus, hardware, run_dir))
    except Timeout:
        raise UserError(
            f"run_dir={run_dir} is in use by another process; wait for it, or choose another run_dir"
        ) from None
    except UserError:
        if created and not CheckpointFolder(run_dir).path.exists():
            shutil.rmtree(run_dir)  # nothing has happened there
        raise


def train_locked(trainer: Trainer) -> int:
    config, run_dir, state_before = trainer.config, trainer.run_dir, trainer.restore()
    if trainer.done:
        say(f"{run_dir} is complete: {complete(trainer)}")
        print_summary(trainer, [])
        return 0
    (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    memory = predict_memory(trainer) if predictable(trainer) else None
    print_start(trainer, memory)
    if state_before:
        changed = f", with {'; '.join(trainer.changes)}" if trainer.changes else ""
        say(f"continuing at step {trainer.state.step:,} of {config.train.max_steps:,}{changed}")
    reporter = Reporter(
        config, run_dir, trainer.state, trainer.model, trainer.hardware, trainer.data.tokens_per_sequence,
        memory.peak if memory else None,
    )  # fmt: skip
    with Interrupts() as interrupts:
        try:
            trainer.fit(reporter, interrupts)
        except Diverged as error:
            say(f"{error}. {advice(trainer)}")
            return 1
        finally:
            trainer.feed.close()
            reporter.close()
    if not trainer.done:
        say(f"Stopped after step {trainer.state.step:,} and saved. The same command continues.")
        return interrupts.exit_status
    if trainer.stopped_early:
        say(f"Stopped early: {complete(trainer)}")
    print_summary(trainer, trainer.samples_of_best() if trainer.state.base else [])
    return 0


def with_max_epochs(config: RunConfig, corpus: Corpus) -> RunConfig:
    """The configuration whose max_steps ends the run no later than its max_epochs. Raises UserError where the corpus
    is too short to train on."""
    train = config.train
    sequences = train.batch_size * train.grad_accum_steps
    data = training_data(corpus.train, config.model.context_length, config.seed, sequences)
    if train.max_epochs is None:
        return config
    return replace(config, train=replace(train, max_steps=min(train.max_steps, epoch_steps(config, data))))


def epoch_steps(config: RunConfig, data: TrainingData) -> int:
    """Updates in `train.max_epochs` passes over the training data."""
    assert config.train.max_epochs is not None
    sequences = config.train.batch_size * config.train.grad_accum_steps
    return math.ceil(config.train.max_epochs * data.sequences_per_epoch / sequences)


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


def advice(trainer: Trainer) -> str:
    latest = trainer.checkpoints.latest()
    kept = f"The last checkpoint, {latest}, is intact. " if latest else "There is no checkpoint yet. "
    return kept + "Try a lower optimizer.lr, or a positive train.grad_clip."


def check_run_dir(config: RunConfig, run_dir: Path) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir={run_dir} is a file; choose another run_dir")
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


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
