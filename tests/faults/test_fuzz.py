"""A short fuzzing of every target, always with the same inputs; `python -m tests.faults.fuzz` is the long one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from gpt.options import UserError
from tests.faults.fuzz import Hang, Turn, check, in_child, run_examples, take_turn
from tests.faults.fuzz_targets import Target, targets
from tests.faults.lab import make_stock

EXAMPLES = 12


@pytest.fixture(scope="module")
def every_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "stock").mkdir()
    stock = make_stock(folder / "stock")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stock)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield {target.name: target for target in targets(stock, folder / "scratch")}


def fuzz(target: Target, examples: int) -> Turn:
    turn = Turn()
    run_examples(target, turn, examples, None)
    return turn


def test_every_target_takes_a_few_inputs(every_target: dict[str, Target]) -> None:
    assert len(every_target) >= 18
    for target in every_target.values():
        assert fuzz(target, EXAMPLES).executions >= EXAMPLES // 2


@pytest.mark.slow
def test_every_target_takes_many_inputs(every_target: dict[str, Target]) -> None:
    for target in every_target.values():
        turn = fuzz(target, 100)
        assert turn.refused or target.name == "lists of names", f"{target.name} refuses nothing"


def wrong(value: int) -> None:
    if value > 3:
        raise KeyError(value)


def refused(value: int) -> None:
    raise UserError("no")


def endless(value: int) -> None:
    while True:
        pass


def test_a_wrong_exception_is_found(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fuzz(Target("x", st.integers(0, 99), wrong), 50)
    assert (
        fuzz(Target("x", st.integers(0, 99), refused), 5).refused == fuzz(Target("x", st.just(1), wrong), 1).refused + 5
    )


def test_an_endless_reader_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.fuzz.SECONDS", 0.05)
    with pytest.raises(Hang):
        fuzz(Target("x", st.just(1), endless), 1)


def test_a_process_that_dies_is_found(tmp_path: Path) -> None:
    last = tmp_path / "last"

    def die(value: int) -> None:
        os._exit(9)

    def work() -> Turn:
        turn = Turn()
        check(Target("x", st.just(7), die), 7, turn, last)
        return turn

    (failure,) = in_child(work, last).failures
    assert "died" in failure
    assert failure.endswith("on 7")
    assert take_turn(Target("x", st.integers(0, 99), wrong), 1.0, last).failures[0].startswith("test_fuzz.py")
