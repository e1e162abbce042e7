"""SettleSessions: a process of a client has died, and another one goes on in its name."""

from __future__ import annotations

import os

import pytest

from emberfs.meta.namespace import locks
from emberfs.meta.namespace.check import check
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.meta_pb2 import SettleSessionsRequest
from emberfs.proto.rpc import Identity

from .world import World

OTHER = b"o" * 16


async def settle(world: World, *keep: int) -> int:
    reply: meta_pb2.SettleSessionsReply = await world.ask("settle_sessions", SettleSessionsRequest(keep=keep))
    return reply.settled


async def test_files_are_as_long_as_their_chunks_say(world: World) -> None:
    dead = await world.open("/dead", os.O_WRONLY | os.O_CREAT)
    idle = await world.open("/idle", os.O_WRONLY | os.O_CREAT)
    mine = await world.open("/mine", os.O_WRONLY | os.O_CREAT)
    theirs = await world.open("/theirs", os.O_WRONLY | os.O_CREAT, client=OTHER)
    for opened in (dead, mine, theirs):
        world.chunks.write(opened.attributes.inode, 5000)
    assert await settle(world, mine.session) == 2
    assert (await world.stat("/dead")).length == 5000 and (await world.stat("/idle")).length == 0
    assert (await world.stat("/mine")).length == (await world.stat("/theirs")).length == 0
    closing = meta_pb2.CloseRequest(inode=mine.attributes.inode, session=mine.session, written=True, length=5000)
    await world.ask("close", closing)
    for opened in (dead, idle):
        request = meta_pb2.CloseRequest(inode=opened.attributes.inode, session=opened.session, written=True)
        with pytest.raises(StatusError) as ended:
            await world.ask("close", request)
        assert ended.value.status is Status.SESSION_ENDED
    assert await settle(world, mine.session) == 0
    assert await check(world.engine) == []


async def test_it_can_be_asked_again_when_storage_is_back(world: World) -> None:
    dead = await world.open("/dead", os.O_WRONLY | os.O_CREAT)
    world.chunks.write(dead.attributes.inode, 5000)
    world.chunks.down = True
    with pytest.raises(StatusError) as refused:
        await settle(world)
    assert refused.value.status is Status.UNAVAILABLE
    world.chunks.down = False
    assert await settle(world) == 1 and (await world.stat("/dead")).length == 5000


def take(log: meta_pb2.OpenReply) -> meta_pb2.AppendRequest:
    return meta_pb2.AppendRequest(inode=log.attributes.inode, session=log.session, action=meta_pb2.TOKEN_ACTION_TAKE)


async def test_tokens_to_append_are_free(world: World) -> None:
    log = await world.open("/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    other = await world.open("/log", os.O_WRONLY | os.O_APPEND, client=OTHER)

    await world.ask("append", take(log))
    await settle(world)
    assert not (await world.ask("append", take(other), client=OTHER)).waiting


async def test_a_clients_id_is_its_users(world: World) -> None:
    """Whoever names another user's client neither ends its sessions nor gives its locks back, nor does anything else in its place."""
    opened = await world.open("/file", os.O_WRONLY | os.O_CREAT)
    number, service = opened.attributes.inode, world.service
    lock = meta_pb2.LockRequest(inode=number, kind=locks.POSIX, type=locks.EXCLUSIVE, owner=1, number=1)
    await world.ask("lock", lock)
    closing = meta_pb2.CloseRequest(inode=number, session=opened.session, request_id=world.request_id())
    syncing = meta_pb2.SyncFileRequest(inode=number, session=opened.session, request_id=world.request_id())
    lock.type, lock.request_id = meta_pb2.LOCK_TYPE_UNLOCK, world.request_id()
    lock.ClearField("caller")
    place = meta_pb2.Place(parent=number)
    for method, request in (
        (service.settle_sessions, SettleSessionsRequest()),
        (service.close, closing),
        (service.sync_file, syncing),
        (service.lock, lock),
        (service.append, take(opened)),
        (service.stat, meta_pb2.StatRequest(places=[place])),
    ):
        with pytest.raises(StatusError) as refused:
            await method(request, world.context(identity=Identity(2001, 2001)))  # type: ignore[operator]
        assert refused.value.status is Status.NOT_PERMITTED
    found = await world.ask(
        "test_lock", meta_pb2.TestLockRequest(inode=number, kind=locks.POSIX, type=locks.SHARED, owner=2), client=OTHER
    )
    assert found.type == locks.EXCLUSIVE
    assert world.client not in found.SerializeToString()  # ids are not told
    closing = meta_pb2.CloseRequest(inode=opened.attributes.inode, session=opened.session, written=True, length=5)
    await world.ask("close", closing)
    assert (await world.stat("/file")).length == 5
