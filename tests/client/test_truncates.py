"""Truncates that meet writes and reads of others: within one client, and between clients."""

from __future__ import annotations

import pytest

from emberfs.client.core.client import Core
from emberfs.client.core.ranges import read_ranges

from .chain_world import ChainWorld, opened, run

CHUNK = 64 << 10
MIB = 1 << 20


@pytest.mark.parametrize("seed", range(12))
def test_a_truncate_by_name_beside_a_write_comes_before_it_or_after_it(seed: int) -> None:
    """Whoever has seen the file without the write does not see it come back."""

    async def story(world: ChainWorld) -> None:
        core = await world.client()
        file = await opened(core, "/f", "w+b", chunk_size=CHUNK)
        await file.write(b"old" * 1000)
        await file.flush()
        chance = world.simulation.random

        async def write() -> None:
            await world.sleep(chance.uniform(0, 0.012))
            await file.pwrite(b"n" * (2 * MIB), 0)

        async def truncate() -> None:
            await world.sleep(chance.uniform(0, 0.003))
            await core.truncate("/f", 100)

        await world.simulation.gather(write(), truncate())
        first = await file.pread(3 * MIB, 0)
        await file.flush()
        assert await file.pread(3 * MIB, 0) == first
        assert first in (b"n" * 100, b"n" * (2 * MIB))
        assert (await core.stat("/f")).size == len(first)

    run(story, seed=seed)


def test_a_read_past_another_clients_truncate_is_short_and_no_zeros() -> None:
    async def story(world: ChainWorld) -> None:
        one, two = await world.client(), await world.client()
        await write(one, b"x" * (3 * CHUNK))
        reader = await opened(two, "/f")
        assert await reader.read(10) == b"x" * 10
        await one.truncate("/f", 100)
        assert await reader.pread(50, 10) == b"x" * 50
        assert await reader.pread(CHUNK, 0) == b"x" * 100
        assert await reader.pread(CHUNK, CHUNK) == b""
        assert reader.size == 100
        await one.truncate("/f", 3 * CHUNK)
        again = await opened(two, "/f")
        assert await again.read() == b"x" * 100 + bytes(3 * CHUNK - 100)

    run(story)


def test_every_kind_of_read_past_a_truncate_is_short() -> None:
    async def story(world: ChainWorld) -> None:
        one, two = await world.client(), await world.client()
        for kind in range(5):
            await write(one, b"x" * (3 * CHUNK))
            reader = await opened(two, "/f")
            await one.truncate("/f", CHUNK + 5)
            if kind == 0:
                assert await reader.read() == b"x" * (CHUNK + 5)
            elif kind == 1:
                buffer = bytearray(3 * CHUNK)
                assert await reader.readinto(buffer) == CHUNK + 5
                assert reader.position == CHUNK + 5
            elif kind == 2:
                assert await reader.pread_into(bytearray(CHUNK), CHUNK) == 5
            elif kind == 3:
                views = await reader.preadv_batch([(0, 10), (CHUNK, 10), (2 * CHUNK, 10)])
                assert [bytes(view) for view in views] == [b"x" * 10, b"x" * 5, b""]
            else:
                found = await read_ranges(two, [("/f", CHUNK, CHUNK + 10)])
                assert found == [b"x" * 5], "opened anew"

    run(story)


async def write(core: Core, data: bytes) -> None:
    file = await opened(core, "/f", "wb", chunk_size=CHUNK)
    await file.write(data)
    await file.close()
