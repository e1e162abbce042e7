"""Making, linking, renaming and removing names: outcomes as tables, link counts, directory times, garbage."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest

from emberfs.meta.namespace.access import Credentials
from emberfs.meta.namespace.clients import settle_session
from emberfs.meta.namespace.ops import remove
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.cluster_pb2 import RenewClientRequest
from emberfs.proto.gen.common_pb2 import (
    FILE_TYPE_BLOCK,
    FILE_TYPE_CHARACTER,
    FILE_TYPE_DIRECTORY,
    FILE_TYPE_FIFO,
    FILE_TYPE_REGULAR,
    FILE_TYPE_SOCKET,
    FILE_TYPE_SYMLINK,
)
from emberfs.proto.gen.meta_pb2 import REMOVE_KIND_UNLINK, NewEntry

from .world import ALICE, BOB, CAROL, World, place

W = os.O_WRONLY
CREATE = os.O_CREAT


async def furnish(world: World) -> None:
    """A file, two hard links, an empty and a full directory, a file in it, a symlink to each."""
    await world.touch("/f")
    await world.touch("/g")
    await world.link("/f", "/same")
    await world.mkdir("/empty")
    await world.mkdir("/full")
    await world.mkdir("/full/sub")
    await world.touch("/full/f")
    await world.symlink("/to_f", "f")
    await world.symlink("/to_full", "full")


Action = Callable[[World], Awaitable[object]]

MATRIX: list[tuple[str, Action, Status | None]] = [
    ("mkdir of a new name", lambda w: w.mkdir("/new"), None),
    ("mkdir of a new name with a slash", lambda w: w.mkdir("/new/"), None),
    ("mkdir of a file", lambda w: w.mkdir("/f"), Status.EXISTS),
    ("mkdir of a directory", lambda w: w.mkdir("/full"), Status.EXISTS),
    ("mkdir of a symlink", lambda w: w.mkdir("/to_full"), Status.EXISTS),
    ("mkdir of the root", lambda w: w.mkdir("/"), Status.EXISTS),
    ("mkdir of '.'", lambda w: w.mkdir("/full/."), Status.EXISTS),
    ("mkdir of '..'", lambda w: w.mkdir("/full/.."), Status.EXISTS),
    ("mkdir below nothing", lambda w: w.mkdir("/no/where"), Status.NOT_FOUND),
    ("mkdir below a file", lambda w: w.mkdir("/f/x"), Status.NOT_DIRECTORY),
    ("mkdir -p", lambda w: w.mkdir("/x/y/z", parents=True), None),
    ("mkdir -p of what exists", lambda w: w.mkdir("/full/sub", parents=True, exist_ok=True), None),
    ("mkdir -p of a symlink to a directory", lambda w: w.mkdir("/to_full", exist_ok=True), None),
    ("mkdir -p of a file", lambda w: w.mkdir("/f", exist_ok=True), Status.EXISTS),
    ("mkdir -p of the root", lambda w: w.mkdir("/", parents=True, exist_ok=True), None),
    ("mkdir -p below a file", lambda w: w.mkdir("/f/x/y", parents=True), Status.NOT_DIRECTORY),
    ("mkdir of a long name", lambda w: w.mkdir("/" + "n" * 256), Status.NAME_TOO_LONG),
    ("touch with a slash", lambda w: w.touch("/new/"), Status.NOT_FOUND),
    ("symlink to anything", lambda w: w.symlink("/s", "any/../thing"), None),
    ("symlink to nothing", lambda w: w.symlink("/s", ""), Status.NOT_FOUND),
    ("symlink of 4095 bytes", lambda w: w.symlink("/s", "t" * 4095), None),
    ("symlink of 4096 bytes", lambda w: w.symlink("/s", "t" * 4096), Status.NAME_TOO_LONG),
    ("a type that does not exist", lambda w: w.make("/s", 99), Status.INVALID),  # type: ignore[arg-type]
    ("unlink of a file", lambda w: w.unlink("/f"), None),
    ("unlink of a symlink", lambda w: w.unlink("/to_full"), None),
    ("unlink of a directory", lambda w: w.unlink("/empty"), Status.IS_DIRECTORY),
    ("unlink of nothing", lambda w: w.unlink("/no"), Status.NOT_FOUND),
    ("unlink of a file with a slash", lambda w: w.unlink("/f/"), Status.NOT_DIRECTORY),
    ("unlink of '.'", lambda w: w.unlink("/full/."), Status.IS_DIRECTORY),
    ("unlink of the root", lambda w: w.unlink("/"), Status.IS_DIRECTORY),
    ("unlink through a symlink", lambda w: w.unlink("/to_full/f"), None),
    ("rmdir of an empty directory", lambda w: w.rmdir("/empty"), None),
    ("rmdir with a slash", lambda w: w.rmdir("/empty/"), None),
    ("rmdir of a full directory", lambda w: w.rmdir("/full"), Status.NOT_EMPTY),
    ("rmdir of a file", lambda w: w.rmdir("/f"), Status.NOT_DIRECTORY),
    ("rmdir of a symlink to a directory", lambda w: w.rmdir("/to_full"), Status.NOT_DIRECTORY),
    ("rmdir of the same with a slash", lambda w: w.rmdir("/to_full/"), Status.NOT_DIRECTORY),
    ("rmdir of nothing", lambda w: w.rmdir("/no"), Status.NOT_FOUND),
    ("rmdir of '.'", lambda w: w.rmdir("/empty/."), Status.INVALID),
    ("rmdir of '..'", lambda w: w.rmdir("/full/sub/.."), Status.NOT_EMPTY),
    ("rmdir of the root", lambda w: w.rmdir("/"), Status.BUSY_RESOURCE),
    ("remove tree of a file", lambda w: w.remove_tree("/f"), None),
    ("remove tree of a full directory", lambda w: w.remove_tree("/full"), None),
    ("remove tree of a symlink", lambda w: w.remove_tree("/to_full"), None),
    ("remove tree of nothing", lambda w: w.remove_tree("/no"), Status.NOT_FOUND),
    ("remove tree of the root", lambda w: w.remove_tree("/"), Status.BUSY_RESOURCE),
    ("link to a new name", lambda w: w.link("/f", "/new"), None),
    ("link to an existing name", lambda w: w.link("/f", "/g"), Status.EXISTS),
    ("link to itself", lambda w: w.link("/f", "/f"), Status.EXISTS),
    ("link of a directory", lambda w: w.link("/empty", "/new"), Status.NOT_PERMITTED),
    ("link of nothing", lambda w: w.link("/no", "/new"), Status.NOT_FOUND),
    ("link of a symlink itself", lambda w: w.link("/to_full", "/new"), None),
    (
        "link of a symlink, followed, to a directory",
        lambda w: w.link("/to_full", "/new", follow=True),
        Status.NOT_PERMITTED,
    ),
    ("link to a name with a slash", lambda w: w.link("/f", "/new/"), Status.NOT_FOUND),
    ("link below a file", lambda w: w.link("/f", "/g/new"), Status.NOT_DIRECTORY),
    ("rename to a new name", lambda w: w.rename("/f", "/new"), None),
    ("rename onto a file", lambda w: w.rename("/f", "/g"), None),
    ("rename onto the same name", lambda w: w.rename("/f", "/f"), None),
    ("rename onto its own hard link", lambda w: w.rename("/f", "/same"), None),
    ("rename of a file onto a directory", lambda w: w.rename("/f", "/empty"), Status.IS_DIRECTORY),
    ("rename of a directory onto a file", lambda w: w.rename("/empty", "/f"), Status.NOT_DIRECTORY),
    ("rename of a directory onto an empty one", lambda w: w.rename("/full", "/empty"), None),
    ("rename of a directory onto a full one", lambda w: w.rename("/empty", "/full"), Status.NOT_EMPTY),
    ("rename of a directory onto itself", lambda w: w.rename("/full", "/full"), None),
    ("rename of a directory into itself", lambda w: w.rename("/full", "/full/x"), Status.INVALID),
    ("rename of a directory deeper into itself", lambda w: w.rename("/full", "/full/sub/x"), Status.INVALID),
    ("rename onto an ancestor", lambda w: w.rename("/full/sub", "/full"), Status.NOT_EMPTY),
    ("rename of a file onto its directory", lambda w: w.rename("/full/f", "/full"), Status.NOT_EMPTY),
    ("rename of nothing", lambda w: w.rename("/no", "/new"), Status.NOT_FOUND),
    ("rename into nothing", lambda w: w.rename("/f", "/no/new"), Status.NOT_FOUND),
    ("rename of '.'", lambda w: w.rename("/full/.", "/new"), Status.BUSY_RESOURCE),
    ("rename onto '..'", lambda w: w.rename("/f", "/full/.."), Status.BUSY_RESOURCE),
    ("rename of the root", lambda w: w.rename("/", "/new"), Status.BUSY_RESOURCE),
    ("rename of a file with a slash", lambda w: w.rename("/f/", "/new"), Status.NOT_DIRECTORY),
    ("rename of a file to a slash", lambda w: w.rename("/f", "/new/"), Status.NOT_DIRECTORY),
    ("rename of a directory to a slash", lambda w: w.rename("/full", "/new/"), None),
    ("rename of a symlink", lambda w: w.rename("/to_full", "/new"), None),
    ("rename of a symlink onto what it points at", lambda w: w.rename("/to_f", "/f"), None),
    ("rename to a long name", lambda w: w.rename("/f", "/" + "n" * 256), Status.NAME_TOO_LONG),
    ("rename without replacement to a new name", lambda w: w.rename("/f", "/new", 1), None),
    ("rename without replacement onto a file", lambda w: w.rename("/f", "/g", 1), Status.EXISTS),
    ("rename without replacement onto its hard link", lambda w: w.rename("/f", "/same", 1), Status.EXISTS),
    ("rename without replacement onto '.'", lambda w: w.rename("/f", "/full/.", 1), Status.EXISTS),
    ("exchange of two files", lambda w: w.rename("/f", "/g", 2), None),
    ("exchange of a file and a full directory", lambda w: w.rename("/f", "/full", 2), None),
    ("exchange with nothing", lambda w: w.rename("/f", "/no", 2), Status.NOT_FOUND),
    ("exchange with an ancestor", lambda w: w.rename("/full/sub", "/full", 2), Status.INVALID),
    ("exchange with a descendant", lambda w: w.rename("/full", "/full/f", 2), Status.INVALID),
    ("exchange of two names of one file", lambda w: w.rename("/f", "/same", 2), None),
    ("both rename flags", lambda w: w.rename("/f", "/g", 3), Status.INVALID),
    ("an unknown rename flag", lambda w: w.rename("/f", "/g", 4), Status.INVALID),
]


@pytest.mark.parametrize(("action", "outcome"), [row[1:] for row in MATRIX], ids=[row[0] for row in MATRIX])
async def test_outcome(world: World, action: Action, outcome: Status | None) -> None:
    await furnish(world)
    if outcome is None:
        await action(world)
    else:
        before = await contents(world)
        with pytest.raises(StatusError) as caught:
            await action(world)
        assert caught.value.status is outcome
        assert await contents(world) == before


async def contents(world: World) -> list[tuple[bytes, bytes]]:
    """All keys but the requests' own records and the allocators."""
    rows = await world.engine.begin().scan(b"", b"\xf0", 10_000)
    return [row for row in rows if row[0][:4] not in (b"IDEM", b"NEXT")]


