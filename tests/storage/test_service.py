"""The Storage service over the local transport, with real engines. What disks do to its targets is in test_disks.py."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emberfs.proto.capability import Rights
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import storage_pb2
from emberfs.proto.ids import CHUNK_INDEX_MAX, SYSTEM_TENANT, chunk_key
from emberfs.proto.rpc import STORAGE
from emberfs.proto.transport.readiness import Luck
from emberfs.storage.reads import _fill_waiting

from .world import CHUNK, World, memory, pattern, verify


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World(tmp_path).start()
    yield made
    await made.stop()


# --- reading and writing ---


@pytest.mark.parametrize("length", [1, 100, 4096, 4097, 65536, 300_000, CHUNK])
async def test_what_was_written_is_read(world: World, length: int) -> None:
    data = pattern(length)
    assert await world.write(data) is Status.OK
    assert await world.read() == data
    for offset, wanted in ((0, 1), (1, 50), (4095, 2), (4000, 9000), (length - 1, 10), (length // 2, length)):
        assert await world.read(offset=offset, length=wanted) == data[offset : offset + wanted]


async def test_overwrites_and_gaps(world: World) -> None:
    model = bytearray(300_000)
    for sequence, (offset, length) in enumerate(
        [(200_000, 100_000), (5, 10), (4096, 4096), (250_001, 7), (0, 300_000), (9, 1)], 1
    ):
        data = pattern(length, sequence)
        assert await world.write(data, offset=offset, sequence=sequence) is Status.OK
        model[offset : offset + length] = data
        assert await world.read() == bytes(model)


async def test_a_batch_over_several_targets(tmp_path: Path) -> None:
    world = await World(tmp_path, targets=3).start()
    for chain in (1, 2, 3):
        data = [pattern(10_000, 10 * chain + i) for i in range(4)]
        pieces = [(5, i, 0, data[i], 1, i) for i in range(4)]
        reply = await world.write_many(pieces, chain=chain)
        assert list(reply.status) == [Status.OK] * 4
        assert list(reply.chunk_length) == [10_000] * 4
    chains = [1, 2, 3, 1, 2, 3, 2]
    wanted = [(5, i % 4, 100 * i, 5000) for i in range(7)]
    reply, data = await world.read_many(wanted, chains=chains)
    for i, (_, index, offset, length) in enumerate(wanted):
        piece = data[i * 5000 : (i + 1) * 5000]
        assert piece == pattern(10_000, 10 * chains[i] + index)[offset : offset + length]
        verify(reply, i, offset, piece)
    await world.stop()


async def test_holes_and_ends(world: World) -> None:
    assert await world.write(b"x" * 5000) is Status.OK
    reply, data = await world.read_many([(5, 0, 4096, 4096), (5, 7, 0, 100), (5, 0, 5000, 10), (5, 0, 0, 10)])
    assert list(reply.status) == [Status.OK, Status.CHUNK_NOT_FOUND, Status.OK, Status.OK]
    assert list(reply.returned) == [904, 0, 0, 10]
    assert list(reply.checksums) == [1, 0, 0, 1]
    assert data[4096 + 100 + 10 :] == b"x" * 10
    verify(reply, 3, 0, data[4096 + 100 + 10 :])


async def test_reads_that_miss_the_page_cache_go_to_a_thread(world: World) -> None:
    data = pattern(CHUNK)
    assert await world.write(data) is Status.OK
    target = world.open[0]
    await target.checkpoint()
    for handle in target.engine.space.handles():
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    assert await world.read(offset=1, length=CHUNK - 2) == data[1:-1]
    assert target.counters.bytes_read == CHUNK - 2


async def test_small_reads_that_miss_the_page_cache_are_looked_for_again(world: World) -> None:
    """A batch of them, which comes piece by piece; whether looking pays or not."""
    data = pattern(CHUNK)
    assert await world.write(data) is Status.OK
    target = world.open[0]
    luck = target.luck = Luck()
    wanted = [(5, 0, 4096 * (7 * i % 256), 4096) for i in range(40)]
    for round_ in range(8):
        await target.checkpoint()
        for handle in target.engine.space.handles():
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        if round_ == 4:
            for _ in range(10):
                luck.looked(False)
        reply, found = await world.read_many(wanted)
        assert found == b"".join(data[offset : offset + 4096] for _, _, offset, _ in wanted)
        for i, (_, _, offset, _) in enumerate(wanted):
            verify(reply, i, offset, found[4096 * i : 4096 * (i + 1)])


async def test_batches_of_whole_units(world: World) -> None:
    data = pattern(CHUNK - 4096)
    for index in range(3):
        assert await world.write(data, index=index, sequence=index + 1) is Status.OK
    assert await world.write(b"x" * 4096, index=1, offset=8192, sequence=9) is Status.OK  # a patch: the long way
    wanted = [(5, index, 4096 * unit, 4096) for index in (0, 2, 1, 0) for unit in (0, 2, 200, 254)]
    for batch in (wanted[:8], wanted, [*wanted[:4], (5, 9, 0, 4096)], [*wanted[:4], (5, 0, CHUNK - 4096, 4096)]):
        reply, found = await world.read_many(batch)
        for i, (_, index, offset, length) in enumerate(batch):
            piece = found[i * length : (i + 1) * length]
            if index == 9 or offset >= len(data):
                assert (reply.status[i] or Status.OK) == (Status.CHUNK_NOT_FOUND if index == 9 else Status.OK)
                assert not reply.returned[i]
                continue
            assert piece == (b"x" * 4096 if (index, offset) == (1, 8192) else data[offset : offset + length])
            verify(reply, i, offset, piece)
    assert world.open[0].counters.reads == sum(map(len, (wanted[:8], wanted, wanted[:5], wanted[:5])))


async def test_a_batch_of_units_some_of_which_are_not_in_memory(world: World) -> None:
    data = pattern(CHUNK)
    assert await world.write(data) is Status.OK
    target = world.open[0]
    await target.checkpoint()
    await world.read_many([(5, 0, 0, 4096)])
    for handle in target.engine.space.handles():
        os.posix_fadvise(handle, 8 * 4096, 8 * 4096, os.POSIX_FADV_DONTNEED)
    reply, found = await world.read_many([(5, 0, 4096 * unit, 4096) for unit in range(16)])
    assert found == data[: 16 * 4096]
    assert list(reply.status) == [Status.OK] * 16


@pytest.mark.parametrize(("there", "readable"), [(0, 200), (130, 200), (0, 100), (199, 200), (0, 0)])
async def test_many_units_that_are_not_in_memory(world: World, there: int, readable: int) -> None:
    """Of 200 so many are in memory, and so many can be read on the short way: the long way has to bring all of them in any case."""
    data = pattern(CHUNK)
    assert await world.write(data) is Status.OK
    target = world.open[0]
    engine, fill = target.engine, target.engine.disk.fill
    readers: list[int] = []
    first = engine.units([chunk_key(5, 0)], [0], 4096)
    assert first is not None
    base = first.places[0][1]

    def forgets(places: Any, buffer: memoryview, length: int, *, wait: bool = False) -> int:
        if wait:
            readers.append(len(engine.space._readers))  # the slots are pinned
        end = base + 4096 * (readable if wait else there)
        count = next((i for i, (_, offset) in enumerate(places) if offset >= end), len(places))
        return fill(places[:count], buffer, length, wait=wait)

    engine.disk.fill = forgets  # type: ignore[method-assign]
    for _ in range(2):
        reply, found = await world.read_many([(5, 0, 4096 * unit, 4096) for unit in range(200)])
        assert found == data[: 200 * 4096]
        assert list(reply.status) == [Status.OK] * 200
        for unit in range(200):
            verify(reply, unit, 4096 * unit, found[4096 * unit : 4096 * (unit + 1)])
    assert target.counters.reads == 400
    if there < readable == 200:
        assert target.counters.reads_missed == 2 * (200 - there) or there == 199
    assert not engine.space._readers
    assert bool(readers) == (200 - there > 64) and all(readers)  # few are asked for again on the loop


async def test_nobody_waits_for_units_that_nobody_wants(world: World) -> None:
    assert await world.write(pattern(CHUNK)) is Status.OK
    engine = world.open[0].engine
    places = engine.units([chunk_key(5, 0)] * 200, [4096 * unit for unit in range(200)], 4096)
    assert places is not None
    gone: Any = SimpleNamespace(cancelled=True)
    buffer = memoryview(bytearray(200 * 4096))
    assert not _fill_waiting(engine.disk, places.places, buffer, [(0, 200)], 4096, gone)
    assert bytes(buffer) == bytes(200 * 4096)


async def test_a_write_that_was_damaged_on_the_way_is_refused(world: World) -> None:
    reply = await world.write_many([(5, 0, 0, b"abc", 1, None)], checksums=[4711])
    assert list(reply.status) == [Status.CHECKSUM]
    reply, _ = await world.read_many([(5, 0, 0, 3)])
    assert list(reply.status) == [Status.CHUNK_NOT_FOUND]


async def test_malformed_requests(world: World) -> None:
    request = storage_pb2.ReadRequest(chain=[1, 1], chain_version=[1], inode=[5], index=[0], offset=[0], length=[1])
    with pytest.raises(StatusError, match="columns") as failed:
        await world.call(STORAGE.Read, request)
    assert failed.value.status is Status.INVALID
    assert await world.write(b"x", offset=CHUNK) is Status.INVALID
    assert await world.write(b"x" * (CHUNK + 1)) is Status.INVALID
    assert await world.write(b"", sequence=9) is Status.INVALID


# --- who may do what, and under which chain version ---


async def test_a_stale_chain_version_is_refused_with_the_newer_entry(world: World) -> None:
    world.announce(chain_version=7)
    reply = await world.write_many([(5, 0, 0, b"abc", 1, None)], version=1)
    assert list(reply.status) == [Status.STALE_CHAIN_VERSION]
    assert [(chain.id, chain.version) for chain in reply.chains] == [(1, 7)]
    reply, _ = await world.read_many([(5, 0, 0, 3)], version=1)
    assert list(reply.status) == [Status.STALE_CHAIN_VERSION]
    assert reply.chains[0].version == 7
    reply = await world.call(STORAGE.Sync, storage_pb2.SyncRequest(chain=[1, 99], chain_version=[1, 1]))
    assert list(reply.status) == [Status.STALE_CHAIN_VERSION, Status.STALE_ROUTING]


ABSURD = {
    "offset": [CHUNK, 1 << 31, (1 << 32) - 1],
    "channel": [1024, 1 << 16, (1 << 32) - 1],
    "sequence": [0],
    "chunk_size": [0, 1, 4097, (1 << 32) - 1],
    "index": [(1 << 32) - 1],
    "client": [b"short", bytes(17)],
}


@pytest.mark.parametrize(("column", "value"), [(name, value) for name, values in ABSURD.items() for value in values])
async def test_absurd_numbers_are_refused_and_nothing_waits_behind_them(
    world: World, column: str, value: int | bytes
) -> None:
    assert await world.write(b"good", sequence=1) is Status.OK
    request = world.write_request([(5, 0, 0, b"bad!", 2, None)])
    if isinstance(value, bytes):
        request.client = value
    else:
        getattr(request, column)[0] = value
    try:
        reply = await world.call(STORAGE.Write, request, source=[memory(b"bad!")])
    except StatusError as failed:
        assert failed.status is Status.INVALID
    else:
        assert reply.status[0] == Status.INVALID or column == "index"
    assert await world.write(b"next", sequence=3) is Status.OK
    assert await world.read() == b"next"


async def test_every_operation_needs_a_capability_of_its_own(world: World) -> None:
    assert await world.write(b"abc") is Status.OK
    assert await world.write(b"secret", inode=6) is Status.OK
    world.untrust()
    request = storage_pb2.ReadRequest(
        chain=[1, 1], chain_version=[1, 1], inode=[5, 6], index=[0, 0], offset=[0, 0], length=[3, 6]
    )
    request.capabilities.append(world.capability(5))
    request.capability.append(0)  # and nothing for the second operation
    with pytest.raises(StatusError) as failed:
        await world.call(STORAGE.Read, request, target=[memory(9)])
    assert failed.value.status is Status.INVALID


async def test_a_wrong_capability_is_refused(world: World) -> None:
    assert await world.write(b"abc") is Status.OK
    world.untrust()
    good = world.capability(5)
    cases = {
        (): Status.PERMISSION_DENIED,
        (good,): Status.OK,
        (world.capability(6),): Status.PERMISSION_DENIED,
        (good[:-1] + bytes([good[-1] ^ 1]),): Status.PERMISSION_DENIED,
        (world.capability(5, Rights.WRITE),): Status.PERMISSION_DENIED,
        (b"short",): Status.PERMISSION_DENIED,
    }
    for capabilities, status in cases.items():
        reply, _ = await world.read_many([(5, 0, 0, 3)], capabilities=capabilities)
        assert list(reply.status) == [status]
    reply = await world.write_many([(5, 0, 0, b"abd", 2, None)], capabilities=[world.capability(5, Rights.READ)])
    assert list(reply.status) == [Status.PERMISSION_DENIED]
    reply = await world.write_many([(5, 0, 0, b"abd", 2, None)], capabilities=[good])
    assert list(reply.status) == [Status.OK]


async def test_copies_of_the_metadata_are_the_servers_alone(world: World) -> None:
    """A capability names an inode, and copies of the metadata have numbers like inodes."""
    request = world.write_request([(5, 0, 0, b"copy", 1, None)])
    request.tenant = SYSTEM_TENANT
    assert list((await world.call(STORAGE.Write, request, source=[memory(b"copy")])).status) == [Status.OK]
    world.untrust()
    mine: dict[str, Any] = {"tenant": SYSTEM_TENANT, "capabilities": [world.capability(5)]}
    place: dict[str, Any] = {"chain": [1], "chain_version": [1], "inode": [5]}
    request.sequence[0], request.capabilities[:] = 2, mine["capabilities"]
    read = storage_pb2.ReadRequest(**place, index=[0], offset=[0], length=[4], **mine)
    extents = storage_pb2.ExtentsRequest(**place, first=[0], last=[1], **mine)
    replies = [
        await world.call(STORAGE.Write, request, source=[memory(b"mine")]),
        await world.call(STORAGE.Read, read, target=[memory(4)]),
        await world.call(STORAGE.Extents, extents),
    ]
    assert [list(reply.status) for reply in replies] == [[Status.PERMISSION_DENIED]] * 3


async def test_an_expired_capability_is_told_apart(world: World) -> None:
    assert await world.write(b"abc") is Status.OK
    world.untrust()
    capability = world.capability(5)
    world.routing.capability_epoch = 3
    reply, _ = await world.read_many([(5, 0, 0, 3)], capabilities=[capability])
    assert list(reply.status) == [Status.CAPABILITY_EXPIRED]


async def test_one_request_with_several_capabilities(world: World) -> None:
    for inode in (5, 6):
        assert await world.write(b"abc", inode=inode) is Status.OK
    world.untrust()
    request = storage_pb2.ReadRequest(
        chain=[1] * 3, chain_version=[1] * 3, inode=[5, 6, 6], index=[0] * 3, offset=[0] * 3, length=[0] * 3
    )
    request.capabilities.extend([world.capability(5), world.capability(6)])
    request.capability.extend([0, 1, 0])
    reply = await world.call(STORAGE.Read, request)
    assert list(reply.status) == [Status.OK, Status.OK, Status.PERMISSION_DENIED]
    request.capability[2] = 9
    reply = await world.call(STORAGE.Read, request)
    assert reply.status[2] == Status.INVALID


async def test_users_neither_truncate_nor_remove_nor_write_for_others(world: World) -> None:
    world.untrust()
    for method, request in (
        (STORAGE.Truncate, storage_pb2.TruncateChunkRequest()),
        (STORAGE.Remove, storage_pb2.RemoveChunksRequest()),
        (STORAGE.QueryLast, storage_pb2.QueryLastRequest()),
    ):
        with pytest.raises(PermissionError):
            await world.call(method, request)
    with pytest.raises(PermissionError):
        await world.write_many([(5, 0, 0, b"abc", 1, None)], capabilities=[world.capability(5)], client=b"x" * 16)


# --- exactly once ---


@pytest.mark.parametrize("clean", [True, False])
async def test_a_duplicate_gets_the_same_answer_after_a_restart(world: World, clean: bool) -> None:
    client = world.env.client
    first = await world.write_many([(5, 0, 0, b"one", 7, None)], client=client)
    for _ in range(2):
        again = await world.write_many([(5, 0, 0, b"one", 7, None)], client=client)
        assert (list(again.status), list(again.commit_version), list(again.chunk_length)) == (
            [0],
            list(first.commit_version),
            [3],
        )
        await world.restart(clean=clean)
    assert await world.write(b"two", sequence=8, client=client) is Status.OK
    assert await world.write(b"one", sequence=7, client=client) is Status.DUPLICATE
    assert await world.read() == b"two"


async def test_late_writes_of_ended_clients_are_refused(world: World) -> None:
    assert await world.write(b"one") is Status.OK
    world.announce(ended=[world.env.client])
    assert await world.write(b"two", sequence=2) is Status.SESSION_ENDED
    assert await world.write(b"two", sequence=1) is Status.SESSION_ENDED
    assert await world.read() == b"one"
    assert await world.write(b"two", client=b"another client!!") is Status.OK


# --- truncate, remove, settle ---


async def truncate(world: World, length: int, version: int, sequence: int, *, index: int = 0) -> Status:
    request = storage_pb2.TruncateChunkRequest(
        chain=[1], chain_version=[1], inode=[5], index=[index], length=[length], truncate_version=[version],
        channel=[1], sequence=[sequence], chunk_size=[CHUNK],
    )  # fmt: skip
    return Status((await world.call(STORAGE.Truncate, request)).status[0])


async def query_last(world: World, version: int = 0) -> tuple[bool, int, int, int, int]:
    request = storage_pb2.QueryLastRequest(chain=[1], chain_version=[1], inode=[5], truncate_version=[version])
    reply = await world.call(STORAGE.QueryLast, request)
    assert list(reply.status) == [Status.OK]
    return reply.found[0], reply.index[0], reply.length[0], reply.chunks[0], reply.bytes[0]


async def test_truncate_cuts_extends_and_keeps_older_writes_out(world: World) -> None:
    data = pattern(10_000)
    assert await world.write(data) is Status.OK
    assert await truncate(world, 5001, 1, 1) is Status.OK
    assert await world.read() == data[:5001]
    assert await world.write(b"late", sequence=2) is Status.STALE_TRUNCATE_VERSION
    assert await world.write(b"late", index=3, sequence=2) is Status.STALE_TRUNCATE_VERSION
    assert await truncate(world, 9000, 2, 2) is Status.OK
    assert await world.read() == data[:5001] + bytes(3999)
    assert await truncate(world, 9000, 2, 2) is Status.OK  # a retry
    assert await world.write(b"new", sequence=3, truncate_version=2) is Status.OK
    assert await truncate(world, 0, 3, 3) is Status.OK
    assert await query_last(world) == (False, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("column", "value"),
    [("channel", 1024), ("channel", 1 << 16), ("sequence", 0), ("chunk_size", 0), ("chunk_size", 4097)],
)
async def test_absurd_numbers_of_a_truncate_are_refused_and_nothing_waits_behind_them(
    world: World, column: str, value: int
) -> None:
    assert await world.write(b"good", sequence=1) is Status.OK
    request = storage_pb2.TruncateChunkRequest(
        chain=[1], chain_version=[1], inode=[5], index=[0], length=[2], truncate_version=[1],
        channel=[1], sequence=[1], chunk_size=[CHUNK],
    )  # fmt: skip
    getattr(request, column)[0] = value
    with pytest.raises(StatusError) as refused:
        await world.call(STORAGE.Truncate, request)
    assert refused.value.status is Status.INVALID
    assert await world.write(b"next", sequence=3) is Status.OK


async def test_remove_in_steps_and_query_last(world: World) -> None:
    for index in (0, 1, 5, 9):
        assert await world.write(b"x" * (100 + index), index=index) is Status.OK
    assert await query_last(world) == (True, 9, 109, 4, 415)
    assert await world.remove(1, 6, limit=1) == (1, True)
    assert await world.remove(1, 6, limit=1) == (1, False)
    assert await query_last(world) == (True, 9, 109, 2, 209)
    assert await world.remove(0, CHUNK_INDEX_MAX + 1) == (2, False)
    assert await world.remove(0, CHUNK_INDEX_MAX + 1) == (0, False)
    assert await query_last(world) == (False, 0, 0, 0, 0)


async def test_a_truncates_remove_leaves_what_was_written_since(world: World) -> None:
    for index in (1, 2):
        assert await world.write(b"old", index=index) is Status.OK
    assert await world.remove(1, 10, version=4) == (2, False)
    assert await world.write(b"late", index=2, sequence=2) is Status.STALE_TRUNCATE_VERSION
    assert await world.write(b"new", index=2, sequence=3, truncate_version=4) is Status.OK
    assert await world.remove(1, 10, version=4) == (0, False)
    assert await world.read(index=2) == b"new"
    assert await query_last(world, 4) == (True, 2, 3, 1, 3)
    assert await query_last(world, 5) == (False, 0, 0, 0, 0)
