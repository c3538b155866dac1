"""Options of a plan: the machines that a run would have."""

from __future__ import annotations

from dataclasses import dataclass

from gpt.options import Options, option


@dataclass(frozen=True)
class ClusterConfig(Options):
    """The machines that plan=true counts on."""

    gpu: str = option("", "name of the GPUs, as H100 or 'RTX 4090'; empty: this machine, as it is", free_text=True)
    gpus: int = option(1, "GPUs in all, one process for each", low=1, high=10**6)
    gpus_per_node: int = option(8, "GPUs in one machine", low=1, high=1024)
    gbits_per_second: float = option(
        100.0, "network between machines, for each GPU and direction", unit="Gbit/s", above=0
    )
    mfu: float = option(
        0.4, "share of the GPU's peak that computing reaches; the log's train/mfu tells that of a run", above=0, high=1
    )
