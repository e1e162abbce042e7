"""The asyncio face: many operations under way at once, and callers that stop waiting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from emberfs.client import aio

MIB = 1 << 20


@pytest.fixture
async def client(cluster: Any) -> AsyncIterator[aio.Client]:
    async with await aio.connect(cluster.url) as made:
        yield made


@pytest.fixture
async def folder(client: aio.Client) -> str:
    path = f"/aio-{random.randrange(1 << 60):x}"
    await client.mkdir(path)
    return path


async def test_many_files_at_once(client: aio.Client, folder: str) -> None:
    async def one(i: int) -> None:
        data = random.Random(i).randbytes(50_000 + i)
        async with await client.open(f"{folder}/{i}", "wb") as file:
            await file.write(data[:1000])
            await file.write(data[1000:])
        async with await client.open(f"{folder}/{i}") as file:
            pieces = await asyncio.gather(*(file.pread(5000, at) for at in range(0, len(data), 5000)))
        assert b"".join(pieces) == data

    await asyncio.gather(*(one(i) for i in range(100)))
    names = [name async for name, _ in client.scandir(folder)]
    assert len(names) == 100
    stats = await client.stat_many([f"{folder}/{name}" for name in names])
    assert all(isinstance(stat, aio.Stat) and stat.size >= 50_000 for stat in stats)


async def test_metadata_is_pipelined(client: aio.Client, folder: str) -> None:
    made = await asyncio.gather(*(client.open(f"{folder}/{i}", "xb") for i in range(200)))
    await asyncio.gather(*(file.close() for file in made))
    found = await asyncio.gather(*(client.stat(f"{folder}/{i}") for i in range(200)))
    assert len({stat.inode for stat in found}) == 200


async def test_a_cancelled_writer_loses_nothing_that_was_taken(client: aio.Client, folder: str) -> None:
    """Whatever was being waited for, the bytes of earlier writes arrive, once."""
    draw = random.Random(4)
    path = f"{folder}/f"
    expected = bytearray()
    async with await client.open(path, "wb", chunk_size=1 << 16) as file:
        for i in range(60):
            data = draw.randbytes(draw.choice((100, 70_000, 300_000)))
            await file.pwrite(data, len(expected))
            expected += data
            waiting = asyncio.ensure_future(file.flush() if i % 3 else file.fsync())
            for _ in range(draw.randrange(12)):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    assert await client.read_bytes(path) == bytes(expected)


async def test_a_cancelled_reader_leaves_the_file_usable(client: aio.Client, folder: str) -> None:
    data = random.Random(5).randbytes(6 * MIB)
    await client.write_bytes(f"{folder}/f", data)
    async with await client.open(f"{folder}/f") as file:
        for i in range(30):
            file.seek(i * 100_000)
            waiting = asyncio.ensure_future(file.read(MIB))
            for _ in range(i % 7):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        file.seek(0)
        assert await file.read() == data
        assert client.core.env.pool.held == 0 or await settled(client)


async def settled(client: aio.Client) -> bool:
    """The server has answered what was cancelled: nothing is kept aside any more."""
    async with asyncio.timeout(60):
        while client.core.env.pool.held:
            await client.stat("/")
    return True


async def test_attributes_access_and_links_of_open_files(client: aio.Client, folder: str) -> None:
    async with await client.open(folder, "wb", unnamed=True) as file:
        await file.write(b"x")
        await client.link(file, f"{folder}/named")
    await client.setxattr(f"{folder}/named", "user.a", b"1")
    assert await client.listxattr(f"{folder}/named") == ["user.a"]
    assert await client.getxattr(f"{folder}/named", "user.a") == b"1"
    await client.removexattr(f"{folder}/named", "user.a")
    assert await client.listxattr(f"{folder}/named") == []
    assert await client.access(f"{folder}/named", 4) and not await client.access(f"{folder}/none", 0)
    assert (await client.mknod(f"{folder}/pipe", 0o010600)).type == "fifo"
