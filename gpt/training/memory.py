"""How much memory a run will take: what a rehearsal (`rehearsal.py`) finds, and what no tensor shows: the process as it
stands, `LIBRARIES` and `GAPS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt.model.available import available_memory, has_room
from gpt.model.process import peak_memory
from gpt.training.rehearsal import rehearse
from gpt.training.trainer import Trainer

# Of a CPU's process, measured on the presets (`python -m benchmarks.memory`): matplotlib and oneDNN's kernels; and what
# glibc's heap holds in gaps, from 9 to 40 % of all tensors. It never moves a block, keeps what is freed
# (`hardware.keep_freed_memory`), and small blocks that stay cut the room of large ones. A replay of the tensors alone,
# best fit, leaves no gaps worth a word, so no formula can know them.
LIBRARIES = 150 * 2**20
GAPS = 0.25
PREDICTABLE = ("cpu", "cuda")  # kinds of devices
SMALL = 512 * 2**20  # bytes, besides the process itself


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a run, on its device. `step` is what an update has besides weights and optimizer state at
    its worst moment: gradients, activations, temporary results; `evaluation` the same of an evaluation."""

    process: int  # of a CPU's process: code, libraries, corpus; 0 on other devices
    weights: int
    optimizer: int
    step: int
    evaluation: int
    allowance: int
    so_far: int  # at least this was taken already, by loading
    snapshot: int = 0  # weights and optimizer state as they are written while training goes on
    available: int | None = None  # what the process may hold in all; None where unknown

    @property
    def working(self) -> int:
        return max(self.step, self.evaluation)

    @property
    def needed(self) -> int:
        """By a process that starts with this, whatever this one has taken already."""
        return self.process + self.weights + self.optimizer + self.working + self.snapshot + self.allowance

    @property
    def peak(self) -> int:
        return max(self.needed, self.so_far)

    @property
    def exceeds(self) -> bool:
        return self.available is not None and self.peak > self.available


def predictable(trainer: Trainer) -> bool:
    """Whether a rehearsal is worth its time, and known to work on the device, with a whole model."""
    device = trainer.hardware.device
    return (
        not trainer.model.sharded
        and device.type in PREDICTABLE
        and not (surely_small(trainer) and has_room(device, SMALL))
    )


def surely_small(trainer: Trainer) -> bool:
    """Whether a run takes so little that rehearsing it, 0.9 s of imports, is not worth its time: by a bound that counts
    every intermediate result of a step, in fp32, as if none were ever freed."""
    model, train = trainer.config.model, trainer.config.train
    tokens = max(train.micro_batch, train.eval_batch_size or 0) * model.context_length
    layer = 24 * model.n_embd + 8 * model.hidden_width + 4 * model.n_head * model.context_length
    numbers = 4 * trainer.model.parameter_count() + tokens * (model.n_layer * layer + 4 * trainer.model.vocab_size)
    return 4 * numbers < SMALL


def predict_memory(trainer: Trainer) -> Memory:
    """The peak of a run that `trainer` is about to start or continue. Nothing of the trainer changes."""
    device, model = trainer.hardware.device, trainer.model
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    found = rehearse(trainer)
    return Memory(
        process=trainer.process_memory if device.type == "cpu" else 0,
        weights=weights,
        optimizer=found.optimizer,
        step=found.step,
        evaluation=found.evaluation,
        snapshot=trained + found.optimizer if device.type == "cpu" and trainer.config.train.async_save else 0,
        allowance=LIBRARIES + round(GAPS * (weights + found.optimizer + max(found.step, found.evaluation)))
        if device.type == "cpu"
        else 0,
        so_far=peak_memory(device) or 0,
        available=available_memory(device),
    )
