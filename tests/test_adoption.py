"""Choices that follow from options, and values that a command adopts from elsewhere before they are judged."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt.arguments import Implication, choices_of
from gpt.cli import Command, main
from gpt.composition import load_config
from gpt.config import RunConfig
from gpt.options import UserError

from .scripts import ROOT, empty_folder
from .test_cli import mistakes, train

__all__ = ["empty_folder"]  # a fixture

TUNE = Command(
    RunConfig,
    "train",
    "Train.",
    implications=(Implication("lora.rank", "experiment", "lora"), Implication("init_from", "experiment", "finetune")),
)


@pytest.mark.parametrize(
    ("argv", "lr"),
    [
        (["init_from=gpt2"], 5e-5),
        (["init_from=gpt2", "lora.rank=8"], 5e-4),
        (["init_from=gpt2", "lora.rank=0"], 5e-5),
        (["init_from=gpt2", "optimizer.lr=1e-5"], 1e-5),
        (["init_from=gpt2", "experiment=null"], 0.015),
        (["init_from=gpt2", "experiment=lora"], 5e-4),
        (["init_from=gpt2", "optimizer=muon"], 5e-5),
        ([], 0.015),
    ],
)
def test_fine_tuning_has_its_own_defaults(argv: list[str], lr: float) -> None:
    assert load_config(TUNE, argv).optimizer.lr == lr


def test_a_choice_that_follows_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(TUNE, lambda config: 0, ["init_from=gpt2"]) == 0
    assert "experiment=finetune follows from the other options" in capsys.readouterr().err
    assert main(TUNE, lambda config: 0, ["init_from=gpt2", "experiment=finetune"]) == 0
    assert capsys.readouterr().err == ""


def test_adoption_sees_what_was_given_and_its_values_count() -> None:
    seen: set[str] = set()

    def adopt(values: dict[str, Any], given: set[str]) -> None:
        seen.update(given)
        values["model"]["n_layer"] = 9

    command = Command(RunConfig, "train", "Train.", adopt=adopt)
    config = load_config(
        command, ["experiment=shakespeare_char_cpu", "schedule=wsd", "train.max_steps=300", "run_dir=x"]
    )
    assert config.model.n_layer == 9
    assert {"experiment", "schedule", "schedule.name", "train.max_steps", "run_dir"} <= seen
    assert {"data", "tokenizer", "model.n_embd", "optimizer.lr"} <= seen  # by the experiment
    assert not {"model", "model.dropout", "optimizer", "data.files", "seed"} & seen


def test_only_groups_without_a_default_take_null() -> None:
    assert train("experiment=null") == train()
    assert "model=null: is not one of" in mistakes("model=null")[0]


@pytest.mark.parametrize("group", ["data", "tokenizer", "schedule"])
def test_the_files_of_a_group_only_name_it(group: str) -> None:
    """The command on a model card gives a choice and what differs from our defaults; more would need spelling out."""
    for choice in choices_of(group):
        content = yaml.safe_load((ROOT / "configs" / group / f"{choice}.yaml").read_text(encoding="utf-8"))
        assert content in (None, {"name": choice})


@pytest.mark.parametrize(
    "init_from", ["a" * 300, "~nobodyhere/x", "sealed/model"], ids=["too long", "no such user", "unreadable"]
)
def test_a_path_that_fails_before_there_is_a_configuration(
    init_from: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def adopt(values: dict[str, Any], given: set[str]) -> None:
        path = Path(values["init_from"]).expanduser()
        if path.parts[0] == "sealed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path / "config.json"))
        (path / "config.json").open()

    command = Command(RunConfig, "train", "Train.", adopt=adopt)
    assert main(command, lambda config: 0, [f"init_from={init_from}"]) == 2
    said = capsys.readouterr().err
    assert init_from[:40] in said or "~" in said
    assert said.count("\n") == 1


def test_what_adoption_refuses_is_listed_with_the_other_mistakes() -> None:
    def adopt(values: dict[str, Any], given: set[str]) -> None:
        raise UserError("init_from=nowhere: there is no such folder")

    command = Command(RunConfig, "train", "Train.", adopt=adopt)
    found = mistakes("init_from=nowhere", "train.max_steps=abc", command=command)
    assert found[0] == "init_from=nowhere: there is no such folder"
    assert found[1].startswith("train.max_steps=abc: ")
