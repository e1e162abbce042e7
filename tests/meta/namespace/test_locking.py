"""Locks at the server: waiting, deadlocks over inodes and clients, clients that are gone, several servers over one engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from emberfs.meta import keys
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace import locks
from emberfs.meta.namespace.check import check
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.meta_pb2 import (
    LOCK_KIND_FLOCK,
    LOCK_KIND_POSIX,
    LOCK_TYPE_EXCLUSIVE,
    LOCK_TYPE_SHARED,
    LOCK_TYPE_UNLOCK,
)

from .world import BOB, World

FLOCK, POSIX = LOCK_KIND_FLOCK, LOCK_KIND_POSIX
SHARED, EXCLUSIVE, UNLOCK = LOCK_TYPE_SHARED, LOCK_TYPE_EXCLUSIVE, LOCK_TYPE_UNLOCK
A, B, C = (bytes([letter]) * 16 for letter in b"ABC")
TIME_SCALE = 20.0
WOKEN_SECONDS = 0.5 * TIME_SCALE  # sooner than by the look each second, which finds everything too


class Locks:
    """The shortest way to ask one server for locks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.context: Any = None  # of the newest request

    async def lock(
        self, client: bytes, inode: int, kind: Any, type_: Any, *, at: tuple[int, int] = (0, 0), **more: Any
    ) -> Any:
        request = meta_pb2.LockRequest(
            request_id=self.world.request_id(), inode=inode, kind=kind, type=type_, start=at[0], length=at[1], **more
        )
        self.context = self.world.context(client)
        return await self.world.service.lock(request, self.context)

    async def table(self, inode: int) -> locks.Table:
        return locks.unpack(await self.world.engine.begin().get(keys.lock_key(inode), snapshot=True))

    async def waits(self) -> int:
        return len(await self.world.engine.begin().scan(*keys.prefix_range(keys.LOCK_WAIT), 100, snapshot=True))

    async def until_waiting(self, count: int) -> None:
        """Until so many requests wait at this server and have said so."""
        waiters = self.world.namespace.locking.waiters
        while waiters.count < count or (await self.waits() < count):
            await asyncio.sleep(0)


async def world_over(engine: Any = None) -> World:
    env: Any = AioEnvironment()
    made = World(engine, env)
    await made.start()
    made.namespace.run_workers()
    return made


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Locks]:
    monkeypatch.setenv("EMBERFS_TIME_SCALE", f"{TIME_SCALE}")
    world = await world_over()
    await world.touch("/f", mode=0o666)
    await world.touch("/g", mode=0o666)
    yield Locks(world)
    assert await check(world.engine) == []
    await world.namespace.close()
    await world.clock.close()  # type: ignore[attr-defined]


async def numbers(served: Locks) -> tuple[int, int]:
    return (await served.world.stat("/f")).inode, (await served.world.stat("/g")).inode


async def test_who_waits_is_woken_when_the_lock_is_given_back(served: Locks) -> None:
    inode, _ = await numbers(served)
    await served.lock(A, inode, POSIX, EXCLUSIVE, at=(0, 10), owner=1, pid=11)
    with pytest.raises(StatusError) as taken:
        await served.lock(B, inode, POSIX, SHARED, at=(9, 1), owner=1)
    assert taken.value.status is Status.WOULD_BLOCK
    waiting = asyncio.create_task(served.lock(B, inode, POSIX, SHARED, at=(9, 1), owner=1, wait=True, number=5))
    await served.until_waiting(1)
    await served.lock(A, inode, POSIX, UNLOCK, at=(5, 5), owner=1)
    reply = await asyncio.wait_for(waiting, WOKEN_SECONDS)
    assert not reply.waiting
    assert reply.attributes.inode == inode
    assert await served.waits() == 0
    held = {(lock.client, lock.start, lock.end) for lock in await served.table(inode)}
    assert held == {(A, 0, 5), (B, 9, 10)}


async def test_the_line_is_served_in_its_order(served: Locks) -> None:
    inode, _ = await numbers(served)
    await served.lock(A, inode, FLOCK, EXCLUSIVE, owner=1)
    order: list[int] = []

    async def take(number: int) -> None:
        await served.lock(B, inode, FLOCK, EXCLUSIVE, owner=number, wait=True, number=number)
        order.append(number)
        await served.lock(B, inode, FLOCK, UNLOCK, owner=number)

    tasks = []
    for number in range(1, 6):
        tasks.append(asyncio.create_task(take(number)))
        while served.world.namespace.locking.waiters.count < number:
            await asyncio.sleep(0)
    await served.lock(A, inode, FLOCK, UNLOCK, owner=1)
    await asyncio.wait_for(asyncio.gather(*tasks), WOKEN_SECONDS)
    assert order == [1, 2, 3, 4, 5]
    assert await served.table(inode) == ()


