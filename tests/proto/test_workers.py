"""Threads for what blocks."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from emberfs.proto.drivers.workers import Workers

WAIT_SECONDS = 60.0


def _ended(name: str) -> bool:
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}-")]
    for thread in threads:
        thread.join(WAIT_SECONDS)
    return not any(thread.is_alive() for thread in threads)


async def test_results_and_failures_come_back() -> None:
    workers = Workers(2, "results")
    assert await workers.run(divmod, 7, 3) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        await workers.run(divmod, 7, 0)
    told: asyncio.Future[tuple[object, object]] = asyncio.get_running_loop().create_future()
    workers.start(lambda result, failure: told.set_result((result, failure)), int, "5")
    assert await told == (5, None)
    workers.close()
    assert await asyncio.to_thread(_ended, "results")


async def test_no_more_than_so_many_at_once_and_none_is_forgotten() -> None:
    workers, lock, at_work, most, done = Workers(3, "many"), threading.Lock(), 0, 0, []

    def work(number: int) -> int:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        sum(range(number * 500))  # long enough for threads to change places now and then
        with lock:
            at_work -= 1
            done.append(number)
        return number

    for _ in range(50):  # all idle threads go to sleep in between, at any moment
        numbers = range(random.randrange(1, 20))
        assert await asyncio.gather(*(workers.run(work, number) for number in numbers)) == list(numbers)
    assert 1 <= most <= 3
    workers.close()
    assert await asyncio.to_thread(_ended, "many")


async def test_a_thread_has_another_one_work_beside_it() -> None:
    workers = Workers(2, "beside")
    both = threading.Barrier(2, timeout=WAIT_SECONDS)

    def first() -> int:
        finished = workers.beside(both.wait)
        both.wait()  # the other one is at work at the same time
        with pytest.raises(KeyError):
            workers.beside({}.__getitem__, 1)()
        return int(finished() >= 0)

    assert await workers.run(first) == 1
    workers.close()


async def test_who_gives_up_stops_nothing_and_what_comes_late_is_done() -> None:
    workers, go, done = Workers(1, "late"), threading.Event(), threading.Event()

    def slow() -> None:
        go.wait(WAIT_SECONDS)
        done.set()

    waiting = workers.run(slow)
    waiting.cancel()
    workers.close()
    late = workers.run(int, "7")
    go.set()
    assert await late == 7
    assert done.is_set()
    assert await asyncio.to_thread(_ended, "late")
    assert await workers.run(int, "8") == 8
    assert await asyncio.to_thread(_ended, "late")


async def test_what_no_thread_can_be_made_for_is_never_done(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, done = Workers(2, "none"), []

    def no_start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_start)
        with pytest.raises(RuntimeError):
            workers.run(done.append, 1)
    await workers.run(done.append, 2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_start)
        await asyncio.gather(*(workers.run(done.append, number) for number in (3, 4)))  # by the one that there is
    assert done == [2, 3, 4]
    workers.close()
    assert await asyncio.to_thread(_ended, "none")


async def test_who_has_nobody_to_work_beside_him_does_it_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(2, "alone")

    def first() -> int:
        return int(workers.beside(int, "3")())

    await workers.run(int, "1")
    with monkeypatch.context() as patch:

        def no_start(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", no_start)
        assert await asyncio.wait_for(workers.run(first), WAIT_SECONDS) == 3  # there is one thread, and it waits
    workers.close()
    assert await asyncio.to_thread(_ended, "alone")
