"""Quotas: what is used is always what a recount finds; limits are refused, by the right people's quota."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace.access import ROOT, Credentials
from emberfs.meta.namespace.check import check
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
