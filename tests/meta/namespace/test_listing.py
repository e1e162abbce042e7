"""Directories in pages and trees in pages, while they change."""

from __future__ import annotations

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.common_pb2 import FILE_TYPE_DIRECTORY, FILE_TYPE_REGULAR, FILE_TYPE_SYMLINK
from emberfs.proto.gen.meta_pb2 import FindRequest, NewEntry, ReadDirectoryRequest
from emberfs.proto.rpc import MESSAGE_BYTES_MAX

from .world import ALICE, World, place


async def fill(world: World, names: list[str]) -> None:
    entries = [NewEntry(place=place(name), type=FILE_TYPE_REGULAR, mode=0o644) for name in names]
    assert set((await world.ask("create", meta_pb2.CreateRequest(entries=entries, parents=True))).statuses) == {0}


async def test_pages_with_attributes(world: World) -> None:
    names = [f"n{i:03}" for i in range(25)]
    await fill(world, [f"/d/{name}" for name in names])
    await world.mkdir("/d/sub")
    seen, cookie, pages, end = [], b"", 0, False
    while not end:
        request = ReadDirectoryRequest(place=place("/d"), cookie=cookie, entries_max=10, attributes=True)
        reply = await world.ask("read_directory", request)
        assert reply.HasField("directory") == (pages == 0)
        for name, number, kind, attributes in zip(
            reply.names, reply.inodes, reply.types, reply.attributes, strict=True
        ):
            assert attributes == await world.stat(f"/d/{name.decode()}")
            assert (number, kind) == (attributes.inode, attributes.type)
        seen += [name.decode() for name in reply.names]
        cookie, end, pages = reply.cookie, reply.end, pages + 1
    assert seen == [*names, "sub"]
    assert pages == 3


async def test_what_stays_is_told_once_whatever_changes(world: World) -> None:
    await fill(world, [f"/d/{i:02}" for i in range(20)])
    seen: list[bytes] = []
    cookie, end = b"", False
    while not end:
        reply = await world.ask("read_directory", ReadDirectoryRequest(place=place("/d"), cookie=cookie, entries_max=3))
        seen += reply.names
        cookie, end = reply.cookie, reply.end
        for name in reply.names:
            await world.unlink(f"/d/{name.decode()}")
        await world.touch(f"/d/000{len(seen)}")  # before the cookie: not told
    assert seen == [b"%02d" % i for i in range(20)]


async def test_empty_file_and_removed_directories(world: World) -> None:
    await world.mkdir("/d")
    assert await world.listdir("/d") == []
    await world.touch("/f")
    with pytest.raises(NotADirectoryError):
        await world.listdir("/f")
    number = (await world.stat("/d")).inode
    await world.rmdir("/d")
    with pytest.raises(StatusError) as caught:
        await world.ask("read_directory", ReadDirectoryRequest(place=place("", number)))
    assert caught.value.status is Status.STALE_HANDLE


async def test_names_are_bytes(world: World) -> None:
    for name in ("\udcff\udcfe", "new\nline", "ünïcode", "a\\b", " "):
        await world.touch("/" + name)
    reply = await world.ask("read_directory", ReadDirectoryRequest(place=place("/")))
    assert sorted(reply.names) == sorted([b"\xff\xfe", b"new\nline", "ünïcode".encode(), b"a\\b", b" "])


async def find(world: World, path: str, page: int = 1000, **fields: object) -> tuple[list[str], list[str]]:
    seen: list[str] = []
    denied: list[str] = []
    cookie, end = b"", False
    while not end:
        request = FindRequest(place=place(path), cookie=cookie, entries_max=page, **fields)
        reply = await world.ask("find", request, ALICE)
        assert reply.paths or reply.end
        for name, attributes in zip(reply.paths, reply.attributes, strict=True):
            if not reply.denied and not denied:
                assert attributes == await world.stat(f"{path}/{name.decode()}", follow=False)
        seen += [name.decode() for name in reply.paths]
        denied += [name.decode() for name in reply.denied]
        cookie, end = reply.cookie, reply.end
    return seen, denied


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
async def test_find_is_depth_first_in_the_order_of_names(world: World, page: int) -> None:
    await fill(world, ["/t/b/x", "/t/b/y/1", "/t/b/y/2", "/t/a", "/t/b.txt", "/t/c/z"])
    await world.mkdir("/t/empty")
    await world.symlink("/t/loop", ".")
    everything = ["a", "b", "b/x", "b/y", "b/y/1", "b/y/2", "b.txt", "c", "c/z", "empty", "loop"]
    assert (await find(world, "/t", page))[0] == everything
    assert (await find(world, "/t", page, depth_max=1))[0] == [name for name in everything if "/" not in name]
    assert (await find(world, "/t", page, depth_max=2))[0] == [name for name in everything if name.count("/") < 2]
    assert (await find(world, "/t/b/y", page))[0] == ["1", "2"]


