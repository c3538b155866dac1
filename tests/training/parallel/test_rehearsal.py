"""What a plan rehearses with processes that do nothing, against processes that train."""

from __future__ import annotations

from typing import Any

import pytest

from gpt.config import RunConfig
from gpt.training.planner import Planner
from gpt.training.rehearsal import LiveBytes
from gpt.training.run import train
from gpt.training.trainer import Trainer
from tests.training.conftest import MakeConfig
from tests.training.parallel.conftest import Together


def measured(config: RunConfig) -> tuple[int, int, int]:
    """In one of the processes: bytes of its weights, of its optimizer state, and of all else at the peak of its third
    update."""
    found: list[tuple[int, int, int]] = []
    plain = Trainer.update

    def watched(self: Trainer) -> Any:
        if self.state.step < 2:
            return plain(self)
        with LiveBytes() as live:
            result = plain(self)
        own = self.parallel.layout.own
        state = self.optimizers.state_tensors().values()
        found.append(
            (sum(own(p).nbytes for p in self.model.parameters()), sum(tensor.nbytes for tensor in state), live.peak)
        )
        return result

    Trainer.update = watched  # type: ignore[method-assign]
    assert train(config) == 0
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "count", "precision", "recomputed"),
    [("muon", 1, "bf16", False), ("adamw", 2, "fp32", False), ("muon", 2, "fp32", True)],
)
def test_shards_take_what_was_rehearsed(
    optimizer: str, count: int, precision: str, recomputed: bool, make_config: MakeConfig, together: Together
) -> None:
    config = make_config(
        parallel="fsdp", optimizer={"name": optimizer}, model={"n_embd": 128, "n_layer": 3, "context_length": 64},
        train={"max_steps": 3, "batch_size": 8, "grad_accum_steps": count, "precision": precision,
               "activation_checkpointing": recomputed, "eval_every": 3},
    )  # fmt: skip
    weights, state, peak = together(2, measured, config)[0]
    planned = Planner(config).rehearse(config, 2, "fsdp")
    assert (planned.weights, planned.optimizer) == (weights, state)
    assert planned.step == pytest.approx(peak, rel=0.03)
