"""What a process holds of each parameter, of its gradient and of the optimizer's state: all, or its rows.

Optimizers work on plain tensors, `own`, which share memory with the parameters. So every rule of an update is written
once, and knows nothing of processes but what it asks here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt.training.muon import Exchange, Replicas, RowShards, Whole, part_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Layout:
    """Every parameter is whole here; with more processes than one, each has the same."""

    whole_here = True

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.exchange: Exchange = Replicas(rank, world) if world > 1 else Whole()

    def own(self, parameter: Tensor) -> Tensor:
        """What is updated here of a parameter."""
        return parameter

    def shape(self, own: Tensor) -> torch.Size:
        """That of the whole parameter."""
        return own.shape

    def part(self, own: Tensor, whole: Tensor) -> Tensor:
        """Of a whole tensor of the parameter's shape, the part that belongs to `own`."""
        return whole

    def whole(self, own: Tensor, part: Tensor) -> Tensor:
        """The inverse of `part`, with the help of all processes, which must all call it."""
        return part

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """The norm of all gradients together, scalar, the same in all processes."""
        return nn.utils.get_total_norm(list(gradients))


class RowLayout(Layout):
    """Each process holds some rows of every parameter of a model that `fully_shard` has taken over."""

    whole_here = False

    def __init__(self, model: nn.Module, mesh: DeviceMesh) -> None:
        self.mesh, self.rank, self.world = mesh, mesh.get_local_rank(), mesh.size()
        self.exchange = RowShards(self.rank, self.world)
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.owns: dict[Tensor, Tensor] = {parameter: local(parameter) for parameter in self.names}
        self.shapes = {own: parameter.shape for parameter, own in self.owns.items()}

    def own(self, parameter: Tensor) -> Tensor:
        return self.owns[parameter]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """What is held here, by the names of the parameters, in their order."""
        return zip(self.names.values(), self.owns.values(), strict=True)

    def shape(self, own: Tensor) -> torch.Size:
        return self.shapes[own]

    def first_row(self, own: Tensor) -> int:
        """Of those that are held here."""
        return sum(part_of(self.shapes[own][0], rank, self.world) for rank in range(self.rank))

    def part(self, own: Tensor, whole: Tensor) -> Tensor:
        sizes = [part_of(whole.shape[0], rank, self.world) for rank in range(self.world)]
        return whole.split(sizes)[self.rank]

    def whole(self, own: Tensor, part: Tensor) -> Tensor:
        shape = self.shapes[own]
        padded = padded_rows(part, shape[0], self.world)
        gathered = part.new_empty(self.world * len(padded), *shape[1:])
        dist.all_gather_single(gathered, padded)
        return gathered[: shape[0]]  # only the last rows are padding

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        square = nn.utils.get_total_norm(list(gradients)).square()
        dist.all_reduce(square)
        return square.sqrt_()

    def take_gradients(self) -> None:
        """Hand the rows of each gradient to the optimizers, and leave none with the parameters."""
        for parameter, own in self.owns.items():
            if parameter.grad is not None:
                own.grad, parameter.grad = local(parameter.grad), None


def padded_rows(own: Tensor, rows: int, world: int) -> Tensor:
    """A process's part of `rows` rows, with zeros up to the number that the first process holds, and no other more."""
    padded = own.new_zeros(-(-rows // world), *own.shape[1:])
    padded[: len(own)] = own
    return padded


def local(tensor: Tensor) -> Tensor:
    """This process's part of a distributed tensor, in the same memory."""
    part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part
