"""An update and an evaluation played on tensors that have shapes but no data, to count the bytes that they would take.

The rehearsal calls the trainer's own `update` and the evaluation's forward pass under torch's `FakeTensorMode`, and
counts the bytes of all tensors that are alive at once. So it knows what every operation keeps and makes, and follows
the code as that changes; a formula would have to be told. It takes less than a second for GPT-2 124M, and a tenth for
the default model. As one of many processes it plays with torch's `fake` group, whose others do nothing, at once.

A rehearsal also proves that a step never looks at its data, for which a GPU would have to stop: without data, that
raises `DataDependentOutputException` (tests/training/test_memory.py).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt.model.hardware import muon_dtype
from gpt.model.transformer import Decoder
from gpt.text.streams import PairStream
from gpt.training.feed import StepBatches
from gpt.training.finite import FiniteWatch
from gpt.training.optimizers import Optimizers
from gpt.training.parallel.ranks import Ranks
from gpt.training.parallel.strategies import Alone
from gpt.training.trainer import Trainer

MICRO_BATCHES = 2  # at most: each further one has the peak of the second

Share = Callable[[Decoder], Alone]


@dataclass(frozen=True)
class Rehearsal:
    """Bytes of one process: what it holds from step to step, weights and optimizer state, and what else it has at the
    worst moment of the passes forward and backward, of the optimizers' step after them, and of an evaluation."""

    weights: int
    optimizer: int
    gradients: int  # that the optimizers get; part of `backward` and of `stepping`
    backward: int
    stepping: int
    evaluation: int

    @property
    def step(self) -> int:
        return max(self.backward, self.stepping)


class LiveBytes(TorchDispatchMode):
    """While entered, counts the bytes of the tensors that operations make: `live` now, `peak` at most. Of a distributed
    tensor it counts what this process holds. It sees storages resized, by which FSDP frees gathered weights."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages: dict[int, int] = {}

    def __enter__(self) -> LiveBytes:
        plain = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = plain(storage, size)
            self.count(storage)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        del torch.UntypedStorage.resize_  # what it inherits shows again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(hasattr(kind, "to_local") for kind in types):
            return NotImplemented  # a distributed tensor calls what it does with its part, which comes here in turn
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                storage = result.untyped_storage()
                if storage._cdata in self.storages or not is_view(storage, (args, kwargs)):
                    self.count(storage)
        return results

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages[key] = 0
            weakref.finalize(storage, self.release, key)
        self.live += size - self.storages[key]
        self.storages[key] = size
        self.peak = max(self.peak, self.live)

    def release(self, key: int) -> None:
        self.live -= self.storages.pop(key)


def is_view(storage: torch.UntypedStorage, arguments: Any) -> bool:
    """Whether one of the arguments has this storage, too, so that it was there before."""
    tensors = (arg for arg in tree_leaves(arguments) if isinstance(arg, Tensor))
    return any(tensor.untyped_storage()._cdata == storage._cdata for tensor in tensors)


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


class RehearsedRanks(Ranks):
    """The first of `world` processes; of the others nothing is heard."""

    def __init__(self, world: int) -> None:
        self.world = self.local_world = world


@contextmanager
def fake_group(world: int) -> Iterator[RehearsedRanks]:
    """torch.distributed as the first of `world` processes sees it, when the others do nothing."""
    if world > 1:
        from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend, too

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield RehearsedRanks(world)
    finally:
        if world > 1:
            dist.destroy_process_group()


class _Stage:
    """An optimizer's step that tells where it begins."""

    def __init__(self, optimizers: Optimizers, counted: LiveBytes) -> None:
        self.plain, self.counted = optimizers.step, counted
        self.optimizers, self.backward, self.gradients = optimizers, 0, 0

    def step(self, *given: Any) -> None:
        self.backward, self.counted.peak = self.counted.peak, self.counted.live
        self.gradients = sum(own.grad.nbytes for own in self.optimizers.names if own.grad is not None)
        self.plain(*given)


def rehearse(
    trainer: Trainer, ranks: Ranks | None = None, share: Share = Alone, dtype: torch.dtype | None = None
) -> Rehearsal:
    """What `trainer` would take on its device. Nothing of it changes.

    `share`: how the model is shared among the processes of `ranks`; `dtype`: of Muon's iteration, else as on the
    device.
    """
    train, device = trainer.config.train, trainer.hardware.device
    width = widest(trainer)
    mode = FakeTensorMode()
    player = copy.copy(trainer)
    with mode:
        player.model = copy.deepcopy(trainer.model, without_data(trainer.model, device))
        player.model.recompute = train.activation_checkpointing
        player.parallel, player.ranks = share(player.model), ranks or Ranks()
    player.optimizers = optimizers = Optimizers(
        player.model, trainer.config.optimizer, dtype or muon_dtype(trainer.hardware), player.parallel.layout
    )
    weights = sum(player.parallel.layout.own(whole).nbytes for whole in player.model.parameters())
    player.state = copy.copy(trainer.state)
    player.scaler = torch.amp.GradScaler(device.type, enabled=False)
    count = min(train.grad_accum_steps, MICRO_BATCHES)
    player.feed = RehearsedFeed((train.micro_batch, width), count, device)  # type: ignore[assignment]
    with mode:
        player.watch = BlindWatch(device)
        for own in optimizers.names:
            own.grad = torch.empty_like(own)
        optimizers.step(1.0)  # makes its state
        optimizers.zero_grad()
        with LiveBytes() as update:
            stage = _Stage(optimizers, update)
            optimizers.step = stage.step  # type: ignore[method-assign, assignment]
            player.update()
        tokens = torch.zeros(train.eval_batch_size or train.micro_batch, width, dtype=torch.long, device=device)
        with torch.no_grad(), LiveBytes() as evaluation, trainer.hardware.autocast():
            player.model.eval()(tokens, tokens)
    return Rehearsal(
        weights=weights,
        optimizer=sum(tensor.untyped_storage().nbytes() for tensor in optimizers.state_tensors().values()),
        gradients=stage.gradients,
        backward=stage.backward,
        stepping=update.peak,
        evaluation=evaluation.peak,
    )


def widest(trainer: Trainer) -> int:
    """The length of the longest sequence of a batch."""
    width, text = trainer.config.model.context_length, trainer.corpus.train
    return min(width, int(text.index["length"].max()) - 1) if isinstance(text, PairStream) else width


def without_data(model: nn.Module, device: torch.device) -> dict[int, Any]:
    """For `copy.deepcopy`, in a `FakeTensorMode`: what stands for each tensor of a model in its copy, one of the same
    shape on the device."""
    stand_ins: dict[int, Any] = {}
    for buffer in model.buffers():
        stand_ins[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    for parameter in model.parameters():
        data = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        stand_ins[id(parameter)] = nn.Parameter(data, parameter.requires_grad)
    return stand_ins
