"""Extended attributes and ACLs: limits, what the kernel's form may say, and that they go with their inode. (Who may do what, and how
ACLs are inherited, the local file system tells in test_posix_oracle.py.)"""

from __future__ import annotations

import os
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberfs.meta import keys
from emberfs.meta.namespace import acl as acls
from emberfs.meta.namespace.access import ROOT, Credentials
from emberfs.meta.namespace.acl import Acl
from emberfs.meta.namespace.ops.xattr import ACCESS_ACL, DEFAULT_ACL, INODE_BYTES_MAX
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2

from .world import ALICE, BOB, World, place

PLAIN = Acl(7, 5, 0, None)
NAMED = Acl(6, 4, 0, 6, users=((BOB.uid, 6),), groups=((2000, 7),))


async def put(world: World, path: str, name: bytes, value: bytes, flags: int = 0, who: Credentials = ROOT) -> Any:
    request = meta_pb2.SetXattrRequest(place=place(path), name=name, value=value, flags=flags)
    return (await world.ask("set_xattr", request, who)).attributes


async def get(world: World, path: str, name: bytes, who: Credentials = ROOT) -> bytes:
    return bytes((await world.ask("get_xattr", meta_pb2.GetXattrRequest(place=place(path), name=name), who)).value)


async def names(world: World, path: str, who: Credentials = ROOT) -> list[bytes]:
    return list((await world.ask("list_xattrs", meta_pb2.ListXattrsRequest(place=place(path)), who)).names)


async def drop(world: World, path: str, name: bytes, who: Credentials = ROOT) -> Any:
    return (await world.ask("remove_xattr", meta_pb2.RemoveXattrRequest(place=place(path), name=name), who)).attributes


Action = Callable[[World], Awaitable[object]]

OUTCOMES: list[tuple[str, Action, Status | None]] = [
    ("an empty value", lambda w: put(w, "/f", b"user.x", b""), None),
    ("the longest value", lambda w: put(w, "/f", b"user.x", b"v" * 65536), None),
    ("a longer value", lambda w: put(w, "/f", b"user.x", b"v" * 65537), Status.VALUE_TOO_LONG),
    ("the longest name", lambda w: put(w, "/f", b"user." + b"n" * 250, b""), None),
    ("a longer name", lambda w: put(w, "/f", b"user." + b"n" * 251, b""), Status.RANGE),
    ("a longer name to get", lambda w: get(w, "/f", b"user." + b"n" * 251), Status.RANGE),
    ("no name", lambda w: put(w, "/f", b"", b""), Status.RANGE),
    ("a NUL in the name", lambda w: put(w, "/f", b"user.\0", b""), Status.INVALID),
    ("unknown flags", lambda w: put(w, "/f", b"user.x", b"", 4), Status.INVALID),
    ("create of what exists", lambda w: put(w, "/f", b"user.old", b"", 1), Status.EXISTS),
    ("replace of what does not", lambda w: put(w, "/f", b"user.new", b"", 2), Status.NO_DATA),
    ("an ACL of another version", lambda w: put(w, "/f", ACCESS_ACL, struct.pack("<I", 3)), Status.UNSUPPORTED),
    ("half an ACL", lambda w: put(w, "/f", ACCESS_ACL, acls.to_kernel(PLAIN)[:-1]), Status.INVALID),
    ("an ACL without others", lambda w: put(w, "/f", ACCESS_ACL, acls.to_kernel(PLAIN)[:-8]), Status.INVALID),
    ("a default ACL of a file", lambda w: put(w, "/f", DEFAULT_ACL, acls.to_kernel(PLAIN)), Status.PERMISSION_DENIED),
    ("an ACL of a symlink", lambda w: put(w, "/s", ACCESS_ACL, acls.to_kernel(PLAIN)), Status.UNSUPPORTED),
    ("an ACL without entries", lambda w: put(w, "/f", ACCESS_ACL, struct.pack("<I", 2)), None),
    ("trusted attributes of a symlink", lambda w: put(w, "/s", b"trusted.x", b""), None),
]


@pytest.mark.parametrize(("action", "outcome"), [row[1:] for row in OUTCOMES], ids=[row[0] for row in OUTCOMES])
async def test_outcome(world: World, action: Action, outcome: Status | None) -> None:
    await world.touch("/f")
    await world.symlink("/s", "f")
    await put(world, "/f", b"user.old", b"1")
    if outcome is None:
        await action(world)
        return
    with pytest.raises(StatusError) as caught:
        await action(world)
    assert caught.value.status is outcome
    assert await names(world, "/f") == [b"user.old"]


