"""Operations are tasks to all that asyncio offers, and begin at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from emberfs.fuse.operation import Operation

SECONDS_MAX = 60.0

Body = Callable[[], Coroutine[Any, Any, Any]]


def run(body: Body, meddle: Callable[[Operation], None] = lambda operation: None) -> Operation:
    """One operation to its end, begun as the session begins them: from a callback, where no task is running."""

    async def main() -> Operation:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[Operation] = loop.create_future()

        def start() -> None:
            assert asyncio.current_task() is None
            operation = Operation(loop, None, body(), over.set_result)
            if not operation.step():
                meddle(operation)
            assert asyncio.current_task() is None

        loop.call_soon(start)
        return await asyncio.wait_for(over, SECONDS_MAX)

    return asyncio.run(main())


def test_what_need_not_wait_is_done_in_the_first_step() -> None:
    async def body() -> str:
        return "done"

    waited: list[Operation] = []
    operation = run(body, waited.append)
    assert (operation.result, operation.failure) == ("done", None)
    assert waited == []


def _waits() -> list[Body]:
    async def yields() -> int:
        await asyncio.sleep(0)
        return 7

    async def sleeps() -> int:
        await asyncio.sleep(0.001)
        return 7

    async def locks() -> int:
        lock = asyncio.Lock()
        async with lock:
            await asyncio.sleep(0)
        return 7

    async def waits_for() -> int:
        return await asyncio.wait_for(asyncio.sleep(0.001, 7), SECONDS_MAX)

    async def has_a_deadline() -> int:
        async with asyncio.timeout(SECONDS_MAX):
            await asyncio.sleep(0.001)
        return 7

    async def misses_a_deadline() -> int:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(SECONDS_MAX)
        await asyncio.sleep(0)
        return 7

    async def has_children() -> int:
        async with asyncio.TaskGroup() as group:
            one = group.create_task(asyncio.sleep(0.001, 3))
            two = group.create_task(asyncio.sleep(0, 4))
        return one.result() + two.result()

    async def gathers() -> int:
        return sum(await asyncio.gather(asyncio.sleep(0, 3), asyncio.sleep(0.001, 4)))

    async def knows_itself() -> int:
        before = asyncio.current_task()
        await asyncio.sleep(0)
        assert isinstance(before, Operation)
        assert asyncio.current_task() is before
        return 7

    return [yields, sleeps, locks, waits_for, has_a_deadline, misses_a_deadline, has_children, gathers, knows_itself]


@pytest.mark.parametrize("body", _waits(), ids=lambda body: body.__name__)
def test_it_is_a_task_to_whatever_it_runs(body: Body) -> None:
    operation = run(body)
    assert (operation.failure, operation.result) == (None, 7)


def _cancel(operation: Operation) -> None:
    operation.cancel()


def test_a_failure_is_kept() -> None:
    async def body() -> None:
        await asyncio.sleep(0)
        raise KeyError("gone")

    assert isinstance(run(body).failure, KeyError)


@pytest.mark.parametrize("waiting", [True, False], ids=["while it waits", "between two turns"])
def test_a_cancellation_arrives_where_it_waits(waiting: bool) -> None:
    cleaned = []

    async def body() -> None:
        loop = asyncio.get_running_loop()
        try:
            await (loop.create_future() if waiting else asyncio.sleep(0))
            await loop.create_future()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # cleaning up may take its time
            cleaned.append(True)
            raise

    operation = run(body, _cancel)
    assert isinstance(operation.failure, asyncio.CancelledError)
    assert cleaned == [True]


def test_a_cancellation_may_be_taken_as_an_answer() -> None:
    async def body() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return "half of it"
        return "all"

    assert run(body, _cancel).result == "half of it"