def sticky(who: Credentials, kind: str) -> Action:
    async def action(world: World) -> None:
        await world.mkdir("/tmp", mode=0o1777)
        await world.touch("/tmp/alice", ALICE)
        await world.touch("/tmp/carol", CAROL)
        if kind == "unlink":
            await world.unlink("/tmp/alice", who)
        elif kind == "rename away":
            await world.rename("/tmp/alice", "/tmp/new", 0, who)
        else:
            await world.rename("/tmp/carol", "/tmp/alice", 0, who)

    return action


@pytest.mark.parametrize(
    ("action", "fine"),
    [
        (sticky(ALICE, "unlink"), True),
        (sticky(BOB, "unlink"), False),
        (sticky(BOB, "rename away"), False),
        (sticky(ALICE, "rename away"), True),
        (sticky(CAROL, "replace"), False),
        (sticky(Credentials(0, 0), "replace"), True),
    ],
)
async def test_sticky_directories(world: World, action: Action, fine: bool) -> None:
    if fine:
        await action(world)
        return
    with pytest.raises(StatusError) as caught:
        await action(world)
    assert caught.value.status is Status.NOT_PERMITTED


async def test_names_need_a_writable_directory(world: World) -> None:
    await world.mkdir("/d", mode=0o755)
    await world.touch("/d/f", mode=0o666)
    await world.mkdir("/d/e")
    await world.mkdir("/open", mode=0o777)
    attempts: list[Awaitable[object]] = [
        world.mkdir("/d/x", ALICE),
        world.symlink("/d/x", "y", ALICE),
        world.unlink("/d/f", ALICE),
        world.rmdir("/d/e", ALICE),
        world.remove_tree("/d/e", ALICE),
        world.rename("/d/f", "/open/f", 0, ALICE),
        world.rename("/d/e", "/d/g", 0, ALICE),
        world.link("/d/f", "/d/x", ALICE),
    ]
    for attempt in attempts:
        with pytest.raises(StatusError) as caught:
            await attempt
        assert caught.value.status is Status.PERMISSION_DENIED
    # A directory that moves elsewhere gets another '..', so it must be writable itself.
    await world.mkdir("/open/mine", ALICE, mode=0o500)
    await world.mkdir("/open/other", ALICE)
    with pytest.raises(StatusError) as caught:
        await world.rename("/open/mine", "/open/other/mine", 0, ALICE)
    assert caught.value.status is Status.PERMISSION_DENIED
    await world.rename("/open/mine", "/open/renamed", 0, ALICE)


