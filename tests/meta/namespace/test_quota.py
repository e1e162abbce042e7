"""Quotas: what is used is always what a recount finds; limits are refused, by the right people's quota."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace import ways
from emberfs.meta.namespace.access import ROOT, Credentials
from emberfs.meta.namespace.check import check
from emberfs.meta.namespace.projects import _Walk
from emberfs.meta.namespace.quota import Limits
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.meta_pb2 import QUOTA_KIND_DIRECTORY, QUOTA_KIND_GROUP, QUOTA_KIND_USER, Quota

from .world import ALICE, BOB, World, place


async def limit(world: World, path: str = "", who: Credentials = ROOT, **fields: Any) -> Quota:
    if path:
        fields |= {"kind": QUOTA_KIND_DIRECTORY, "place": place(path)}
    return (await world.ask("set_quota", meta_pb2.SetQuotaRequest(**fields), who)).quota


async def usage(world: World, who: Credentials = ROOT) -> dict[str, tuple[int, int]]:
    reply = await world.ask("list_quotas", meta_pb2.ListQuotasRequest(), who)
    return {
        quota.path.decode() or f"{quota.kind}:{quota.id}": (quota.bytes_used, quota.inodes_used)
        for quota in reply.quotas
    }


async def write(world: World, path: str, length: int, who: Credentials = ROOT) -> Any:
    opened = await world.open(path, os.O_WRONLY | os.O_CREAT, who)
    world.chunks.write(opened.attributes.inode, length)
    await world.close(opened, length)
    return opened


async def test_inodes_of_a_directory(world: World) -> None:
    await world.mkdir("/d")
    await limit(world, "/d", inodes_max=3)
    await world.mkdir("/d/e")
    await world.touch("/d/e/f")
    for make in (world.touch("/d/g"), world.mkdir("/d/e/g"), world.symlink("/d/g", "x")):
        with pytest.raises(OSError) as refused:
            await make
        assert isinstance(refused.value, StatusError) and refused.value.status is Status.QUOTA_EXCEEDED
    assert await usage(world) == {"/d": (0, 3)}
    await world.unlink("/d/e/f")
    await world.touch("/d/g")
    await world.touch("/elsewhere")


async def test_bytes_of_a_directory(world: World) -> None:
    await world.mkdir("/d")
    await limit(world, "/d", bytes_max=1000)
    opened = await world.open("/d/f", os.O_WRONLY | os.O_CREAT)
    assert opened.length_max == 1000
    world.chunks.write(opened.attributes.inode, 600)
    request = meta_pb2.SyncFileRequest(inode=opened.attributes.inode, session=opened.session, written=True, length=600)
    assert (await world.ask("sync_file", request)).length_max == 1000
    other = await world.open("/d/g", os.O_WRONLY | os.O_CREAT)
    assert other.length_max == 400
    await world.close(opened)
    await world.close(other, 500)  # written already: it is not lost
    assert await usage(world) == {"/d": (1100, 3)}
    assert (await world.open("/d/f", os.O_WRONLY)).length_max == 600
    with pytest.raises(StatusError) as refused:
        await world.truncate("/d/f", 601)
    assert refused.value.status is Status.QUOTA_EXCEEDED
    await world.truncate("/d/f", 100)
    assert (await world.open("/d/f", os.O_WRONLY)).length_max == 500
    assert not (await world.open("/e", os.O_WRONLY | os.O_CREAT)).HasField("length_max")


async def test_users_and_groups(world: World) -> None:
    await world.mkdir("/d", mode=0o777)
    await limit(world, kind=QUOTA_KIND_USER, id=ALICE.uid, inodes_max=2)
    await limit(world, kind=QUOTA_KIND_GROUP, id=BOB.gid, bytes_max=100)
    for name in "ab":
        await world.touch(f"/d/{name}", ALICE)
    with pytest.raises(StatusError):
        await world.touch("/d/c", ALICE)
    await world.touch("/d/c", BOB)
    with pytest.raises(StatusError):
        await world.set("/d/c", uid=ALICE.uid)
    await world.unlink("/d/a", ALICE)
    await world.set("/d/c", uid=ALICE.uid)
    await world.truncate("/d/c", 100)
    with pytest.raises(StatusError):
        await world.truncate("/d/c", 101)
    assert await usage(world) == {f"2:{ALICE.uid}": (100, 2), f"3:{BOB.gid}": (100, 1)}
    assert await usage(world, BOB) == {f"3:{BOB.gid}": (100, 1)}
    with pytest.raises(PermissionError):
        await limit(world, kind=QUOTA_KIND_USER, id=ALICE.uid, who=ALICE)
    await limit(world, kind=QUOTA_KIND_USER, id=ALICE.uid, remove=True)
    await world.touch("/d/a", ALICE)
    with pytest.raises(FileNotFoundError):
        await limit(world, kind=QUOTA_KIND_USER, id=ALICE.uid, remove=True)


async def test_what_was_there_is_counted(world: World) -> None:
    await world.mkdir("/d/e/f", parents=True)
    for i in range(300):
        await write(world, f"/d/e/{i}", 10)
    await world.link("/d/e/1", "/d/twice")
    quota = await limit(world, "/d", bytes_max=4000)
    assert quota.counting
    await write(world, "/d/e/new", 7)  # counts elsewhere until the walk comes by
    while await world.namespace.recounter.step():
        pass
    assert await usage(world) == {"/d": (3007, 304)}
    await limit(world, "/d/e", inodes_max=1000)
    while await world.namespace.recounter.step():
        pass
    assert await usage(world) == {"/d": (3007, 304), "/d/e": (3007, 303)}
    await limit(world, "/d", remove=True)
    while await world.namespace.recounter.step():
        pass
    assert await usage(world) == {"/d/e": (3007, 303)}


async def test_a_quota_goes_while_one_around_it_comes(world: World) -> None:
    """What it has counted comes to the quota that is around it by then."""
    await world.mkdir("/d/e/f", parents=True)
    await write(world, "/d/e/1", 10)
    await limit(world, "/d/e", inodes_max=1000)
    while await world.namespace.recounter.step():
        pass
    await limit(world, "/d", bytes_max=4000)
    await limit(world, "/d/e", remove=True)
    while await world.namespace.recounter.step():
        pass
    assert await usage(world) == {"/d": (10, 4)}
    await world.mkdir("/d/g")
    await world.rename("/d/e/f", "/d/g/f")  # no boundary lies between any more


async def test_boundaries(world: World) -> None:
    for name in ("/d/sub", "/e"):
        await world.mkdir(name, parents=True)
    await limit(world, "/d", inodes_max=4)
    await world.namespace.recounter.step()
    await world.touch("/f")
    await world.touch("/d/sub/g")
    for refused in (
        world.rename("/d/sub", "/e/sub"),
        world.rename("/e", "/d/e"),
        world.link("/f", "/d/f"),
        world.rename("/d/sub", "/e", 2),
    ):
        with pytest.raises(OSError) as crossed:
            await refused
        assert isinstance(crossed.value, StatusError) and crossed.value.status is Status.CROSS_DEVICE
    await world.rename("/f", "/d/f")
    assert await usage(world) == {"/d": (0, 4)}
    await world.touch("/h")
    with pytest.raises(StatusError) as full:
        await world.rename("/h", "/d/h")
    assert full.value.status is Status.QUOTA_EXCEEDED
    await world.rename("/d/f", "/f")
    await world.rename("/d", "/e/d")  # the project itself may move
    await world.rename("/e/d/sub/g", "/e/d/g")
    assert await usage(world) == {"/e/d": (0, 3)}
    await world.remove_tree("/e/d")
    await world.collect()
    assert await usage(world) == {}


async def test_temporary_files_count_when_they_get_a_name(world: World) -> None:
    await world.mkdir("/d")
    await limit(world, "/d", inodes_max=2, bytes_max=100)
    opened = await world.open("/d", os.O_WRONLY, unnamed=True)
    world.chunks.write(opened.attributes.inode, 60)
    await world.close(opened, 60)
    other = await world.open("/d", os.O_WRONLY, unnamed=True)
    assert await usage(world) == {"/d": (0, 1)}
    await world.ask("publish", meta_pb2.PublishRequest(inodes=[opened.attributes.inode], targets=[place("/d/f")]))
    assert await usage(world) == {"/d": (60, 2)}
    with pytest.raises(StatusError) as refused:
        await world.ask("publish", meta_pb2.PublishRequest(inodes=[other.attributes.inode], targets=[place("/d/g")]))
    assert refused.value.status is Status.QUOTA_EXCEEDED


@pytest.mark.parametrize("seed", range(6))
async def test_random_changes_always_add_up(seed: int) -> None:
    chance = random.Random(seed)
    world = World(MemoryEngine(lambda: 0.0))
    world.namespace.trash_seconds = chance.choice((0, 1000))
    await world.start()
    folders, names = ["/", "/a/", "/a/b/", "/c/"], ["w", "x", "y", "z"]
    for folder in folders[1:]:
        await world.mkdir(folder.rstrip("/"), mode=0o777)
    for _ in range(150):
        one, two = (chance.choice(folders) + chance.choice(names) for _ in range(2))
        step = chance.choice(
            (
                lambda: write(world, one, chance.randrange(5000)),
                lambda: world.truncate(one, chance.randrange(5000)),
                lambda: world.mkdir(one),
                lambda: world.rename(one, two, chance.choice((0, 1, 2))),
                lambda: world.link(one, two),
                lambda: world.unlink(one),
                lambda: world.remove_tree(one),
                lambda: world.set(one, uid=chance.randrange(3), gid=chance.randrange(3)),
                lambda: limit(world, chance.choice(folders[1:]).rstrip("/"), bytes_max=chance.choice((0, 20_000))),
                lambda: limit(world, chance.choice(folders[1:]).rstrip("/"), remove=True),
                world.namespace.recounter.step,
                world.collect,
            )
        )
        try:
            await step()
        except OSError as refused:
            assert isinstance(refused, StatusError) and refused.status is not Status.INTERNAL
        problems = await check(world.engine)
        assert problems == []
    world.clock.wall += 2000 * 10**9
    await world.collect()
    assert await check(world.engine) == []


async def test_who_has_counted_before_is_not_asked_again(world: World) -> None:
    """What changes hands is more only for who gets it: others may be at their limit."""
    for name in "ab":
        await world.mkdir(f"/{name}", mode=0o777)
    await limit(world, "/a", inodes_max=2)
    await limit(world, "/b", inodes_max=9)
    await world.touch("/a/f", ALICE)
    await limit(world, kind=QUOTA_KIND_USER, id=ALICE.uid, inodes_max=1)
    await world.rename("/a/f", "/b/f", who=ALICE)  # Alice has one file, as before
    await world.rename("/b/f", "/a/f", who=ALICE)
    await world.set("/a/f", uid=BOB.uid)  # and the directory is as full as it was
    await world.set("/a/f", uid=ALICE.uid)
    await world.touch("/b/g", BOB)
    for change in (world.set("/b/g", uid=ALICE.uid), world.rename("/b/g", "/a/g", who=BOB)):
        with pytest.raises(StatusError) as refused:
            await change
        assert refused.value.status is Status.QUOTA_EXCEEDED
    assert await check(world.engine) == []


async def test_a_tree_comes_back_from_the_trash_when_its_quota_is_gone(world: World) -> None:
    world.namespace.trash_seconds = 1000
    await world.mkdir("/d")
    await limit(world, "/d", inodes_max=9)
    await world.mkdir("/d/tree")
    await world.touch("/d/tree/f")
    await world.remove_tree("/d/tree")
    await limit(world, "/d", remove=True)
    while await world.namespace.recounter.step():
        pass
    entry = (await world.ask("list_trash", meta_pb2.ListTrashRequest())).entries[0]
    await world.ask("restore_trash", meta_pb2.RestoreTrashRequest(expires=entry.expires, inode=entry.inode))
    assert await world.exists("/d/tree/f")
    await world.rename("/d/tree", "/tree")
    assert await check(world.engine) == []


async def test_a_server_that_is_not_in_charge_any_more_brings_no_quota_back(world: World) -> None:
    """It was counting when another one took over, and the quota was removed and forgotten."""
    await world.mkdir("/d")
    for i in range(3):
        await world.mkdir(f"/d/{i}")
    await limit(world, "/d", inodes_max=9)
    walk = _Walk(world.namespace, (await world.stat("/d")).inode, Limits(0, 9, 0, counting=True))
    await limit(world, "/d", remove=True)
    while await world.namespace.recounter.step():
        pass
    await walk.run()
    await world.mkdir("/e")
    await world.rename("/d/1", "/e/1")  # it counts for nobody
    assert await check(world.engine) == []


async def test_paths_of_many_quotas_cost_little(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "NAMES_OF_REQUEST", 5)
    for i in range(4):
        await world.mkdir(f"/{i}")
        await limit(world, f"/{i}", inodes_max=9)
    shown = list(await usage(world))
    assert "/0" in shown and len(shown) == 4
    assert shown[-1] == f"/({(await world.stat('/3')).inode:x})"  # nobody has looked for it
