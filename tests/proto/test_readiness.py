"""Looking before sleeping: what is found, and when one stops to look. Nothing here depends on how fast anything is."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from emberfs.proto.transport import readiness
from emberfs.proto.transport.readiness import WAITS_SKIPPED_MAX, Idleness, Luck, Readiness


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})


def looks(luck: Luck, waits: int, found: bool) -> int:
    """How many of so many waits begin with a look, if each look goes the same way."""
    count = 0
    for _ in range(waits):
        if luck.may_look():
            luck.looked(found)
            count += 1
    return count


def test_looks_in_vain_become_rare_and_lucky_ones_frequent(cpus: None) -> None:
    luck = Luck()
    assert looks(luck, 100, found=True) == 100
    assert looks(luck, 10_000, found=False) < 10_000 // WAITS_SKIPPED_MAX + 10
    looks(luck, 4 * WAITS_SKIPPED_MAX, found=True)
    assert looks(luck, 100, found=True) == 100
    luck.looked(found=False)
    assert looks(luck, 3, found=True) == 2  # one look in vain costs one wait


def test_nobody_looks_where_there_is_one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3})
    assert looks(Luck(), 1000, found=True) == 0


@pytest.mark.parametrize("look_seconds", [0.0, 5.0])
def test_bytes_and_the_end_are_found_by_looking_and_by_sleeping(
    pair: tuple[socket.socket, socket.socket], cpus: None, monkeypatch: pytest.MonkeyPatch, look_seconds: float
) -> None:
    monkeypatch.setattr(readiness, "LOOK_SECONDS_MAX", look_seconds)
    ours, theirs = pair
    ready = Readiness(ours)
    for act in (lambda: theirs.send(b"x"), lambda: theirs.shutdown(socket.SHUT_WR)):
        thread = threading.Thread(target=act)
        thread.start()
        assert ready.wait(30.0)
        thread.join()
        assert len(ours.recv(10)) <= 1


def test_time_is_up(pair: tuple[socket.socket, socket.socket]) -> None:
    ready = Readiness(pair[0])
    for _ in range(3):
        assert not ready.wait(0.001)
    assert not ready.wait(-1.0)
    pair[1].send(b"x")
    assert ready.wait(-1.0)


@pytest.mark.parametrize("naps", [0, 3, 1 << 40])
def test_who_is_patient_finds_bytes_and_the_end(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, naps: int
) -> None:
    monkeypatch.setattr(readiness, "NAPS_MAX", naps)
    monkeypatch.setattr(readiness, "NAP_SECONDS", 1e-12)
    ours, theirs = pair
    ready = Readiness(ours)
    for act in (lambda: theirs.send(b"x"), lambda: theirs.shutdown(socket.SHUT_WR)):
        thread = threading.Thread(target=act)
        thread.start()
        assert ready.wait(60.0, patient=True)
        thread.join()
        assert len(ours.recv(10)) <= 1


def test_the_time_of_who_is_patient_is_up_too(pair: tuple[socket.socket, socket.socket]) -> None:
    ready = Readiness(pair[0])
    for seconds in (-1.0, 0.0, 0.001):
        assert not ready.wait(seconds, patient=True)


def test_one_thread_of_a_process_looks(
    pair: tuple[socket.socket, socket.socket], cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not(_poll: object, _luck: object) -> bool:
        raise AssertionError("a second thread looks")

    ready = Readiness(pair[0])
    monkeypatch.setattr(readiness, "_looking", [1])
    monkeypatch.setattr(readiness, "_look", must_not)
    assert not ready.wait(0.001)


def test_a_server_looks_at_all_its_sockets_and_forgets_those_that_are_closed(
    pair: tuple[socket.socket, socket.socket], cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "LOOK_SECONDS_MAX", 0.0)
    other, far = socket.socketpair()
    idleness = Idleness()
    found: list[bool] = []
    look = readiness._look
    monkeypatch.setattr(readiness, "_look", lambda poll, luck: found.append(look(poll, luck)))
    monkeypatch.setattr(Luck, "may_look", lambda _self: True)
    idleness.watch(pair[0])
    idleness.watch(other)
    idleness.begin()
    far.send(b"x")
    idleness.begin()
    other.close()
    idleness.begin()
    far.close()
    idleness.close()
    assert found == [False, True, False]


def test_to_find_something_is_no_luck_for_who_had_to_let_others_work(
    cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_worked", lambda: 7.0)
    luck = Luck()
    assert readiness._look(lambda: True, luck)
    assert not luck.may_look()
