"""The trash: what is removed can come back, until its time has come, somebody wants it gone, or space is short."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from emberfs.meta.namespace import inode as inodes
from emberfs.meta.namespace.access import ROOT, Credentials
from emberfs.meta.namespace.check import check
from emberfs.meta.namespace.seams import Space
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.common_pb2 import FILE_TYPE_DIRECTORY, FILE_TYPE_REGULAR
from emberfs.proto.gen.meta_pb2 import TrashEntry
from emberfs.proto.rpc import MESSAGE_BYTES_MAX

from .world import ALICE, BOB, MemoryChunks, World, place, raise_status

DAY = 86400


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.namespace.trash_seconds = DAY
    await made.start()
    yield made
    assert await check(made.engine) == []


async def entries(world: World, who: Credentials = ROOT) -> dict[str, TrashEntry]:
    found: dict[str, TrashEntry] = {}
    cookie = b""
    while True:
        reply = await world.ask("list_trash", meta_pb2.ListTrashRequest(cookie=cookie, entries_max=2), who)
        found |= {entry.name.decode(): entry for entry in reply.entries}
        if reply.end:
            return found
        cookie = reply.cookie


async def restore(world: World, entry: TrashEntry, to: str = "", who: Credentials = ROOT) -> None:
    request = meta_pb2.RestoreTrashRequest(expires=entry.expires, inode=entry.inode)
    if to:
        request.target.CopyFrom(place(to))
    await world.ask("restore_trash", request, who)


async def purge(world: World, entry: TrashEntry, who: Credentials = ROOT) -> None:
    request = meta_pb2.PurgeTrashRequest(expires=[entry.expires], inodes=[entry.inode])
    raise_status((await world.ask("purge_trash", request, who)).statuses[0])


async def test_a_file_comes_back_with_its_bytes(world: World) -> None:
    await world.mkdir("/d")
    opened = (
        await world.open("/d/f", os.O_WRONLY | os.O_CREAT, ALICE)
        if False
        else await world.open("/d/f", os.O_WRONLY | os.O_CREAT)
    )
    world.chunks.write(opened.attributes.inode, 5000)
    await world.close(opened, 5000)
    await world.unlink("/d/f")
    await world.collect()
    assert not await world.exists("/d/f") and world.chunks.removed == []
    entry = (await entries(world))["f"]
    assert (entry.path, entry.attributes.length, entry.remover) == (b"/d", 5000, 0)
    await restore(world, entry)
    back = await world.stat("/d/f")
    assert (back.inode, back.length, back.nlink) == (opened.attributes.inode, 5000, 1)
    assert await entries(world) == {}
    with pytest.raises(FileNotFoundError):
        await restore(world, entry, "/again")


async def test_a_tree_comes_back_whole(world: World) -> None:
    await world.mkdir("/d/e", parents=True)
    await world.touch("/d/e/f")
    await world.symlink("/d/link", "e/f")
    changed_ns = (await world.stat("/d")).mtime_ns
    await world.remove_tree("/d")
    await world.collect()
    entry = (await entries(world))["d"]
    await restore(world, entry, "/other")
    assert (await world.stat("/other")).mtime_ns == changed_ns
    assert await world.listdir("/other") == ["e", "link"] and await world.exists("/other/link")
    await world.touch("/other/e/new")


@pytest.mark.parametrize("way", ["rename", "publish"])
async def test_what_is_replaced_is_kept_too(world: World, way: str) -> None:
    old = await world.touch("/f")
    if way == "rename":
        await world.touch("/g")
        await world.rename("/g", "/f")
    else:
        opened = await world.open("/", os.O_WRONLY, unnamed=True)
        request = meta_pb2.PublishRequest(inodes=[opened.attributes.inode], targets=[place("/f")])
        await world.ask("publish", request)
        await world.close(opened)
    assert (await entries(world))["f"].inode == old.inode


async def test_only_the_last_name_goes_into_it(world: World) -> None:
    await world.touch("/a")
    await world.link("/a", "/b")
    await world.unlink("/a")
    assert await entries(world) == {}
    await world.unlink("/b")
    assert list(await entries(world)) == ["b"]


async def test_its_time_comes(world: World) -> None:
    await world.mkdir("/d")
    await world.touch("/d/f")
    await world.touch("/f")
    await world.set("/d", trash=3601)
    for name in ("/d/f", "/f"):
        await world.unlink(name)
    await world.remove_tree("/d")
    for seconds, left in ((3500, {"d", "f"}), (200, {"d", "f"}), (DAY, set[str]())):
        world.clock.wall += seconds * 10**9
        await world.collect()
        assert set(await entries(world)) == left
    # Two of the same name: one has gone after an hour.
    assert len(world.chunks.removed) == 2
    assert (await world.namespace.counts()) == (1, 0)


async def test_directories_say_how_long(world: World) -> None:
    await world.mkdir("/d")
    await world.set("/d", trash=1)
    await world.mkdir("/d/e")
    await world.touch("/d/e/f")
    await world.unlink("/d/e/f")
    assert await entries(world) == {}
    with pytest.raises(PermissionError):
        await world.set("/d", ALICE, trash=0)


async def test_forever(world: World) -> None:
    await world.touch("/f")
    request = meta_pb2.RemoveRequest(places=[place("/f")], kind=meta_pb2.REMOVE_KIND_UNLINK, forever=True)
    await world.ask("remove", request)
    assert await entries(world) == {}


async def test_whose_it_is(world: World) -> None:
    await world.mkdir("/d", mode=0o777)
    await world.touch("/d/f", ALICE)
    await world.unlink("/d/f", ALICE)
    entry = (await entries(world, ALICE))["f"]
    assert await entries(world, BOB) == {}
    for refused in (restore(world, entry, who=BOB), purge(world, entry, BOB)):
        with pytest.raises(PermissionError):
            await refused
    await world.mkdir("/closed", mode=0o700)
    with pytest.raises(PermissionError):
        await restore(world, entry, "/closed/f", ALICE)
    await world.touch("/d/f", BOB)
    with pytest.raises(FileExistsError):
        await restore(world, entry, who=ALICE)
    await restore(world, entry, "/d/g", ALICE)
    await world.unlink("/d/g", ALICE)
    await purge(world, (await entries(world, ALICE))["g"], ALICE)
    await world.collect()
    assert world.chunks.removed == [entry.inode]


async def test_pages_of_what_lay_deep_down_fit_a_message(world: World) -> None:
    number = 1
    for _ in range(80):
        entry = meta_pb2.NewEntry(place=place("d" * 255, number), type=FILE_TYPE_DIRECTORY, mode=0o755)
        number = (await world.ask("create", meta_pb2.CreateRequest(entries=[entry]))).attributes[0].inode
    places = [place(f"{i}", number) for i in range(1000)]
    files = [meta_pb2.NewEntry(place=each, type=FILE_TYPE_REGULAR, mode=0o644) for each in places]
    await world.ask("create", meta_pb2.CreateRequest(entries=files))
    await world.ask("remove", meta_pb2.RemoveRequest(places=places, kind=meta_pb2.REMOVE_KIND_UNLINK))
    reply = await world.ask("list_trash", meta_pb2.ListTrashRequest())
    assert len(reply.entries) == 1000 and reply.ByteSize() < MESSAGE_BYTES_MAX


async def test_its_directory_is_gone(world: World) -> None:
    await world.mkdir("/d")
    await world.touch("/d/f")
    await world.unlink("/d/f")
    await world.rmdir("/d")
    entry = (await entries(world))["f"]
    assert b"removed directory" in entry.path
    with pytest.raises(StatusError, match="name another place") as refused:
        await restore(world, entry)
    assert refused.value.status is Status.NOT_FOUND
    await restore(world, entry, "/f")


async def test_a_directory_does_not_come_back_below_itself(world: World) -> None:
    await world.mkdir("/d/e", parents=True)
    inner = await world.stat("/d/e")
    await world.remove_tree("/d")
    entry = (await entries(world))["d"]
    request = meta_pb2.RestoreTrashRequest(expires=entry.expires, inode=entry.inode, target=place("x", inner.inode))
    with pytest.raises(StatusError) as refused:
        await world.ask("restore_trash", request)
    assert refused.value.status is Status.STALE_HANDLE


async def test_a_writer_in_the_trash_is_settled(world: World) -> None:
    opened = await world.open("/f", os.O_WRONLY | os.O_CREAT)
    world.chunks.write(opened.attributes.inode, 700)
    await world.unlink("/f")
    world.namespace.client_ended(world.client)
    await world.namespace.clients.step()
    world.client = b"client-000000002"
    await restore(world, (await entries(world))["f"])
    assert (await world.stat("/f")).length == 700


async def test_it_gives_way_when_space_is_short(world: World) -> None:
    class Full(MemoryChunks):
        def space(self) -> Space:
            return Space(1 << 30, 1 << 20, 0.01 if len(self.removed) < 300 else 0.5)

    full = Full()
    world.namespace.chunks = full
    for i in range(400):
        await world.touch(f"/f{i:03}")
        await world.unlink(f"/f{i:03}")
    await world.collect()
    left = await entries(world)
    assert 300 <= len(full.removed) < 400 and len(left) == 400 - len(full.removed)
    assert "f399" in left and "f000" not in left


async def test_older_records_are_read(world: World) -> None:
    await world.mkdir("/d")
    await world.touch("/d/f")
    directory = await world.stat("/d")
    for path_, number in (("/d", directory.inode), ("/d/f", (await world.stat("/d/f")).inode)):
        from emberfs.meta import keys

        data = await world.engine.begin().get(keys.inode_key(number))
        assert data is not None
        at = inodes._HEAD_OF_VERSION_1
        old = b"\x01" + data[1:at] + data[at + 8 :]
        if path_ == "/d":
            old = old[:-4]
        assert inodes.unpack(number, old) == inodes.unpack(number, data)


@pytest.mark.parametrize("cookie", [b"A", b"INOD", b"TRSH", b"TRSH\xff", b"\xff" * 40])
async def test_any_cookie_is_answered(world: World, cookie: bytes) -> None:
    await world.touch("/f")
    await world.unlink("/f")
    reply = await world.ask("list_trash", meta_pb2.ListTrashRequest(cookie=cookie))
    assert reply.end and [entry.name for entry in reply.entries] in ([], [b"f"])
