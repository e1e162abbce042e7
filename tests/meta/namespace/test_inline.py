"""Small files beside their inodes: written, cut, grown into chunks, and what happens when that goes wrong half-way."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace.access import ROOT
from emberfs.meta.namespace.attempt import Task
from emberfs.meta.namespace.check import check
from emberfs.meta.namespace.ops import allocate, append
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.common_pb2 import FILE_TYPE_REGULAR, Attributes
from emberfs.proto.gen.meta_pb2 import InlineWrites, NewEntry
from emberfs.proto.rpc import META

from .world import ALICE, World, place

LIMIT = 100


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.namespace.inline_max = lambda: LIMIT
    await made.start()
    yield made
    assert await check(made.engine) == []


async def settle(
    world: World, opened: Any, *writes: tuple[int, bytes], close: bool = True, **fields: Any
) -> Attributes:
    """What was written goes to the server, beside the inode."""
    small = InlineWrites(offsets=[offset for offset, _ in writes], pieces=[piece for _, piece in writes])
    kind = meta_pb2.CloseRequest if close else meta_pb2.SyncFileRequest
    request = kind(inode=opened.attributes.inode, session=opened.session, written=True, inlined=small, **fields)
    return (await world.ask("close" if close else "sync_file", request)).attributes


async def create(world: World, path: str, *writes: tuple[int, bytes]) -> Attributes:
    opened = await world.open(path, os.O_RDWR | os.O_CREAT)
    assert opened.inline_max == LIMIT
    return await settle(world, opened, *writes)


async def read(world: World, path: str) -> bytes:
    opened = await world.open(path, os.O_RDONLY)
    assert opened.attributes.inlined and len(opened.attributes.content) == opened.attributes.length
    return opened.attributes.content


async def test_written_and_read_without_chunks(world: World) -> None:
    made = await create(world, "/f", (3, b"hello"))
    assert made.inlined and made.length == 8
    assert await read(world, "/f") == b"\0\0\0hello"
    opened = await world.open("/f", os.O_WRONLY)
    await settle(world, opened, (0, b"abc"), (8, b"!"))
    assert await read(world, "/f") == b"abchello!"
    await world.unlink("/f")
    await world.collect()
    assert world.chunks.removed == [] and world.chunks.trims == []  # it never had one


async def test_writers_do_not_lose_each_others_bytes(world: World) -> None:
    await create(world, "/f", (0, b"......"))
    one, two = [await world.open("/f", os.O_WRONLY) for _ in range(2)]
    await settle(world, one, (0, b"1"))
    await settle(world, two, (5, b"2"))
    assert await read(world, "/f") == b"1....2"


async def test_an_empty_file_that_others_write_is_not_inlined(world: World) -> None:
    one = await world.open("/f", os.O_WRONLY | os.O_CREAT)
    two = await world.open("/f", os.O_WRONLY)
    assert (one.inline_max, two.inline_max) == (LIMIT, 0)
    with pytest.raises(StatusError) as refused:
        await settle(world, one, (0, b"x"))
    assert refused.value.status is Status.NOT_INLINE
    world.chunks.write(two.attributes.inode, 500)
    await world.close(two, 500)
    with pytest.raises(StatusError) as refused:
        await settle(world, one, (0, b"x"))
    assert refused.value.status is Status.NOT_INLINE


async def grow(world: World, opened: Any) -> Attributes:
    request = meta_pb2.GrowRequest(inode=opened.attributes.inode, session=opened.session)
    return (await world.ask("grow", request)).attributes


async def test_growth(world: World) -> None:
    made = await create(world, "/f", (0, b"small"))
    opened = await world.open("/f", os.O_RDWR)
    with pytest.raises(StatusError) as refused:
        await settle(world, opened, (99, b"xx"), close=False)
    assert refused.value.status is Status.NOT_INLINE
    grown = await grow(world, opened)
    assert (grown.inlined, grown.length) == (False, 5)
    assert world.chunks.first == {made.inode: b"small"} and grown.truncate_version > made.truncate_version
    assert (await grow(world, opened)).change == grown.change  # there is nothing left to do
    world.chunks.write(made.inode, 200, grown.truncate_version)
    await world.close(opened, 200, truncate_version=grown.truncate_version)
    assert (await world.stat("/f")).length == 200
    await world.unlink("/f")
    await world.collect()
    assert world.chunks.removed == [made.inode]


async def test_a_growth_that_fails_half_way_leaves_the_file_as_it_was(world: World) -> None:
    made = await create(world, "/f", (0, b"small"))
    opened = await world.open("/f", os.O_RDWR)
    write_first = world.chunks.write_first

    async def broken(*arguments: Any) -> None:
        await write_first(*arguments)
        world.chunks.down = True
        raise StatusError  # as if the server had been killed

    world.chunks.write_first = broken  # type: ignore[method-assign]
    with pytest.raises(StatusError):
        await grow(world, opened)
    assert await read(world, "/f") == b"small"
    world.chunks.write_first, world.chunks.down = write_first, False  # type: ignore[method-assign]
    await settle(world, opened, (5, b"er"), close=False)
    await world.truncate("/f", 3)
    assert await read(world, "/f") == b"sma"
    await grow(world, opened)
    assert world.chunks.first[made.inode] == b"sma"
    # The first chunk was cut to nothing under a newer version before it was written.
    assert world.chunks.trims[-1][1] == 0 and world.chunks.trims[-1][2] > world.chunks.trims[0][2]


async def test_a_change_in_the_middle_of_a_growth(world: World) -> None:
    made = await create(world, "/f", (0, b"small"))
    one, two = [await world.open("/f", os.O_RDWR) for _ in range(2)]
    write_first = world.chunks.write_first
    changes = iter([(0, b"S"), (1, b"M")])

    async def late(*arguments: Any) -> None:
        await write_first(*arguments)
        if (change := next(changes, None)) is not None:
            await settle(world, two, change, close=False)

    world.chunks.write_first = late  # type: ignore[method-assign]
    await grow(world, one)
    assert world.chunks.first[made.inode] == b"SMall"


@pytest.mark.parametrize("length", [0, 3, LIMIT, LIMIT + 1, 5000])
async def test_truncate(world: World, length: int) -> None:
    made = await create(world, "/f", (0, b"content"))
    after = await world.truncate("/f", length)
    assert after.length == length
    if 0 < length <= LIMIT:
        assert await read(world, "/f") == b"content"[:length].ljust(length, b"\0")
    else:
        assert not after.inlined and world.chunks.first == ({made.inode: b"content"} if length else {})


async def test_truncated_at_open_it_may_be_small_again(world: World) -> None:
    await create(world, "/f", (0, b"content"))
    opened = await world.open("/f", os.O_WRONLY | os.O_TRUNC)
    assert opened.inline_max == LIMIT and not opened.attributes.inlined
    await settle(world, opened, (0, b"new"))
    assert await read(world, "/f") == b"new"


async def test_appenders_and_fallocate_need_chunks(world: World) -> None:
    for name, request, operation in (
        ("Append", meta_pb2.AppendRequest(action=meta_pb2.TOKEN_ACTION_TAKE), append.append),
        ("Allocate", meta_pb2.AllocateRequest(offset=0, length=10), allocate.allocate),
    ):
        made = await create(world, f"/{name}", (0, b"content"))
        opened = await world.open(f"/{name}", os.O_WRONLY)
        request.inode, request.session = opened.attributes.inode, opened.session
        request.request_id = world.request_id()
        reply, _ = await world.namespace.change(getattr(META, name), operation, Task(ROOT, world.client), request)
        assert not reply.attributes.inlined and world.chunks.first[made.inode] == b"content"


async def test_a_crashed_writer(world: World) -> None:
    opened = await world.open("/f", os.O_WRONLY | os.O_CREAT)
    await settle(world, opened, (0, b"synced"), close=False)
    world.namespace.client_ended(world.client)
    await world.namespace.clients.step()
    world.client = b"client-000000002"
    assert await read(world, "/f") == b"synced"


async def test_batches(world: World) -> None:
    entries = [
        NewEntry(place=place(f"/{i}"), type=FILE_TYPE_REGULAR, mode=0o644, content=b"%d" % i * i) for i in range(60)
    ]
    reply = await world.ask("create", meta_pb2.CreateRequest(entries=entries))
    good = [i for i, code in enumerate(reply.statuses) if not code]
    assert good == list(range(10)) + [i for i in range(10, 60) if 2 * i <= LIMIT]
    assert set(reply.statuses) == {0, int(Status.TOO_LARGE)}
    await world.set("/5", mode=0o600)
    request = meta_pb2.StatRequest(places=[place(f"/{i}") for i in range(60)], content=True)
    for who, readable in ((None, True), (ALICE, False)):
        found = await world.ask("stat", request, *([who] if who else []))
        contents = [row.content for row in found.attributes]
        assert contents[9] == b"9" * 9 and contents[59] == b""
        assert (contents[5] == b"5" * 5) is readable
    [single] = (await world.ask("stat", meta_pb2.StatRequest(places=[place("/9")], content=True))).attributes
    assert single.content == b"9" * 9


@pytest.mark.parametrize("seed", range(5))
async def test_random_changes(seed: int) -> None:
    chance = random.Random(seed)
    world = World(MemoryEngine(lambda: 0.0))
    world.namespace.inline_max = lambda: LIMIT
    await world.start()
    model: bytearray | None = None  # of the inlined bytes; None: not inlined
    await create(world, "/f", (0, b"start"))
    model = bytearray(b"start")
    for _ in range(200):
        opened = await world.open("/f", os.O_RDWR)
        if chance.random() < 0.7:
            offset, piece = chance.randrange(90), bytes([chance.randrange(256)]) * chance.randrange(1, 30)
            try:
                await settle(world, opened, (offset, piece))
            except StatusError as refused:
                assert refused.status is Status.NOT_INLINE and (model is None or offset + len(piece) > LIMIT)
                await world.close(opened)
                continue
            if model is None:
                model = bytearray()
            model.extend(bytes(max(0, offset + len(piece) - len(model))))
            model[offset : offset + len(piece)] = piece
        elif chance.random() < 0.9:
            length = chance.randrange(LIMIT + 20)
            await world.truncate("/f", length, session=opened.session)
            model = (
                (model[:length].ljust(length, b"\0") if 0 < length <= LIMIT else None) if model is not None else None
            )
            await world.close(opened)
        else:
            await grow(world, opened)
            model = None
            await world.close(opened)
        assert await check(world.engine) == []
        if model is not None:
            assert await read(world, "/f") == model


async def test_chunks_of_a_writer_that_failed_go_with_the_small_file(world: World) -> None:
    """What it wrote arrived in part, and none of it counts. The file becomes small afterwards, and is removed."""
    opened = await world.open("/f", os.O_WRONLY | os.O_CREAT)
    number = opened.attributes.inode
    world.chunks.write(number, 5000)
    await world.close(opened, 0)
    opened = await world.open("/f", os.O_WRONLY)
    assert opened.inline_max == LIMIT
    assert (await settle(world, opened, (0, b"small"))).inlined
    await world.unlink("/f")
    await world.collect()
    assert world.chunks.removed == [number]