async def test_special_files(world: World) -> None:
    await world.set("/", mode=0o777)
    for i, kind in enumerate((FILE_TYPE_FIFO, FILE_TYPE_SOCKET)):
        assert (await world.make(f"/{i}", kind, ALICE)).type == kind
    for i, kind in enumerate((FILE_TYPE_CHARACTER, FILE_TYPE_BLOCK)):
        with pytest.raises(StatusError) as caught:
            await world.make(f"/d{i}", kind, ALICE, rdev=0x801)
        assert caught.value.status is Status.NOT_PERMITTED
        await world.make(f"/d{i}", kind, rdev=0x801)
        assert (await world.stat(f"/d{i}")).rdev == 0x801
    for name in ("0", "1", "d0", "d1"):
        await world.unlink(f"/{name}")
    await world.collect()
    assert await world.namespace.counts() == (1, 0)


async def test_setgid_directories_pass_their_group_on(world: World) -> None:
    await world.mkdir("/d")
    await world.set("/d", gid=2000, mode=0o2777)
    file = await world.touch("/d/f", ALICE)
    directory = await world.mkdir("/d/sub", ALICE)
    assert (file.gid, file.mode) == (2000, 0o644)
    assert (directory.gid, directory.mode) == (2000, 0o2755)
    assert (await world.touch("/d/g", ALICE, mode=0o2755)).mode == 0o755  # not a member: no sgid program
    assert (await world.touch("/d/h", BOB, mode=0o2755)).mode == 0o2755


