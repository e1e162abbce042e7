"""Weak sets of which several threads are at work, and what relies on them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from weakref import WeakSet

import pytest

from emberfs.proto.drivers.threads import Threads
from emberfs.proto.weakly import living

ROUNDS = 300


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Item:
    """May be referred to weakly."""


@pytest.mark.usefixtures("switching")
def test_all_that_lives_while_other_threads_add() -> None:
    found: WeakSet[Item] = WeakSet()
    kept = [Item() for _ in range(200)]
    for item in kept:
        found.add(item)
    stop = threading.Event()

    def add() -> None:
        while not stop.is_set():
            added = [Item() for _ in range(100)]
            for item in added:
                found.add(item)

    thread = threading.Thread(target=add)
    thread.start()
    try:
        for _ in range(ROUNDS):
            assert set(kept) <= set(living(found))
    finally:
        stop.set()
        thread.join()


@pytest.mark.usefixtures("switching")
def test_who_waits_hears_of_the_end_whatever_other_threads_begin() -> None:
    for _ in range(ROUNDS // 10):
        threads = Threads()
        promises = [threads.promise() for _ in range(200)]
        stop, begun = threading.Event(), threading.Event()

        def add(threads: Threads = threads, stop: threading.Event = stop, begun: threading.Event = begun) -> None:
            while not stop.is_set():
                _kept = [threads.promise() for _ in range(50)]
                begun.set()

        thread = threading.Thread(target=add)
        thread.start()
        try:
            assert begun.wait(60)
            threads._say_closing()
        finally:
            stop.set()
            thread.join()
        assert all(promise.done for promise in promises)
