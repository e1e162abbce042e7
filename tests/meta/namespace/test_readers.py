"""Unlinked files and those who read them: "an unlinked file waits until every reading client has said what it holds" (readers.py)."""

from __future__ import annotations

import asyncio
import os

import pytest

from emberfs.meta import keys
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace import readers
from emberfs.meta.namespace.gc import ROUND_SECONDS, SHORT_ROUND_SECONDS
from emberfs.meta.namespace.seams import Space
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.cluster_pb2 import RenewClientReply, RenewClientRequest

from .world import ManualClock, MemoryChunks, World, place

ANN, BOB = b"ann-------------", b"bob-------------"


class Reader:
    """A client that opens files for reading and reports them, as the keeper does."""

    def __init__(self, world: World, client: bytes) -> None:
        self.world = world
        self.client = client
        self.open_inodes: set[int] = set()
        self.mark = b""
        self.renewals = 0

    async def open(self, path: str) -> int:
        reply = await self.world.open(path, os.O_RDONLY, client=self.client)
        self.open_inodes.add(reply.attributes.inode)
        return int(reply.attributes.inode)

    async def renew(self) -> RenewClientReply:
        self.renewals += 1
        request = RenewClientRequest(open_inodes=self.open_inodes, reported=self.mark, renewal=self.renewals)
        reply = await self.world.namespace.renewed(self.client, request)
        self.mark = reply.mark or self.mark
        return reply


async def a_round(world: World) -> list[int]:
    """One round of the collector; the inodes of the files that have been freed so far."""
    world.clock.time += ROUND_SECONDS
    while await world.namespace.collector.step():
        pass
    return world.chunks.removed


async def test_without_readers_a_file_goes_with_the_next_round(world: World) -> None:
    number = (await world.touch("/f")).inode
    await world.unlink("/f")
    assert await a_round(world) == [number]


async def test_a_file_waits_for_every_reading_client(world: World) -> None:
    ann, bob = Reader(world, ANN), Reader(world, BOB)
    gone, kept = (await world.touch("/gone")).inode, (await world.touch("/kept")).inode
    await world.touch("/other")
    await ann.open("/kept")
    await bob.open("/other")
    await world.unlink("/gone")
    await world.unlink("/kept")
    await ann.renew()
    await ann.renew()
    assert await a_round(world) == [], "bob has not been heard"
    await bob.renew()
    assert await a_round(world) == [], "what bob said may be older than the unlink"
    await bob.renew()
    assert await a_round(world) == [gone]
    ann.open_inodes.clear()
    for _ in range(2):
        await ann.renew()
        await bob.renew()
        await a_round(world)
    assert world.chunks.removed == [gone, kept]


async def test_what_was_unlinked_before_a_client_came_does_not_wait_for_it(world: World) -> None:
    gone = (await world.touch("/gone")).inode
    await world.touch("/other")
    await world.unlink("/gone")
    await Reader(world, ANN).open("/other")
    assert await a_round(world) == [gone]


async def test_a_failed_open_makes_nobody_wait(world: World) -> None:
    with pytest.raises(StatusError):
        await Reader(world, ANN).open("/missing")
    await world.mkdir("/d")
    await world.open("/d", os.O_RDONLY, client=ANN)
    assert await world.namespace.session_clients() == []


async def test_two_first_opens_at_once_keep_the_older_mark() -> None:
    clock = ManualClock()
    world = await World(MemoryEngine(clock.now, lambda: asyncio.sleep(0)), clock).start()
    await world.touch("/f")
    await world.touch("/before")
    await world.unlink("/before")
    ann = Reader(world, ANN)
    await asyncio.gather(*(ann.open("/f") for _ in range(5)))
    assert len(await world.engine.begin().scan(*keys.prefix_range(keys.READER), 10)) == 1
    await world.unlink("/f")
    assert len(await a_round(world)) == 1


async def test_a_late_copy_of_a_renewal_says_nothing(world: World) -> None:
    """A server that was stopped finds the same client's older list in the buffer of an old connection."""
    ann = Reader(world, ANN)
    number = (await world.touch("/f")).inode
    await world.touch("/g")
    await ann.open("/g")
    stale = RenewClientRequest(open_inodes=ann.open_inodes, renewal=1)
    ann.renewals = 1
    await ann.open("/f")
    await world.unlink("/f")
    await ann.renew()
    await ann.renew()
    await world.namespace.renewed(ANN, stale)
    for _ in range(3):
        await a_round(world)
    assert world.chunks.removed == []
    ann.open_inodes.discard(number)
    await ann.renew()
    await ann.renew()
    assert await a_round(world) == [number]


async def test_two_renewals_of_one_client_do_not_mix() -> None:
    clock = ManualClock()
    world = await World(MemoryEngine(clock.now, lambda: asyncio.sleep(0)), clock).start()
    outcomes = await asyncio.gather(
        *(world.namespace.renewed(ANN, RenewClientRequest(open_inodes=[i], renewal=i)) for i in (1, 2)),
        return_exceptions=True,
    )
    assert [isinstance(outcome, StatusError) and outcome.status for outcome in outcomes] == [False, Status.BUSY]


