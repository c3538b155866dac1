"""Every bad input is refused as promised, every odd one taken."""

from __future__ import annotations

import time
import zlib
from pathlib import Path

import pytest

from tests.faults.bad_inputs import Case, Fine, all_cases
from tests.faults.fine_inputs import FINE
from tests.faults.lab import Outcome, attempt, copy_of, make_stock

CASES = all_cases()
SECONDS = 10  # of the processor, torch's import included


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stock(tmp_path_factory.mktemp("stock"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def chosen(case: Case | Fine) -> object:
    """A third of the cases, always the same, is for every day; CI runs all."""
    slow = case.slow or zlib.crc32(case.name.encode()) % 3
    return pytest.param(case, id=f"{case.command}: {case.name}", marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("case", [chosen(case) for case in CASES])
def test_bad_input_is_refused(case: Case, stock: Path, tmp_path: Path) -> None:
    folder = copy_of(stock, tmp_path / "case")
    if case.spoil:
        case.spoil(folder)
    started = time.process_time()
    outcome = attempt(case.command, case.argv, folder)
    assert case.faults(outcome) == [], outcome.said
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("case", [chosen(case) for case in FINE])
def test_odd_input_is_taken(case: Fine, stock: Path, tmp_path: Path) -> None:
    folder = copy_of(stock, tmp_path / "case")
    if case.spoil:
        case.spoil(folder)
    started = time.process_time()
    outcome = attempt(case.command, case.argv, folder)
    assert outcome.status == 0, outcome.said
    assert time.process_time() - started < SECONDS
    assert case.right(folder, outcome), outcome


def test_there_are_enough_cases_and_none_twice() -> None:
    assert len(CASES) >= 300
    assert len({(case.command, case.name) for case in CASES}) == len(CASES)
    assert len({(case.command, case.arguments, id(case.spoil)) for case in CASES}) == len(CASES)


def test_a_fault_is_seen() -> None:
    case = Case("x", "train", (), ("seed=x",))
    good = Outcome(2, "", "train.py: seed=x: no", "", ())
    assert case.faults(good) == []
    for bad in (
        Outcome(1, "", "train.py: seed=x", "", ()),
        Outcome(2, "", "train.py: x", "", ()),
        Outcome(2, "", "train.py: seed=x\ntrain.py: seed=x", "", ()),
        Outcome(2, "out", "train.py: seed=x", "", ()),
        Outcome(2, "", "train.py: seed=x", "", ("run",)),
        Outcome(None, "", "", "Traceback\nValueError: seed=x", ()),
    ):
        assert len(case.faults(bad)) == 1
