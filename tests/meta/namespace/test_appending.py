"""Append tokens at the server: who gets them, how holders hear of it, and what is left of clients that are gone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from emberfs.meta import keys
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace import append
from emberfs.meta.namespace.check import check
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.meta_pb2 import TOKEN_ACTION_GIVE, TOKEN_ACTION_TAKE

from .world import World

A, B, C = (bytes([letter]) * 16 for letter in b"ABC")
TIME_SCALE = 20.0
WOKEN_SECONDS = 0.5 * TIME_SCALE  # sooner than by the look each second, which finds everything too


class Log:
    """One file that several clients have open for appending."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sessions: dict[bytes, int] = {}
        self.inode = 0

    async def open(self, client: bytes) -> None:
        opened = await self.world.open("/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, client=client)
        self.inode, self.sessions[client] = opened.attributes.inode, opened.session

    async def close_all(self) -> None:
        for client, session in self.sessions.items():
            request = meta_pb2.CloseRequest(inode=self.inode, session=session, token=True)
            await self.world.ask("close", request, client=client)

    async def take(self, client: bytes) -> Any:
        request = meta_pb2.AppendRequest(inode=self.inode, session=self.sessions[client], action=TOKEN_ACTION_TAKE)
        return await self.world.ask("append", request, client=client)

    async def give(self, client: bytes, length: int | None = None) -> None:
        request = meta_pb2.AppendRequest(inode=self.inode, session=self.sessions[client], action=TOKEN_ACTION_GIVE)
        if length is not None:
            request.written, request.length = True, length
        await self.world.ask("append", request, client=client)

    def watch(self, client: bytes, *inodes: int) -> asyncio.Task[Any]:
        request = meta_pb2.WatchTokensRequest(inodes=inodes)
        return asyncio.create_task(self.world.service.watch_tokens(request, self.world.context(client)))

    async def holder(self) -> bytes:
        found = await self.world.engine.begin().get(keys.append_key(self.inode), snapshot=True)
        return b"" if found is None else append.unpack(found).client

    async def until_waiting(self, count: int) -> None:
        while self.world.namespace.appending.waiters.count < count:
            await asyncio.sleep(0)


async def world_over(engine: Any = None) -> World:
    env: Any = AioEnvironment()
    made = World(engine, env)
    await made.start()
    return made


async def end(world: World) -> None:
    await world.namespace.close()
    await world.clock.close()  # type: ignore[attr-defined]


async def opened_log() -> Log:
    made = Log(await world_over())
    for client in (A, B, C):
        await made.open(client)
    return made


@pytest.fixture
async def log(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Log]:
    monkeypatch.setenv("EMBERFS_TIME_SCALE", f"{TIME_SCALE}")
    made = await opened_log()
    yield made
    assert await check(made.world.engine) == []
    await end(made.world)


async def test_the_length_comes_with_the_token_and_goes_back_with_it(log: Log) -> None:
    assert (await log.take(A)).attributes.length == 0
    assert (await log.take(A)).attributes.length == 0, "asked again, because the answer was lost"
    watching = log.watch(A)
    waiting = asyncio.create_task(log.take(B))
    assert list((await asyncio.wait_for(watching, WOKEN_SECONDS)).wanted) == [log.inode]
    assert not waiting.done()
    await log.give(A, 100)
    assert (await asyncio.wait_for(waiting, WOKEN_SECONDS)).attributes.length == 100
    assert await log.holder() == B
    await log.give(A)  # has none: nothing happens
    assert await log.holder() == B
    await log.close_all()
    assert await log.holder() == b""


async def test_the_line_is_served_in_its_order_and_each_holder_hears_of_the_next(log: Log) -> None:
    await log.take(A)
    second = asyncio.create_task(log.take(B))
    await log.until_waiting(1)
    third = asyncio.create_task(log.take(C))
    await log.until_waiting(2)
    assert list((await asyncio.wait_for(log.watch(A), WOKEN_SECONDS)).wanted) == [log.inode]
    await log.give(A, 10)
    await asyncio.wait_for(second, WOKEN_SECONDS)
    assert not third.done()
    assert list((await asyncio.wait_for(log.watch(B), WOKEN_SECONDS)).wanted) == [log.inode]
    await log.give(B, 30)
    assert (await asyncio.wait_for(third, WOKEN_SECONDS)).attributes.length == 30
    quiet = log.watch(C)
    _, pending = await asyncio.wait([quiet], timeout=0.1)
    assert pending, "nobody waits any more"
    log.world.namespace.client_ended(C)
    with pytest.raises(StatusError) as over:
        await asyncio.wait_for(quiet, WOKEN_SECONDS)
    assert over.value.status is Status.SESSION_ENDED
    await log.world.namespace.clients.step()
    assert await log.holder() == b""


async def test_a_holder_that_listens_at_another_server_hears_too() -> None:
    log = await opened_log()
    other = Log(await world_over(log.world.engine))
    other.inode, other.sessions = log.inode, log.sessions
    other.world._requests = log.world._requests
    await log.take(A)
    watching = log.watch(A, log.inode)
    waiting = asyncio.create_task(other.take(B))
    assert list((await asyncio.wait_for(watching, 60)).wanted) == [log.inode]
    await log.give(A, 5)
    assert (await asyncio.wait_for(waiting, 60)).attributes.length == 5
    await log.close_all()
    assert await check(log.world.engine) == []
    for world in (other.world, log.world):
        await end(world)


async def test_a_holder_that_is_gone_is_settled_before_the_next_grant(log: Log) -> None:
    world = log.world
    await log.take(A)
    world.chunks.write(log.inode, 777)
    waiting = asyncio.create_task(log.take(B))
    await log.until_waiting(1)
    assert A in await world.namespace.session_clients()
    world.chunks.down = True
    world.namespace.client_ended(A)
    with pytest.raises(StatusError):
        await world.namespace.clients.step()
    assert await log.holder() == A
    world.chunks.down = False
    await world.namespace.clients.step()
    assert (await asyncio.wait_for(waiting, WOKEN_SECONDS)).attributes.length == 777
    del log.sessions[A]
    await log.close_all()


async def test_a_token_takes_an_open_file(log: Log) -> None:
    sessions = dict(log.sessions)
    log.sessions[A] = sessions[B]
    with pytest.raises(StatusError) as others:
        await log.take(A)
    assert others.value.status is Status.BAD_HANDLE
    log.sessions[A] = 1 << 40
    with pytest.raises(StatusError) as none:
        await log.take(A)
    assert none.value.status is Status.SESSION_ENDED
    log.sessions = sessions
    await log.close_all()


async def test_who_cuts_waits_for_who_appends(log: Log) -> None:
    await log.take(A)
    watching = log.watch(A)
    cutting = asyncio.create_task(log.world.truncate("/log", 4))
    assert list((await asyncio.wait_for(watching, WOKEN_SECONDS)).wanted) == [log.inode]
    log.world.chunks.write(log.inode, 10)
    await log.give(A, 10)
    assert (await asyncio.wait_for(cutting, WOKEN_SECONDS)).length == 4
    assert log.world.chunks.ends[log.inode] == 4
    await log.close_all()


async def test_a_cut_at_any_moment_of_a_grant_is_known_to_the_holder() -> None:
    """Where transactions wait for a database: the cut finds no token, and is over before the token is granted."""
    for moment in range(1, 5):  # as many steps as a grant has
        world = await World().start()
        log = Log(world)
        await log.open(A)
        world.chunks.write(log.inode, 100)
        await log.take(A)
        await log.give(A, 100)
        steps, memory = 0, cast(MemoryEngine, world.engine)
        calm = memory.pause

        async def cut(world: World = world, moment: int = moment) -> None:
            nonlocal steps
            steps += 1
            if steps == moment:
                await world.truncate("/log", 0)

        memory.pause = cut
        reply = await log.take(A)
        memory.pause = calm
        assert steps >= moment and reply.attributes.length == 0
        await log.close_all()
        assert await check(world.engine) == []
