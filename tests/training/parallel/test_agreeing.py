"""What processes agree on, and how a failure of one becomes known to all."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist

from gpt.config import RunConfig
from gpt.options import UserError
from gpt.training import run
from gpt.training.parallel import ranks as ranks_module
from gpt.training.parallel.ranks import Elsewhere, Failed, Group, Told, join
from gpt.training.parallel.watch import Peer, process_state
from gpt.training.run import train
from gpt.training.saving import WholeSaving
from gpt.training.trainer import Trainer
from tests.training.conftest import MakeConfig
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


def leaving_without_a_word_to_the_phase() -> str:
    """Rank 1 fails outside of any phase, and its connections stay: what it left word of ends the others' waiting."""
    ranks = join(torch.device("cpu"))
    assert isinstance(ranks, Group)
    if ranks.rank == 1:
        ranks.notice(RuntimeError("out of luck"))
        ranks.notice(RuntimeError("and again"))  # as the same error comes by
    return why_the_others_fail(ranks)


def gone_in_silence() -> str:
    """Rank 1 is killed, or a process in its stead, while the others wait in the store, where no connection tells."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    if os.environ["RANK"] == "1":
        here = replace(Peer.here(), pid=child.pid, started=process_state(child.pid)[1])
        Peer.here = lambda: here  # type: ignore[method-assign]
    ranks = join(torch.device("cpu"))
    assert isinstance(ranks, Group)
    child.kill()
    return why_the_others_fail(ranks)


def why_the_others_fail(ranks: Group) -> str:
    """What each says where rank 1 takes no part in a phase, and its connections stay."""
    try:
        if ranks.rank == 1:
            ranks.store.wait(["seen/0", "seen/2"], timedelta(seconds=60))
            return ""
        with ranks.agreeing():
            pass
    except Failed as error:
        ranks.notice(error)
        why = ranks.why_lost()
        ranks.store.set(f"seen/{ranks.rank}", "")
        return why
    finally:
        ranks.part()
    return "agreed"


def test_a_word_of_failure_ends_the_waiting_of_others(together: Together) -> None:
    """And one of them passes it on."""
    assert sorted(together(3, leaving_without_a_word_to_the_phase)) == ["", "", "rank 1 failed: out of luck"]


def test_a_process_that_is_gone_ends_the_waiting_of_others(together: Together) -> None:
    found = "".join(together(3, gone_in_silence))
    assert re.fullmatch(r"rank 1 \(process \d+ on .*\) no longer answers", found)


def keeper_gone() -> str:
    """Rank 0, which keeps the store, ends without a word while the others look there."""
    ranks = join(torch.device("cpu"))
    assert isinstance(ranks, Group)
    if ranks.main:
        ranks.store.wait(["ready/1", "ready/2"])
        time.sleep(1)
        return ""
    ranks.store.set(f"ready/{ranks.rank}", "")
    try:
        with ranks.agreeing():
            pass
    except RuntimeError as error:
        ranks.notice(error)
        return ranks.why_lost()
    return "agreed"


def test_without_the_store_one_process_says_so(together: Together) -> None:
    found = together(3, keeper_gone)
    said = r"contact is lost with the others, and with the store that rank 0 \(process \d+ on .*\) keeps for them"
    assert re.fullmatch(said, found[1])
    assert found[2] == ""


def own_error_and_an_alarm() -> str:
    """Rank 1's own mistake is waiting for its verdict when rank 0 fails outside of the phase."""
    ranks = join(torch.device("cpu"))
    if ranks.main:
        time.sleep(1)
        ranks.notice(RuntimeError("out of luck"))
        time.sleep(2)
        return ""
    try:
        with ranks.agreeing():
            raise UserError("a mistake")
    except UserError as error:
        return str(error)


def test_an_alarm_does_not_hide_an_own_error(together: Together) -> None:
    assert together(2, own_error_and_an_alarm) == ["", "a mistake"]


def test_who_ends_because_of_another_leaves_word() -> None:
    alone = object.__new__(Group)
    alone.rank, alone.noticed = 3, False
    alone.watch = SimpleNamespace(note=lambda *words: noted.append(words))  # type: ignore[assignment]
    noted: list[tuple[object, ...]] = []
    alone.notice(Elsewhere(2))
    assert [words[:2] for words in noted] == [(3, "left")]


