"""Which of the strategies a run takes, and how it is saved: as is asked for, or in the simplest way that fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gpt.config import RunConfig
from gpt.model.available import available_memory
from gpt.model.hardware import DTYPES, Hardware
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.training.parallel.layouts import RowLayout
from gpt.training.parallel.ranks import Group, Ranks
from gpt.training.parallel.shared_saving import SharedSaving
from gpt.training.parallel.strategies import Alone, Replicated, Sharded, mesh_of
from gpt.training.saving import WholeSaving

if TYPE_CHECKING:
    from gpt.training.trainer import Trainer

CPU = torch.device("cpu")
COPY_SHARE = 0.7  # of the memory, at most, for what a copy holds from step to step; activations take the rest


def make_strategy(config: RunConfig, model: Decoder, hardware: Hardware, ranks: Ranks) -> Alone:
    """Move the model to the device and share it among the processes as `config.parallel` says."""
    device, dtype = hardware.device, DTYPES[config.train.reduce_dtype]
    if isinstance(ranks, Group) and choose(config, model, device, ranks) == "fsdp":
        return Sharded(model, ranks, dtype, mesh_of(ranks, device), hardware)
    model.to(device)
    trunk = torch.compile(model.trunk) if hardware.compile else None
    return Replicated(model, trunk, ranks, dtype) if isinstance(ranks, Group) else Alone(model, trunk)


def choose(config: RunConfig, model: Decoder, device: torch.device, ranks: Ranks) -> str:
    """ddp or fsdp, in all processes alike."""
    if config.parallel != "auto":
        return config.parallel
    available = available_memory(device)
    if available is not None and device.type == "cpu":
        available //= ranks.local_world
    return "ddp" if ranks.all_true(copy_fits(model, available)) else "fsdp"


def copy_fits(model: Decoder, available: int | None) -> bool:
    """Whether a process with so many bytes, None if unknown, has room for a copy and its activations."""
    return available is None or copy_bytes(model) <= COPY_SHARE * available


def copy_bytes(model: Decoder) -> int:
    """What a copy holds from step to step: weights, and of those that are trained the gradients and the two means of
    AdamW, of which Muon keeps one."""
    return sum(p.nbytes * (4 if p.requires_grad else 1) for p in model.parameters())


def make_saving(trainer: Trainer) -> WholeSaving | SharedSaving:
    """How the trainer's checkpoints are written, as `train.save` says. Raises UserError where that cannot be."""
    config, ranks, layout = trainer.config, trainer.ranks, trainer.parallel.layout
    if not (isinstance(layout, RowLayout) and isinstance(ranks, Group)) or config.lora.rank:
        if config.train.save == "sharded":
            why = "lora.rank: adapters are small" if config.lora.rank else "a process has the whole model, not a shard"
            raise UserError(f"train.save=sharded: {why}; leave train.save at auto, or train all with parallel=fsdp")
        return WholeSaving(trainer)
    here = ranks.local_world / ranks.world if trainer.hardware.device.type == "cpu" else 0
    fits = ranks.from_main(lambda: whole_fits(trainer.model.parameter_count(), available_memory(CPU), here))
    if config.train.save == "gathered" or (config.train.save == "auto" and fits):
        return WholeSaving(trainer)
    return SharedSaving(trainer, layout, ranks)


def whole_fits(parameters: int, available: int | None, here: float) -> bool:
    """Whether rank 0 has room for a copy of all weights and of AdamW's two means, fp32, when its host also has the
    gradients and means that are still to come: `here` is the share of them that is kept in its memory."""
    return available is None or 4 * parameters * (3 + 3 * here) <= COPY_SHARE * available
