"""The command that proves exact continuation: it passes where it should, and names the first difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gpt.options import UserError
from gpt.training.run import train
from gpt.training.verify_resume import LOSSES, TENSORS, Margin, Plan, differences, read_plan, read_ranks, verify

from .conftest import MakeConfig

SPLIT = {"batch_size": 2, "grad_accum_steps": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "dropout-accumulation-muon": {"model": {"dropout": 0.2}, "train": SPLIT, "optimizer": {"name": "muon"}},
    "bf16-early-stopping": {"train": {"precision": "bf16", "early_stop_patience": 9, "eval_every": 2}},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_new_processes_continue_exactly(
    variant: str, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(make_config(**VARIANTS[variant]), Plan(9, (2, 5))) == 0
    assert "after 2, 5: the same, bit for bit" in capsys.readouterr().out


@pytest.mark.slow
def test_another_split_sees_the_same_data(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(make_config(), Plan(9, (4,), split=(1, 4))) == 0
    assert "then in 4 micro-batches of 1: the same data, losses within" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "parallel", "words"),
    [((2, 2), "fsdp", "2 processes and then 2: the same, bit for bit"), ((2, 1), "ddp", "2 processes and then 1: the")],
)
def test_other_processes_continue(
    ranks: tuple[int, int], parallel: str, words: str, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(make_config(parallel=parallel), Plan(9, (4,), ranks=ranks)) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ranks", "split", "words"),
    [("0", "", "how many processes"), ("3", "", "3 cannot share 4 sequences"), ("2", "1x4", "leave out --split")],
)
def test_processes_that_cannot_be_are_refused(ranks: str, split: str, words: str, make_config: MakeConfig) -> None:
    config = make_config()
    with pytest.raises(UserError, match=words):
        read_ranks(ranks, read_plan(9, "", split, config), config)


@pytest.fixture
def two_runs(make_config: MakeConfig, tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "other"):
        train(make_config(name, train={"max_steps": 4}))
    return tmp_path / "one", tmp_path / "other"


def test_equal_runs_do_not_differ(two_runs: tuple[Path, Path]) -> None:
    assert not list(differences(*two_runs, Margin()))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model.safetensors", "model.norm.weight"),
        ("trainer/optimizer.safetensors", "norm.weight/exp_avg"),
        ("trainer/random.safetensors", "cpu"),
    ],
)
def test_the_first_difference_is_named(file: str, name: str, two_runs: tuple[Path, Path]) -> None:
    path = two_runs[1] / "checkpoints/step-00000004" / file
    tensors = load_file(path)
    tensors[name].view(-1)[0] += 2
    save_file(tensors, path)
    found = list(differences(*two_runs, Margin()))
    assert found[0] == f"step-00000004/{file}: {name} differs in 1 of {tensors[name].numel():,} numbers, by at most 2"
    assert bool(list(differences(*two_runs, Margin(LOSSES, TENSORS)))) == (name == "model.norm.weight" or "exp" in name)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [('"sequences": 16', '"sequences": 20', "sequences is 16 and 20"), ('"step": 4', '"step": 5', "step is 4 and 5")],
)
def test_a_difference_of_the_state_is_named(old: str, new: str, words: str, two_runs: tuple[Path, Path]) -> None:
    path = two_runs[1] / "checkpoints/step-00000004/trainer/state.json"
    path.write_text(path.read_text().replace(old, new, 1))
    assert words in next(differences(*two_runs, Margin()))


def test_a_difference_of_a_step_is_named(two_runs: tuple[Path, Path]) -> None:
    path = two_runs[1] / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:1], lines[1].replace('"train/loss": ', '"train/loss": 1'), *lines[2:]]))
    assert next(differences(*two_runs, Margin(LOSSES, TENSORS))).startswith("step 2: train/loss is ")
    path.write_text("".join(lines[1:]))
    assert next(differences(*two_runs, Margin())) == "metrics.jsonl: the steps differ"


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ((20, "", ""), "--steps 20: is more than train.max_steps=12"),
        ((8, "x", ""), "--stops x: is no list of steps"),
        ((8, "0", ""), "--stops 0: must lie between 0 and --steps 8"),
        ((8, "3,8", ""), "--stops 3,8: must lie between 0 and --steps 8"),
        ((8, "", "2"), "--split 2: write"),
        ((8, "", "2x3"), "--split 2x3: must make the 4 sequences of an update"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan: tuple[int, str, str], words: str, make_config: MakeConfig) -> None:
    with pytest.raises(UserError) as caught:
        read_plan(*plan, make_config())
    assert str(caught.value).startswith(words)
