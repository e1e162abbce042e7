"""The namespace's part of clones and of fallocate: layouts that agree, lengths, holes that are allowed."""

from __future__ import annotations

import os
from typing import Any

import pytest

from emberfs.meta.namespace.ops.allocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from emberfs.meta.namespace.seams import Space
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2

from .world import ALICE, World

CREATE = os.O_RDWR | os.O_CREAT
OTHER = b"client-000000002"


async def clone(world: World, source: Any, target: Any, client: bytes | None = None) -> Any:
    request = meta_pb2.CloneFileRequest(
        source=source.attributes.inode, target=target.attributes.inode, session=target.session
    )
    return await world.ask("clone", request, client=client)


async def allocate(world: World, opened: Any, mode: int, offset: int, length: int) -> Any:
    request = meta_pb2.AllocateRequest(
        inode=opened.attributes.inode, session=opened.session, mode=mode, offset=offset, length=length
    )
    return (await world.ask("allocate", request)).attributes


async def refused(work: Any) -> Status:
    with pytest.raises(StatusError) as caught:
        await work
    return caught.value.status


async def test_an_empty_file_takes_the_layout_of_its_source(world: World) -> None:
    source, target = await world.open("/a", CREATE, chunk_size=1 << 18), await world.open("/b", CREATE)
    assert source.attributes.layout != target.attributes.layout
    reply = await clone(world, source, target)
    assert reply.shares
    assert reply.target.layout == reply.source.layout == source.attributes.layout
    assert reply.target.change > target.attributes.change
    assert (await world.stat("/b")).layout == source.attributes.layout
    again = await clone(world, source, target)
    assert again.shares
    assert again.target == reply.target


async def test_asking_changes_nothing(world: World) -> None:
    source, target = await world.open("/a", CREATE), await world.open("/b", CREATE)
    request = meta_pb2.CloneFileRequest(
        source=source.attributes.inode, target=target.attributes.inode, session=target.session, keep_layout=True
    )
    reply = await world.ask("clone", request)
    assert not reply.shares
    assert reply.target == target.attributes


async def test_a_file_with_content_keeps_its_layout(world: World) -> None:
    source, target = await world.open("/a", CREATE), await world.open("/b", CREATE)
    await world.ask(
        "sync_file",
        meta_pb2.SyncFileRequest(inode=target.attributes.inode, session=target.session, written=True, length=5),
    )
    reply = await clone(world, source, target)
    assert not reply.shares
    assert reply.target.layout == target.attributes.layout


async def test_a_file_that_somebody_else_may_have_written_to_keeps_its_layout(world: World) -> None:
    source, target = await world.open("/a", CREATE), await world.open("/b", CREATE)
    other = await world.open("/b", os.O_WRONLY, client=OTHER)
    assert not (await clone(world, source, target)).shares
    await world.close(other, client=OTHER)
    assert (await clone(world, source, target)).shares


async def test_who_may_not_clone(world: World) -> None:
    source, target = await world.open("/a", CREATE), await world.open("/b", CREATE)
    assert await refused(clone(world, source, target, client=OTHER)) is Status.BAD_HANDLE
    await world.close(target)
    assert await refused(clone(world, source, target)) is Status.SESSION_ENDED
    await world.mkdir("/d")
    directory = await world.open("/d", os.O_RDONLY)
    again = await world.open("/b", os.O_WRONLY)
    assert await refused(clone(world, directory, again)) is Status.IS_DIRECTORY


async def test_allocate_extends_a_file_and_says_that_it_has_holes(world: World) -> None:
    file = await world.open("/f", CREATE)
    found = await allocate(world, file, 0, 100, 400)
    assert (found.length, found.sparse) == (500, True)
    before = found.change
    found = await allocate(world, file, 0, 0, 500)
    assert (found.length, found.change) == (500, before)
    found = await allocate(world, file, KEEP_SIZE, 400, 4000)
    assert (found.length, found.change) == (500, before)


@pytest.mark.parametrize("mode, length", [(PUNCH_HOLE | KEEP_SIZE, 10), (ZERO_RANGE | KEEP_SIZE, 10), (ZERO_RANGE, 50)])
async def test_holes_are_allowed_before_they_are_made(world: World, mode: int, length: int) -> None:
    file = await world.open("/f", CREATE)
    await world.ask(
        "sync_file",
        meta_pb2.SyncFileRequest(inode=file.attributes.inode, session=file.session, written=True, length=10),
    )
    assert not (await world.stat("/f")).sparse
    found = await allocate(world, file, mode, 5, 45)
    assert (found.length, found.sparse) == (length, True)


async def test_what_allocate_refuses(world: World) -> None:
    file = await world.open("/f", CREATE)
    for mode in (PUNCH_HOLE, 0x08, 0x20, 0x40, 0x10000):  # PUNCH_HOLE alone, COLLAPSE, INSERT, UNSHARE
        assert await refused(allocate(world, file, mode, 0, 1)) is Status.UNSUPPORTED
    assert await refused(allocate(world, file, 0, 0, 0)) is Status.INVALID
    assert await refused(allocate(world, file, 0, 1 << 62, 1)) is Status.FILE_TOO_BIG
    world.chunks.space = lambda: Space(1000, 100)  # type: ignore[method-assign]
    assert await refused(allocate(world, file, 0, 0, 101)) is Status.NO_SPACE
    assert await refused(allocate(world, file, KEEP_SIZE, 0, 101)) is Status.NO_SPACE
    assert (await allocate(world, file, 0, 0, 100)).length == 100
    assert (await allocate(world, file, PUNCH_HOLE | KEEP_SIZE, 0, 1000)).length == 100
    await world.close(file)
    assert await refused(allocate(world, file, 0, 0, 1)) is Status.SESSION_ENDED


async def test_set_id_bits_go_with_an_allocation_of_anybody_but_root(world: World) -> None:
    file = await world.open("/f", CREATE, mode=0o6777)
    await allocate(world, file, 0, 0, 10)
    assert (await world.stat("/f")).mode == 0o6777
    file = await world.open("/f", os.O_WRONLY, ALICE)
    await allocate(world, file, 0, 0, 20)
    assert (await world.stat("/f")).mode == 0o777
