"""A loop that stays awake for a moment after each event, as long as that pays."""

from __future__ import annotations

import asyncio
import os

import pytest

from emberfs.fuse.wakeful import Wakeful
from emberfs.proto.transport.readiness import LOOK_SECONDS_MAX, WAITS_SKIPPED_MAX

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one processor nobody looks")


class Time:
    """That goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.worked = 1.0  # processor time of this thread

    def passes(self, looks: float, share: float = 1.0) -> None:
        """So much of the time that a look takes at most; for this share of it the thread was at work."""
        self.now += looks * LOOK_SECONDS_MAX
        self.worked += looks * LOOK_SECONDS_MAX * share


@pytest.fixture
def time() -> Time:
    return Time()


def made(time: Time) -> Wakeful:
    return Wakeful(asyncio.get_running_loop(), lambda: time.now, lambda: time.worked)


async def turn() -> None:
    """One turn of the loop: what was to be called soon has been."""
    await asyncio.sleep(0)


async def test_it_stays_awake_until_the_moment_is_over(time: Time) -> None:
    wakeful = made(time)
    wakeful.event()
    for _ in range(10):
        await turn()
        assert wakeful.awake
    time.passes(1.1)
    await turn()
    assert not wakeful.awake
    assert (wakeful.looks, wakeful.lucky) == (1, 0)


async def test_what_comes_meanwhile_begins_the_moment_anew(time: Time) -> None:
    wakeful = made(time)
    for _ in range(100):
        wakeful.event()
        await turn()
        time.passes(0.9)
        await turn()
        assert wakeful.awake
    assert (wakeful.looks, wakeful.lucky) == (99, 99)


async def test_where_it_finds_nothing_it_looks_ever_more_rarely(time: Time) -> None:
    wakeful = made(time)
    events = 10 * (WAITS_SKIPPED_MAX + 1)
    for _ in range(events):
        wakeful.event()
        await turn()
        time.passes(1.1)
        await turn()
        assert not wakeful.awake
    assert wakeful.looks < 20
    found = wakeful.looks
    for _ in range(events):  # it comes back to it when that pays
        wakeful.event()
        await turn()
        time.passes(0.1)
    assert wakeful.looks - found > events // 2


async def test_who_was_put_aside_stood_in_the_way(time: Time) -> None:
    wakeful = made(time)
    for _ in range(100):
        wakeful.event()
        await turn()
        time.passes(0.9, share=0.2)
    assert not wakeful.lucky
    assert wakeful.looks < 20


async def test_by_the_real_clocks_a_loop_sleeps_again() -> None:
    wakeful = Wakeful(asyncio.get_running_loop())
    wakeful.event()
    while wakeful.awake:
        await turn()
    assert wakeful.looks == 1