async def test_link_counts(world: World) -> None:
    assert (await world.stat("/")).nlink == 2
    await world.mkdir("/a")
    await world.mkdir("/a/b")
    await world.touch("/a/f")
    assert [(await world.stat(p)).nlink for p in ("/", "/a", "/a/b", "/a/f")] == [3, 3, 2, 1]
    assert (await world.link("/a/f", "/a/b/g")).nlink == 2
    await world.rename("/a/b", "/b")
    assert [(await world.stat(p)).nlink for p in ("/", "/a", "/b", "/b/g")] == [4, 2, 2, 2]
    await world.rename("/a/f", "/b", 2)  # a file and a directory change places
    assert [(await world.stat(p)).nlink for p in ("/", "/a", "/b")] == [3, 3, 2]
    await world.unlink("/b")
    assert (await world.stat("/a/f/g")).nlink == 1
    await world.remove_tree("/a/f")
    assert [(await world.stat(p)).nlink for p in ("/", "/a")] == [3, 2]


async def test_directory_times(world: World) -> None:
    await world.mkdir("/d")
    made = await world.stat("/d")
    await world.touch("/d/f")
    after_create = await world.stat("/d")
    assert after_create.mtime_ns == after_create.ctime_ns > made.mtime_ns
    assert after_create.change > made.change
    await world.set("/d/f", mode=0o600)
    assert (await world.stat("/d")).mtime_ns == after_create.mtime_ns
    # utimes sets an old time, and the next entry moves it on
    old = await world.set("/d", mtime_ns=5, atime_ns=6)
    assert (old.mtime_ns, old.atime_ns) == (5, 6)
    assert old.ctime_ns > after_create.ctime_ns
    kept = await world.set("/d", mode=0o700)
    assert (kept.mtime_ns, kept.change > old.change) == (5, True)
    await world.unlink("/d/f")
    assert (await world.stat("/d")).mtime_ns > kept.ctime_ns
    before = await world.stat("/")
    await world.rename("/d", "/e")
    assert (await world.stat("/")).mtime_ns > before.mtime_ns


