"""Repair of single chunks: a flipped byte, a lost row, on each member, found by a client's report, an update or the scrubber."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import storage_pb2
from emberfs.proto.ids import chunk_key
from emberfs.proto.rpc import STORAGE
from emberfs.storage.engine.engine import ChunkEngine
from emberfs.storage.engine.row import CHUNK as ROW
from emberfs.storage.events import Forward, Result
from emberfs.storage.scrub import Scrubber

from .members import OFFLINE, SECONDS, SERVING, SYNCING, Member, Members, holdings

SIZE = 300_000


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[Members]:
    made = await Members(tmp_path, 3).start()
    made.announce(SERVING, SERVING, SERVING)
    yield made
    await made.stop()


def flip(engine: ChunkEngine, chunk: bytes, at: int) -> None:
    """Another byte at this place of the chunk, on the disk."""
    with engine.plan([(chunk, at, 1)]) as (plan,):
        ((handle, offset, _),) = plan.edges[0].segments if plan.edges else plan.segments
        begin = at // plan.unit * plan.unit
        byte = bytearray(1)
        engine.disk.preadv(handle, [byte], offset + at - begin, True)
        engine.disk.pwritev(handle, [memoryview(bytes([byte[0] ^ 1]))], offset + at - begin)


async def report(members: Members, number: int, index: int) -> None:
    request = storage_pb2.ReportCorruptionRequest(chain=[1], target=[number], inode=[5], index=[index])
    await members.call(members.members[number - 1], STORAGE.ReportCorruption, request)


async def repaired(member: Member, count: int) -> None:
    async with asyncio.timeout(SECONDS):
        while member.repairer.repaired < count:
            await asyncio.sleep(0.01)


async def settled(members: Members) -> None:
    """Until no member has anything under way, nor anything to repair."""
    async with asyncio.timeout(SECONDS):
        while any(member.target.replica.in_flight or member.repairer._working for member in members.members):
            await asyncio.sleep(0.01)


def assert_sound(members: Members) -> None:
    first, *others = [holdings(member.engine) for member in members.members]
    assert all(other == first for other in others)


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_flipped_byte_is_repaired_where_it_was_reported(members: Members, number: int) -> None:
    data = bytes(range(256)) * (SIZE // 256)
    assert await members.write(0, data) is Status.OK
    member = members.members[number - 1]
    for count, at in enumerate((0, len(data) // 2, len(data) - 1), 1):
        flip(member.engine, chunk_key(5, 0), at)
        await report(members, number, 0)
        await repaired(member, count)
        assert await members.read(number, 0) == (Status.OK, data)
        assert_sound(members)
        assert not member.target.damaged


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_lost_row_is_repaired_where_it_was_reported(members: Members, number: int) -> None:
    assert await members.write(0, b"x" * SIZE) is Status.OK
    member = members.members[number - 1]
    member.engine.index.write([(ROW + chunk_key(5, 0), None)])
    member.engine._rows.cached.drop(chunk_key(5, 0))
    assert (await members.read(number, 0))[0] is Status.CHUNK_NOT_FOUND
    await report(members, number, 0)
    await repaired(member, 1)
    assert_sound(members)


async def test_the_scrubber_repairs_what_is_damaged_and_what_is_missing(members: Members) -> None:
    for index in range(10):
        assert await members.write(index, bytes([index]) * SIZE) is Status.OK
    member = members.members[1]
    flip(member.engine, chunk_key(5, 3), 1000)
    member.engine.index.write([(ROW + chunk_key(5, 9), None)])
    member.engine._rows.cached.drop(chunk_key(5, 9))
    found = await Scrubber(member.target, 1 << 40, None, member.repairer).walk()
    assert found.damaged == [chunk_key(5, 3)] and found.missing == 1
    await repaired(member, 2)
    assert_sound(members)
    again = await Scrubber(member.target, 1 << 40, None, member.repairer).walk()
    assert not again.damaged and not again.missing


async def test_an_update_that_meets_damage_goes_through_after_the_repair(members: Members) -> None:
    """In the middle of the chain, where the head has decided already."""
    assert await members.write(0, b"x" * SIZE) is Status.OK
    flip(members.members[1].engine, chunk_key(5, 0), 100)
    assert await members.write(0, b"new", offset=101) is Status.OK
    assert members.members[1].repairer.repaired == 1
    assert_sound(members)


async def test_updates_go_on_while_chunks_are_repaired(members: Members) -> None:
    for index in range(8):
        assert await members.write(index, b"x" * SIZE, inode=1001) is Status.OK
    work = asyncio.create_task(members.churn(60, 1, files=1))  # of inode 1001
    for round_ in range(20):
        member = members.members[round_ % 3]
        chunk = chunk_key(1001, round_ % 8)
        if member.engine.info(chunk) is not None and not work.done():
            member.repairer.report(chunk)
        await asyncio.sleep(0.01)
    await work
    await settled(members)
    assert_sound(members)


async def test_the_last_replica_stays_damaged_and_says_so(tmp_path: Path) -> None:
    members = await Members(tmp_path, 1).start()
    members.announce(SERVING)
    assert await members.write(0, b"x" * SIZE) is Status.OK
    member = members.members[0]
    flip(member.engine, chunk_key(5, 0), 5)
    await report(members, 1, 0)
    assert chunk_key(5, 0) in member.target.damaged
    assert await member.repairer.repair(chunk_key(5, 0)) is Status.CHECKSUM
    await members.stop()


async def test_damage_without_another_replica_does_not_stop_a_sync(tmp_path: Path) -> None:
    """The chunk is copied as it is, with the checksums that it should have: what is damaged stays recognisable, the rest is safe."""
    members = await Members(tmp_path, 2).start()
    members.announce(SERVING, OFFLINE)
    for index in range(3):
        assert await members.write(index, b"x" * SIZE) is Status.OK
    flip(members.head.engine, chunk_key(5, 1), 5)
    members.announce(SERVING, SYNCING)
    await members.synced(2)
    members.announce(SERVING, SERVING)
    first, second = (member.engine for member in members.members)
    assert list(first.chunks(b"", b"\xff" * 17)) == list(second.chunks(b"", b"\xff" * 17))
    for engine in (first, second):
        assert bytes(engine.read(chunk_key(5, 1), 4096, SIZE)) == b"x" * (SIZE - 4096)
        with pytest.raises(StatusError, match="do not match"):
            engine.read(chunk_key(5, 1), 0, 100)
    assert await members.write(1, b"y" * 4096) is Status.OK  # whoever writes the damaged part anew heals it
    for engine in (first, second):
        assert bytes(engine.read(chunk_key(5, 1))) == b"y" * 4096 + b"x" * (SIZE - 4096)
    await members.stop()


async def test_what_a_returning_member_still_has_makes_the_only_copy_whole(tmp_path: Path) -> None:
    """A chunk was changed while one member was away, and then damaged elsewhere: there that member's old bytes are the right ones."""
    members = await Members(tmp_path, 2).start()
    members.announce(SERVING, SERVING)
    for index in range(3):
        assert await members.write(index, b"x" * SIZE) is Status.OK
    await settled(members)
    members.announce(SERVING, OFFLINE)
    for index in range(3):
        assert await members.write(index, b"y" * 5000, offset=100_000) is Status.OK
    first, second = (member.engine for member in members.members)
    flip(first, chunk_key(5, 0), 5)
    flip(first, chunk_key(5, 1), SIZE - 1)
    flip(first, chunk_key(5, 2), 5)
    flip(first, chunk_key(5, 2), 101_000)  # of this nobody has another copy
    members.announce(SERVING, SYNCING)
    await members.synced(2)
    right = b"x" * 100_000 + b"y" * 5000 + b"x" * (SIZE - 105_000)
    for index in (0, 1):
        assert bytes(second.read(chunk_key(5, index))) == right
    members.announce(SERVING, SERVING)
    await report(members, 1, 0)
    await report(members, 1, 1)
    await repaired(members.head, 2)
    assert bytes(first.read(chunk_key(5, 0))) == bytes(first.read(chunk_key(5, 1))) == right
    assert bytes(second.read(chunk_key(5, 2), 0, 4096)) == right[:4096]
    with pytest.raises(StatusError, match="do not match"):
        second.read(chunk_key(5, 2), 100_000, 4096)
    assert list(members.members[1].target.damaged) == [chunk_key(5, 2)]
    await members.stop()


