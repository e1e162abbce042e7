"""Path resolution: symlinks, dots, slashes, limits, and the right to search."""

from __future__ import annotations

import pytest

from emberfs.meta import keys
from emberfs.meta.namespace import directories
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.meta_pb2 import Place

from .world import ALICE, BOB, World, place


async def tree(world: World) -> None:
    await world.mkdir("/a")
    await world.mkdir("/a/b")
    await world.touch("/a/b/file")
    await world.symlink("/a/up", "..")
    await world.symlink("/absolute", "/a/b")
    await world.symlink("/relative", "a/b/file")
    await world.symlink("/dangling", "nothing")
    await world.symlink("/loop", "loop")
    await world.symlink("/ping", "pong")
    await world.symlink("/pong", "ping")


@pytest.mark.parametrize(
    ("path", "same_as"),
    [
        ("/", "/"),
        ("/.", "/"),
        ("/..", "/"),
        ("/../..", "/"),
        ("//a///b//", "/a/b"),
        ("/a/.", "/a"),
        ("/a/..", "/"),
        ("/a/b/../b/./file", "/a/b/file"),
        ("/absolute/file", "/a/b/file"),
        ("/absolute/", "/a/b"),
        ("/absolute/..", "/a"),
        ("/relative", "/a/b/file"),
        ("/a/up/a/up/a", "/a"),
    ],
)
async def test_resolves(world: World, path: str, same_as: str) -> None:
    await tree(world)
    assert (await world.stat(path)).inode == (await world.stat(same_as)).inode
    assert (await world.stat(path)).inode == (await world.stat(same_as)).inode  # now from what was remembered


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", Status.NOT_FOUND),
        ("/nothing/", Status.NOT_FOUND),
        ("/nothing/x", Status.NOT_FOUND),
        ("/a/b/file/", Status.NOT_DIRECTORY),
        ("/a/b/file/x", Status.NOT_DIRECTORY),
        ("/a/b/file/.", Status.NOT_DIRECTORY),
        ("/a/b/file/..", Status.NOT_DIRECTORY),
        ("/relative/", Status.NOT_DIRECTORY),
        ("/dangling", Status.NOT_FOUND),
        ("/loop", Status.SYMLINK_LOOP),
        ("/loop/x", Status.SYMLINK_LOOP),
        ("/ping", Status.SYMLINK_LOOP),
        ("/" + "n" * 256, Status.NAME_TOO_LONG),
        ("/a/" + "n" * 256 + "/x", Status.NAME_TOO_LONG),
        ("/" + "a/" * 2048, Status.NAME_TOO_LONG),
        ("/a\0b", Status.INVALID),
    ],
)
async def test_refuses(world: World, path: str, status: Status) -> None:
    await tree(world)
    with pytest.raises(StatusError) as caught:
        await world.stat(path)
    assert caught.value.status is status


async def test_limits_are_reachable(world: World) -> None:
    longest = "/" + "n" * 255
    await world.touch(longest)
    assert await world.exists(longest)
    assert await world.exists("/" + "./" * 2047)  # 4094 bytes
    await world.mkdir("/0")
    for i in range(40):
        await world.symlink(f"/{i + 1}", f"{i}")
    assert (await world.stat("/40")).inode == (await world.stat("/0")).inode
    await world.symlink("/41", "40")
    with pytest.raises(StatusError, match="40 symlinks"):
        await world.stat("/41")


async def test_does_not_follow_when_told(world: World) -> None:
    await tree(world)
    link = await world.stat("/relative", follow=False)
    assert (link.target, link.length, link.mode) == (b"a/b/file", 8, 0o777)
    assert (await world.stat("/absolute/", follow=False)).inode == (await world.stat("/a/b")).inode  # a slash follows


async def test_paths_relative_to_inodes(world: World) -> None:
    await tree(world)
    a = (await world.stat("/a")).inode
    file = await world.stat("/a/b/file")
    reply = await world.ask(
        "stat",
        meta_pb2.StatRequest(places=[place("b/file", a), place("", file.inode), place("x", file.inode), place("", 99)]),
    )
    assert list(reply.statuses) == [0, 0, Status.NOT_DIRECTORY, Status.STALE_HANDLE]
    assert reply.attributes[0].inode == reply.attributes[1].inode == file.inode


async def test_every_directory_on_the_way_must_be_searchable(world: World) -> None:
    await world.mkdir("/home", mode=0o755)
    await world.mkdir("/home/alice", mode=0o755)
    await world.set("/home/alice", uid=ALICE.uid, gid=ALICE.gid)
    await world.mkdir("/home/alice/private", ALICE, mode=0o700)
    await world.touch("/home/alice/private/file", ALICE)
    for _ in range(2):  # the second time from what was remembered
        assert (await world.stat("/home/alice/private/file", ALICE)).uid == ALICE.uid
        with pytest.raises(PermissionError):
            await world.stat("/home/alice/private/file", BOB)
        with pytest.raises(PermissionError):
            await world.stat("/home/alice/private/nothing", BOB)
    await world.set("/home/alice/private", ALICE, mode=0o711)
    await world.stat("/home/alice/private/file", BOB)
    with pytest.raises(PermissionError):
        await world.listdir("/home/alice/private", BOB)
    await world.set("/home/alice/private", ALICE, mode=0o700)
    with pytest.raises(PermissionError):  # nobody remembers the right after it was taken away
        await world.stat("/home/alice/private/file", BOB)


async def test_batch_of_stats_has_a_status_each(world: World) -> None:
    await tree(world)
    paths = ["/a", "/nothing", "/a/b/file", "/loop", "/"]
    reply = await world.ask("stat", meta_pb2.StatRequest(places=[place(p) for p in paths], follow=True))
    assert list(reply.statuses) == [0, Status.NOT_FOUND, 0, Status.SYMLINK_LOOP, 0]
    assert [a.inode for a in reply.attributes][1::2] == [0, 0]
    assert reply.attributes[0].nlink == 3
    with pytest.raises(StatusError, match="at most 1024"):
        await world.ask("stat", meta_pb2.StatRequest(places=[Place()] * 1025))


async def test_what_is_remembered_has_a_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "FACTS_MAX", 50)
    for i in range(200):
        await world.mkdir(f"/{i}")
        await world.stat(f"/{i}")
    view = world.namespace.memory.view(keys.counter(await world.engine.begin().get(keys.DIRECTORY_VERSION)))
    for i in range(200):
        await world.stat("/" + "./" * i + "7/../8")
    assert max(map(len, (view.children, view.walks, view.directories, view.attached))) <= 51
    assert sum(len(head) for _, _, head in view.walks) <= 50 * directories.WALK_BYTES_MAX


async def test_parents_of_a_deep_path_are_made_in_one_walk(world: World) -> None:
    await world.symlink("/link", "real")
    await world.mkdir("/real")
    path = "/link//./x/../" + "d/" * 1000 + "end"
    await world.touch(path, parents=True)
    assert (await world.stat("/real/" + "d/" * 1000 + "end")).type == 1
    assert await world.listdir("/real") == ["d", "x"]
    with pytest.raises(NotADirectoryError):
        await world.touch(path + "/below/it", parents=True)