async def test_unlinked_file_stays_for_its_writer_and_its_reader(world: World) -> None:
    opened = await world.open("/f", CREATE | W)
    number = opened.attributes.inode
    world.chunks.write(number, 10)
    await world.unlink("/f")
    await world.collect()
    assert (await world.close(opened, 10)).nlink == 0  # fstat of an open file without a name
    await world.namespace.renewed(b"reader----------", RenewClientRequest(open_inodes=[number]))
    await world.collect()
    assert world.chunks.removed == []
    with pytest.raises(StatusError) as caught:
        await world.link("/no", "/x")
    assert caught.value.status is Status.NOT_FOUND
    await world.namespace.renewed(b"reader----------", RenewClientRequest())
    await world.collect()
    assert world.chunks.removed == [number]
    assert await world.namespace.counts() == (1, 0)


async def test_hard_link_keeps_the_file(world: World) -> None:
    await world.touch("/f")
    await world.link("/f", "/g")
    await world.unlink("/f")
    await world.collect()
    assert (await world.stat("/g")).nlink == 1
    await world.rename("/g", "/h")
    await world.touch("/i")
    await world.rename("/i", "/h")
    await world.collect()
    assert len(world.chunks.removed) == 1


async def test_storage_is_asked_about_files_that_may_have_chunks(world: World) -> None:
    await world.make("/never", FILE_TYPE_REGULAR)
    opened = {
        name: await world.open(f"/{name}", CREATE | W) for name in ("made", "written", "empty", "lost", "dropped")
    }
    await world.close(opened["made"])
    await world.close(opened["written"], length=1)
    await world.close(opened["empty"], length=0)  # all that was written failed
    for name in ("never", *opened):
        await world.unlink(f"/{name}")
    await settle_session(world.namespace, opened["lost"].attributes.inode, opened["lost"].session)  # its client is gone
    await world.close(opened["dropped"], discard=True)
    await world.collect()
    asked = {name for name, each in opened.items() if each.attributes.inode in world.chunks.removed}
    assert asked == {"written", "empty", "lost", "dropped"} and len(world.chunks.removed) == 4


async def test_chunks_wait_for_storage(world: World) -> None:
    await world.touch("/f")
    await world.unlink("/f")
    world.chunks.down = True
    with pytest.raises(StatusError):
        await world.collect()
    assert await world.namespace.counts() == (1, 1)
    world.chunks.down = False
    await world.collect()
    assert await world.namespace.counts() == (1, 0)


