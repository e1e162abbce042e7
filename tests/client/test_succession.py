"""A process goes on as the client that another one was which has died: what that one had sent and is read late has no effect any more."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from emberfs.client import aio
from emberfs.client.core.client import Core
from emberfs.client.core.options import Mode, Options
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.ids import new_client_id
from emberfs.proto.settings import parse_url

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

BYTES = 300_000  # too many to lie beside the inode
FIRST, SECOND = 0, 1 << 40  # where the two processes begin to count
WRITE = Mode(os.O_RDWR | os.O_CREAT, "", False)


async def process(url: str, client: bytes, begin: int) -> Core:
    """One of the processes that are this client."""
    location = parse_url(url)
    core = Core(AioEnvironment(client=client, cluster=location.cluster), location.addresses, Options(), 0)
    core.succeed(begin)
    await core.connect()
    return core


def test_a_late_write_of_the_dead_is_refused(cluster: LocalCluster) -> None:
    """Another client has written since: what it has synced stays."""

    async def run() -> None:
        client = new_client_id()
        dead = await process(cluster.url, client, FIRST)
        late = await dead.open("/late", WRITE)
        await late.pwrite(b"1" * BYTES, 0)
        await late.fsync()
        await late.pwrite(b"2" * BYTES, 0)  # on its way, and not there
        alive = await process(cluster.url, client, SECOND)
        await alive.settle_predecessor()
        async with await aio.connect(cluster.url) as other:
            async with await other.open("/late", "r+b") as file:
                await file.write(b"3" * BYTES)
                await file.fsync()
            with pytest.raises(StatusError) as told:
                await late.flush()
            assert told.value.status is Status.SESSION_ENDED
            assert await other.read_bytes("/late") == b"3" * BYTES
        written = await alive.open("/late", WRITE)
        await written.pwrite(b"4" * BYTES, 0)
        await written.close()  # its own numbers are good
        assert await alive.read_bytes("/late") == b"4" * BYTES
        for core in (dead, alive):
            with suppress(StatusError):
                await core.close()

    asyncio.run(run())
