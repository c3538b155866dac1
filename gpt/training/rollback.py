"""What a run does about a number that is not finite: stop, or go back to its last checkpoint, without the batch."""

from __future__ import annotations

from pathlib import Path

from gpt.training.diagnosis import diagnose, write_report
from gpt.training.finite import Diverged
from gpt.training.trainer import Trainer


def why(trainer: Trainer, error: Diverged) -> str:
    """What is not finite and, where a batch is to blame, how far that can be found out."""
    if error.start is None:
        return f"{error}."
    if trainer.model.sharded:  # no process could compute the step again by itself
        first, count = left_out(trainer, error)
        return f"{error}: training sequences {first} to {first + count - 1}."
    all_found = trainer.ranks.gather(diagnose(trainer, error.start))
    found = next((one for one in all_found if one.place), all_found[0])
    return f"{error}.\n{found.sentence(write_report(found, trainer.run_dir) if trainer.ranks.main else Path())}"


def verdict(trainer: Trainer, error: Diverged) -> tuple[bool, str]:
    """Whether the run goes on from its last checkpoint, and that in words, or what helps."""
    train, rollbacks = trainer.config.train, trainer.state.rollbacks
    latest = trainer.ranks.from_main(trainer.checkpoints.latest)
    kept = f"The last checkpoint, {latest}, is intact. " if latest else "There is no checkpoint yet. "
    if error.start is None:
        return False, f"{kept}No batch is to blame that could be left out: try a lower optimizer.lr."
    if train.on_nonfinite == "stop":
        clip = "" if train.grad_clip else " a positive train.grad_clip,"
        return False, f"{kept}Try a lower optimizer.lr,{clip} or train.on_nonfinite=rollback."
    if rollbacks >= train.max_rollbacks:
        return False, f"{kept}This run has rolled back train.max_rollbacks={rollbacks} times: try a lower optimizer.lr."
    first, count = left_out(trainer, error)
    return True, (
        f"Rollback {rollbacks + 1} of at most {train.max_rollbacks}: continuing from {latest or 'the start'} without "
        f"the sequences {first} to {first + count - 1}."
    )


def left_out(trainer: Trainer, error: Diverged) -> list[int]:
    """The batch that a rollback leaves out: its first sequence, and how many."""
    assert error.start is not None
    return [error.start.first_sequence, trainer.global_batch]