async def big_tree(world: World, who: Credentials, top: str) -> int:
    """A directory of 300 files, one of 300 directories with a file each, a chain of depth 30; returns the number of inodes."""
    entries = [NewEntry(place=place(top), type=FILE_TYPE_DIRECTORY, mode=0o755)]
    entries += [
        NewEntry(place=place(f"{top}/{name}"), type=FILE_TYPE_DIRECTORY, mode=0o755)
        for name in ("many", "dirs", "deep")
    ]
    entries += [NewEntry(place=place(f"{top}/many/{i}"), type=FILE_TYPE_REGULAR, mode=0o644) for i in range(300)]
    entries += [NewEntry(place=place(f"{top}/dirs/{i}"), type=FILE_TYPE_DIRECTORY, mode=0o755) for i in range(300)]
    entries += [NewEntry(place=place(f"{top}/dirs/{i}/f"), type=FILE_TYPE_REGULAR, mode=0o644) for i in range(300)]
    entries.append(NewEntry(place=place(f"{top}/many/s"), type=FILE_TYPE_SYMLINK, target=b"x"))
    entries.append(NewEntry(place=place(f"{top}/deep/{'d/' * 30}"), type=FILE_TYPE_DIRECTORY, mode=0o755))
    for start in range(0, len(entries), 500):
        request = meta_pb2.CreateRequest(entries=entries[start : start + 500], parents=True)
        assert set((await world.ask("create", request, who)).statuses) == {0}
    return len(entries) + 29


async def test_tree_is_removed_at_once_and_freed_in_the_background(world: World) -> None:
    await world.set("/", mode=0o777)
    count = await big_tree(world, ALICE, "/t")
    assert (await world.namespace.counts())[0] == count + 1
    inside = await world.stat("/t/dirs/7")
    await world.link("/t/many/0", "/kept")
    await world.remove_tree("/t", ALICE)
    assert await world.listdir("/") == ["kept"]
    # Nobody makes anything in a removed tree, not even by inode.
    for request in (
        meta_pb2.OpenRequest(place=place("new", inside.inode), flags=CREATE | W),
        meta_pb2.RenameRequest(source=place("/kept"), target=place("new", inside.inode)),
    ):
        with pytest.raises(StatusError) as caught:
            await world.ask("open" if isinstance(request, meta_pb2.OpenRequest) else "rename", request)
        assert caught.value.status is Status.STALE_HANDLE
    await world.collect()
    assert await world.namespace.counts() == (2, 0)
    assert world.chunks.removed == []  # nothing was ever written there
    assert (await world.stat("/kept")).nlink == 1


async def test_tree_removal_goes_on_after_a_restart(world: World) -> None:
    await big_tree(world, Credentials(0, 0), "/t")
    await world.remove_tree("/t")
    for _ in range(3):
        await world.namespace.collector.step()
    later = World(world.engine, world.clock, world.chunks)
    await later.start()
    await later.collect()
    assert await later.namespace.counts() == (1, 0)


@pytest.mark.parametrize("name", ["/t/dirs/7", "/t/deep/d/d", "/t/many"])
async def test_tree_with_a_directory_that_the_caller_could_not_empty_stays(world: World, name: str) -> None:
    await world.set("/", mode=0o777)
    await big_tree(world, ALICE, "/t")
    await world.set(name, uid=BOB.uid)
    with pytest.raises(StatusError) as caught:
        await world.remove_tree("/t", ALICE)
    assert caught.value.status is Status.PERMISSION_DENIED
    assert await world.exists("/t/many/299")


async def test_sticky_directory_with_foreign_files_in_a_tree(world: World) -> None:
    await world.set("/", mode=0o777)
    await world.mkdir("/t", ALICE)
    await world.mkdir("/t/tmp", ALICE, mode=0o1777)
    await world.set("/t/tmp", ALICE, mode=0o1777)
    await world.touch("/t/tmp/b", BOB)
    await world.set("/t/tmp", uid=CAROL.uid)
    with pytest.raises(StatusError) as caught:
        await world.remove_tree("/t", ALICE)
    assert caught.value.status is Status.NOT_PERMITTED
    await world.set("/t/tmp", uid=ALICE.uid)
    await world.remove_tree("/t", ALICE)
    await world.collect()


