"""What disks do to the targets of a storage service, and what becomes of it: full ones, damaged chunks, disks that fail, and syncs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from emberfs.proto.errors import Status
from emberfs.proto.gen import storage_pb2
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE
from emberfs.proto.ids import chunk_key
from emberfs.proto.rpc import STORAGE
from emberfs.storage import scrub
from emberfs.storage.scrub import Scrubber

from .world import CHUNK, SECONDS, World, memory, pattern


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World(tmp_path).start()
    yield made
    await made.stop()


async def test_a_full_target_takes_nothing_new_but_is_read_and_emptied(tmp_path: Path) -> None:
    world = await World(tmp_path, capacity=64 << 20).start()
    data = pattern(CHUNK)
    index = 0
    while (status := await world.write(data, index=index, sequence=index + 1, channel=1)) is Status.OK:
        index += 1
    assert status is Status.NO_SPACE
    assert 55 < index <= 64
    assert await world.read(index=3) == data
    reply = await world.call(STORAGE.Space, storage_pb2.SpaceRequest())
    assert (list(reply.target), list(reply.capacity), list(reply.chunks)) == ([1], [64 << 20], [index])
    assert reply.bytes_written[0] == index * CHUNK
    assert reply.bytes_read[0] == CHUNK
    assert await world.remove(0, 10) == (10, False)
    await world.open[0].checkpoint()
    assert await world.write(data, index=100, sequence=1000, channel=1) is Status.OK
    await world.stop()


def flip_byte(world: World, chunk: bytes, offset: int) -> None:
    """Damage a chunk in its block file, behind the engine's back."""
    with world.open[0].engine.plan([(chunk, 0, 1 << 20)]) as (plan,):
        handle, start, _ = plan.segments[0]
        byte = os.pread(handle, 1, start + offset)
        os.pwrite(handle, bytes([byte[0] ^ 0x40]), start + offset)


async def test_a_flipped_byte_is_found_by_readers_reports_and_the_scrubber(world: World) -> None:
    assert await world.write(pattern(20_000)) is Status.OK
    assert await world.write(pattern(20_000), index=1) is Status.OK
    flip_byte(world, chunk_key(5, 0), 5000)
    with pytest.raises(AssertionError, match="bytes at 4096"):  # whole units: the client finds it
        await world.read(offset=4096, length=4096)
    reply, _ = await world.read_many([(5, 0, 4100, 10), (5, 0, 0, 10)])  # an edge: the server does
    assert list(reply.status) == [Status.CHECKSUM, Status.OK]
    target = world.open[0]
    assert list(target.damaged) == [chunk_key(5, 0)]
    target.damaged.clear()
    request = storage_pb2.ReportCorruptionRequest(chain=[1, 1], target=[1, 1], inode=[5, 5], index=[0, 1])
    await world.call(STORAGE.ReportCorruption, request)
    assert list(target.damaged) == [chunk_key(5, 0)]
    target.damaged.clear()
    report = await Scrubber(target, 1 << 40).walk()
    assert (report.chunks, report.content, report.damaged) == (2, 40_000, [chunk_key(5, 0)])
    assert await world.write(pattern(20_000, 1), sequence=2) is Status.OK  # a full overwrite heals it
    assert not (await Scrubber(target, 1 << 40).walk()).damaged
    assert not target.damaged


async def test_a_damaged_chunk_that_was_removed_is_damaged_no_more(world: World) -> None:
    assert await world.write(pattern(20_000)) is Status.OK
    flip_byte(world, chunk_key(5, 0), 5000)
    target = world.open[0]
    assert (await Scrubber(target, 1 << 40).walk()).damaged == list(target.damaged) == [chunk_key(5, 0)]
    assert await world.remove(0, 1) == (1, False)
    await Scrubber(target, 1 << 40).walk()
    assert not target.damaged


async def test_the_idle_scrubber_folds_patches(world: World) -> None:
    model = bytearray(pattern(CHUNK))
    assert await world.write(bytes(model), sequence=1) is Status.OK
    for sequence in range(2, 6):
        offset = sequence * 10_000
        model[offset : offset + 5] = b"patch"
        assert await world.write(b"patch", offset=offset, sequence=sequence) is Status.OK
    engine = world.open[0].engine
    before = engine.info(chunk_key(5, 0))
    assert before is not None
    assert before.patches == 4
    scrubber = Scrubber(world.open[0], 1 << 40)
    await scrubber.walk()  # clients were at work just before
    await scrubber.walk()
    after = engine.info(chunk_key(5, 0))
    assert after == before._replace(patches=0)
    assert await world.read() == bytes(model)