async def test_a_deadlock_of_two_over_two_files(served: Locks) -> None:
    f, g = await numbers(served)
    await served.lock(A, f, POSIX, EXCLUSIVE, owner=1)
    await served.lock(B, g, POSIX, EXCLUSIVE, owner=1)
    waiting = asyncio.create_task(served.lock(A, g, POSIX, EXCLUSIVE, owner=1, wait=True, number=1))
    await served.until_waiting(1)
    with pytest.raises(StatusError) as circle:
        await served.lock(B, f, POSIX, SHARED, owner=1, wait=True, number=1)
    assert circle.value.status is Status.DEADLOCK
    await served.lock(B, g, POSIX, UNLOCK, owner=1)
    await asyncio.wait_for(waiting, WOKEN_SECONDS)
    assert await served.waits() == 0


async def test_a_deadlock_of_three_and_of_two_who_want_more(served: Locks) -> None:
    f, g = await numbers(served)
    held = [(A, 0), (B, 10), (C, 20)]
    for client, at in held:
        await served.lock(client, f, POSIX, EXCLUSIVE, at=(at, 10), owner=3)
    first = asyncio.create_task(served.lock(A, f, POSIX, SHARED, at=(10, 1), owner=3, wait=True, number=1))
    await served.until_waiting(1)
    second = asyncio.create_task(served.lock(B, f, POSIX, SHARED, at=(20, 1), owner=3, wait=True, number=1))
    await served.until_waiting(2)
    with pytest.raises(StatusError) as circle:
        await served.lock(C, f, POSIX, SHARED, at=(0, 1), owner=3, wait=True, number=1)
    assert circle.value.status is Status.DEADLOCK
    await served.lock(C, f, POSIX, UNLOCK, owner=3)
    await asyncio.wait_for(second, WOKEN_SECONDS)
    await served.lock(B, f, POSIX, UNLOCK, owner=3)
    await asyncio.wait_for(first, WOKEN_SECONDS)
    # Two readers that both want to write wait for each other: the second one is told.
    await served.lock(A, g, POSIX, SHARED, owner=3)
    await served.lock(B, g, POSIX, SHARED, owner=3)
    upgrade = asyncio.create_task(served.lock(A, g, POSIX, EXCLUSIVE, owner=3, wait=True, number=2))
    await served.until_waiting(1)
    with pytest.raises(StatusError) as circle:
        await served.lock(B, g, POSIX, EXCLUSIVE, owner=3, wait=True, number=2)
    assert circle.value.status is Status.DEADLOCK
    assert len(await served.table(g)) == 2, "who is refused keeps what he has"
    await served.lock(B, g, POSIX, UNLOCK, owner=3)
    await asyncio.wait_for(upgrade, WOKEN_SECONDS)


