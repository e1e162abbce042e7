"""Two operations at once: whatever the interleaving, the outcome is that of one after the other, and every invariant holds.

Each pair of a list of operations runs concurrently over the memory engine, whose reads and commits are made to give way to
each other by a seed. Both replies and the tree that results must be those of one of the two serial orders.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from emberfs.meta.kv.engine import Transaction
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace.check import check
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.meta_pb2 import FindRequest

from .world import ManualClock, World, place

CREATE, W = os.O_CREAT, os.O_WRONLY
SEEDS = 3

Action = Callable[[World], Awaitable[object]]


class YieldingTransaction:
    """A transaction that lets others run before each of its reads and before its commit."""

    def __init__(self, inner: Transaction, chance: random.Random) -> None:
        self._inner = inner
        self._chance = chance

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in ("get", "get_many", "scan", "commit"):
            return found

        async def give_way(*arguments: Any, **options: Any) -> Any:
            for _ in range(self._chance.randrange(3)):
                await asyncio.sleep(0)
            return await found(*arguments, **options)

        return give_way


class YieldingEngine:
    def __init__(self, inner: MemoryEngine, seed: int) -> None:
        self.inner = inner
        self._chance = random.Random(seed)

    def begin(self) -> Any:
        return YieldingTransaction(self.inner.begin(), self._chance)

    async def sync(self) -> None:
        await self.inner.sync()

    async def close(self) -> None:
        await self.inner.close()


async def write(world: World) -> None:
    opened = await world.open("/d/f", CREATE | W)
    await world.close(opened, 10)


async def publish(world: World) -> None:
    from emberfs.proto.gen.meta_pb2 import PublishRequest

    opened = await world.open("/", W, unnamed=True)
    await world.ask("publish", PublishRequest(inodes=[opened.attributes.inode], targets=[place("/d/f")]))
    await world.close(opened, 3)


ACTIONS: dict[str, Action] = {
    "create d/x": lambda w: w.touch("/d/x"),
    "mkdir e/x": lambda w: w.mkdir("/e/x"),
    "create e/new": lambda w: w.open("/e/new", CREATE | W),
    "rmdir e": lambda w: w.rmdir("/e"),
    "remove tree d": lambda w: w.remove_tree("/d"),
    "unlink d/f": lambda w: w.unlink("/d/f"),
    "link d/f e/f": lambda w: w.link("/d/f", "/e/f"),
    "link d/f l": lambda w: w.link("/d/f", "/l"),
    "write d/f": write,
    "truncate d/f": lambda w: w.truncate("/d/f", 3),
    "open d/f truncating": lambda w: w.open("/d/f", W | os.O_TRUNC),
    "publish d/f": publish,
    "rename d/f e/g": lambda w: w.rename("/d/f", "/e/g"),
    "rename g d/f": lambda w: w.rename("/g", "/d/f"),
    "rename d e/d": lambda w: w.rename("/d", "/e/d"),
    "rename e d/e": lambda w: w.rename("/e", "/d/e"),
    "rename d/s e": lambda w: w.rename("/d/s", "/e"),
    "rename d x": lambda w: w.rename("/d", "/x"),
    "exchange d e": lambda w: w.rename("/d", "/e", 2),
    "exchange d/f e": lambda w: w.rename("/d/f", "/e", 2),
    "mkdir -p e/a/b": lambda w: w.mkdir("/e/a/b", parents=True, exist_ok=True),
    "mkdir -p d/s/t": lambda w: w.mkdir("/d/s/t", parents=True, exist_ok=True),
    "chmod d": lambda w: w.set("/d", mode=0o700),
}


async def furnish(seed: int) -> World:
    clock = ManualClock()
    engine = YieldingEngine(MemoryEngine(clock.now), seed)
    world = await World(engine, clock).start()
    await world.mkdir("/d")
    await world.mkdir("/d/s")
    await world.touch("/d/f")
    await world.mkdir("/e")
    await world.touch("/g")
    return world


async def outcome(world: World, action: Action) -> Status:
    try:
        await action(world)
    except StatusError as failure:
        return failure.status
    return Status.OK


async def tree(world: World) -> list[tuple[object, ...]]:
    """All paths with what they are; inodes by the order in which they are met."""
    reply = await world.ask("find", FindRequest(place=place("/"), entries_max=1000))
    assert reply.end
    met: dict[int, int] = {}
    return [
        (name, a.type, a.mode, a.nlink, a.length, met.setdefault(a.inode, len(met)))
        for name, a in zip(reply.paths, reply.attributes, strict=True)
    ]


async def serial(first: Action, second: Action) -> tuple[Status, Status, list[tuple[object, ...]]]:
    world = await furnish(0)
    one = await outcome(world, first)
    two = await outcome(world, second)
    return one, two, await tree(world)


PAIRS = list(itertools.combinations_with_replacement(ACTIONS, 2))


@pytest.mark.parametrize("first", ACTIONS)
async def test_every_pair_is_as_if_one_came_after_the_other(first: str) -> None:
    for one, two in PAIRS:
        if one != first:
            continue
        a, b = ACTIONS[one], ACTIONS[two]
        forward = await serial(a, b)
        status_b, status_a, after = await serial(b, a)
        allowed = [forward, (status_a, status_b, after)]
        for seed in range(1, SEEDS + 1):
            world = await furnish(seed)
            done = await asyncio.gather(outcome(world, a), outcome(world, b))
            assert (*done, await tree(world)) in allowed, f"{one} with {two}, seed {seed}"
            assert await check(world.engine) == [], f"{one} with {two}, seed {seed}"


@pytest.mark.parametrize("seed", range(5))
async def test_many_at_once_keep_every_invariant(seed: int) -> None:
    chance = random.Random(seed)
    world = await furnish(seed)
    names = list(ACTIONS)

    async def user() -> None:
        for _ in range(15):
            await outcome(world, ACTIONS[chance.choice(names)])

    async def collector() -> None:
        for _ in range(10):
            await world.namespace.collector.step()
            world.clock.time += 1.0

    await asyncio.gather(*(user() for _ in range(6)), collector())
    assert await check(world.engine) == []
    world.namespace.client_ended(world.client)
    await world.namespace.clients.step()
    await world.collect()
    assert await check(world.engine) == []
    inodes, pending = await world.namespace.counts()
    assert pending == 0
    assert inodes == 1 + len({row[-1] for row in await tree(world)})


async def test_creators_in_one_directory_do_not_conflict() -> None:
    from emberfs.meta.kv import retry

    world = await furnish(1)
    before = retry.RETRIES._value.get()
    await asyncio.gather(*(world.touch(f"/d/{i}") for i in range(50)))
    assert retry.RETRIES._value.get() == before
    assert (await world.stat("/d")).nlink == 3
