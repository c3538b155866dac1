"""How a trainer takes over a checkpoint: all that it holds, whatever number of processes wrote it or reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpt.config import RunConfig
from gpt.options import UserError, defaults, ran_out_of_memory
from gpt.training.checkpoints import TrainerState, read_optimizer, read_random, read_state, what_is_wrong
from gpt.training.identity import changes, completed
from gpt.training.random_states import restore_random_states

if TYPE_CHECKING:
    from gpt.training.trainer import Trainer


def restore(trainer: Trainer) -> bool:
    """Continue from the newest checkpoint of the run folder; whether there was one. Raises UserError.

    A best one that is no longer as it was written is set aside; then the next evaluation begins anew.
    """
    folder = trainer.ranks.from_main(trainer.checkpoints.latest)
    if folder is None:
        return False
    with trainer.ranks.agreeing():
        state = read_state(folder)
        trainer.load(folder)
        take_over_tensors(trainer, state, folder)
    trainer.changes = changes(completed(state.config, defaults(RunConfig)), trainer.state.config)
    state.config = trainer.state.config
    trainer.state = state
    trainer.state = trainer.ranks.from_main(lambda: with_best(trainer, folder))
    return True


def take_over_tensors(trainer: Trainer, state: TrainerState, folder: Path) -> None:
    """The optimizer's tensors, random generators and the scale of fp16 gradients."""
    try:
        trainer.optimizers.load_state_tensors(read_optimizer(folder))
        restore_random_states(read_random(folder), trainer.hardware.device)
        if state.scaler:  # empty where the run had another precision
            trainer.scaler.load_state_dict(state.scaler)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        if ran_out_of_memory(error):
            raise  # else it was written by another hand than ours
        raise UserError(f"{folder} does not fit its run ({error!r}); choose another run_dir") from None


def with_best(trainer: Trainer, folder: Path) -> TrainerState:
    """The state taken over from `folder`, without a best checkpoint where that is no longer as it was written."""
    state, checkpoints = trainer.state, trainer.checkpoints
    best = checkpoints.at(state.step if state.best_step is None else state.best_step)
    if best != folder and (why := why_not_best(trainer, best)):
        best = folder
        trainer.damage.append(why)
        if not trainer.done:
            trainer.damage.append("The best from now on is looked for anew.")
            state.best_loss = state.best_step = state.best_bits_per_byte = None
            state.bad_evaluations = 0
    checkpoints.point_best(checkpoints.step_of(best))  # a kill may have come before pointing
    return state


def why_not_best(trainer: Trainer, best: Path) -> str | None:
    """What is said of the best checkpoint where it is gone, or damaged (and so renamed); None where it is whole."""
    if not best.is_dir():
        return f"The best checkpoint, {best}, is gone."
    why = what_is_wrong(best)
    return why and trainer.checkpoints.set_aside(best, why)
