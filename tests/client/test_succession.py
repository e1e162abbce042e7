"""A process goes on as the client that another one was which has died: what that one had sent and is read late has no effect any more."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from emberfs.client import aio
from emberfs.client.core import keeper, succession
from emberfs.client.core.client import Core
from emberfs.client.core.file import Handle
from emberfs.client.core.options import Mode, Options
from emberfs.client.core.whole import read_bytes
from emberfs.deploy.local import STORAGE
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.ids import new_client_id
from emberfs.proto.settings import parse_url

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

BYTES = 300_000  # too many to lie beside the inode
FIRST, SECOND = 0, 1 << 40  # where the two processes begin to count
WRITE = Mode(os.O_RDWR | os.O_CREAT, "", False)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent in the background, however long a test takes."""
    monkeypatch.setattr(keeper, "DIRTY_SECONDS_MAX", 10_000.0)
    monkeypatch.setattr(succession, "FENCE_SECONDS", 60.0)


async def content(core: Core, path: str) -> bytes:
    file = await core.open(path, Mode(os.O_RDONLY, "", False))
    try:
        return await file.pread(BYTES + 1, 0)
    finally:
        await file.close()


async def process(url: str, client: bytes, begin: int) -> Core:
    """One of the processes that are this client."""
    location = parse_url(url)
    core = Core(AioEnvironment(client=client, cluster=location.cluster), location.addresses, Options(), 0)
    core.succeed(begin)
    await core.connect()
    return core


async def on_its_way(url: str, client: bytes, path: str) -> tuple[Core, Handle]:
    """The process that is to die, and its file: of ones where they are durable, of twos that storage has not got."""
    dead = await process(url, client, FIRST)
    late = await dead.open(path, WRITE)
    await late.pwrite(b"1" * BYTES, 0)
    await late.fsync()
    await late.pwrite(b"2" * BYTES, 0)
    return dead, late


def test_storage_that_stands_still_hears_of_it_when_it_goes_on(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "FENCE_SECONDS", 0.2)

    async def run() -> None:
        client = new_client_id()
        dead, late = await on_its_way(cluster.url, client, "/still")
        alive = await process(cluster.url, client, SECOND)
        storage = cluster.servers[STORAGE].pid()
        assert storage is not None
        os.kill(storage, signal.SIGSTOP)
        try:
            with pytest.raises(StatusError):
                await alive.settle_predecessor()
        finally:
            os.kill(storage, signal.SIGCONT)
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "emberfs-fence"))
        with pytest.raises(StatusError) as told:
            await late.flush()
        assert told.value.status is Status.SESSION_ENDED
        assert await content(alive, "/still") == b"1" * BYTES
        for core in (dead, alive):
            with suppress(StatusError):
                await core.close()

    asyncio.run(run())


def test_a_lease_that_ends_while_bytes_are_on_their_way_is_told_as_such(cluster: LocalCluster) -> None:
    """To whoever waits for their arrival."""

    async def run() -> None:
        core = await process(cluster.url, new_client_id(), FIRST)
        file = await core.open("/ends", WRITE)
        storage = cluster.servers[STORAGE].pid()
        assert storage is not None
        os.kill(storage, signal.SIGSTOP)
        try:
            await file.pwrite(b"1" * BYTES, 0)
            waiting = asyncio.ensure_future(file.flush())
            while not core.write_budget.held or not file.file.write_back._batches:
                await asyncio.sleep(0)
            await core.lose_lease(core.lease)
        finally:
            os.kill(storage, signal.SIGCONT)
        with pytest.raises(StatusError) as told:
            await waiting
        assert told.value.status is Status.SESSION_ENDED
        await file.pwrite(b"2" * BYTES, 0)
        await file.close()
        assert await read_bytes(core, "/ends") == b"2" * BYTES
        await core.close()

    asyncio.run(run())


def test_a_late_write_of_the_dead_is_refused(cluster: LocalCluster) -> None:
    """Another client has written since: what it has synced stays."""

    async def run() -> None:
        client = new_client_id()
        dead, late = await on_its_way(cluster.url, client, "/late")
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
        assert await read_bytes(alive, "/late") == b"4" * BYTES
        for core in (dead, alive):
            with suppress(StatusError):
                await core.close()

    asyncio.run(run())