async def test_the_scrubber_asks_for_orphans(world: World) -> None:
    for inode in (5, 6, 7):
        assert await world.write(b"x", inode=inode) is Status.OK

    async def living(inodes: list[int]) -> set[int]:
        return set(inodes) - {6}

    report = await Scrubber(world.open[0], 1 << 40, living).walk()
    assert report.orphans == [chunk_key(6, 0)]


async def test_a_failed_write_makes_a_target_read_only_and_no_other(tmp_path: Path) -> None:
    world = await World(tmp_path, targets=2).start()
    for chain in (1, 2):
        reply = await world.write_many([(5, 0, 0, b"good", 1, None)], chain=chain)
        assert list(reply.status) == [Status.OK]
    disk = world.open[0].engine.disk

    def broken(handle: int, buffers: object, offset: int, cold: bool = False) -> None:
        raise OSError(5, "Input/output error")

    disk.pwritev = broken  # type: ignore[method-assign]
    assert await world.write(b"more", sequence=2) is Status.IO_ERROR
    assert await world.write(b"more", sequence=3) is Status.READ_ONLY
    assert await world.read() == b"good"
    reply = await world.write_many([(5, 0, 0, b"fine", 2, None)], chain=2)
    assert list(reply.status) == [Status.OK]
    await world.stop()


async def test_old_bytes_that_cannot_be_read_are_damage_of_their_chunk_alone(world: World) -> None:
    assert await world.write(pattern(8192)) is Status.OK
    target = world.open[0]
    disk = target.engine.disk

    def broken(*asked: object) -> int:
        raise OSError(5, "Input/output error")

    disk.preadv = broken  # type: ignore[method-assign]
    assert await world.write(b"merged", offset=100, sequence=2) is Status.CHECKSUM
    del disk.preadv  # type: ignore[attr-defined]
    assert not target.read_only
    assert [why for why in target.damaged.values() if "cannot be read" in why]
    assert await world.write(b"elsewhere", index=1, sequence=3) is Status.OK


async def test_a_failed_sync_takes_a_target_offline_and_no_other(tmp_path: Path) -> None:
    world = await World(tmp_path, targets=2).start()
    for chain in (1, 2):
        reply = await world.write_many([(5, 0, 0, b"good", 1, None)], chain=chain)
        assert list(reply.status) == [Status.OK]

    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    world.open[0].engine.disk.fdatasync = broken  # type: ignore[method-assign]
    reply = await world.call(STORAGE.Sync, storage_pb2.SyncRequest(chain=[1, 2], chain_version=[1, 1]))
    assert list(reply.status) == [Status.TARGET_OFFLINE, Status.OK]
    reply, _ = await world.read_many([(5, 0, 0, 4), (5, 0, 0, 4)], chains=[1, 2])
    assert list(reply.status) == [Status.TARGET_OFFLINE, Status.OK]
    assert world.open[0].entry().state != world.open[1].entry().state
    await world.stop()


async def test_a_target_whose_index_fails_keeps_no_other_from_hearing_of_ended_clients(tmp_path: Path) -> None:
    world = await World(tmp_path, targets=2).start()
    assert await world.write(b"mine") is Status.OK

    def broken(changes: object, sync: bool = False) -> None:
        raise OSError(5, "Input/output error")

    world.open[0].engine.index.write = broken  # type: ignore[method-assign]
    world.announce(ended=[world.env.client])
    reply = await world.write_many([(5, 0, 0, b"late", 2, None)], chain=1)
    assert list(reply.status) == [Status.TARGET_OFFLINE]
    reply = await world.write_many([(5, 0, 0, b"late", 2, None)], chain=2)
    assert list(reply.status) == [Status.SESSION_ENDED]
    await world.stop()


async def test_a_write_may_ask_to_be_durable(world: World) -> None:
    target = world.open[0]
    pieces = [(5, 0, 0, b"here", 1, None), (5, 1, 0, b"there", 1, None)]
    request = world.write_request(pieces)
    request.sync = True
    reply = await world.call(STORAGE.Write, request, source=[memory(b"herethere")])
    assert list(reply.status) == [Status.OK] * 2
    assert target.engine.checkpointed == target.engine.epoch - 1
    assert not target.engine.is_dirty