async def test_a_live_update_of_a_damaged_chunk_during_a_sync(members: Members) -> None:
    """The repair stands in line behind the update, which cannot wait for it; in the end all three are sound."""
    assert await members.write(0, b"x" * SIZE) is Status.OK
    assert await members.write(1, b"z" * SIZE) is Status.OK
    members.announce(SERVING, SERVING, OFFLINE)
    assert await members.write(0, b"missed", offset=9) is Status.OK
    flip(members.members[1].engine, chunk_key(5, 0), SIZE - 1)
    members.announce(SERVING, SERVING, SYNCING)
    assert await members.write(0, b"live", offset=50_000) is Status.OK
    await members.synced(3)
    members.announce(SERVING, SERVING, SERVING)
    await repaired(members.members[1], 1)
    async with asyncio.timeout(SECONDS):
        while members.members[2].target.damaged:
            await asyncio.sleep(0.01)
    assert_sound(members)


async def test_a_chunk_whose_remove_its_predecessor_has_not_heard_of_yet_does_not_come_back(members: Members) -> None:
    """The last member has removed it, and its answer is on the way. The members before say that the chunk is there."""
    assert await members.write(0, b"x" * SIZE) is Status.OK
    middle, last = members.members[1:]
    forward, answered = middle.target.forward, asyncio.Event()
    assert forward is not None

    async def held(effect: Forward) -> Sequence[Result] | None:
        results = await forward(effect)
        await answered.wait()
        return results

    middle.target.forward = held
    remove = asyncio.ensure_future(members.remove(0, 1))
    async with asyncio.timeout(SECONDS):
        while last.engine.info(chunk_key(5, 0)) is not None:
            await asyncio.sleep(0.01)
    repair = asyncio.ensure_future(last.repairer.repair(chunk_key(5, 0)))
    await asyncio.wait((repair,), timeout=0.5)
    answered.set()
    await remove
    await repair
    assert_sound(members)
    assert (await members.read(3, 0))[0] is Status.CHUNK_NOT_FOUND


async def test_a_repair_that_outlasts_its_chain_brings_nothing_back(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slow: while the chunk is written the member leaves, the chunk is removed, and the member is made equal to the others."""
    assert await members.write(0, b"x" * SIZE) is Status.OK
    member = members.members[2]
    member.engine.index.write([(ROW + chunk_key(5, 0), None)])
    member.engine._rows.cached.drop(chunk_key(5, 0))
    blocking, begun, go_on = member.target.blocking, asyncio.Event(), asyncio.Event()

    async def slow(work: Callable[..., Any], *arguments: Any) -> Any:
        if getattr(work, "__name__", "") == "run" and not begun.is_set():
            begun.set()
            await go_on.wait()
        return await blocking(work, *arguments)

    monkeypatch.setattr(member.target, "blocking", slow)
    await report(members, 3, 0)
    async with asyncio.timeout(SECONDS):
        await begun.wait()
    members.announce(SERVING, SERVING, OFFLINE)
    await members.remove(0, 1)
    members.announce(SERVING, SERVING, SYNCING)
    await members.synced(3)
    members.announce(SERVING, SERVING, SERVING)
    go_on.set()
    await settled(members)
    assert_sound(members)
