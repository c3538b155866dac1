"""A whole training run: corpus, model and run folder together, from the first word on the console to the last."""

from __future__ import annotations

import sys
from pathlib import Path

from filelock import FileLock, Timeout

from gpt.config import RunConfig
from gpt.model.hardware import choose_hardware
from gpt.options import UserError, to_yaml
from gpt.text.shards import Corpus, prepare
from gpt.training.checkpoints import CheckpointFolder
from gpt.training.interrupts import Interrupts
from gpt.training.report import Reporter, print_start, print_summary
from gpt.training.trainer import Diverged, Trainer


def train(config: RunConfig) -> int:
    """Start or continue the run that `config` describes. Returns the exit status.

    0: the run is complete; 1: it diverged; 130 or 143: it was interrupted and can be continued. Raises UserError.
    """
    run_dir = Path(config.run_dir).expanduser()
    hardware = choose_hardware(config.train.device, config.train.precision, config.model.n_embd, config.train.compile)
    check_run_dir(config, run_dir)
    corpus = prepare(config.data, config.tokenizer, say)
    check_lengths(config, corpus)
    if config.train.sample_prompt:
        corpus.tokenizer.encode(config.train.sample_prompt)  # a prompt that cannot be encoded is refused now
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={run_dir} cannot be made ({error.strerror}); choose another run_dir") from None
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            return train_locked(config, corpus, Trainer(config, corpus, hardware, run_dir))
    except Timeout:
        raise UserError(
            f"run_dir={run_dir} is in use by another process; wait for it, or choose another run_dir"
        ) from None


def train_locked(config: RunConfig, corpus: Corpus, trainer: Trainer) -> int:
    run_dir, state_before = trainer.run_dir, trainer.restore()
    if trainer.done:
        say(f"{run_dir} is complete: {complete(trainer)}")
        print_summary(config, run_dir, trainer.state, corpus)
        return 0
    (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    print_start(config, run_dir, corpus, trainer.model, trainer.hardware)
    if state_before:
        changed = f", with {'; '.join(trainer.changes)}" if trainer.changes else ""
        say(f"continuing at step {trainer.state.step:,} of {config.train.max_steps:,}{changed}")
    reporter = Reporter(config, run_dir, trainer.state, trainer.model, trainer.hardware)
    with Interrupts() as interrupts:
        try:
            trainer.fit(reporter, interrupts)
        except Diverged as error:
            say(f"{error}. {advice(trainer)}")
            return 1
        finally:
            reporter.close()
    if not trainer.done:
        say(f"Stopped after step {trainer.state.step:,} and saved. The same command continues.")
        return interrupts.exit_status
    if trainer.stopped_early:
        say(f"Stopped early: {complete(trainer)}")
    print_summary(config, run_dir, trainer.state, corpus)
    return 0


def complete(trainer: Trainer) -> str:
    """Why a finished run is finished, and how it goes on."""
    state, train = trainer.state, trainer.config.train
    if trainer.stopped_early:
        return (
            f"{state.bad_evaluations} evaluations without a better loss; raise train.early_stop_patience="
            f"{train.early_stop_patience}, or set it to null, to go on."
        )
    return (
        f"{state.step:,} steps done, train.max_steps={train.max_steps}; extend it with train.max_steps={2 * state.step}"
    )


def advice(trainer: Trainer) -> str:
    latest = trainer.checkpoints.latest()
    kept = f"The last checkpoint, {latest}, is intact. " if latest else "There is no checkpoint yet. "
    return kept + "Try a lower optimizer.lr, or a positive train.grad_clip."


def check_run_dir(config: RunConfig, run_dir: Path) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir={run_dir} is a file; choose another run_dir")
    if config.resume == "never" and CheckpointFolder(run_dir).latest():
        raise UserError(f"resume=never: run_dir={run_dir} holds checkpoints already; choose another run_dir")


def check_lengths(config: RunConfig, corpus: Corpus) -> None:
    context = config.model.context_length
    if len(corpus.train) < context + 1:
        raise UserError(
            f"the corpus is shorter than one context: {len(corpus.train):,} tokens to train on, but "
            f"model.context_length={context}; give more text, or a smaller model.context_length"
        )
    if len(corpus.val) < 2:
        raise UserError("the validation split is empty; raise data.val_fraction, or give data.val_files")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
