"""What processes agree on, and how a failure of one becomes known to all."""

from __future__ import annotations

import torch

from gpt.options import UserError
from gpt.training.parallel.ranks import Elsewhere, join
from tests.training.parallel.conftest import Together


def failing_within() -> str:
    """Rank 0 fails in a phase that is part of another: the others know then, and wait for no second word."""
    ranks = join(torch.device("cpu"))

    def fail() -> None:
        raise UserError("wrong")

    try:
        with ranks.agreeing():
            ranks.from_main(fail)
    except (UserError, Elsewhere) as error:
        return type(error).__name__
    return ""


def test_a_failure_in_a_phase_within_another_is_told_once(together: Together) -> None:
    assert together(3, failing_within) == ["UserError", "Elsewhere", "Elsewhere"]
