"""What the settlement of a crashed writer asks for: how far its file goes, once nothing of that writer's can come any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from emberfs.proto.errors import Status
from emberfs.proto.gen import storage_pb2
from emberfs.proto.rpc import STORAGE

from .world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World(tmp_path).start()
    yield made
    await made.stop()


async def query_last(world: World, routing_version: int) -> tuple[Status, int]:
    request = storage_pb2.QueryLastRequest(
        chain=[1], chain_version=[1], inode=[5], truncate_version=[0], routing_version=routing_version
    )
    reply = await world.call(STORAGE.QueryLast, request)
    return Status(reply.status[0]), reply.length[0]


async def test_a_server_that_has_not_heard_of_the_end_of_a_client_does_not_answer(world: World) -> None:
    assert await world.write(b"early") is Status.OK
    heard = world.routing.version
    assert await query_last(world, heard) == (Status.OK, 5)
    assert (await query_last(world, heard + 1))[0] is Status.STALE_ROUTING
    assert await world.write(b"later!", sequence=2) is Status.OK  # which is why
    world.announce(ended=[world.env.client])
    assert await query_last(world, heard + 1) == (Status.OK, 6)
    assert await world.write(b"too late", sequence=3) is Status.SESSION_ENDED
    assert await query_last(world, heard + 1) == (Status.OK, 6)


async def test_a_write_that_is_under_way_is_waited_for(world: World) -> None:
    [target] = world.open
    blocking, going = target.blocking, threading.Event()

    def slow(work: Any, *arguments: Any) -> Any:
        def waits() -> Any:
            going.wait(60)
            return work(*arguments)

        return blocking(waits)

    target.blocking = slow
    write = asyncio.create_task(world.write(b"w" * 300_000))
    while not target.replica.in_flight:
        await asyncio.sleep(0)
    target.blocking = blocking
    world.announce(ended=[world.env.client])
    asked = asyncio.create_task(query_last(world, world.routing.version))
    await world.call(STORAGE.Space, storage_pb2.SpaceRequest())
    assert not asked.done()
    going.set()
    assert await write is Status.OK
    assert await asked == (Status.OK, 300_000)
