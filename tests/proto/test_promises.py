"""Promises: one rule for all drivers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.drivers.blocking import BlockingEnvironment
from emberfs.proto.env import drive
from emberfs.proto.errors import Status, StatusError, error
from tests.sim.environment import Simulation

Story = Callable[[Any], Any]


def run_aio(story: Story) -> None:
    async def run() -> None:
        env = AioEnvironment()
        await story(env)
        await env.close()

    asyncio.run(run())


def run_blocking(story: Story) -> None:
    env = BlockingEnvironment()
    drive(story(env))
    env.close()


def run_simulated(story: Story) -> None:
    simulation = Simulation(1)
    simulation.run(story(simulation.environment(simulation.host("h"))))


@pytest.mark.parametrize("run", [run_aio, run_blocking, run_simulated])
def test_the_first_word_counts_for_whoever_asks_before_or_after(run: Callable[[Story], None]) -> None:
    heard = []

    async def story(env: Any) -> None:
        promise, told = env.promise(), [env.promise(), env.promise()]

        async def waiter(mine: Any) -> None:
            heard.append(await promise)
            mine.set(None)

        for mine in told:
            env.spawn(lambda mine=mine: waiter(mine), "waiter")
        await env.sleep(0.01)
        assert not promise.done
        promise.set(1)
        promise.set(2)
        promise.fail(error(Status.CANCELLED, "too late"))
        for mine in told:
            await mine
        assert promise.done
        assert await promise == 1

    run(story)
    assert heard == [1, 1]


@pytest.mark.parametrize("run", [run_aio, run_blocking, run_simulated])
def test_a_failure_is_raised_at_every_waiter(run: Callable[[Story], None]) -> None:
    async def story(env: Any) -> None:
        promise = env.promise()
        promise.fail(error(Status.TARGET_OFFLINE, "the disk is gone"))
        for _ in range(2):
            with pytest.raises(StatusError, match="the disk is gone"):
                await promise

    run(story)


def test_asyncio_a_waiter_that_is_cancelled_takes_nothing_from_the_others() -> None:
    async def story(env: Any) -> None:
        promise = env.promise()

        async def wait() -> Any:
            return await promise

        first, second = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        promise.set("news")
        assert await second == "news"
        assert first.cancelled()

    run_aio(story)


def test_blocking_waiters_are_let_go_when_the_environment_closes() -> None:
    env = BlockingEnvironment()
    promise, raised = env.promise(), []

    async def wait() -> None:
        await promise

    def waiter() -> None:
        try:
            drive(wait())
        except StatusError as failure:
            raised.append(failure.status)

    thread = threading.Thread(target=waiter)
    thread.start()
    env.close()
    thread.join()
    assert raised == [Status.CANCELLED]
    with pytest.raises(StatusError):
        drive(_await(env.promise()))


async def _await(promise: Any) -> Any:
    return await promise