async def test_a_silent_client_keeps_files_until_its_lease_is_over(world: World) -> None:
    number = (await world.touch("/f")).inode
    await Reader(world, ANN).open("/f")
    await world.unlink("/f")
    assert await a_round(world) == []
    assert await world.namespace.session_clients() == [ANN], "the manager has to watch it"
    world.namespace.client_ended(ANN)
    await world.namespace.clients.step()
    assert await a_round(world) == [number]
    with pytest.raises(StatusError) as caught:
        await world.touch("/again")
        await Reader(world, ANN).open("/again")
    assert caught.value.status is Status.SESSION_ENDED
    assert await world.namespace.session_clients() == []


async def test_restarts_neither_shorten_nor_lengthen_the_wait() -> None:
    """However often the server is killed: what has been reported counts, what has not does not."""
    clock, chunks = ManualClock(), MemoryChunks()
    engine = MemoryEngine(clock.now)

    async def restarted() -> World:
        world = await World(engine, clock, chunks).start()
        ann.world = world
        return world

    world = await World(engine, clock, chunks).start()
    ann = Reader(world, ANN)
    gone, kept = (await world.touch("/gone")).inode, (await world.touch("/kept")).inode
    await ann.open("/kept")
    await world.unlink("/gone")
    await world.unlink("/kept")
    for _ in range(20):
        world = await restarted()
        assert await a_round(world) == [], "nobody has reported"
    for _ in range(2):
        world = await restarted()
        await ann.renew()
    world = await restarted()
    await world.namespace.collector.step()
    await world.namespace.collector.step()
    assert chunks.removed == [gone], "a round begins with the server"
    for _ in range(20):
        world = await restarted()
        await ann.renew()
        await a_round(world)
    assert chunks.removed == [gone]
    ann.open_inodes.clear()
    for _ in range(3):
        world = await restarted()
        await ann.renew()
        await a_round(world)
    assert chunks.removed == [gone, kept]


async def test_a_file_that_is_held_is_looked_at_once_a_round(world: World) -> None:
    opened = await world.open("/", os.O_WRONLY, unnamed=True)
    steps = 0
    world.clock.time += ROUND_SECONDS
    while await world.namespace.collector.step():
        steps += 1
    assert steps == 1
    await world.close(opened, 0, discard=True)
    assert await a_round(world) == [opened.attributes.inode]


async def test_a_file_opened_by_its_number_after_its_last_name_went(world: World) -> None:
    """As a forked process does with a file that its parent holds."""
    ann, bob = Reader(world, ANN), Reader(world, BOB)
    await world.touch("/other")
    number = (await world.touch("/f")).inode
    await ann.open("/f")
    await world.unlink("/f")
    reply = await world.ask("open", meta_pb2.OpenRequest(place=place("", number), flags=os.O_RDONLY), client=BOB)
    assert reply.attributes.nlink == 0
    bob.open_inodes.add(number)
    ann.open_inodes.clear()
    for reader in (ann, ann, bob, bob):
        await reader.renew()
    assert await a_round(world) == []
    bob.open_inodes.clear()
    for reader in (bob, ann, bob, ann):
        await reader.renew()
    assert await a_round(world) == [number]
    with pytest.raises(StatusError) as caught:
        await world.namespace.clients.readers.hold(BOB, number)
    assert caught.value.status is Status.STALE_HANDLE


class FullChunks(MemoryChunks):
    def space(self) -> Space:
        return Space(1000, 500, 0.04)


async def test_when_space_is_short_clients_are_asked_and_rounds_are_short() -> None:
    """ "below 5 % free space it asks the connected clients instead of waiting"."""
    world = await World(chunks=FullChunks()).start()
    ann = Reader(world, ANN)
    await world.touch("/other")
    number = (await world.touch("/f")).inode
    await ann.open("/other")
    await world.unlink("/f")
    await world.namespace.collector.step()
    assert (await ann.renew()).report_ms == 1000 * readers.REPORT_SECONDS_MIN
    assert not (await ann.renew()).report_ms, "it has said everything"
    world.clock.time += SHORT_ROUND_SECONDS
    while await world.namespace.collector.step():
        pass
    assert world.chunks.removed == [number]


async def test_more_open_files_than_are_recorded_keep_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "HOLDS_PER_CLIENT_MAX", 1)
    ann = Reader(world, ANN)
    for name in "ab":
        await world.touch(f"/{name}")
        await ann.open(f"/{name}")
        await world.unlink(f"/{name}")
    for _ in range(3):
        await ann.renew()
        assert await a_round(world) == []
    first = min(ann.open_inodes)
    ann.open_inodes.discard(first)
    for _ in range(3):
        await ann.renew()
        await a_round(world)
    assert world.chunks.removed == [first]
