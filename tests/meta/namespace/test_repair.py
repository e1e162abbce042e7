"""Whatever the checker finds, the repair mends: nothing is left to complain about, and no file that had a record is lost."""

from __future__ import annotations

import pytest

from emberfs.meta import keys
from emberfs.meta.namespace import inode as inodes
from emberfs.meta.namespace.check import check
from emberfs.meta.namespace.repair import MENDS, repair
from emberfs.proto.errors import Status, StatusError

from .test_check import DAMAGES, Damage
from .world import World


async def test_what_a_newer_emberfs_wrote_is_not_mended() -> None:
    world = await World().start()
    number = (await world.touch("/f")).inode
    txn = world.engine.begin()
    txn.put(keys.inode_key(number), b"\xff" * 100)
    await txn.commit()
    with pytest.raises(StatusError) as refused:
        await repair(world.engine, world.clock.wall_ns())
    assert refused.value.status is Status.BAD_FORMAT
    assert await world.engine.begin().get(keys.inode_key(number)) == b"\xff" * 100


@pytest.mark.parametrize("damage", [row[1] for row in DAMAGES], ids=[row[0] for row in DAMAGES])
async def test_every_damage_is_mended(damage: Damage) -> None:
    world = await World().start()
    await world.mkdir("/d")
    await world.mkdir("/d/e")
    await world.touch("/d/e/deep")
    await world.touch("/f")
    await world.touch("/gone")
    at = {path: (await world.stat(path)).inode for path in ("/d", "/d/e", "/f", "/d/e/deep")}
    await world.unlink("/gone")
    txn = world.engine.begin()
    await damage(txn, at)
    await txn.commit()
    found = await check(world.engine)
    told: list[str] = []

    outcome = await repair(world.engine, world.clock.wall_ns(), lambda problem: told.append(problem.kind))

    assert found and {problem.kind for problem in found} <= set(MENDS)
    assert outcome.left == [] and outcome.repaired == len(told)
    assert await check(world.engine) == []
    records = {number for number in at.values() if await _is_whole(world, number)}
    reachable = await _reachable(await World(world.engine).start())
    assert records <= reachable


async def test_what_is_called_lost_and_found_may_be_no_directory() -> None:
    world = await World().start()
    await world.touch("/lost+found")
    await world.symlink("/lost+found.1", "elsewhere")
    number = (await world.touch("/f")).inode
    txn = world.engine.begin()
    txn.delete(keys.dentry_key(1, b"f"))
    await txn.commit()
    assert (await repair(world.engine, world.clock.wall_ns())).left == []
    assert await check(world.engine) == []
    again = await World(world.engine).start()
    again.client = b"client-000000002"
    assert await again.listdir("/lost+found.2") == [f"{number:x}"]
    assert (await again.stat("/lost+found")).type == inodes.REGULAR


async def _is_whole(world: World, number: int) -> bool:
    return await world.engine.begin().get(keys.inode_key(number)) is not None


async def _reachable(world: World) -> set[int]:
    found: set[int] = set()
    todo = ["/"]
    while todo:
        folder = todo.pop()
        for name in await world.listdir(folder):
            attributes = await world.stat(f"{folder}{name}", follow=False)
            found.add(attributes.inode)
            if attributes.type == inodes.DIRECTORY:
                todo.append(f"{folder}{name}/")
    return found


async def test_a_healthy_namespace_is_left_alone(world: World) -> None:
    await world.mkdir("/d")
    await world.touch("/d/f")
    before = [row async for row in _rows(world)]
    assert await repair(world.engine, world.clock.wall_ns()) == (0, [])
    assert [row async for row in _rows(world)] == before


async def _rows(world: World):  # type: ignore[no-untyped-def]
    for row in await world.engine.begin().scan(b"", b"\xff", 10_000):
        yield row
