"""Muon (Jordan et al. 2024, github.com/KellerJordan/Muon, through `torch.optim.Muon`), batched and shared out.

All matrices of one shape are orthogonalised in one batch. Of the processes of a run each does so for its own share of
them, and the results are exchanged: whole updates where every process has the whole matrices (`Replicas`), rows where
each holds some rows of every matrix (`RowShards`; as in Liu et al. 2025, Muon is Scalable for LLM Training, but with
each matrix made whole on one process only).

Legend: N matrices of a shape, W processes, n = ceil(N / W) of them for each process.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

# Methods of torch.optim load the whole of torch.compile before they run, only to be left out of it: 0.7 s at the start
# and 0.2 s at exit. The functions inside do the work.
plain_add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

Shape = tuple[int, int]
Orthogonalise = Callable[[Tensor], Tensor]  # of wide matrices [N, rows, columns]


class Exchange(Protocol):
    """How the processes of a run share the work of orthogonalising."""

    def orthogonalised(
        self, updates: Sequence[Tensor], shapes: Sequence[Shape], dtype: torch.dtype, by: Orthogonalise
    ) -> list[Tensor]:
        """The updates orthogonalised in `dtype`, in fp32 or what `by` gives, as they came: this process's part.

        `shapes`: of the whole matrices, which are alike once each has no more rows than columns.
        """
        ...


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with all matrices of one shape orthogonalised in one batch, in `compute_dtype`.

    The original works on one matrix at a time and always in bf16: on narrow layers that is a third of a step, and
    on processors without bf16 units it is slower than fp32. Matrices of more rows than columns go in transposed.
    `shapes`: of matrices of which this process holds a part.
    """

    add_param_group = plain_add_param_group

    def __init__(
        self,
        params: Any,
        compute_dtype: torch.dtype,
        exchange: Exchange | None = None,
        shapes: Mapping[Tensor, Shape] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        self.compute_dtype, self.exchange, self.shapes = compute_dtype, exchange or Whole(), shapes or {}

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float] | None = None,
        divisor: Tensor | None = None,
        keep_still: Tensor | None = None,
    ) -> None:
        """Update every matrix that has a gradient, which is divided by `divisor` first, unless the device holds true in
        `keep_still` (scalar bool). A closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            gradients = {param: param.grad for param in group["params"] if param.grad is not None}
            if not gradients:
                continue
            if divisor is not None:
                torch._foreach_div_(list(gradients.values()), divisor)
            decay: float | Tensor = 1 - group["lr"] * group["weight_decay"]
            if keep_still is not None:
                decay = torch.where(keep_still, 1.0, decay)
            by_shape: dict[Shape, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for param, update in zip(gradients, self.momentum_updates(gradients, group, keep_still), strict=True):
                by_shape[min(self.shape(param), self.shape(param)[::-1])].append((param, update))
            for matrices in by_shape.values():
                torch._foreach_mul_([param for param, _ in matrices], decay)
                self.apply(matrices, group, keep_still)

    def shape(self, param: Tensor) -> Shape:
        """Rows and columns of the whole matrix."""
        rows, columns = self.shapes.get(param, param.shape)
        return rows, columns

    def momentum_updates(
        self, gradients: dict[Tensor, Tensor], group: Mapping[str, Any], keep_still: Tensor | None
    ) -> list[Tensor]:
        for param in gradients:
            if not self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        buffers = [self.state[param]["momentum_buffer"] for param in gradients]
        new = list(gradients.values())
        if keep_still is not None:  # the mean of a number and itself is that number
            new = [torch.where(keep_still, *pair) for pair in zip(buffers, new, strict=True)]
        torch._foreach_lerp_(buffers, new, 1 - group["momentum"])
        return list(torch._foreach_lerp(new, buffers, group["momentum"])) if group["nesterov"] else buffers

    def apply(self, matrices: list[tuple[Tensor, Tensor]], group: Mapping[str, Any], keep_still: Tensor | None) -> None:
        """Orthogonalise the updates of matrices that are of one shape once each has no more rows than columns."""
        params, updates = [param for param, _ in matrices], [update for _, update in matrices]
        shapes = [self.shape(param) for param in params]

        def iterate(wide: Tensor) -> Tensor:
            return orthogonalise(wide, group["ns_coefficients"], group["ns_steps"], group["eps"])

        made = self.exchange.orthogonalised(updates, shapes, self.compute_dtype, iterate)
        for param, update, (rows, columns) in zip(params, made, shapes, strict=True):
            if keep_still is not None:
                update = torch.where(keep_still, 0.0, update)
            param.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonalise(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The quintic Newton–Schulz iteration of Muon on a batch of wide matrices [N, rows, columns]."""
    a, b, c = coefficients
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT  # [N, rows, rows]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def wide_batch(updates: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Matrices of one shape, or of its transpose, as a batch with no more rows than columns."""
    wide = torch.empty(len(updates), *sorted(updates[0].shape), dtype=dtype, device=updates[0].device)
    for place, update in zip(wide, updates, strict=True):
        place.copy_(update.T if update.shape[0] > update.shape[1] else update)
    return wide


