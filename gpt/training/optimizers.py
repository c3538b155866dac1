"""AdamW and Muon, with decay groups, decoupled L2 and L1.

Sources: AdamW: Loshchilov and Hutter 2019; Muon: Jordan et al. 2024, github.com/KellerJordan/Muon, through
`torch.optim.Muon`; decoupled L1 by soft threshold: proximal gradient descent (Parikh and Boyd 2014).
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gpt.config import OptimizerConfig
from gpt.model.lora import adapters_of
from gpt.model.transformer import Decoder

# Methods of torch.optim load the whole of torch.compile before they run, only to be left out of it: 0.7 s at the start
# and 0.2 s at exit. The functions inside do the work.
plain_add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` that leaves torch.compile unloaded. A closure is not supported."""

    add_param_group = plain_add_param_group
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with all matrices of one shape orthogonalised in one batch, in `compute_dtype`.

    The original works on one matrix at a time and always in bf16: on narrow layers that is a third of a step, and
    on processors without bf16 units it is slower than fp32. Matrices of more rows than columns go in transposed.
    """

    add_param_group = plain_add_param_group

    def __init__(self, params: Any, compute_dtype: torch.dtype, **options: Any) -> None:
        super().__init__(params, **options)
        self.compute_dtype = compute_dtype

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
            by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for param, update in zip(gradients, self.momentum_updates(gradients, group, keep_still), strict=True):
                by_shape[tuple(sorted(param.shape))].append((param, update))
            for matrices in by_shape.values():
                torch._foreach_mul_([param for param, _ in matrices], decay)
                self.apply(matrices, group, keep_still)

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
        params, tall = [param for param, _ in matrices], [param.shape[0] > param.shape[1] for param, _ in matrices]
        wide = torch.empty(len(params), *sorted(params[0].shape), dtype=self.compute_dtype, device=params[0].device)
        for place, transposed, (_, update) in zip(wide, tall, matrices, strict=True):
            place.copy_(update.T if transposed else update)
        made = orthogonalise(wide, group["ns_coefficients"], group["ns_steps"], group["eps"]).float()
        if keep_still is not None:
            made = torch.where(keep_still, 0.0, made)
        for transposed, param, update in zip(tall, params, made, strict=True):
            rows, columns = param.shape
            scale = group["lr"] * math.sqrt(max(1, rows / columns))
            param.add_(update.T if transposed else update, alpha=-scale)


def orthogonalise(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The quintic Newton–Schulz iteration of Muon on a batch of wide matrices [N, rows, columns]."""
    a, b, c = coefficients
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT  # [N, rows, rows]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Optimizers:
    """The optimizers of a model's trainable parameters, stepped as one; their state is saved by parameter name."""

    def __init__(self, model: Decoder, config: OptimizerConfig, muon_dtype: torch.dtype) -> None:
        self.config = config
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        # Muon is for whole weights. The factors of adapters are none: what they stand for is the product B A, the same
        # for (B M^-1)(M A), and orthogonalising a factor's update takes one such choice for the true one. B starts at
        # zero, so A's first gradients are near nothing, and Muon would blow them up to full size.
        factors = {factor for adapter in adapters_of(model).values() for factor in (adapter.lora_a, adapter.lora_b)}
        whole = [p for p in model.blocks.parameters() if p.requires_grad and p.dim() == 2 and p not in factors]
        matrices = whole if config.name == "muon" else []
        in_muon = set(matrices)
        others = [p for p in self.names if p not in in_muon]
        groups = [
            {"params": [p for p in others if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
        ]
        betas = (config.beta1, config.beta2)
        adamw = AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
        self.peaks: list[tuple[torch.optim.Optimizer, float]] = [(adamw, config.lr)]
        if matrices:
            muon = BatchedMuon(
                matrices,
                muon_dtype,
                lr=config.matrix_lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
            )
            self.peaks.append((muon, config.matrix_lr))

    def step(self, scale: float, divisor: Tensor | None = None, keep_still: Tensor | None = None) -> None:
        """One update with every learning rate at `scale` of its peak, of gradients that are unscaled already.

        `divisor` (scalar): what gradients are divided by, as `clip_divisor` finds it. AdamW's kernel does it as it
        reads them, through the attribute that `torch.amp.GradScaler` uses; that of MPS passes it over.
        `keep_still` (scalar bool, on the device): where true nothing changes, neither weights nor state, without the
        host's knowing; not on MPS.
        """
        for optimizer, peak in self.peaks:
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
            if isinstance(optimizer, BatchedMuon):
                optimizer.step(divisor=divisor, keep_still=keep_still)
                continue
            if divisor is not None and divisor.device.type in ("cpu", "cuda"):
                optimizer.grad_scale = divisor  # type: ignore[attr-defined]
            elif divisor is not None:
                params = (param for group in optimizer.param_groups for param in group["params"])
                torch._foreach_div_([param.grad for param in params if param.grad is not None], divisor)
            optimizer.found_inf = None if keep_still is None else keep_still.float()  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.grad_scale = optimizer.found_inf = None  # type: ignore[attr-defined]
        if self.config.l1:
            self.shrink(keep_still)

    @torch.no_grad()
    def shrink(self, keep_still: Tensor | None) -> None:
        """Move every decayed weight towards zero by lr * l1, stopping there."""
        for optimizer, _ in self.peaks:
            for group in optimizer.param_groups:
                for param in group["params"]:
                    if param.dim() >= 2:
                        threshold = group["lr"] * self.config.l1
                        shrunk = torch.nn.functional.softshrink(param, threshold)
                        param.copy_(shrunk if keep_still is None else torch.where(keep_still, param, shrunk))

    def zero_grad(self) -> None:
        for param in self.names:
            param.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """All state as `<parameter>/<key>`, for example `blocks.0.mlp.up.weight/exp_avg`."""
        return {
            f"{self.names[param]}/{key}": value
            for optimizer, _ in self.peaks
            for param, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state_tensors` returned. Raises KeyError or ValueError where it is of other parameters."""
        by_name = {name: param for param, name in self.names.items()}
        owner = {p: o for o, _ in self.peaks for group in o.param_groups for p in group["params"]}
        for path, value in tensors.items():
            name, key = path.rsplit("/", 1)
            param = by_name[name]
            if value.dim() and value.shape != param.shape:
                raise ValueError(f"{path} has shape {list(value.shape)}, not {list(param.shape)}")
            owner[param].state[param][key] = value.to(param.device)


def gradient_norm(model: nn.Module) -> Tensor:
    """The norm of all gradients together, scalar."""
    return nn.utils.get_total_norm([param.grad for param in model.parameters() if param.grad is not None])


def clip_divisor(norm: Tensor, limit: float) -> Tensor | None:
    """What gradients of this norm are divided by so that their norm is at most `limit`; None for no limit (0)."""
    return (norm / limit).clamp_(min=1) if limit > 0 else None
