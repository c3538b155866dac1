"""What options are called in other tools leads to ours."""

from __future__ import annotations

from typing import Any

import pytest

from gpt.arguments import Command, leaves
from gpt.config import EvaluateConfig, ExportConfig
from gpt.elsewhere import MEANINGS, OURS
from gpt.options import nearest
from tests.scripts import SAMPLE, TRAIN

EVALUATE = Command(EvaluateConfig, "evaluate", "Evaluate.")
EXPORT = Command(ExportConfig, "export", "Export.")


def names(command: Command[Any]) -> set[str]:
    return {*command.groups(), *(leaf.name for leaf in leaves(command.kind))}


@pytest.mark.parametrize(
    ("name", "command", "ours"),
    [
        ("learning_rate", TRAIN, ["optimizer.lr"]),
        ("block-size", TRAIN, ["model.context_length"]),
        ("gradient_accumulation_steps", TRAIN, ["train.grad_accum_steps"]),
        ("optim.learning_rate", TRAIN, ["optimizer.lr"]),
        ("output_dir", TRAIN, ["run_dir"]),
        ("dtype", TRAIN, ["train.precision"]),
        ("dtype", SAMPLE, ["precision"]),
        ("start", SAMPLE, ["prompt"]),
        ("max_length", SAMPLE, ["max_new_tokens"]),
        ("num_return_sequences", SAMPLE, ["num_samples"]),
        ("learning_rate", SAMPLE, []),
    ],
)
def test_names_of_other_tools_are_understood(name: str, command: Command[Any], ours: list[str]) -> None:
    assert nearest(name, sorted(names(command))) == ours


def test_they_lead_to_options_that_there_are() -> None:
    every = set.union(*(names(command) for command in (TRAIN, SAMPLE, EVALUATE, EXPORT)))
    assert set(OURS) <= every
    assert not {theirs for theirs, ours in MEANINGS if ours == theirs}
