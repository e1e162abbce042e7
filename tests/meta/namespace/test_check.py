"""The checker finds each kind of damage; the service knows who asks; records of other versions are refused."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest

from emberfs.meta import keys
from emberfs.meta.kv.engine import Transaction
from emberfs.meta.namespace import acl as acls
from emberfs.meta.namespace import inode as inodes
from emberfs.meta.namespace.check import check
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.common_pb2 import Caller
from emberfs.proto.gen.meta_pb2 import StatRequest
from emberfs.proto.rpc import Identity

from .world import World, place

Damage = Callable[[Transaction, dict[str, int]], Awaitable[None]]


async def change(txn: Transaction, number: int, **columns: int) -> None:
    record = await txn.get(keys.inode_key(number))
    assert record is not None
    inode = inodes.unpack(number, record)
    for name, value in columns.items():
        setattr(inode, name, value)
    txn.put(keys.inode_key(number), inode.pack())


def drop(key: Callable[[dict[str, int]], bytes]) -> Damage:
    async def damage(txn: Transaction, at: dict[str, int]) -> None:
        txn.delete(key(at))

    return damage


def put(key: Callable[[dict[str, int]], bytes], value: bytes) -> Damage:
    async def damage(txn: Transaction, at: dict[str, int]) -> None:
        txn.put(key(at), value)

    return damage


def alter(name: str, **columns: int) -> Damage:
    async def damage(txn: Transaction, at: dict[str, int]) -> None:
        await change(txn, at[name], **columns)

    return damage


async def cycle(txn: Transaction, at: dict[str, int]) -> None:
    record = await txn.get(keys.dentry_key(1, b"d"))
    assert record is not None
    txn.delete(keys.dentry_key(1, b"d"))
    txn.put(keys.dentry_key(at["/d/e"], b"d"), record)
    await change(txn, at["/d"], parent=at["/d/e"])


async def empty_queue(txn: Transaction, at: dict[str, int]) -> None:
    for key, _ in await txn.scan(*keys.prefix_range(keys.DEAD_FILE), 10):
        txn.delete(key)


async def count_wrong(txn: Transaction, at: dict[str, int]) -> None:
    txn.add(keys.entries_key(at["/d"]), 1)
    txn.add(keys.INODES_USED, -1)


ACL = acls.Acl(7, 5, 0, 5)

DAMAGES: list[tuple[str, Damage, set[str]]] = [
    ("a lost name", drop(lambda at: keys.dentry_key(1, b"f")), {"wrong link count", "wrong count"}),
    ("a lost inode", drop(lambda at: keys.inode_key(at["/f"])), {"name without inode", "wrong count", "wrong usage"}),
    ("a lost directory", drop(lambda at: keys.dentry_key(1, b"d")), {"orphan", "wrong count"}),
    ("a wrong link count", alter("/f", nlink=2), {"wrong link count"}),
    ("a wrong parent", alter("/d/e", parent=1), {"wrong parent"}),
    ("a cycle", cycle, {"cycle", "wrong count"}),
    ("a lost queue", empty_queue, {"orphan"}),
    ("wrong counters", count_wrong, {"wrong count"}),
    ("a trim without flag", put(lambda at: keys.trim_key(at["/f"]), b"\x01" + bytes(20)), {"trim without flag"}),
    ("a flag without trim", alter("/f", flags=inodes.TRIMMING), {"flag without trim"}),
    ("a session of nothing", put(lambda at: keys.session_key(99, 1), b"\x01" + bytes(28)), {"session without inode"}),
    (
        "a damaged inode",
        put(lambda at: keys.inode_key(at["/f"]), b"\x01\x01"),
        {"damaged inode", "name without inode", "wrong count", "wrong usage"},
    ),
    (
        "a damaged name",
        put(lambda at: keys.dentry_key(1, b"f"), b"\x01\x01"),
        {"damaged record", "wrong link count", "wrong count"},
    ),
    ("a damaged trim", put(lambda at: keys.trim_key(at["/f"]), b"\x01"), {"damaged record"}),
    ("a damaged session", put(lambda at: keys.session_key(at["/f"], 1), b""), {"damaged record"}),
    ("a damaged table of locks", put(lambda at: keys.lock_key(at["/f"]), b"\x01"), {"damaged record"}),
    ("a table of locks that is cut off", put(lambda at: keys.lock_key(at["/f"]), b"\x01\0\0\0\1"), {"damaged record"}),
    ("a damaged token", put(lambda at: keys.append_key(at["/f"]), b"\x01"), {"damaged record"}),
    ("a damaged entry of the trash", put(lambda at: keys.trash_key(9, at["/f"]), b"\x01"), {"damaged record"}),
    ("a damaged quota", put(lambda at: keys.quota_key(2, 7), b""), {"damaged record"}),
    ("an attribute of nothing", put(lambda at: keys.xattr_key(99, b"user.x"), b""), {"attribute without inode"}),
    ("an attribute without flag", put(lambda at: keys.xattr_key(at["/f"], b"user.x"), b""), {"attribute without flag"}),
    ("an ACL of nothing", put(lambda at: keys.acl_key(99), acls.pack(ACL)), {"ACL without flag"}),
    ("an ACL without flag", put(lambda at: keys.default_acl_key(at["/d"]), acls.pack(ACL)), {"ACL without flag"}),
    ("a flag without ACL", alter("/f", flags=inodes.ACL), {"flag without ACL"}),
    ("a flag without default ACL", alter("/d", flags=inodes.DEFAULT_ACL), {"flag without ACL"}),
    ("a damaged ACL", put(lambda at: keys.acl_key(at["/f"]), b"\x01"), {"damaged ACL", "ACL without flag"}),
    (
        "an ACL that is a mode",
        put(lambda at: keys.acl_key(at["/f"]), acls.pack(ACL._replace(mask=None))),
        {"ACL without mask", "ACL without flag"},
    ),
    ("a reused number", drop(lambda at: keys.NEXT_INODE), {"inode from the future"}),
    (
        "no root",
        drop(lambda at: keys.inode_key(1)),
        {"no root", "name in no directory", "counter without directory", "wrong count", "wrong usage"},
    ),
]


@pytest.mark.parametrize(("damage", "kinds"), [row[1:] for row in DAMAGES], ids=[row[0] for row in DAMAGES])
async def test_damage_is_found(damage: Damage, kinds: set[str]) -> None:
    world = await World().start()
    await world.mkdir("/d")
    await world.mkdir("/d/e")
    await world.touch("/f")
    await world.touch("/gone")
    at = {path: (await world.stat(path)).inode for path in ("/d", "/d/e", "/f")}
    await world.unlink("/gone")
    assert await check(world.engine) == []
    txn = world.engine.begin()
    await damage(txn, at)
    await txn.commit()
    found = await check(world.engine)
    assert {problem.kind for problem in found} == kinds
    assert all(str(problem) for problem in found)


async def test_newer_records_are_refused(world: World) -> None:
    await world.touch("/f")
    number = (await world.stat("/f")).inode
    good = await world.engine.begin().get(keys.inode_key(number))
    assert good is not None
    for record, state in ((b"\x03" + good[1:], "newer"), (good, "")):
        txn = world.engine.begin()
        txn.put(keys.inode_key(number), record)
        await txn.commit()
        if state:
            with pytest.raises(StatusError, match=state) as caught:
                await world.stat("/f")
            assert caught.value.status is Status.BAD_FORMAT
    txn = world.engine.begin()
    txn.put(keys.FORMAT, b"\x00\x02")
    await txn.commit()
    with pytest.raises(StatusError, match="upgrade") as caught:
        await World(world.engine).start()
    assert caught.value.status is Status.BAD_FORMAT


@pytest.mark.parametrize(
    "key",
    [
        keys.acl_key,
        keys.lock_key,
        keys.trim_key,
        keys.append_key,
        lambda number: keys.dentry_key(1, b"f"),
        lambda number: keys.session_key(number, 1),
        lambda number: keys.trash_key(9, number),
        lambda number: keys.quota_key(1, number),
    ],
)
async def test_newer_records_are_not_taken_for_damaged_ones(key: Callable[[int], bytes]) -> None:
    """Those may be dropped, and with them what a newer emberfs has written."""
    world = await World().start()
    number = (await world.touch("/f")).inode
    txn = world.engine.begin()
    txn.put(key(number), b"\x07" * 100)
    await txn.commit()
    with pytest.raises(StatusError, match="newer") as refused:
        await check(world.engine)
    assert refused.value.status is Status.BAD_FORMAT


async def test_who_may_act_for_whom(world: World) -> None:
    theirs = bytes(16)  # a client id is one user's
    await world.mkdir("/private", mode=0o700)
    request = StatRequest(places=[place("/private/x")])
    stranger = Identity(1001, 1001)
    reply = await world.service.stat(request, world.context(client=theirs, identity=stranger))
    assert reply.statuses[0] == Status.PERMISSION_DENIED
    request.caller.CopyFrom(Caller(uid=1001, gid=1001))
    await world.service.stat(request, world.context(client=theirs, identity=stranger))  # naming oneself is fine
    request.caller.CopyFrom(Caller(uid=0, gid=0))
    with pytest.raises(StatusError) as caught:
        await world.service.stat(request, world.context(client=theirs, identity=stranger))
    assert caught.value.status is Status.NOT_PERMITTED
    reply = await world.service.stat(request, world.context(identity=Identity(1001, 1001, trusted=True)))
    assert reply.statuses[0] == Status.NOT_FOUND
    request.caller.CopyFrom(Caller(uid=1001, gid=1001, groups=range(2000)))
    with pytest.raises(StatusError, match="at most 1024"):
        await world.service.stat(request, world.context(client=theirs, identity=stranger))


async def test_reading_needs_no_commit(world: World) -> None:
    await world.touch("/f")
    await world.open("/f", os.O_RDONLY)  # a client's first one is noted
    before = await world.engine.begin().scan(b"", b"\xf0", 1000)
    await world.stat("/f")
    await world.close(await world.open("/f", os.O_RDONLY))
    await world.listdir("/")
    await world.ask("sync_file", meta_pb2.SyncFileRequest(inode=(await world.stat("/f")).inode, durable=True))
    await world.ask("sync_namespace", meta_pb2.SyncNamespaceRequest())
    assert await world.engine.begin().scan(b"", b"\xf0", 1000) == before