async def test_two_waits_that_close_a_circle_at_the_same_moment(served: Locks) -> None:
    f, g = await numbers(served)
    await served.lock(A, f, POSIX, EXCLUSIVE, owner=1)
    await served.lock(B, g, POSIX, EXCLUSIVE, owner=1)
    both = [
        asyncio.create_task(served.lock(A, g, POSIX, EXCLUSIVE, owner=1, wait=True, number=1)),
        asyncio.create_task(served.lock(B, f, POSIX, EXCLUSIVE, owner=1, wait=True, number=1)),
    ]
    done, _ = await asyncio.wait(both, timeout=WOKEN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    refused = done.pop().exception()
    assert isinstance(refused, StatusError)
    assert refused.status is Status.DEADLOCK
    loser = A if both[0].done() else B
    await served.lock(loser, f if loser == A else g, POSIX, UNLOCK, owner=1)
    await asyncio.wait_for(asyncio.gather(*both, return_exceptions=True), WOKEN_SECONDS)


async def test_flocks_are_converted_by_letting_go_first(served: Locks) -> None:
    """flock(2): "Converting a lock is not guaranteed to be atomic: the existing lock is first removed, and then a new lock is
    established." """
    inode, _ = await numbers(served)
    await served.lock(A, inode, FLOCK, SHARED, owner=1)
    await served.lock(B, inode, FLOCK, SHARED, owner=1)
    with pytest.raises(StatusError) as taken:
        await served.lock(A, inode, FLOCK, EXCLUSIVE, owner=1)
    assert taken.value.status is Status.WOULD_BLOCK
    assert [lock.client for lock in await served.table(inode)] == [B]
    await served.lock(B, inode, FLOCK, EXCLUSIVE, owner=1)
    await served.lock(B, inode, FLOCK, SHARED, owner=1)
    await served.lock(A, inode, FLOCK, SHARED, owner=1)
    both = [
        asyncio.create_task(served.lock(client, inode, FLOCK, EXCLUSIVE, owner=1, wait=True, number=9))
        for client in (A, B)
    ]
    done, _ = await asyncio.wait(both, timeout=WOKEN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    winner = A if both[0] in done else B
    await served.lock(winner, inode, FLOCK, UNLOCK, owner=1)
    await asyncio.wait_for(asyncio.gather(*both), WOKEN_SECONDS)


async def test_the_two_kinds_do_not_meet_and_a_repeated_request_counts_once(served: Locks) -> None:
    inode, _ = await numbers(served)
    await served.lock(A, inode, FLOCK, EXCLUSIVE, owner=1)
    await served.lock(B, inode, POSIX, EXCLUSIVE, owner=1)
    request = meta_pb2.LockRequest(request_id=77, inode=inode, kind=POSIX, type=EXCLUSIVE, owner=5, start=99, length=1)
    await served.lock(B, inode, POSIX, UNLOCK, owner=1)
    await served.world.service.lock(request, served.world.context(C))
    await served.lock(C, inode, POSIX, UNLOCK, owner=5)
    await served.world.service.lock(request, served.world.context(C))  # a late copy
    assert [lock.client for lock in await served.table(inode)] == [A]


async def test_who_is_in_the_way(served: Locks) -> None:
    inode, _ = await numbers(served)
    await served.lock(A, inode, POSIX, SHARED, at=(10, 0), owner=4, pid=44)

    async def ask(client: bytes, type_: Any, at: tuple[int, int]) -> Any:
        request = meta_pb2.TestLockRequest(inode=inode, kind=POSIX, type=type_, owner=4, start=at[0], length=at[1])
        return await served.world.service.test_lock(request, served.world.context(client))

    found = await ask(B, EXCLUSIVE, (0, 11))
    assert (found.type, found.start, found.length, found.pid, found.owner) == (SHARED, 10, 0, 44, 4)
    assert not (await ask(B, SHARED, (0, 0))).type
    assert not (await ask(B, EXCLUSIVE, (0, 10))).type
    assert not (await ask(A, EXCLUSIVE, (0, 0))).type


async def test_the_locks_of_a_client_that_is_gone_are_free_once_its_writes_are_settled(served: Locks) -> None:
    world = served.world
    opened = await world.open("/f", os.O_RDWR, client=A)
    inode = opened.attributes.inode
    await served.lock(A, inode, POSIX, EXCLUSIVE, owner=1)
    world.chunks.write(inode, 1000)
    waiting = asyncio.create_task(served.lock(B, inode, POSIX, EXCLUSIVE, owner=1, wait=True, number=1))
    await served.until_waiting(1)
    world.chunks.down = True
    world.namespace.client_ended(A)
    with pytest.raises(StatusError):
        await world.namespace.clients.step()
    assert not waiting.done()
    world.chunks.down = False
    await world.namespace.clients.step()
    reply = await asyncio.wait_for(waiting, WOKEN_SECONDS)
    assert reply.attributes.length == 1000
    with pytest.raises(StatusError) as late:
        await served.lock(A, inode, POSIX, UNLOCK, owner=1)
    assert late.value.status is Status.SESSION_ENDED


async def test_a_wait_that_was_given_up_leaves_nothing_behind(served: Locks) -> None:
    inode, _ = await numbers(served)
    await served.lock(A, inode, POSIX, EXCLUSIVE, owner=1)
    waiting = asyncio.create_task(served.lock(B, inode, POSIX, EXCLUSIVE, owner=1, wait=True, number=1))
    await served.until_waiting(1)
    served.context.cancelled = True
    assert (await asyncio.wait_for(waiting, WOKEN_SECONDS)).waiting
    assert await served.waits() == 0
    waiting = asyncio.create_task(served.lock(B, inode, POSIX, EXCLUSIVE, owner=1, wait=True, number=1))
    await served.until_waiting(1)
    served.context.stopping = True
    with pytest.raises(StatusError) as stopped:
        await asyncio.wait_for(waiting, WOKEN_SECONDS)
    assert stopped.value.status is Status.UNAVAILABLE


async def test_a_withdrawn_wait_is_granted_nothing_even_if_it_comes_later(served: Locks) -> None:
    """The connection that carried the request is gone, and may be read after the one that brings the withdrawal."""
    inode, _ = await numbers(served)
    await served.lock(B, inode, POSIX, SHARED, at=(5, 5), owner=1)
    await served.lock(A, inode, POSIX, EXCLUSIVE, at=(0, 5), owner=1)
    waiting = asyncio.create_task(served.lock(B, inode, POSIX, EXCLUSIVE, owner=1, wait=True, number=4))
    await served.until_waiting(1)
    await served.lock(B, inode, POSIX, UNLOCK, at=(0, 5), owner=1, withdraw=4)
    with pytest.raises(StatusError) as gone:
        await asyncio.wait_for(waiting, WOKEN_SECONDS)
    assert gone.value.status is Status.CANCELLED
    await served.lock(A, inode, POSIX, UNLOCK, owner=1)
    with pytest.raises(StatusError) as late:
        await served.lock(B, inode, POSIX, EXCLUSIVE, owner=1, wait=True, number=4)
    assert late.value.status is Status.CANCELLED
    assert [(held.type, held.start, held.end) for held in await served.table(inode)] == [(locks.SHARED, 5, 10)]
    assert await served.waits() == 0
    await served.lock(B, inode, POSIX, EXCLUSIVE, owner=1, wait=True, number=5)


async def test_locks_outlive_the_server_and_hold_at_another_one(served: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    inode, _ = await numbers(served)
    await served.lock(A, inode, POSIX, EXCLUSIVE, at=(0, 5), owner=1)
    monkeypatch.delenv("EMBERFS_TIME_SCALE")
    other = Locks(await world_over(served.world.engine))
    assert A in await other.world.namespace.session_clients()
    with pytest.raises(StatusError) as taken:
        await other.lock(B, inode, POSIX, EXCLUSIVE, owner=1)
    assert taken.value.status is Status.WOULD_BLOCK
    # Given back at the one, it is found free at the other by its look each second.
    waiting = asyncio.create_task(other.lock(B, inode, POSIX, EXCLUSIVE, owner=1, wait=True, number=1))
    await other.until_waiting(1)
    await served.lock(A, inode, POSIX, UNLOCK, owner=1)
    reply = await asyncio.wait_for(waiting, 60)
    assert not reply.waiting
    await other.world.namespace.close()
    await other.world.clock.close()  # type: ignore[attr-defined]


async def test_locking_takes_the_right_to_read_or_write(served: Locks) -> None:
    world = served.world
    await world.touch("/own", mode=0o604)
    inode = (await world.stat("/own")).inode

    async def as_bob(kind: Any, type_: Any, capability: bytes = b"") -> None:
        request = meta_pb2.LockRequest(inode=inode, kind=kind, type=type_, owner=1, capability=capability)
        await world.ask("lock", request, BOB, B)

    await as_bob(POSIX, SHARED)
    await as_bob(FLOCK, EXCLUSIVE)
    with pytest.raises(PermissionError):
        await as_bob(POSIX, EXCLUSIVE)
    await world.set("/own", mode=0o666)
    opened = await world.open("/own", os.O_RDWR, BOB, B)
    await world.set("/own", mode=0o600)
    await as_bob(POSIX, EXCLUSIVE, opened.capability)
    with pytest.raises(PermissionError):
        await as_bob(FLOCK, SHARED)
    await world.close(opened, client=B)


@pytest.mark.parametrize("kind", [FLOCK, POSIX])
async def test_a_withdrawal_at_any_moment_of_its_request_leaves_nothing_locked(kind: Any) -> None:
    """Also between the request's last look whether it was given up, and its commit."""
    world = await World().start()
    served, engine = Locks(world), world.engine
    assert isinstance(engine, MemoryEngine)
    moment, reached = 0, True
    while reached:
        moment += 1
        inode = (await world.touch(f"/f{moment}", mode=0o666)).inode
        passed, reached = 0, False

        async def pause(inode: int = inode, moment: int = moment) -> None:
            nonlocal passed, reached
            passed += 1
            if passed == moment:
                reached, engine.pause = True, nothing
                await served.lock(A, inode, kind, UNLOCK, owner=1, withdraw=moment)

        async def nothing() -> None:
            pass

        engine.pause = pause
        with suppress(StatusError):  # it was granted, and taken back, or it says that it was given up
            await served.lock(A, inode, kind, EXCLUSIVE, owner=1, number=moment, wait=True)
        engine.pause = nothing
        assert bool(await served.table(inode)) is not reached, moment
    assert moment > 3
    await served.lock(A, inode, kind, UNLOCK, owner=1)
    assert await check(engine) == []