async def test_unnamed_files_are_published_together(world: World) -> None:
    await world.mkdir("/d")
    await world.touch("/d/1")
    files = [await world.open("/d", W, unnamed=True) for _ in range(3)]
    assert [f.attributes.nlink for f in files] == [0, 0, 0]
    assert await world.listdir("/d") == ["1"]
    for i, opened in enumerate(files):
        world.chunks.write(opened.attributes.inode, 10 + i)
        await world.close(opened, 10 + i)
    numbers = [f.attributes.inode for f in files]
    targets = [place(f"/d/{i}") for i in range(3)]
    with pytest.raises(StatusError) as caught:
        await world.ask("publish", meta_pb2.PublishRequest(inodes=numbers, targets=targets, exclusive=True))
    assert caught.value.status is Status.EXISTS
    assert await world.listdir("/d") == ["1"]
    reply = await world.ask("publish", meta_pb2.PublishRequest(inodes=numbers, targets=targets))
    assert [(a.nlink, a.length) for a in reply.attributes] == [(1, 10), (1, 11), (1, 12)]
    await world.collect()
    assert await world.listdir("/d") == ["0", "1", "2"]
    assert len(world.chunks.removed) == 1  # what was replaced
    with pytest.raises(StatusError) as caught:
        await world.ask("publish", meta_pb2.PublishRequest(inodes=numbers[:1], targets=[place("/again")]))
    assert caught.value.status is Status.INVALID


async def test_unnamed_file_goes_when_nobody_names_it(world: World) -> None:
    kept = await world.open("/", W, unnamed=True)
    dropped = await world.open("/", W, unnamed=True)
    await world.close(dropped, discard=True)
    linked = await world.open("/", W, unnamed=True)
    request = meta_pb2.LinkRequest(source=place("", linked.attributes.inode), target=place("/linked"))
    assert (await world.ask("link", request)).attributes.nlink == 1
    await world.collect()
    assert world.chunks.removed == [dropped.attributes.inode]
    await world.close(kept, 5)
    await world.collect()
    assert world.chunks.removed == [dropped.attributes.inode, kept.attributes.inode]
    assert await world.exists("/linked")


async def test_batches_have_a_status_each(world: World) -> None:
    entries = [
        NewEntry(place=place("/a"), type=FILE_TYPE_REGULAR, mode=0o644),
        NewEntry(place=place("/a"), type=FILE_TYPE_REGULAR, mode=0o644),
        NewEntry(place=place("/no/b"), type=FILE_TYPE_REGULAR, mode=0o644),
        NewEntry(place=place("/c"), type=FILE_TYPE_DIRECTORY, mode=0o755),
        NewEntry(place=place("/c/d"), type=FILE_TYPE_REGULAR, mode=0o644),
    ]
    reply = await world.ask("create", meta_pb2.CreateRequest(entries=entries))
    assert list(reply.statuses) == [0, Status.EXISTS, Status.NOT_FOUND, 0, 0]
    assert [a.inode != 0 for a in reply.attributes] == [True, False, False, True, True]
    request = meta_pb2.RemoveRequest(places=[place(p) for p in ("/a", "/a", "/c", "/c/d")], kind=REMOVE_KIND_UNLINK)
    reply = await world.ask("remove", request)
    assert list(reply.statuses) == [0, Status.NOT_FOUND, Status.IS_DIRECTORY, 0]
    assert await world.listdir("/") == ["c"]


async def test_a_removal_looks_through_so_many_names_and_lets_others_in_between(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks for the one subdirectory among millions of files must not stop the server."""
    monkeypatch.setattr(remove, "PAGE", 10)
    monkeypatch.setattr(remove, "TREE_NAMES_MAX", 40)
    turns: list[float] = []

    async def sleep(seconds: float) -> None:
        turns.append(seconds)

    monkeypatch.setattr(world.clock, "sleep", sleep)
    await world.mkdir("/t", mode=0o777)
    for i in range(30):
        await world.touch(f"/t/{i:02}", ALICE)
    await world.mkdir("/t/sub", ALICE)
    await world.set("/", mode=0o777)
    turns.clear()
    await world.remove_tree("/t", ALICE)
    assert len(turns) >= 3
    await world.mkdir("/t", ALICE)
    for i in range(50):
        await world.touch(f"/t/{i:02}", ALICE)
    await world.mkdir("/t/sub", ALICE)
    with pytest.raises(StatusError) as refused:
        await world.remove_tree("/t", ALICE)
    assert refused.value.status is Status.TOO_LARGE
    await world.remove_tree("/t")  # root's are not looked through
