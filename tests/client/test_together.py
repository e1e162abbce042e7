"""Short lent reads that come in one turn of a loop: one request, and everybody hears his own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from emberfs.client.core.client import Core
from emberfs.client.core.file import Handle
from emberfs.client.core.options import Options, parse_mode
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.errors import Status, StatusError, error

from .world import World

KIB = 1 << 10
SIZE = 1024 * KIB
DATA = b"".join(i.to_bytes(4, "big") for i in range(SIZE // 4))


@pytest.fixture
async def handle(world: World) -> AsyncIterator[Handle]:
    """A file of one chunk, opened by a client that reads together."""
    world.client().write_bytes("/file", DATA)
    env = AioEnvironment(local=world.network, pool_bytes=64 << 20)
    core = Core(env, ["local:meta"], Options(timeout=60.0, memory=64 << 20), 0o022)
    core.read_together()
    await core.connect()
    made = await core.open("/file", parse_mode("rb"))
    world.storage.requests.clear()
    yield made
    await made.close()
    await core.close()
    assert not env.pool.used


async def lent(handle: Handle, offset: int, length: int = 4 * KIB) -> bytes:
    """A lent read, copied while it is valid."""
    taken: list[bytes] = []

    def consume(views: Sequence[memoryview | bytes]) -> None:
        taken.append(b"".join(views))

    assert await handle.pread_lent(offset, length, consume) == len(taken[0])
    return taken[0]


OFFSETS = [(i * 37 % 256) * 4 * KIB for i in range(20)]


async def test_what_comes_at_once_is_one_request(world: World, handle: Handle) -> None:
    found = await asyncio.gather(*(lent(handle, offset) for offset in OFFSETS))
    assert found == [DATA[offset : offset + 4 * KIB] for offset in OFFSETS]
    assert world.storage.requests == ["read"]


async def test_who_is_alone_goes_alone(world: World, handle: Handle) -> None:
    for offset in OFFSETS[:3]:
        assert await lent(handle, offset, 100) == DATA[offset : offset + 100]
    assert world.storage.requests == ["read"] * 3


async def test_more_than_one_request_takes(world: World, handle: Handle) -> None:
    found = await asyncio.gather(*(lent(handle, i * 2 * KIB, 60 * KIB) for i in range(0, 480, 8)))
    assert found == [DATA[i * 2 * KIB :][: 60 * KIB] for i in range(0, 480, 8)]
    assert world.storage.requests == ["read"] * 2  # 34 rows fit


async def test_a_row_that_fails_is_read_again_by_itself(world: World, handle: Handle) -> None:
    world.storage.statuses.extend((Status.OK, Status.BUSY))
    world.storage.flips.append(1)
    found = await asyncio.gather(*(lent(handle, offset) for offset in OFFSETS))
    assert found == [DATA[offset : offset + 4 * KIB] for offset in OFFSETS]
    assert world.storage.requests == ["read"] * 3


async def test_a_request_that_fails_fails_for_nobody(world: World, handle: Handle) -> None:
    world.storage.raises.append(error(Status.UNAVAILABLE, "planted"))
    found = await asyncio.gather(*(lent(handle, offset) for offset in OFFSETS[:5]))
    assert found == [DATA[offset : offset + 4 * KIB] for offset in OFFSETS[:5]]


async def test_who_gives_up_takes_nothing_from_the_others(handle: Handle) -> None:
    for gone in (0, 1, 7):
        reads = [asyncio.ensure_future(lent(handle, offset)) for offset in OFFSETS]
        await asyncio.sleep(0)
        reads[gone].cancel()
        found = await asyncio.gather(*reads, return_exceptions=True)
        for i, (offset, data) in enumerate(zip(OFFSETS, found, strict=True)):
            if i == gone:
                assert isinstance(data, asyncio.CancelledError)
            else:
                assert data == DATA[offset : offset + 4 * KIB]


async def test_a_taker_that_fails_is_the_only_one(handle: Handle) -> None:
    def refuse(views: object) -> None:
        raise ValueError("planted")

    async def refused() -> None:
        await handle.pread_lent(8 * KIB, 4 * KIB, refuse)

    *found, failed = await asyncio.gather(lent(handle, 40 * KIB), lent(handle, 0), refused(), return_exceptions=True)
    assert found == [DATA[40 * KIB : 44 * KIB], DATA[: 4 * KIB]]
    assert isinstance(failed, ValueError)


async def test_lost_bytes_are_told_to_whom_they_concern(world: World, handle: Handle) -> None:
    (chunk,) = world.storage.chunks.values()
    del chunk.data[900 * KIB :]
    fine, lost = await asyncio.gather(lent(handle, 0), lent(handle, 950 * KIB), return_exceptions=True)
    assert fine == DATA[: 4 * KIB]
    assert isinstance(lost, StatusError)
    assert lost.status is Status.LOST_DATA
