"""How the processes of a run share one model: not at all (one process), as copies (DDP), or by rows (FSDP2).

Each computes the loss of its own micro-batches. Gradients are summed over processes once in an update, with its last
micro-batch, as torch's engines overlap that with the backward pass. A sum, not a mean: losses are divided by the tokens
of the whole global batch already.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt.model.hardware import Hardware
from gpt.model.huggingface import load_weights, matching_tensors
from gpt.model.transformer import Decoder, Trunk
from gpt.training.parallel.layouts import Layout, RowLayout
from gpt.training.parallel.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Alone:
    """One process with the whole model."""

    name = "alone"

    def __init__(self, model: Decoder, trunk: Trunk | None = None) -> None:
        """`trunk`: `model.trunk` compiled, if it is to be."""
        self.model, self.trunk = model, trunk
        self.layout = Layout()

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a micro-batch [B, T], summed over its tokens, scalar."""
        found: Tensor = self.model(inputs, targets, trunk=self.trunk)
        return found

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Forward and backward of one micro-batch happen within. `last`: of an update."""
        yield

    def scaler(self, device: torch.device, enabled: bool) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(device.type, enabled=enabled)

    def begin(self, tokens: Tensor) -> None:
        """Before the first update of a session. `tokens` [B, T]: any, of the shape of a micro-batch."""

    def rest(self) -> None:
        """After the model has computed without gradients: give back what only that needed."""

    def writing(self) -> AbstractContextManager[object]:
        """What the model writes text in."""
        return nullcontext()

    def full_model(self, keep: bool = True) -> Decoder | None:
        """The model with whole parameters; None where it is not to be kept. All processes must call it."""
        return self.model if keep else None

    def load(self, read: Callable[[Decoder], None]) -> None:
        """Have `read` fill the whole model."""
        read(self.model)

    def load_weights(self, folder: Path) -> None:
        """Take over the weights of a model folder. Raises UserError where it does not fit."""
        load_weights(self.model, folder)


class Replicated(Alone):
    """Each process has a copy; `torch.nn.parallel.DistributedDataParallel` keeps them equal.

    `reduce_dtype`: in which gradients travel.
    """

    name = "ddp"

    def __init__(self, model: Decoder, trunk: Trunk | None, ranks: Ranks, reduce_dtype: torch.dtype) -> None:
        super().__init__(model, trunk)
        self.layout = Layout(ranks.rank, ranks.world)
        self.wrapped = nn.parallel.DistributedDataParallel(
            model, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
        self.wrapped.register_comm_hook(reduce_dtype, summed)

    def begin(self, tokens: Tensor) -> None:
        """Have DDP see one backward pass: before its second it lays gradients into other buckets, in which sums round
        differently, so that a run continued would differ from one that never stopped."""
        (0 * self.loss(tokens, tokens)).backward()
        for parameter in self.model.parameters():
            parameter.grad = None

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = self.wrapped(inputs, targets, trunk=self.trunk)
        return found

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        if last:
            yield
        else:
            with self.wrapped.no_sync():
                yield


def summed(dtype: torch.dtype, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A communication hook that sums gradients, which travel in `dtype`. The default one would take their mean."""
    buffer = bucket.buffer()
    work = dist.all_reduce(buffer.to(dtype), async_op=True)
    return work.get_future().then(lambda done: buffer.copy_(done.value()[0]))


summed.__annotations__.clear()  # DDP wants them as types, or not at all


class Sharded(Alone):
    """Each process holds some rows of every parameter, and of its gradient and optimizer state: FSDP2 (Zhao et al.
    2023). A block's parameters are whole while it computes, forward and backward, those outside the blocks from the
    forward pass to the end of the backward.

    With mixed precision the blocks' weights travel in `hardware.dtype`, half as many bytes. Autocast, which leaves
    those as they are, would cast gathered weights of fp32 itself and keep the results until the backward pass: a whole
    model in each process. What is outside the blocks stays fp32, and so does the residual stream.
    """

    name = "fsdp"

    def __init__(
        self, model: Decoder, ranks: Ranks, reduce_dtype: torch.dtype, mesh: DeviceMesh, hardware: Hardware
    ) -> None:
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        super().__init__(model)
        self.skeleton = skeleton_of(model)
        model.sharded = True
        wide = MixedPrecisionPolicy(reduce_dtype=reduce_dtype)
        narrow = MixedPrecisionPolicy(param_dtype=hardware.dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)
        for block in model.blocks:
            if hardware.compile:
                block.compile()
            fully_shard(block, mesh=mesh, mp_policy=narrow)
        fully_shard(model, mesh=mesh, mp_policy=wide)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self.layout: RowLayout = RowLayout(model, mesh)
        self.main, self.hardware = ranks.main, hardware

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = self.model(inputs, targets)
        return found

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield
        if last:
            self.layout.take_gradients()

    def rest(self) -> None:
        self.model.reshard()  # type: ignore[operator]

    def writing(self) -> AbstractContextManager[object]:
        return self.hardware.autocast()  # in which its blocks are gathered

    def scaler(self, device: torch.device, enabled: bool) -> torch.amp.GradScaler:
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # an overflow anywhere counts for all

        return ShardedGradScaler(device.type, enabled=enabled)

    @torch.no_grad()
    def full_model(self, keep: bool = True) -> Decoder | None:
        """On the CPU."""
        wholes: dict[str, Tensor] = {}
        for name, own in self.layout.named():
            whole = self.layout.whole(own, own)
            if keep:
                wholes[name] = whole.to("cpu", copy=True)
        return filled(self.skeleton, wholes) if keep else None

    @torch.no_grad()
    def load(self, read: Callable[[Decoder], None]) -> None:
        full = self.full_model()  # of adapters only some weights are read, and checked against the others
        assert full is not None
        read(full)
        for (_, own), whole in zip(self.layout.named(), full.parameters(), strict=True):
            own.copy_(self.layout.part(own, whole))

    @torch.no_grad()
    def load_weights(self, folder: Path) -> None:
        """One tensor in memory at a time, of which the rows that are held here are kept."""
        own_rows = dict(self.layout.named())
        for entry, stored in matching_tensors(folder, self.model.config, self.model.vocab_size):
            own = own_rows.get(entry.ours)
            if own is None:  # a table that follows from the configuration
                continue
            tensor = stored.take()
            tensor = tensor.T if entry.transposed else tensor
            start, stop, _ = entry.rows.indices(self.layout.shape(own)[0])
            first = self.layout.first_row(own)
            begin, end = max(first, start), min(first + len(own), stop)
            if begin < end:
                own[begin - first : end - first].copy_(tensor[begin - start : end - start])


def mesh_of(ranks: Ranks, device: torch.device) -> DeviceMesh:
    """All processes in a row."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (ranks.world,))


def skeleton_of(model: Decoder) -> Decoder:
    """A copy that has the shapes of parameters without their data; buffers are shared."""
    stand_ins: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        stand_ins[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    return copy.deepcopy(model, stand_ins)


def filled(skeleton: Decoder, parameters: dict[str, Tensor]) -> Decoder:
    """A copy of a skeleton that has these parameters, by name."""
    stand_ins: dict[int, Any] = {id(buffer): buffer.cpu() for buffer in skeleton.buffers()}
    for name, parameter in skeleton.named_parameters():
        stand_ins[id(parameter)] = nn.Parameter(parameters[name], parameter.requires_grad)
    return copy.deepcopy(skeleton, stand_ins)
