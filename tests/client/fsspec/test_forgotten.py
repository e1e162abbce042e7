"""Files of `EmberFileSystem` that nobody closed: the collector finds them at any moment, and the keeper closes them."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from emberfs.client.aio import Client as AioClient
from emberfs.client.core.client import Core
from emberfs.client.core.options import Options
from emberfs.client.filesystem import EmberFileSystem
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.env import drive

from ..world import World


@pytest.fixture
def fs(world: World) -> EmberFileSystem:
    made = EmberFileSystem(skip_instance_cache=True)
    made._blocking = world.quiet()
    return made


def test_the_collector_may_come_while_a_lock_is_held(fs: EmberFileSystem) -> None:
    fs.pipe_file("/f", b"0123456789")
    files = [fs.open("/f", cache_type="readahead")]  # whose cache refers to the file: it goes by the collector alone
    core = fs.client.core

    async def collect() -> None:
        async with core.table_lock:
            files.clear()
            gc.collect()

    thread = threading.Thread(target=lambda: drive(collect()), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the collector waits for a lock of its own thread"
    drive(core.keeper._close_orphans())
    assert not core.inodes


def test_what_was_forgotten_is_written_and_what_was_not_committed_is_dropped(world: World, fs: EmberFileSystem) -> None:
    fs.open("/kept", "wb").write(b"never closed")
    fs._open("/dropped", "wb", autocommit=False).write(b"never committed")
    drive(fs.client.core.keeper._close_orphans())
    assert not fs.client.core.inodes
    assert world.client().read_bytes("/kept") == b"never closed"
    assert fs.ls("/", detail=False) == ["/kept"]


def test_an_asynchronous_file_that_is_forgotten_is_closed(world: World) -> None:
    async def work() -> None:
        core = Core(AioEnvironment(local=world.network), ["local:meta"], Options.of({"timeout": 60.0}), 0o022)
        await core.connect()
        fs = EmberFileSystem(asynchronous=True, skip_instance_cache=True)
        fs._aio[asyncio.get_running_loop()] = AioClient(core)
        file = await fs.open_async("/f", "wb")
        await file.write(b"never closed")
        del file
        gc.collect()
        await core.keeper._close_orphans()
        assert not core.inodes
        await core.close()

    asyncio.run(work())
    assert world.client().read_bytes("/f") == b"never closed"
