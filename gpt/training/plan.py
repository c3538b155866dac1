"""What a run would take: memory by part, communication, computing, time.

Communication: the rings of NCCL, in which each of W processes sends 2 (W-1)/W of the bytes for a sum, (W-1)/W for
gathering or scattering. Computing: `Decoder.flops_per_token` at the share of the peak that `cluster.mfu` assumes. What
of the communication fits behind the computing (of DDP's behind the backward pass, two thirds of it) costs no time.

Legend: W processes, one for each GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gpt.config import RunConfig
from gpt.model.gpus import Gpu
from gpt.model.transformer import Decoder
from gpt.training.batch_size import usable
from gpt.training.rehearsal import Rehearsal

BACKWARD = 2 / 3  # of the computing
MUON = "Muon's updates"  # the one message that nothing hides
TOKENS_PER_PARAMETER = 20  # at which compute is best spent (Hoffmann et al. 2022, Chinchilla, table 3)


@dataclass(frozen=True)
class Parts:
    """Bytes of one process at its peak."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # and temporary results; with fsdp also weights while they are gathered
    logits: int
    snapshot: int  # weights and optimizer state of a checkpoint that is being written, on a CPU
    libraries: int  # code, context, what the allocator cannot use

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def parts_of(found: Rehearsal, logits: int, snapshot: int, outside: tuple[int, float]) -> Parts:
    """`logits`: bytes of them that exist at once. `outside`: bytes that no tensor shows, and a share of all that do."""
    peak = max(found.step, found.evaluation)
    rest = peak - found.gradients
    least, share = outside
    libraries = least + round(share * (found.weights + found.optimizer + peak))
    shown = min(logits, rest)
    return Parts(found.weights, found.gradients, found.optimizer, rest - shown, shown, snapshot, libraries)


@dataclass(frozen=True)
class Plan:
    config: RunConfig
    gpu: Gpu | None  # None: this machine
    parallel: str  # alone, ddp or fsdp
    world: int
    parameters: int
    parts: Parts
    capacity: int | None  # bytes of one process; None where unknown
    communication: dict[str, float]  # bytes that one process sends in an update, by what for
    flops_per_token: int

    @property
    def tokens_per_step(self) -> int:
        train = self.config.train
        return train.micro_batch * train.grad_accum_steps * self.world * self.config.model.context_length

    @property
    def fits(self) -> bool:
        return self.capacity is None or self.parts.total <= usable(self.capacity)

    @property
    def compute_seconds(self) -> float | None:
        """Of an update."""
        if self.gpu is None:
            return None
        rate = self.gpu.peak * self.config.cluster.mfu
        return self.flops_per_token * self.tokens_per_step / self.world / rate

    @property
    def communication_seconds(self) -> float:
        return sum(self.communication.values()) / self.bandwidth if self.gpu else 0.0

    @property
    def bandwidth(self) -> float:
        """Bytes a second that a process sends: between machines where there are several, else within one."""
        assert self.gpu is not None
        cluster = self.config.cluster
        return cluster.gbits_per_second * 1e9 / 8 if self.world > cluster.gpus_per_node else self.gpu.link

    @property
    def hidden_seconds(self) -> float:
        """Of the communication, behind the computing: sums of gradients behind the backward pass, weights that are
        gathered behind all of it. Muon's updates wait for the one and the next step for them."""
        overlapping = sum(sent for name, sent in self.communication.items() if name != MUON) / self.bandwidth
        share = BACKWARD if self.parallel == "ddp" else 1.0
        return min(overlapping, share * (self.compute_seconds or 0.0))

    @property
    def step_seconds(self) -> float | None:
        if self.compute_seconds is None:
            return None
        return self.compute_seconds + self.communication_seconds - self.hidden_seconds


def communication(
    config: RunConfig, model: Decoder, world: int, parallel: str, dtype: torch.dtype, muon: torch.dtype
) -> dict[str, float]:
    """Bytes that one process sends in an update, whose matrix products are in `dtype`, as Muon's in `muon`."""
    if world == 1:
        return {}
    size, share = sum(p.nbytes for p in model.parameters()), (world - 1) / world
    reduced = size * (0.5 if config.train.reduce_dtype == "bf16" else 1)
    found: dict[str, float] = {}
    if parallel == "ddp":
        found["sum of gradients"] = 2 * share * reduced
    else:  # the blocks in `dtype`, and once more for the backward pass
        blocks = sum(p.numel() for p in model.blocks.parameters())
        whole = size - 4 * blocks + 2 * blocks * dtype.itemsize
        found["gathering weights"] = share * whole * config.train.grad_accum_steps
        found["scattering gradients"] = share * reduced
    if config.optimizer.name == "muon":
        matrices = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
        once = share * matrices * muon.itemsize
        found[MUON] = once if parallel == "ddp" else 2 * once / world
    return found