async def test_what_fits_on_one_inode(world: World) -> None:
    await world.touch("/f")
    for i in range(INODE_BYTES_MAX >> 16):
        await put(world, "/f", b"user.%d" % i, bytes(65000))
    with pytest.raises(StatusError) as caught:
        await put(world, "/f", b"user.more", bytes(65000))
    assert caught.value.status is Status.NO_SPACE
    await put(world, "/f", b"user.0", b"")
    await put(world, "/f", b"user.more", bytes(65000))
    await world.touch("/g")
    long = [b"user.%0246d" % i for i in range(257)]  # 252 bytes with the NUL
    for name in long[:256]:
        await put(world, "/g", name, b"")
    assert await names(world, "/g") == long[:256]
    for i in range(3):
        await put(world, "/g", b"user.%0250d" % i, b"")
    with pytest.raises(StatusError) as caught:
        for i in range(3, 9):
            await put(world, "/g", b"user.%0250d" % i, b"")
    assert caught.value.status is Status.NO_SPACE


async def test_all_of_the_shortest_names_are_seen(world: World) -> None:
    """255 names of six bytes, and as many of seven as fit beside them."""
    number = (await world.touch("/f")).inode
    await put(world, "/f", b"user.\x01", b"")
    many = [b"user." + bytes([one]) for one in range(1, 256)]
    many += [b"user." + bytes([one, two]) for one in range(1, 256) for two in range(1, 256)]
    many = many[:8222]
    txn = world.engine.begin()
    for name in many:
        txn.put(keys.xattr_key(number, name), b"")
    await txn.commit()
    assert sorted(await names(world, "/f")) == sorted(many)
    await put(world, "/f", b"user.\xff\xff", b"")  # the last one that fits
    with pytest.raises(StatusError) as refused:
        await put(world, "/f", b"user.\xff\xfe", b"")
    assert refused.value.status is Status.NO_SPACE
    await drop(world, "/f", b"user.\xff\xff")


async def test_the_flag_follows(world: World) -> None:
    made = await world.touch("/f")
    assert not made.extended
    with_one = await put(world, "/f", b"user.x", b"1")
    assert (with_one.extended, with_one.ctime_ns > made.ctime_ns, with_one.mtime_ns) == (True, True, made.mtime_ns)
    assert not (await drop(world, "/f", b"user.x")).extended
    assert (await put(world, "/f", ACCESS_ACL, acls.to_kernel(NAMED))).mode == 0o660
    cleared = await drop(world, "/f", ACCESS_ACL)
    assert (cleared.extended, cleared.mode) == (False, 0o660)  # the mask's bits stay, now they are the group's
    said = await put(world, "/f", ACCESS_ACL, acls.to_kernel(PLAIN))
    assert (said.extended, said.mode) == (False, 0o750)  # a mode says the same


async def test_writing_takes_a_programs_capabilities_away(world: World) -> None:
    await world.touch("/f", mode=0o777)
    for action in ("write", "truncate", "chown"):
        await put(world, "/f", b"security.capability", b"cap")
        await put(world, "/f", b"security.other", b"stays")
        if action == "write":
            opened = await world.open("/f", os.O_WRONLY)
            await world.close(opened, 3)
        elif action == "truncate":
            await world.truncate("/f", 1)
        else:
            await world.set("/f", uid=ALICE.uid)
        assert await names(world, "/f") == [b"security.other"]


async def test_a_stranger_writes_to_no_privileged_program(world: World) -> None:
    # What he writes counts before its length is settled: nobody may run it as the owner meanwhile.
    await world.touch("/f", mode=0o777)
    await world.set("/f", uid=ALICE.uid, gid=ALICE.gid, mode=0o6777)
    await put(world, "/f", b"security.capability", b"cap")
    mine = await world.open("/f", os.O_WRONLY, ALICE)
    assert (mine.attributes.mode, await names(world, "/f")) == (0o6777, [b"security.capability"])
    await world.close(mine)
    before = await world.stat("/f")
    await world.close(await world.open("/f", os.O_RDONLY, BOB))
    assert (await world.stat("/f")).mode == 0o6777
    his = await world.open("/f", os.O_WRONLY, BOB)
    assert his.attributes.mode == 0o777
    assert (await world.stat("/f")).ctime_ns > before.ctime_ns
    assert await names(world, "/f") == []
    await world.close(his)


@pytest.mark.parametrize(("gid", "mode"), [(ALICE.gid, 0o2644), (2000, 0o644)])
async def test_a_writer_that_dies_leaves_no_privileges(world: World, gid: int, mode: int) -> None:
    # sgid without group execution stays for a member of the group.
    await world.touch("/f")
    await world.set("/f", uid=ALICE.uid, gid=gid, mode=0o6644)
    client = b"dies------------"
    opened = await world.open("/f", os.O_WRONLY, ALICE, client)
    world.chunks.write(opened.attributes.inode, 5)
    world.namespace.client_ended(client)
    await world.namespace.clients.step()
    assert ((await world.stat("/f")).mode, (await world.stat("/f")).length) == (mode, 5)


