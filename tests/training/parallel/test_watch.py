"""Who is named when processes lose contact."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest
import torch.distributed as dist

from gpt.training.parallel import watch as watch_module
from gpt.training.parallel.watch import Peer, Watch, process_state

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "ROLL_CALL", 0.2)


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
    return [replace(Peer.here(), host=f"host{rank}", place=place) for rank in range(count)]


def test_nothing_is_noted_of_processes_that_live(store: dist.Store) -> None:
    watches = all_of(store, living(3))
    assert not any(watch.alarmed() for watch in watches)


def test_who_is_gone(ended: int) -> None:
    here = Peer.here()
    assert not here.gone()
    assert replace(here, pid=ended).gone()
    assert replace(here, started=b"1").gone()  # another has got the number


def test_a_zombie_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    peer = Peer(child.pid, "host", "here", process_state(child.pid)[1])
    assert not peer.gone()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # which leaves its entry
    assert peer.gone()
    child.communicate()


def test_what_cannot_be_looked_at_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Peer.here()

    def exhausted(pid: int) -> tuple[bytes, bytes]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(watch_module, "process_state", exhausted)
    assert not here.gone()


def test_in_a_foreign_proc_there_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Peer.here().place
    monkeypatch.setattr(os, "getpid", lambda: 2)
    assert Peer.here() == Peer(2, Peer.here().host)


def test_who_is_gone_is_named_by_the_first_that_asks(store: dist.Store, ended: int) -> None:
    peers = living(4)
    peers[2] = Peer(ended, "host2", "here")
    watches = all_of(store, peers)
    assert watches[0].alarmed()
    watches[3].note(3, "lost", "closed")
    assert watches[3].roll_call() == f"rank 2 (process {ended} on host2) no longer answers"
    assert watches[1].roll_call() == ""


@pytest.mark.parametrize("why", ["lost", "left"])
def test_those_that_go_because_of_it_are_not_named(why: str, store: dist.Store, ended: int) -> None:
    """Ranks 1 and 2 have both ended by then."""
    peers = [living(1)[0], Peer(ended, "host1", "here"), Peer(ended, "host2", "here")]
    watches = all_of(store, peers)
    watches[1].note(1, why)
    assert watches[0].roll_call() == f"rank 2 (process {ended} on host2) no longer answers"


def test_words_of_failure_are_passed_on_after_who_left_without(store: dist.Store, ended: int) -> None:
    peers = living(3)
    peers[1] = Peer(ended, "host1", "here")
    watches = all_of(store, peers)
    watches[2].note(2, "failed", "no such luck")
    said = f"rank 1 (process {ended} on host1) no longer answers; rank 2 failed: no such luck"
    assert watches[0].roll_call() == said


def test_another_machine_tells_who_is_gone_there(store: dist.Store, ended: int) -> None:
    peers = [*living(1), *living(2, "there")]
    peers[2] = Peer(ended, "host2", "there")
    watches = all_of(store, peers)
    assert not watches[0].alarmed()
    watches[1].note_gone()
    assert watches[0].alarmed()
    assert watches[0].roll_call() == f"rank 2 (process {ended} on host2) no longer answers"


def test_who_is_silent_on_other_machines_is_named_as_such(store: dist.Store) -> None:
    peers = [*living(2), *(Peer(rank, "far", "there") for rank in range(2, 15))]
    watches = all_of(store, peers)
    for watch in watches[:2]:
        watch.note(watch.rank, "lost", "closed")
    said = watches[0].roll_call()
    assert said.startswith("nothing is heard of rank 2 (process 2 on far); nothing is heard of rank 3 ")
    assert said.endswith("rank 11 (process 11 on far); and 3 more")


def test_where_all_are_there_the_first_error_is_told(store: dist.Store) -> None:
    watches = all_of(store, living(3))
    watches[2].note(2, "lost")  # while it waited in the store
    watches[1].note(1, "lost", "Socket trouble")
    watches[0].note(0, "lost", "Connection closed by peer")
    assert watches[0].roll_call() == "the processes lost contact: Socket trouble"


def test_without_a_place_nobody_is_looked_for(store: dist.Store, ended: int) -> None:
    """As where there is no /proc: a process of another machine may have the same number."""
    assert not all_of(store, [*living(1, ""), Peer(ended, "host")])[0].alarmed()
