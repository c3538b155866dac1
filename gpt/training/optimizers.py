"""AdamW and Muon, with decay groups, decoupled L2 and L1.

Sources: AdamW: Loshchilov and Hutter 2019; Muon: Jordan et al. 2024, github.com/KellerJordan/Muon, through
`torch.optim.Muon`; decoupled L1 by soft threshold: proximal gradient descent (Parikh and Boyd 2014).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor

from gpt.config import OptimizerConfig
from gpt.model.lora import adapters_of
from gpt.model.transformer import Decoder
from gpt.training.muon import BatchedMuon, plain_add_param_group
from gpt.training.parallel.layouts import Layout


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` that leaves torch.compile unloaded. A closure is not supported."""

    add_param_group = plain_add_param_group
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Optimizers:
    """The optimizers of a model's trainable parameters, stepped as one; their state is saved by parameter name.

    `layout`: what this process holds of each parameter; by default all of it.
    """

    def __init__(
        self, model: Decoder, config: OptimizerConfig, muon_dtype: torch.dtype, layout: Layout | None = None
    ) -> None:
        self.config, self.layout = config, layout or Layout()
        own = self.layout.own
        self.names: dict[Tensor, str] = {own(p): name for name, p in model.named_parameters() if p.requires_grad}
        # Muon is for whole weights. The factors of adapters are none: what they stand for is the product B A, the same
        # for (B M^-1)(M A), and orthogonalising a factor's update takes one such choice for the true one. B starts at
        # zero, so A's first gradients are near nothing, and Muon would blow them up to full size.
        factors = {factor for adapter in adapters_of(model).values() for factor in (adapter.lora_a, adapter.lora_b)}
        whole = [p for p in model.blocks.parameters() if p.requires_grad and p.dim() == 2 and p not in factors]
        matrices = [own(p) for p in whole] if config.name == "muon" else []
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
                self.layout.exchange,
                {own(p): (p.shape[0], p.shape[1]) for p in whole},
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

    def gradient_norm(self) -> Tensor:
        """The norm of all gradients together, scalar."""
        return self.layout.norm(param.grad for param in self.names if param.grad is not None)

    def full_state(self, keep: bool = True) -> dict[str, Tensor]:
        """As `state_tensors`, of whole parameters; where but parts of these are here, copies on the CPU. {} where it is
        not to be kept. All processes must call it."""
        by_name, found = {name: param for param, name in self.names.items()}, {}
        for path, value in self.state_tensors().items():
            whole = self.layout.whole(by_name[path.rpartition("/")[0]], value) if value.dim() else value
            if keep:
                found[path] = whole if self.layout.whole_here else whole.to("cpu", copy=whole is value)
        return found

    def state_tensors(self) -> dict[str, Tensor]:
        """All state as `<parameter>/<key>`, for example `blocks.0.mlp.up.weight/exp_avg`; what this process holds."""
        return {
            f"{self.names[param]}/{key}": value
            for optimizer, _ in self.peaks
            for param, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load_state_tensors(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Restore what `state_tensors` returned, by name, of whole parameters. Raises KeyError or ValueError where it
        is of others."""
        by_name = {name: param for param, name in self.names.items()}
        owner = {p: o for o, _ in self.peaks for group in o.param_groups for p in group["params"]}
        for path, value in tensors:
            name, key = path.rsplit("/", 1)
            param = by_name[name]
            shape = self.layout.shape(param)
            if value.dim() and value.shape != shape:
                raise ValueError(f"{path} has shape {list(value.shape)}, not {list(shape)}")
            part = self.layout.part(param, value) if value.dim() else value
            owner[param].state[param][key] = part.to(param.device, copy=True)  # else its whole file stays mapped


def clip_divisor(norm: Tensor, limit: float) -> Tensor | None:
    """What gradients of this norm are divided by so that their norm is at most `limit`; None for no limit (0)."""
    return (norm / limit).clamp_(min=1) if limit > 0 else None
