"""Locks through the client: what a lock lets its holder see, who waits for whom, and what is left when somebody is interrupted or gone."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from emberfs.client.aio import Client as AioClient
from emberfs.client.core.client import Core
from emberfs.client.core.options import Options
from emberfs.meta import keys
from emberfs.meta.namespace import locks
from emberfs.meta.namespace.check import check
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.errors import Status, error

from .world import World


@pytest.fixture
def world() -> Iterator[World]:
    made = World().start()
    yield made
    assert made.run(check(made.namespace.engine)) == []
    made.stop()


def table(world: World, inode: int) -> locks.Table:
    return locks.unpack(world.run(world.namespace.engine.begin().get(keys.lock_key(inode), snapshot=True)))


def eventually(found: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        threading.Event().wait(0.005)


def waiting(world: World) -> int:
    return world.namespace.locking.waiters.count


def test_who_gets_the_lock_sees_what_was_written_under_it(world: World) -> None:
    first, second = world.client(), world.client()
    with first.open("/f", "w+b") as a, second.open("/f", "r+b") as b, ThreadPoolExecutor(1) as pool:
        a.flock("exclusive")
        assert b.read() == b""
        with pytest.raises(BlockingIOError):
            b.flock("shared", blocking=False)
        there = pool.submit(b.flock, "shared")
        eventually(lambda: waiting(world) == 1)
        a.write(b"under the lock")
        a.flock("unlock")
        there.result(60)
        assert b.size == 14
        assert b.pread(100, 0) == b"under the lock"
        b.flock("unlock")
        # Again over bytes that were read before: what was read ahead is not what is there now.
        a.lock(0, 14)
        a.pwrite(b"UNDER", 0)
        a.unlock()
        b.lock(0, 14, exclusive=False)
        assert b.pread(100, 0) == b"UNDER the lock"


def test_a_weaker_lock_publishes_as_well(world: World) -> None:
    first, second = world.client(), world.client()
    with first.open("/f", "w+b") as a, second.open("/f", "r+b") as b:
        a.lock(exclusive=True)
        a.write(b"abc")
        a.lock(exclusive=False)
        b.lock(exclusive=False)
        assert b.read() == b"abc"
        with pytest.raises(BlockingIOError):
            a.lock(exclusive=True, blocking=False)


def test_closing_gives_locks_back_as_posix_says(world: World) -> None:
    first, second = world.client(), world.client()
    a, again = first.open("/f", "w+b"), first.open("/f", "r+b")
    with second.open("/f", "r+b") as b:
        a.lock(0, 10)
        a.lock(20, 10, owner=77)
        a.flock("exclusive")
        a.write(b"x")
        again.close()  # of any descriptor: the locks of the process go, others' do not
        assert [(held.owner, held.kind) for held in table(world, a.handle.file.id)] == [
            (77, locks.POSIX),
            (a.handle.number, locks.FLOCK),
        ]
        b.lock(0, 10)
        assert b.read() == b"x"
        found = b.test_lock(0, 0)
        assert found is not None
        assert (found.exclusive, found.start, found.length, found.pid) == (True, 20, 10, os.getpid())
        a.close()
        assert [held.owner for held in table(world, b.handle.file.id)] == [0]
        assert b.test_lock(0, 0) is None
    assert table(world, b.handle.file.id) == ()


@pytest.mark.parametrize("kind", ["flock", "range"])
def test_a_close_that_reports_lost_data_gives_locks_back(world: World, kind: str) -> None:
    first, second = world.quiet(), world.client()
    file = first.open("/f", "wb")
    file.flock("exclusive") if kind == "flock" else file.lock()
    file.write(b"a" * 5000)
    world.storage.statuses.append(Status.NO_SPACE)
    with pytest.raises(OSError, match="no space"):
        file.close()
    with second.open("/f", "r+b") as other:
        other.flock("exclusive", blocking=False)
        other.lock(blocking=False)


def test_a_close_that_is_cancelled_while_it_gives_locks_back_tells_later_what_was_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        env = AioEnvironment(local=world.network)
        client = AioClient(Core(env, ["local:meta"], Options.of({"timeout": 60.0}), 0o022))
        await client.core.connect()
        file = await client.open("/f", "wb")
        await file.flock("exclusive")
        await file.write(b"a" * 5000)
        world.storage.statuses.append(Status.NO_SPACE)
        unlocking = asyncio.Event()

        async def never(*_: Any) -> None:
            unlocking.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as patched:
            patched.setattr("emberfs.client.core.locks.give", never)
            closing = asyncio.create_task(file.close())
            await unlocking.wait()
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        with pytest.raises(OSError, match="no space"):
            await file.close()
        await client.close()

    asyncio.run(work())
    with world.client().open("/f", "r+b") as other:
        other.flock("exclusive", blocking=False)


def test_one_lock_that_cannot_be_given_back_keeps_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = world.quiet(), world.client()
    file = first.open("/f", "wb")
    file.flock("exclusive")
    file.lock()
    give, given = world.namespace.locking.lock, []

    async def once(*args: Any) -> Any:
        given.append(args)
        if len(given) == 1:
            raise error(Status.IO_ERROR, "its disk is broken")
        return await give(*args)

    monkeypatch.setattr(world.namespace.locking, "lock", once)
    with pytest.raises(OSError, match="broken"):
        file.close()
    with second.open("/f", "r+b") as other:
        other.lock(blocking=False)


def test_a_deadlock_is_told(world: World) -> None:
    first, second = world.client(), world.client()
    with first.open("/f", "w+b") as a, second.open("/f", "r+b") as b, ThreadPoolExecutor(1) as pool:
        a.lock(0, 1)
        b.lock(1, 1)
        there = pool.submit(a.lock, 1, 1)
        eventually(lambda: waiting(world) == 1)
        with pytest.raises(OSError, match="waits") as circle:
            b.lock(0, 1)
        assert circle.value.errno == errno.EDEADLK
        b.unlock(1, 1)
        there.result(60)


def test_owners_of_one_client_exclude_each_other(world: World) -> None:
    client = world.client()
    with client.open("/f", "w+b") as file:
        file.lock(0, 10, owner=1)
        with pytest.raises(BlockingIOError):
            file.lock(9, 1, owner=2, blocking=False)
        file.lock(10, 0, owner=2)
        file.unlock(2, 3, owner=1)
        file.lock(2, 3, owner=2)
        held = {(lock.owner, lock.start) for lock in table(world, file.handle.file.id)}
        assert held == {(1, 0), (1, 5), (2, 2), (2, 10)}


def test_a_client_without_its_lease_says_so_once(world: World) -> None:
    first, second = world.client(), world.client()
    first.write_bytes("/f", b"0123456789")
    with first.open("/f", "rb") as a, first.open("/f", "rb") as unlocked, second.open("/f", "r+b") as b:
        a.lock(0, 5, exclusive=False)
        assert a.pread(3, 0) == b"012"
        world.run(world.manager.end_client(first.core.env.client))
        first.core.lease.end()
        b.lock(0, 5)  # once the server has cleaned up after the other
        with pytest.raises(OSError, match="lease") as gone:
            a.pread(3, 0)
        assert gone.value.errno == errno.EIO
        assert a.pread(3, 0) == b"012"
        assert unlocked.pread(3, 3) == b"345", "who had no lock has lost nothing"
        with pytest.raises(BlockingIOError):
            a.lock(0, 1, exclusive=False, blocking=False)


def test_a_wait_that_is_interrupted_puts_back_what_was_held(world: World) -> None:
    """An asyncio client, because it can be cancelled at any moment."""
    other = world.client()
    other.write_bytes("/f", b"0123456789")

    async def work() -> None:
        env = AioEnvironment(local=world.network)
        client = AioClient(Core(env, ["local:meta"], Options.of({"timeout": 60.0}), 0o022))
        await client.core.connect()
        file = await client.open("/f", "r+b")
        await file.lock(0, 4, exclusive=False)
        await file.lock(6, 2, exclusive=True)
        taken = other.open("/f", "r+b")
        await asyncio.to_thread(taken.lock, 0, 1, exclusive=False)
        before = table_of(client, file)
        task = asyncio.create_task(file.lock(0, 0))
        while not waiting(world):
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(eventually, lambda: not waiting(world))
        assert table_of(client, file) == before
        assert not await asyncio.to_thread(world.run, waits())
        await asyncio.to_thread(taken.close)
        await file.lock(0, 0)
        await file.close()
        await client.close()

    def table_of(client: Any, file: Any) -> locks.Table:
        return tuple(
            sorted(held for held in table(world, file.handle.file.id) if held.client == client.core.env.client)
        )

    async def waits() -> list[Any]:
        return await world.namespace.engine.begin().scan(*keys.prefix_range(keys.LOCK_WAIT), 10, snapshot=True)

    asyncio.run(work())


def test_what_was_just_granted_to_an_interrupted_wait_is_put_back(world: World) -> None:
    """The cancel crosses the grant: whatever came first, in the end the owner has what it had before."""
    other = world.client()
    other.write_bytes("/f", b"0123456789")

    async def work() -> None:
        env = AioEnvironment(local=world.network)
        client = AioClient(Core(env, ["local:meta"], Options.of({"timeout": 60.0}), 0o022))
        await client.core.connect()
        file = await client.open("/f", "r+b")
        await file.lock(2, 2, exclusive=False)
        for pause in range(30):
            task = asyncio.create_task(file.lock(0, 0, exclusive=True))
            for _ in range(pause):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
                await file.unlock(0, 2)
                await file.lock(2, 2, exclusive=False)
                await file.unlock(4, 0)
            except asyncio.CancelledError:
                pass
            held = table(world, file.handle.file.id)
            assert [(lock.type, lock.start, lock.end) for lock in held] == [(locks.SHARED, 2, 4)]
        await file.close()
        await client.close()

    asyncio.run(work())
