"""Who is named when processes lose contact."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pytest
import torch.distributed as dist

from gpt.training.parallel import watch as watch_module
from gpt.training.parallel.watch import Peer, Watch

LOST = RuntimeError("Connection closed by peer\nand more")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "ROLL_CALL", 0.2)
    monkeypatch.setattr(watch_module, "SETTLING", 0.0)


@pytest.fixture
def ended() -> int:
    """The id of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.fixture
def store() -> dist.Store:
    return dist.TCPStore("127.0.0.1", 0, 1, True, timeout=timedelta(seconds=10))


def all_of(store: dist.Store, peers: list[Peer]) -> list[Watch]:
    return [Watch(store, rank, peers) for rank in range(len(peers))]


def living(count: int, place: str = "here") -> list[Peer]:
    here = Peer.here()
    return [Peer(here.pid, f"host{rank}", place) for rank in range(count)]


def test_nothing_is_noted_of_processes_that_live(store: dist.Store) -> None:
    watches = all_of(store, living(3))
    assert not any(watch.alarmed() for watch in watches)


def test_this_process_lives_and_an_ended_one_does_not(ended: int) -> None:
    assert not Peer.here().gone()
    assert Peer(ended, "host", "").gone()


def test_a_zombie_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # to its end, which comes before that of the process
    peer = Peer(child.pid, "host", "")
    while not peer.gone():  # nobody has waited for it, so its entry stays
        pass
    assert child.wait() == 0


def test_who_is_gone_is_named_by_the_first_that_asks(store: dist.Store, ended: int) -> None:
    peers = living(4)
    peers[2] = Peer(ended, "host2", "here")
    watches = all_of(store, peers)
    assert watches[0].alarmed()
    watches[3].note_loss()
    assert watches[3].roll_call(LOST) == f"rank 2 (process {ended} on host2) no longer answers"
    assert watches[1].roll_call(LOST) == ""


def test_those_that_left_after_it_are_not_named(store: dist.Store, ended: int) -> None:
    """All three processes have ended by then, rank 1 because of rank 2."""
    peers = [living(1)[0], Peer(ended, "host1", "here"), Peer(ended, "host2", "here")]
    watches = all_of(store, peers)
    watches[1].note_loss()
    assert watches[0].roll_call(LOST) == f"rank 2 (process {ended} on host2) no longer answers"


def test_words_of_failure_are_passed_on_after_who_left_without(store: dist.Store, ended: int) -> None:
    peers = living(3)
    peers[1] = Peer(ended, "host1", "here")
    watches = all_of(store, peers)
    watches[2].note_failure(ValueError("no such luck\nat all"))
    said = f"rank 1 (process {ended} on host1) no longer answers; rank 2 failed: no such luck"
    assert watches[0].roll_call(LOST) == said


def test_another_machine_tells_who_is_gone_there(store: dist.Store, ended: int) -> None:
    peers = [*living(1), *living(2, "there")]
    peers[2] = Peer(ended, "host2", "there")
    watches = all_of(store, peers)
    assert not watches[0].alarmed()
    watches[1].note_loss()
    assert watches[0].alarmed()
    assert watches[0].roll_call(LOST) == f"rank 2 (process {ended} on host2) no longer answers"


def test_of_a_machine_that_is_silent_all_are_named(store: dist.Store) -> None:
    peers = [*living(2), *(Peer(rank, "far", "there") for rank in range(2, 15))]
    said = all_of(store, peers)[0].roll_call(LOST)
    assert "rank 1 " not in said
    assert said.startswith("rank 2 (process 2 on far) no longer answers; rank 3 ")
    assert said.endswith("rank 11 (process 11 on far) no longer answers; and 3 more")


def test_where_all_are_there_the_error_is_told(store: dist.Store) -> None:
    assert all_of(store, living(2))[0].roll_call(LOST) == "the processes lost contact: Connection closed by peer"


def test_without_a_place_nobody_is_looked_for(store: dist.Store, ended: int) -> None:
    """As where there is no /proc: a process of another machine may have the same number."""
    assert not all_of(store, [*living(1, ""), Peer(ended, "host", "")])[0].alarmed()


def test_the_first_that_is_left_speaks_for_its_machine(store: dist.Store, ended: int) -> None:
    peers = [Peer(ended, "host0", "here"), *living(2), *living(2, "there")]
    watches = all_of(store, peers)
    assert [watch.first_here() for watch in watches[1:]] == [True, False, True, False]