def failing_at_last() -> str:
    """Rank 0, which keeps the store, fails while the others look there only now and then."""
    ranks_module.LONGEST_PAUSE = 2.0
    ranks = join(torch.device("cpu"))
    try:
        with ranks.agreeing():
            if ranks.main:
                time.sleep(2.5)  # the others look after 2 s and after 4
                raise UserError("wrong")
    except (UserError, Elsewhere) as error:
        return type(error).__name__
    finally:
        dist.destroy_process_group()
    return ""


def test_who_keeps_the_store_leaves_last(together: Together) -> None:
    assert together(3, failing_at_last) == ["UserError", "Elsewhere", "Elsewhere"]


@pytest.mark.parametrize(
    ("error", "of_this_process"),
    [
        (OSError(errno.ETIMEDOUT, "Connection timed out"), True),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), True),
        (TimeoutError("The read operation timed out"), True),
        (torch.OutOfMemoryError("NCCL: out of memory"), True),
        (RuntimeError("no such file: igloo.safetensors"), True),
        (RuntimeError("Connection closed by peer [127.0.0.1]:4711"), False),
        (dist.DistNetworkError("Failed to recv, got 0 bytes"), False),
    ],
)
def test_what_is_wrong_with_a_file_is_not_blamed_on_another_process(error: Exception, of_this_process: bool) -> None:
    assert object.__new__(Group).means_loss(error) != of_this_process


def on_own_files(config: RunConfig, folder: Path) -> str:
    """As on two hosts that share no disk, but the run's folder."""
    own = folder / os.environ["RANK"]
    data = replace(config.data, files=(str(own / "text.txt"),), prepared_dir=str(own / "prepared"))
    try:
        train(replace(config, data=data))
    except UserError as error:
        return str(error)
    return "trained"


@pytest.mark.slow
def test_different_text_is_refused(make_config: MakeConfig, together: Together, tmp_path: Path) -> None:
    for rank, text in enumerate(("leaf and branch " * 99, "leaf and root " * 99)):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "text.txt").write_text(text)
    found = together(2, on_own_files, make_config(), tmp_path)
    assert "of rank 1 differs from that of rank 0" in found[1] + found[0]


def told(status: int) -> NoReturn:
    """In the place of leaving at once, with which the test would learn nothing."""
    raise Told(status)


def out_of_memory_in_one(config: RunConfig) -> int:
    """Rank 1 cannot have the memory for its third update."""
    update = Trainer.update

    def breaking(trainer: Trainer) -> object:
        if trainer.ranks.rank == 1 and trainer.state.step == 2:
            raise torch.OutOfMemoryError("out of memory")
        return update(trainer)

    Trainer.update = breaking  # type: ignore[method-assign, assignment]
    run.explain = lambda error, trainer: "explained"
    run.leave_at_once = told
    return train(config)


@pytest.mark.slow
def test_out_of_memory_in_one_ends_all_at_once(make_config: MakeConfig, together: Together) -> None:
    """`together` does not wait for as long as a collective would."""
    assert together(2, out_of_memory_in_one, make_config()) == [1, 1]


def slow_disk(config: RunConfig, behind: bool) -> int:
    """The others' patience in the middle of training is shorter than rank 0 takes to write a checkpoint."""
    ranks_module.TIMEOUT = timedelta(seconds=20)
    publish = WholeSaving.publish

    def slowly(self: WholeSaving, snapshot: object) -> None:
        time.sleep(24)
        publish(self, snapshot)  # type: ignore[arg-type]

    WholeSaving.publish = slowly  # type: ignore[method-assign, assignment]
    return train(replace(config, train=replace(config.train, async_save=behind)))


@pytest.mark.slow
@pytest.mark.parametrize("behind", [False, True])
def test_others_wait_for_a_checkpoint_as_long_as_it_takes(
    behind: bool, make_config: MakeConfig, together: Together
) -> None:
    config = make_config(train={"max_steps": 6, "eval_every": 2})
    assert together(2, slow_disk, config, behind) == [0, 0]