async def test_a_write_that_does_not_become_durable_says_so(tmp_path: Path) -> None:
    world = await World(tmp_path, targets=1).start()

    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    world.open[0].engine.disk.fdatasync = broken  # type: ignore[method-assign]
    request = world.write_request([(5, 0, 0, b"here", 1, None)])
    request.sync = True
    reply = await world.call(STORAGE.Write, request, source=[memory(b"here")])
    assert list(reply.status) == [Status.TARGET_OFFLINE]
    await world.stop()


async def test_concurrent_syncs_share_checkpoints(world: World) -> None:
    target = world.open[0]
    assert await world.write(b"x") is Status.OK
    before = target.engine.checkpointed
    request = storage_pb2.SyncRequest(chain=[1] * 50, chain_version=[1] * 50)
    reply = await world.call(STORAGE.Sync, request)
    assert list(reply.status) == [Status.OK] * 50
    assert target.engine.checkpointed <= before + 2
    assert not target.engine.is_dirty


async def test_a_checkpoint_that_finds_no_thread_is_taken_when_there_is_one(world: World) -> None:
    target = world.open[0]
    blocking = target.blocking

    def exhausted(*asked: object) -> Any:
        raise RuntimeError("can't start new thread")

    assert await world.write(b"x") is Status.OK
    request = storage_pb2.SyncRequest(chain=[1], chain_version=[1])
    target.blocking = exhausted
    reply = await world.call(STORAGE.Sync, request)
    assert list(reply.status) == [Status.BUSY]
    target.blocking = blocking
    reply = await world.call(STORAGE.Sync, request)
    assert list(reply.status) == [Status.OK]
    assert not target.engine.is_dirty


async def test_an_index_that_cannot_be_read_holds_up_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is out, as it is when its index cannot be written: whoever asks is told so, and nobody waits behind what failed."""
    assert await world.write(b"here", sequence=1) is Status.OK
    target = world.open[0]
    target.engine._rows.cached.drop(chunk_key(5, 0))

    def unreadable(*asked: object) -> None:
        raise Exception("Corruption: block checksum mismatch")

    monkeypatch.setattr(target.engine.index, "get", unreadable)
    async with asyncio.timeout(SECONDS):
        for sequence in (2, 3):
            assert await world.write(b"more", sequence=sequence) is Status.TARGET_OFFLINE
    reply, _ = await world.read_many([(5, 0, 0, 4)])
    assert list(reply.status) == [Status.TARGET_OFFLINE]
    assert target.entry().state == LOCAL_STATE_OFFLINE


async def test_the_scrubber_of_a_target_that_goes_out_ends_quietly(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that fails takes the process down, and all other targets with it."""
    assert await world.write(b"here") is Status.OK
    target = world.open[0]
    monkeypatch.setattr(scrub, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(scrub, "PAUSE_SECONDS", 0.0)

    def unreadable(*asked: object, **more: object) -> None:
        raise Exception("Corruption: block checksum mismatch")

    monkeypatch.setattr(target.engine.index, "scan", unreadable)
    async with asyncio.timeout(SECONDS):
        await Scrubber(target, 1 << 40).run()
    assert target.engine.failed


async def test_a_scrubber_that_finds_no_thread_comes_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await world.write(b"here") is Status.OK
    target = world.open[0]
    monkeypatch.setattr(scrub, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(scrub, "PAUSE_SECONDS", 0.0)
    blocking, tries, walked = target.blocking, list[object](), asyncio.Event()

    def exhausted(*asked: object) -> Any:
        tries.append(asked)
        if len(tries) == 1:
            raise RuntimeError("can't start new thread")
        if len(tries) > 4:  # each walk takes several
            walked.set()
        return blocking(*asked)

    monkeypatch.setattr(target, "blocking", exhausted)
    running = asyncio.create_task(Scrubber(target, 1 << 40).run())
    async with asyncio.timeout(SECONDS):
        await asyncio.wait((running, asyncio.create_task(walked.wait())), return_when=asyncio.FIRST_COMPLETED)
    assert not running.done()
    running.cancel()
    await asyncio.wait((running,))
