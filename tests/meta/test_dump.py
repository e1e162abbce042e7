"""Dumps: what is loaded into another engine is the same namespace; interruptions go on; damage is refused."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberfs.meta import dump, keys
from emberfs.meta.kv.engine import Engine, Pair
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.kv.open import open_engine
from emberfs.meta.kv.rocksdb import RocksEngine
from emberfs.meta.namespace.check import check
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2

from .namespace.world import World

FILES = 2500  # more than a page, and than a batch


async def filled() -> World:
    """A namespace with files, directories, and garbage that waits."""
    world = await World().start()
    await world.mkdir("/d")
    await world.symlink("/d/link", "x" * 200)
    txn = world.engine.begin()
    for i in range(FILES):
        txn.put(b"TEST%08d" % i, bytes([i % 256]) * (i % 40))
    await txn.commit()
    for name in ("a", "b", "c"):
        await world.touch(f"/{name}")
        await world.unlink(f"/{name}")
    return world


async def rows(engine: Engine) -> list[Pair]:
    return await engine.begin().scan(b"", b"\xff", 1_000_000)


async def dumped(engine: Engine) -> bytes:
    out = io.BytesIO()
    await dump.dump(engine, out)
    return out.getvalue()


def lines(data: bytes) -> Iterator[bytes]:
    return iter(io.BytesIO(data))


@pytest.fixture(params=["memory", "rocksdb", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "postgres":
        return open_engine(request.getfixturevalue("postgres_url"))
    return MemoryEngine(lambda: 0.0) if request.param == "memory" else RocksEngine(str(tmp_path / "kv"), lambda: 0.0)


async def test_another_engine_holds_the_same(target: Engine) -> None:
    world = await filled()
    summary = await dump.load(target, lines(await dumped(world.engine)))
    before, after = await rows(world.engine), await rows(target)
    assert summary.rows == len(before) == len(after)
    queue = keys.prefix_range(keys.DEAD_FILE)
    assert [pair for pair in before if not queue[0] <= pair[0] < queue[1]] == [
        pair for pair in after if not queue[0] <= pair[0] < queue[1]
    ]
    assert await check(target) == []
    assert (await dump.dump(target, io.BytesIO())).rows == len(after)
    moved = await World(target).start()
    moved.client = b"client-000000002"  # the first one's requests came along, too
    assert await moved.listdir("/") == ["d"]
    await moved.touch("/later")
    await moved.unlink("/later")
    order = [keys.dead_inode(key) for key, _ in await target.begin().scan(*queue, 10)]
    assert order == sorted(order) and len(order) == 4  # what is unlinked now comes behind what was
    await target.close()


async def test_who_watches_looks_at_everything_anew() -> None:
    """The new engine counts its commits from the beginning: what a watcher has seen says nothing about them."""
    world = await filled()
    cookie = (await watch(world, b"")).cookie
    for i in range(20):
        await world.touch(f"/seen{i}")
    cookie = (await watch(world, cookie)).cookie
    await world.touch("/unseen")
    target = MemoryEngine(world.clock.now)
    await dump.load(target, lines(await dumped(world.engine)))
    assert await check(target) == []
    moved = await World(target, world.clock).start()
    moved.client = b"client-000000002"
    reply = await watch(moved, cookie)
    assert reply.lost and not reply.events
    await moved.touch("/new")
    assert [event.path for event in (await watch(moved, reply.cookie)).events] == [b"/new"]


async def watch(world: World, cookie: bytes) -> meta_pb2.ReadEventsReply:
    reply: meta_pb2.ReadEventsReply = await world.ask("read_events", meta_pb2.ReadEventsRequest(cookie=cookie))
    return reply


async def test_readers_are_waited_for_anew() -> None:
    """What they have reported names places in queues that are stamped anew. They have their files open all the same."""
    world = await World().start()
    number = (await world.touch("/f")).inode
    await world.open("/f", os.O_RDONLY)
    target = MemoryEngine(world.clock.now)
    await dump.load(target, lines(await dumped(world.engine)))
    moved = await World(target, world.clock).start()
    assert await moved.namespace.session_clients() == [world.client]
    moved.client = b"client-000000002"
    await moved.unlink("/f")
    await moved.collect()
    assert moved.chunks.removed == []
    moved.namespace.client_ended(world.client)
    await moved.namespace.clients.step()
    await moved.collect()
    assert moved.chunks.removed == [number]


@pytest.mark.parametrize("value", [b"", b"\x01"])
async def test_a_server_starts_with_a_reader_that_has_reported_nothing(value: bytes) -> None:
    """Loads once wrote an empty record."""
    world = await World().start()
    txn = world.engine.begin()
    txn.put(keys.reader_key(world.client), value)
    await txn.commit()
    again = await World(world.engine, world.clock).start()
    assert await again.namespace.session_clients() == [world.client]


async def test_an_interrupted_load_goes_on(target: Engine) -> None:
    world = await filled()
    data = await dumped(world.engine)
    told: list[int] = []

    def cut() -> Iterator[bytes]:
        for i, line in enumerate(lines(data)):
            if i == 1900:
                raise ConnectionError
            yield line

    with pytest.raises(ConnectionError):
        await dump.load(target, cut())
    with pytest.raises(StatusError) as refused:
        await dump.require_whole(target)
    assert refused.value.status is Status.BUSY_RESOURCE
    with pytest.raises(StatusError) as other:
        await dump.load(target, lines(await dumped((await World().start()).engine)))
    assert other.value.status is Status.EXISTS

    await dump.load(target, lines(data), told.append)
    assert told[0] > dump.BATCH_ROWS / 2  # not from the start
    await dump.require_whole(target)
    assert len(await rows(target)) == len(await rows(world.engine)) and await check(target) == []
    with pytest.raises(StatusError) as again:
        await dump.load(target, lines(data))
    assert again.value.status is Status.EXISTS
    await target.close()


async def test_an_interrupted_dump_goes_on() -> None:
    world = await filled()
    whole = await dumped(world.engine)
    for cut in (0, 20, 5000, len(whole) // 2, len(whole) - 3):
        begun = dump.begun_dump(io.BytesIO(whole[:cut]))
        out = io.BytesIO(whole[: begun.length if begun else 0])
        out.seek(0, io.SEEK_END)
        await dump.dump(world.engine, out, begun)
        assert out.getvalue().split(b"\n", 1)[1] == whole.split(b"\n", 1)[1]
    with pytest.raises(StatusError) as complete:
        dump.begun_dump(io.BytesIO(whole))
    assert complete.value.status is Status.EXISTS
    begun = dump.begun_dump(io.BytesIO(whole[:5000]))
    await world.touch("/new")
    with pytest.raises(StatusError) as changed:
        await dump.dump(world.engine, io.BytesIO(), begun)
    assert changed.value.status is Status.CONFLICT


async def test_a_change_meanwhile_is_noticed() -> None:
    world = await filled()
    txn = world.engine.begin()
    txn.put(b"TESTx", b"1")

    def commit(_: int) -> None:
        if not txns:
            txns.append(txn)
            with pytest.raises(StopIteration):  # the model's commit does not wait for anything
                txn.commit().__await__().send(None)

    txns: list[object] = []
    with pytest.raises(StatusError) as changed:
        await dump.dump(world.engine, io.BytesIO(), progress=commit)
    assert changed.value.status is Status.CONFLICT


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.rsplit(b"\n", 2)[0] + b"\n",
        lambda data: data.replace(b'["TEST00000007', b'["TEST00000X07'),
        lambda data: b"hello\n" + data,
        lambda data: data.replace(b'"format": 1', b'"format": 2'),
        lambda data: b"",
        lambda data: data.split(b"\n", 1)[0] + b'\n["x", "%%"]\n',
        lambda data: data.split(b"\n", 1)[0] + b"\n[1, 2]\n",
        lambda data: data.split(b"\n", 1)[0] + b'\n["\\u2026", "eA=="]\n',
    ],
    ids=["half", "no end", "another row", "another file", "newer", "nothing", "no base64", "no row", "no key"],
)
async def test_damaged_dumps_are_refused(spoil) -> None:  # type: ignore[no-untyped-def]
    world = await filled()
    engine = MemoryEngine(lambda: 0.0)
    with pytest.raises(StatusError) as refused:
        await dump.load(engine, lines(spoil(await dumped(world.engine))))
    assert refused.value.status is Status.BAD_FORMAT