def as_they_came(made: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """The matrices of a wide batch, in fp32, turned back where they were tall."""
    widened = made.float()
    return [one.T if rows > columns else one for one, (rows, columns) in zip(widened, shapes, strict=False)]


class Whole:
    """One process does it all."""

    def orthogonalised(
        self, updates: Sequence[Tensor], shapes: Sequence[Shape], dtype: torch.dtype, by: Orthogonalise
    ) -> list[Tensor]:
        return as_they_came(by(wide_batch(updates, dtype)), shapes)


class Replicas:
    """Every process has every matrix: each orthogonalises its n of them, and all get all results."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def orthogonalised(
        self, updates: Sequence[Tensor], shapes: Sequence[Shape], dtype: torch.dtype, by: Orthogonalise
    ) -> list[Tensor]:
        count = -(-len(updates) // self.world)
        own = updates[self.rank * count : (self.rank + 1) * count]
        sizes = (count, *sorted(updates[0].shape))
        made = torch.zeros(sizes, dtype=dtype, device=updates[0].device)
        if own:
            made[: len(own)] = by(wide_batch(own, dtype))
        everything = torch.empty(self.world * count, *sizes[1:], dtype=dtype, device=made.device)
        dist.all_gather_single(everything, made)
        return as_they_came(everything, shapes)


class RowShards:
    """Every process has some rows of every matrix, as `torch.chunk` deals them: each gets its n matrices whole,
    orthogonalises them, and gives the rows back."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def orthogonalised(
        self, updates: Sequence[Tensor], shapes: Sequence[Shape], dtype: torch.dtype, by: Orthogonalise
    ) -> list[Tensor]:
        count, device = -(-len(updates) // self.world), updates[0].device
        shares = [range(owner * count, min((owner + 1) * count, len(updates))) for owner in range(self.world)]
        own = shares[self.rank]
        given = [sum(updates[i].numel() for i in share) for share in shares]  # numbers that go to each owner
        rows = {i: [part_of(shapes[i][0], rank, self.world) for rank in range(self.world)] for i in own}
        taken = [sum(rows[i][rank] * shapes[i][1] for i in own) for rank in range(self.world)]
        sent = torch.cat([update.flatten().to(dtype) for update in updates])
        received = torch.empty(sum(taken), dtype=dtype, device=device)
        dist.all_to_all_single(received, sent, taken, given)
        parts = [iter(part.split([rows[i][rank] * shapes[i][1] for i in own]))
                 for rank, part in enumerate(received.split(taken))]  # fmt: skip
        whole = [torch.cat([next(part) for part in parts]).view(shapes[i]) for i in own]
        made = as_they_came(by(wide_batch(whole, dtype)), [shapes[i] for i in own]) if whole else []
        pieces = [matrix.to(dtype).split(rows[i]) for i, matrix in zip(own, made, strict=True)]
        back = [piece[rank].flatten() for rank in range(self.world) for piece in pieces]
        sent = torch.cat(back) if back else torch.empty(0, dtype=dtype, device=device)
        received = torch.empty(sum(given), dtype=dtype, device=device)
        dist.all_to_all_single(received, sent, given, taken)
        results = received.split([update.numel() for update in updates])
        return [result.view_as(update).float() for result, update in zip(results, updates, strict=True)]


def part_of(rows: int, rank: int, world: int) -> int:
    """How many of `rows` rows this rank holds, by the rule of `torch.chunk`."""
    each = -(-rows // world)
    return max(0, min(each, rows - rank * each))
