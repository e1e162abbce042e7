"""Clones through the service: on a chain of three with real engines, and what a service refuses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from emberfs.proto.capability import Rights
from emberfs.proto.errors import Status
from emberfs.proto.gen import storage_pb2
from emberfs.proto.ids import channel_of, chunk_key
from emberfs.proto.rpc import STORAGE
from emberfs.storage import clones
from emberfs.storage.inspection import inspect

from .members import CHUNK, OFFLINE, SECONDS, SERVING, SYNCING, Members
from .test_replication import assert_equal, settled
from .world import World

A, B = 5, 6  # inodes


@pytest_asyncio.fixture
async def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Members]:
    monkeypatch.setattr("emberfs.storage.forwarding.ASK_TAIL_S_MAX", SECONDS)  # readers are not sent away in a hurry
    members = await Members(tmp_path, 3, patience=0.5).start()
    members.announce(SERVING, SERVING, SERVING)
    yield members
    await members.stop()


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path).start()
    yield world
    await world.stop()


def used(members: Members) -> list[int]:
    return [member.engine.space_info().used for member in members.members]


async def test_a_clone_moves_no_bytes_and_each_side_goes_its_own_way(chain: Members) -> None:
    data = random.Random(1).randbytes(300_000)
    await chain.write(0, data, inode=A)
    before, moved = used(chain), [m.target.counters.bytes_forwarded for m in chain.members]
    assert await chain.clone((A, 0), (B, 0)) is Status.OK
    assert used(chain) == before
    assert [m.target.counters.bytes_forwarded for m in chain.members] == moved
    await chain.write(0, b"A's own", offset=300_000, inode=A)
    await chain.write(0, b"B's own", offset=100, inode=B)
    for number in (1, 2, 3):
        assert await chain.read(number, 0, inode=A) == (Status.OK, data + b"A's own")
        assert await chain.read(number, 0, inode=B) == (Status.OK, data[:100] + b"B's own" + data[107:])
    await assert_equal(chain)


async def test_a_chunk_without_a_source_is_a_hole_on_every_member(chain: Members) -> None:
    await chain.write(0, b"data", inode=B)
    assert await chain.clone((A, 7), (B, 0)) is Status.OK  # A has no such chunk
    assert [status for status, _ in await read_all_of(chain, B)] == [Status.CHUNK_NOT_FOUND] * 3
    await chain.write(0, b"data", inode=B)
    assert await chain.clone((0, 0), (B, 0)) is Status.OK
    assert [status for status, _ in await read_all_of(chain, B)] == [Status.CHUNK_NOT_FOUND] * 3
    await assert_equal(chain)


async def read_all_of(members: Members, inode: int) -> list[tuple[Status, bytes]]:
    return [await members.read(number, 0, inode=inode) for number in (1, 2, 3)]


async def test_random_files_that_clone_each_other_equal_a_model(chain: Members) -> None:
    """Eight chunks, each changed by one client at a time; every clone takes what its source is at that moment."""
    chance = random.Random(2)
    model: dict[int, bytes] = {}
    for _ in range(150):
        index = chance.randrange(8)
        if chance.random() < 0.5:
            source, limit = chance.randrange(8), chance.choice([CHUNK, CHUNK, chance.randrange(1, 60_000)])
            if source == index:
                continue
            await chain.clone((A, source), (A, index), limit)
            model[index] = model.get(source, b"")[:limit]
        else:
            offset = chance.choice([0, len(model.get(index, b"")), chance.randrange(50_000)])
            data = chance.randbytes(chance.choice([10, 4096, 30_000]))
            await chain.write(index, data, offset=offset, inode=A)
            old = bytearray(model.get(index, b"").ljust(offset, b"\0"))
            old[offset : offset + len(data)] = data
            model[index] = bytes(old)
    for index, expected in model.items():
        for number in (1, 2, 3):
            status, data = await chain.read(number, index, inode=A)
            assert data == expected
            assert status is (Status.OK if expected else Status.CHUNK_NOT_FOUND)
    await assert_equal(chain)


async def test_writers_of_both_files_and_clones_at_once(chain: Members) -> None:
    """A clone is atomic for its chunk: what is made is always some state that the source has had."""
    stamps = [bytes([n]) * 70_000 for n in range(1, 20)]

    async def write() -> None:
        for stamp in stamps:
            await chain.write(0, stamp, inode=A)

    async def clone() -> None:
        for _ in stamps:
            await chain.clone((A, 0), (B, 0))
            for status, data in await read_all_of(chain, B):
                assert status is Status.CHUNK_NOT_FOUND or data in stamps

    await chain.write(0, stamps[0], inode=A)
    await asyncio.gather(write(), clone(), chain.churn(20, 3))
    await assert_equal(chain)


async def test_a_member_that_was_away_gets_the_clones_whole(chain: Members) -> None:
    data = random.Random(3).randbytes(500_000)
    await chain.write(0, data, inode=A)
    await chain.clone((A, 0), (B, 0))
    await settled(chain)
    await chain.members[2].kill()
    chain.announce(SERVING, SERVING, OFFLINE)
    assert await chain.clone((B, 0), (B, 1)) is Status.OK
    await chain.write(0, b"new", inode=A)
    await chain.members[2].start()
    chain.announce(SERVING, SERVING, SYNCING)
    assert await chain.clone((B, 1), (B, 2)) is Status.OK  # live, to one that is synced
    await chain.synced(3)
    chain.announce(SERVING, SERVING, SERVING)
    await assert_equal(chain)
    assert await chain.read(3, 1, inode=B) == (Status.OK, data)
    assert await chain.read(3, 2, inode=B) == (Status.OK, data)


async def test_killed_in_the_middle_of_clones(chain: Members) -> None:
    """Every member in turn, with clones and writes under way; afterwards all hold the same, and a retry was done once."""
    load = asyncio.gather(*(chain.churn(40, seed) for seed in range(3)))
    order = [1, 2, 3]
    for number in (3, 1, 2):
        await asyncio.sleep(0)
        await chain.members[number - 1].kill()
        # The others stay as they stand, as the manager leaves them: who was before has what who was behind has, and more.
        order.remove(number)
        order.append(number)
        chain.announce(SERVING, SERVING, OFFLINE, order=order)
        await chain.members[number - 1].start()
        chain.announce(SERVING, SERVING, SYNCING, order=order)
        await chain.synced(number)
        chain.announce(SERVING, SERVING, SERVING, order=order)
    await load
    await assert_equal(chain)


def request(source: int = A, made: int = B, *, sequence: int = 1, version: int = 1, **columns: Any) -> Any:
    columns = {"source_truncate_version": 0, "truncate_version": 0, "length": CHUNK, "chunk_size": CHUNK, **columns}
    return storage_pb2.CloneRequest(
        chain=[1], chain_version=[version], source_inode=[source], source_index=[0], inode=[made], index=[0],
        channel=[channel_of(made, 0)], sequence=[sequence], **{name: [value] for name, value in columns.items()},
    )  # fmt: skip


async def test_a_retry_is_answered_and_not_done_again(world: World) -> None:
    await world.write(b"first")
    first = await world.call(STORAGE.Clone, request())
    assert (first.status[0], first.chunk_length[0]) == (0, 5)
    await world.write(b"later", sequence=2)
    again = await world.call(STORAGE.Clone, request())
    assert again == first
    _, data = await world.read_many([(B, 0, 0, 5)])
    assert bytes(data) == b"first"
    assert (await world.call(STORAGE.Clone, request(sequence=2))).chunk_length == [5]
    assert (await world.call(STORAGE.Clone, request(sequence=1))).status == [Status.DUPLICATE]


async def test_files_that_were_truncated_meanwhile_are_refused(world: World) -> None:
    await world.write(b"data", truncate_version=3)
    stale = await world.call(STORAGE.Clone, request(source_truncate_version=2))
    assert stale.status == [Status.STALE_TRUNCATE_VERSION]
    assert (await world.call(STORAGE.Clone, request(source_truncate_version=3, truncate_version=5))).status == [0]
    stale = await world.call(STORAGE.Clone, request(source_truncate_version=3, truncate_version=4, sequence=2))
    assert stale.status == [Status.STALE_TRUNCATE_VERSION]
    assert await world.write(b"old", inode=B, sequence=3, truncate_version=4) is Status.STALE_TRUNCATE_VERSION


async def test_what_is_refused(world: World) -> None:
    await world.write(b"data")
    assert (await world.call(STORAGE.Clone, request(A, A, sequence=9))).status == [Status.INVALID]
    assert (await world.call(STORAGE.Clone, request(version=9))).status == [Status.STALE_CHAIN_VERSION]
    assert (await world.call(STORAGE.Clone, request(chunk_size=4 << 20))).status == [Status.INVALID]
    world.untrust()
    cases: list[tuple[list[bytes], list[bytes], Status]] = [
        ([], [], Status.PERMISSION_DENIED),
        ([world.capability(B)], [], Status.PERMISSION_DENIED),
        ([world.capability(B)], [world.capability(A, Rights.WRITE)], Status.PERMISSION_DENIED),
        ([world.capability(B, Rights.READ)], [world.capability(A)], Status.PERMISSION_DENIED),
        ([world.capability(B)], [world.capability(B)], Status.PERMISSION_DENIED),
        ([world.capability(B)], [world.capability(A, Rights.READ)], Status.OK),
    ]
    for sequence, (writes, reads, status) in enumerate(cases, 1):
        asked = request(sequence=sequence)
        asked.capabilities.extend(writes)
        asked.source_capabilities.extend(reads)
        assert (await world.call(STORAGE.Clone, asked)).status == [status]
    punch = request(0, sequence=99)  # a hole needs no right to read
    punch.capabilities.append(world.capability(B, Rights.WRITE))
    assert (await world.call(STORAGE.Clone, punch)).status == [Status.OK]


async def test_what_is_there_is_listed_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clones, "EXTENTS_MAX", 5)
    there = [0, 1, 4, 9, 10, 11, 30]
    await world.write_many([(A, index, 0, bytes(index + 1), index + 1, index) for index in there])
    await world.write(b"another file", inode=A + 1, sequence=50)
    found: list[tuple[int, int]] = []
    first, more = 0, True
    while more:
        asked = storage_pb2.ExtentsRequest(chain=[1], chain_version=[1], inode=[A], first=[first], last=[1 << 32])
        reply = await world.call(STORAGE.Extents, asked)
        assert reply.status == [0] and reply.chunks == [len(reply.index)]
        found += zip(reply.index, reply.length, strict=True)
        first, more = found[-1][0] + 1, reply.more[0]
    assert found == [(index, index + 1) for index in there]
    asked = storage_pb2.ExtentsRequest(chain=[1] * 2, chain_version=[1] * 2, inode=[A] * 2, first=[2, 9], last=[9, 11])
    reply = await world.call(STORAGE.Extents, asked)
    assert (list(reply.chunks), list(reply.index), list(reply.more)) == ([1, 2], [4, 9, 10], [False, False])
    world.untrust()
    assert (await world.call(STORAGE.Extents, asked)).status == [Status.PERMISSION_DENIED] * 2


async def test_a_clone_with_patches_is_not_folded_while_it_is_shared(world: World) -> None:
    await world.write(bytes(300_000))
    await world.write(b"patch", offset=5000, sequence=2)
    await world.call(STORAGE.Clone, request())
    target = world.open[0]
    used = target.engine.space_info().used
    for inode in (A, B):
        assert await inspect(target, chunk_key(inode, 0), fold=True)
    await target.checkpoint()
    assert target.engine.space_info().used == used
    assert target.engine.info(chunk_key(B, 0)).patches == 1