@pytest.mark.parametrize("page", [1, 2, 1000])
async def test_find_names_what_it_may_not_read_once(world: World, page: int) -> None:
    await fill(world, ["/t/a/1", "/t/b/2", "/t/c/3"])
    await world.set("/t/b", mode=0o700)
    seen, denied = await find(world, "/t", page)
    assert seen == ["a", "a/1", "b", "c", "c/3"]
    assert denied == ["b"]
    with pytest.raises(PermissionError):
        await find(world, "/t/b")


@pytest.mark.parametrize("cookie", [b"b/", b"b/1", b"b/secret/", b"b/secret/x"])
async def test_a_cookie_opens_no_closed_directory(world: World, cookie: bytes) -> None:
    await fill(world, ["/t/a", "/t/b/2", "/t/b/secret/3", "/t/c"])
    await world.set("/t/b", mode=0o700)
    reply = await world.ask("find", FindRequest(place=place("/t"), cookie=cookie), ALICE)
    assert (list(reply.paths), reply.end) == ([b"c"], True)


async def test_pages_of_long_symlinks_fit_a_message(world: World) -> None:
    targets = ["x" * 4094 + str(i % 10) for i in range(4200)]
    for start in range(0, len(targets), 600):
        entries = [
            NewEntry(place=place(f"/d/{i:04}"), type=FILE_TYPE_SYMLINK, target=targets[i].encode())
            for i in range(start, start + 600)
        ]
        await world.ask("create", meta_pb2.CreateRequest(entries=entries, parents=True))
    seen: list[str] = []
    cookie, end = b"", False
    while not end:
        request = ReadDirectoryRequest(place=place("/d"), cookie=cookie, entries_max=8192, attributes=True)
        listed = await world.ask("read_directory", request)
        assert listed.ByteSize() < MESSAGE_BYTES_MAX and len(listed.names) == len(listed.inodes) == len(listed.types)
        seen += [attributes.target.decode() for attributes in listed.attributes]
        cookie, end = listed.cookie, listed.end
    assert seen == targets
    seen, cookie, end = [], b"", False
    while not end:
        found = await world.ask("find", FindRequest(place=place("/"), cookie=cookie, entries_max=8192))
        assert found.ByteSize() < MESSAGE_BYTES_MAX and len(found.paths) == len(found.attributes)
        seen += [attributes.target.decode() for attributes in found.attributes if attributes.target]
        cookie, end = found.cookie, found.end
    assert seen == targets


async def test_pages_of_a_deep_tree_fit_a_message(world: World) -> None:
    number = 1
    for _ in range(100):
        entry = NewEntry(place=place("d" * 255, number), type=FILE_TYPE_DIRECTORY, mode=0o755)
        number = (await world.ask("create", meta_pb2.CreateRequest(entries=[entry]))).attributes[0].inode
    names = [f"{i:03}" for i in range(700)]
    entries = [NewEntry(place=place(name, number), type=FILE_TYPE_REGULAR, mode=0o644) for name in names]
    await world.ask("create", meta_pb2.CreateRequest(entries=entries))
    seen: list[bytes] = []
    cookie, end = b"", False
    while not end:
        reply = await world.ask("find", FindRequest(place=place("/"), cookie=cookie, entries_max=8192))
        assert reply.ByteSize() < MESSAGE_BYTES_MAX
        seen += reply.paths
        cookie, end = reply.cookie, reply.end
    way = b"d" * 255
    assert seen == [
        *(b"/".join([way] * depth) for depth in range(1, 101)),
        *(b"/".join([way] * 100) + b"/" + name.encode() for name in names),
    ]


async def test_find_goes_on_where_the_tree_changed(world: World) -> None:
    await fill(world, ["/t/a/1/x", "/t/a/2/x", "/t/a/3", "/t/b"])
    reply = await world.ask("find", FindRequest(place=place("/t"), entries_max=3))
    assert list(reply.paths) == [b"a", b"a/1", b"a/1/x"]
    await world.remove_tree("/t/a/1")
    rest = await world.ask("find", FindRequest(place=place("/t"), cookie=reply.cookie))
    assert list(rest.paths) == [b"a/2", b"a/2/x", b"a/3", b"b"]
    await world.remove_tree("/t/a")
    rest = await world.ask("find", FindRequest(place=place("/t"), cookie=reply.cookie))
    assert (list(rest.paths), rest.end) == ([b"b"], True)
    await world.collect()


async def test_find_of_a_wide_tree(world: World) -> None:
    await fill(world, [f"/t/{i}/{j}" for i in range(30) for j in range(30)])
    await fill(world, [f"/t/0/x{j}" for j in range(600)])
    seen, _ = await find(world, "/t", 100)
    assert len(seen) == len(set(seen)) == 30 * 31 + 600
    assert seen == sorted(seen, key=lambda name: name.split("/"))


async def test_stat_fs(world: World) -> None:
    await fill(world, ["/a/b", "/c"])
    reply = await world.ask("stat_fs", meta_pb2.StatFsRequest())
    assert (reply.bytes_total, reply.bytes_free, reply.inodes_used, reply.name_bytes_max) == (1 << 40, 1 << 39, 4, 255)
    assert (await world.stat("/a")).type == FILE_TYPE_DIRECTORY