async def test_watchers_hear_of_it(world: World) -> None:
    number = (await world.touch("/f")).inode
    begin = (await world.ask("read_events", meta_pb2.ReadEventsRequest(place=place("/")))).cookie
    await put(world, "/f", b"user.x", b"1")
    await put(world, "/f", b"user.x", b"1")  # changes nothing
    await put(world, "/f", ACCESS_ACL, acls.to_kernel(NAMED))
    await drop(world, "/f", b"user.x")
    heard = await world.ask("read_events", meta_pb2.ReadEventsRequest(place=place("/"), cookie=begin))
    assert [(event.kind, event.inode) for event in heard.events] == [(meta_pb2.EVENT_KIND_CHANGED, number)] * 3


async def furnished(world: World, path: str) -> None:
    await put(world, path, b"trusted.x", b"1")
    found = await world.stat(path, follow=False)
    if found.type != 3:
        await put(world, path, b"user.x", b"1")
        await put(world, path, ACCESS_ACL, acls.to_kernel(NAMED))
    if found.type == 2:
        await put(world, path, DEFAULT_ACL, acls.to_kernel(NAMED))


async def left(world: World) -> list[bytes]:
    return [
        key
        for letters in (keys.XATTR, keys.ACL)
        for key, _ in await world.engine.begin().scan(*keys.prefix_range(letters), 1000)
    ]


@pytest.mark.parametrize("way", ["remove", "replace", "tree", "exchange and remove"])
async def test_they_go_with_the_inode(world: World, way: str) -> None:
    await world.mkdir("/t")
    await world.mkdir("/t/d")
    await world.touch("/t/f")
    await world.symlink("/t/s", "f")
    paths = ["/t/f", "/t/s", "/t/d"]
    for path in paths:
        await furnished(world, path)
    assert len(await left(world)) == 8
    if way == "tree":
        await furnished(world, "/t")
        await world.remove_tree("/t")
    elif way == "replace":
        await world.mkdir("/d")
        await world.touch("/f")
        await world.touch("/s")
        for path in paths:
            await world.rename(path[2:], path)
    else:
        if way != "remove":
            await world.rename("/t/f", "/t/d", 2)
            paths = ["/t/d", "/t/s", "/t/f"]
        for path in paths[:2]:
            await world.unlink(path)
        await world.rmdir(paths[2])
    await world.collect()
    assert await left(world) == []


async def test_what_no_directory_could_have_remembered(world: World) -> None:
    # rmdir knows from memory whether something lies beside a directory.
    await world.mkdir("/d")
    await world.touch("/d/f")
    await world.unlink("/d/f")
    await put(world, "/d", b"user.x", b"1")
    await world.rmdir("/d")
    assert await left(world) == []


async def test_a_repeated_request_sets_nothing_twice(world: World) -> None:
    await world.touch("/f")
    request = meta_pb2.SetXattrRequest(place=place("/f"), name=b"user.x", value=b"1", flags=1, request_id=77)
    first = await world.ask("set_xattr", request)
    assert await world.ask("set_xattr", request) == first  # and not EXISTS


rights = st.integers(0, 7)
named = st.dictionaries(st.integers(0, acls.NO_ID - 1), rights, max_size=4).map(
    lambda rows: tuple(sorted(rows.items()))
)
lists = st.builds(Acl, rights, rights, rights, rights, named, named)
lists |= st.builds(Acl, rights, rights, rights, st.none(), st.just(()), st.just(()))


@given(acl=lists)
def test_both_forms_say_the_same(acl: Acl) -> None:
    assert acls.unpack(acls.pack(acl)) == acl
    assert acls.from_kernel(acls.to_kernel(acl)) == acl


@given(value=st.binary(max_size=80))
def test_no_bytes_confuse_the_parser(value: bytes) -> None:
    value = struct.pack("<I", 2) + value
    try:
        found = acls.from_kernel(value)
    except StatusError as refused:
        assert refused.status is Status.INVALID
    else:
        assert found is None or sorted(acls.to_kernel(found)) == sorted(value)  # ids may come in another order


async def test_an_acl_that_is_there_already_leaves_no_trace(world: World) -> None:
    """As on ext4 (the local file system found this in a soak); one that says something else does."""
    await world.touch("/f")
    first = await put(world, "/f", ACCESS_ACL, acls.to_kernel(NAMED))
    again = await put(world, "/f", ACCESS_ACL, acls.to_kernel(NAMED))
    assert (again.ctime_ns, again.change) == (first.ctime_ns, first.change)
    plain = await put(world, "/f", ACCESS_ACL, acls.to_kernel(PLAIN))
    assert plain.change > first.change
    assert (await put(world, "/f", ACCESS_ACL, acls.to_kernel(PLAIN))).change == plain.change
