"""How much memory a run will take, found by rehearsing it on tensors that have shapes but no data.

The rehearsal calls the trainer's own `update` and the evaluation's forward pass under torch's `FakeTensorMode`, and
counts the bytes of all tensors that are alive at once. So it knows what every operation keeps and makes, and follows
the code as that changes; a formula would have to be told. What no tensor shows is added: the process as it stands,
`LIBRARIES` and `GAPS`. It takes less than a second for GPT-2 124M, and a tenth for the default model.

A rehearsal also proves that a step never looks at its data, for which a GPU would have to stop: without data, that
raises `DataDependentOutputException` (tests/training/test_memory.py).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt.model.hardware import muon_dtype
from gpt.text.streams import PairStream
from gpt.training.available import available_memory
from gpt.training.feed import StepBatches
from gpt.training.finite import FiniteWatch
from gpt.training.optimizers import Optimizers
from gpt.training.parallel.ranks import Ranks
from gpt.training.parallel.strategies import Alone
from gpt.training.process import peak_memory, resident_memory
from gpt.training.trainer import Trainer

# Of a CPU's process, measured on the presets (`python -m benchmarks.memory`): matplotlib and oneDNN's kernels; and what
# glibc's heap holds in gaps, from 9 to 40 % of all tensors. It never moves a block, keeps what is freed
# (`hardware.keep_freed_memory`), and small blocks that stay cut the room of large ones. A replay of the tensors alone,
# best fit, leaves no gaps worth a word, so no formula can know them.
LIBRARIES = 150 * 2**20
GAPS = 0.25
PREDICTABLE = ("cpu", "cuda")  # kinds of devices
REHEARSED = 2  # micro-batches: each further one has the peak of the second
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


class LiveBytes(TorchDispatchMode):
    """While entered, counts the bytes of the tensors that operations make: `live` now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.layout is torch.strided:  # the parts of a sparse one are
                self.count(result.untyped_storage())
        return results

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages.add(key)
            weakref.finalize(storage, self.release, key, size)
            self.live += size
            self.peak = max(self.peak, self.live)

    def release(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.live -= size


class RehearsedFeed:
    """As `feed.Feed`, with the largest batches that a run may see, of no data."""

    def __init__(self, shape: tuple[int, int], micro_batches: int, device: torch.device) -> None:
        self.shape, self.count, self.device = shape, micro_batches, device

    def step(self, first_sequence: int) -> StepBatches:
        tokens = [torch.zeros(self.shape, dtype=torch.long, device=self.device) for _ in range(self.count)]
        return StepBatches([(one, one) for one in tokens], 1)


class BlindWatch(FiniteWatch):
    """Without the one look at the data that a CPU affords."""

    def check(self) -> None: ...


def predictable(trainer: Trainer) -> bool:
    """Whether a rehearsal is worth its time, and known to work on the device, with a whole model."""
    device = trainer.hardware.device
    return (
        not trainer.model.sharded
        and device.type in PREDICTABLE
        and not (surely_small(trainer) and has_room(device, SMALL))
    )


def has_room(device: torch.device, size: int) -> bool:
    """Whether so many bytes more are surely available."""
    available, held = available_memory(device), resident_memory() if device.type == "cpu" else 0
    return available is None or available - (held or 0) > size


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
    optimizer, step, evaluation = rehearse(trainer)
    return Memory(
        process=trainer.process_memory if device.type == "cpu" else 0,
        weights=weights,
        optimizer=optimizer,
        step=step,
        evaluation=evaluation,
        snapshot=trained + optimizer if device.type == "cpu" and trainer.config.train.async_save else 0,
        allowance=LIBRARIES + round(GAPS * (weights + optimizer + max(step, evaluation)))
        if device.type == "cpu"
        else 0,
        so_far=peak_memory(device) or 0,
        available=available_memory(device),
    )


def rehearse(trainer: Trainer) -> tuple[int, int, int]:
    """Bytes of the optimizer's state, of one update and of one batch of evaluation besides it and the weights."""
    train, device, corpus = trainer.config.train, trainer.hardware.device, trainer.corpus
    width = trainer.config.model.context_length
    if isinstance(corpus.train, PairStream):
        width = min(width, int(corpus.train.index["length"].max()) - 1)
    mode = FakeTensorMode()
    player = copy.copy(trainer)
    player.model = copy.deepcopy(trainer.model, without_data(trainer.model, mode))
    player.model.recompute = train.activation_checkpointing
    player.parallel, player.ranks = Alone(player.model), Ranks()
    player.optimizers = Optimizers(player.model, trainer.config.optimizer, muon_dtype(device))
    player.state = copy.copy(trainer.state)
    player.scaler = torch.amp.GradScaler(device.type, enabled=False)
    count = min(train.grad_accum_steps, REHEARSED)
    player.feed = RehearsedFeed((train.micro_batch, width), count, device)  # type: ignore[assignment]
    with mode:
        player.watch = BlindWatch(device)
        for parameter in player.model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        player.optimizers.step(1.0)  # makes its state
        player.optimizers.zero_grad()
        optimizer = sum(tensor.untyped_storage().nbytes() for tensor in player.optimizers.state_tensors().values())
        with LiveBytes() as update:
            player.update()
        tokens = torch.zeros(train.eval_batch_size or train.micro_batch, width, dtype=torch.long, device=device)
        with torch.no_grad(), LiveBytes() as evaluation, trainer.hardware.autocast():
            player.model.eval()(tokens, tokens)
    return optimizer, update.peak, evaluation.peak


def without_data(model: torch.nn.Module, mode: FakeTensorMode) -> dict[int, Any]:
    """For `copy.deepcopy`: what stands for each tensor of a model in its copy, a tensor of the same shape."""
    return {id(tensor): mode.from_tensor(tensor) for tensor in [*model.parameters(), *model.buffers()]}
