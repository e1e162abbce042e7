"""The tier in memory: blocks take no more of the page cache than they may."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from emberfs.proto.errors import Status
from emberfs.storage.blocks.metrics import BlockMetrics

from .test_service import run
from .world import ANY_LENGTH, Blocks, content, key

LARGE = 1 << 20


async def quiet(world: Blocks) -> None:
    """Until no pages are given back or read ahead any more."""
    async with asyncio.timeout(60):
        while world.store._trimming or world.open[0]._under_way:
            await asyncio.sleep(0.005)


def cached(world: Blocks, number: int) -> bool:
    directory, disk = world.store.directory, world.open[0].engine.disk
    slot = directory.shelf(ANY_LENGTH).slots[key(number)]
    return disk.is_cached(directory.handle[slot], directory.offset[slot], directory.length[slot])


def test_pages_of_blocks_that_nobody_reads_are_given_back(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        world.store.tier.budget = 8 * LARGE
        for number in range(24):
            assert not (await world.put({key(number): content(number, LARGE)}, namespace=ANY_LENGTH)).status
            if number >= 2:  # the first two are read again and again
                await world.get([key(0), key(1)], LARGE, namespace=ANY_LENGTH)
        await world.open[0].checkpoint()
        while world.store.tier.is_over:
            world.store.trim()
            await quiet(world)
        assert world.store.tier.used <= 8 * LARGE
        in_memory = [number for number in range(24) if cached(world, number)]
        assert len(in_memory) <= 10 and {0, 1} <= set(in_memory)
        keys = [key(number) for number in range(24)]
        assert await world.get(keys, LARGE, namespace=ANY_LENGTH) == [content(n, LARGE) for n in range(24)]
        await quiet(world)
        usage = await world.usage()
        assert usage.memory_used == world.store.tier.used

    run(test, tmp_path)


def test_pages_that_no_checkpoint_covers_stay(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        world.store.tier.budget = LARGE
        for number in range(4):
            await world.put({key(number): content(number, LARGE)}, namespace=ANY_LENGTH)
        assert not world.store.tier.leaving()
        assert world.store.tier.used == 4 * LARGE
        await world.open[0].checkpoint()
        assert len(world.store.tier.leaving()) == 3
        assert world.store.tier.used == LARGE

    run(test, tmp_path)


def test_blocks_are_read_ahead(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        for number in range(4):
            await world.put({key(number): content(number, LARGE)}, namespace=ANY_LENGTH)
        await world.open[0].checkpoint()
        tier = world.store.tier
        tier.budget = 1
        ranges = tier.leaving()
        assert len(ranges) == 4 and tier.used == 0
        for place in ranges:
            world.open[0].engine.disk.advise(*place, needed=False)
        tier.budget = 64 * LARGE
        keys = [key(number) for number in range(4)]
        assert await world.touch([*keys, key(9)], "PREFETCH", namespace=ANY_LENGTH) == [
            Status.OK,
            Status.OK,
            Status.OK,
            Status.OK,
            Status.NOT_FOUND,
        ]
        await quiet(world)
        assert tier.used == 4 * LARGE
        async with asyncio.timeout(60):
            while not all(cached(world, number) for number in range(4)):
                await asyncio.sleep(0.01)

    run(test, tmp_path)


def test_what_prometheus_is_told(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        registry = CollectorRegistry()
        BlockMetrics(world.blocks, registry)
        await world.put_ok({key(n): content(n) for n in range(3)})
        await world.put({key(0): content(0)})
        await world.get([key(0), key(9)])
        text = generate_latest(registry).decode()
        labels = '{namespace="fixed",tenant="tenant"}'
        for name, value in {
            "blocks": 3,
            "hits_total": 1,
            "misses_total": 1,
            "puts_total": 3,
            "puts_existing_total": 1,
            "evictions_total": 0,
            "bytes_read_total": 8192,
        }.items():
            assert f"emberfs_kv_{name}{labels} {float(value)}" in text
        assert 'emberfs_kv_seconds_count{method="put"} 2.0' in text

    run(test, tmp_path)
