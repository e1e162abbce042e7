"""Exactly once by (client, request id): every request sent twice, also after the engine was closed and opened again."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.kv.rocksdb import RocksEngine
from emberfs.meta.namespace import idempotency
from emberfs.meta.namespace.check import check
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2
from emberfs.proto.gen.cluster_pb2 import RenewClientRequest
from emberfs.proto.gen.common_pb2 import FILE_TYPE_DIRECTORY, FILE_TYPE_REGULAR, FILE_TYPE_SYMLINK
from emberfs.proto.gen.meta_pb2 import NewEntry

from .world import ManualClock, MemoryChunks, World, place

REQUESTS: list[tuple[str, Any]] = [
    ("open", meta_pb2.OpenRequest(place=place("/new"), flags=os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode=0o644)),
    ("open", meta_pb2.OpenRequest(place=place("/f"), flags=os.O_TRUNC | os.O_WRONLY)),
    ("open", meta_pb2.OpenRequest(place=place("/"), flags=os.O_WRONLY, unnamed=True)),
    ("close", meta_pb2.CloseRequest(written=True, length=77)),
    ("sync_file", meta_pb2.SyncFileRequest(written=True, length=78, durable=True)),
    (
        "create",
        meta_pb2.CreateRequest(
            entries=[
                NewEntry(place=place("/n1"), type=FILE_TYPE_DIRECTORY),
                NewEntry(place=place("/f"), type=FILE_TYPE_REGULAR),
                NewEntry(place=place("/n2"), type=FILE_TYPE_REGULAR),
            ]
        ),
    ),
    ("remove", meta_pb2.RemoveRequest(places=[place("/f"), place("/no")], kind=meta_pb2.REMOVE_KIND_UNLINK)),
    ("remove", meta_pb2.RemoveRequest(places=[place("/e")], kind=meta_pb2.REMOVE_KIND_RMDIR)),
    ("remove", meta_pb2.RemoveRequest(places=[place("/d")], kind=meta_pb2.REMOVE_KIND_TREE)),
    ("rename", meta_pb2.RenameRequest(source=place("/f"), target=place("/d/f"))),
    ("rename", meta_pb2.RenameRequest(source=place("/f"), target=place("/d"), flags=2)),
    ("link", meta_pb2.LinkRequest(source=place("/f"), target=place("/l"))),
    ("set_attributes", meta_pb2.SetAttributesRequest(place=place("/f"), mode=0o600)),
    ("truncate", meta_pb2.TruncateRequest(place=place("/f"), length=5)),
    ("publish", meta_pb2.PublishRequest(targets=[place("/p")])),
]


async def furnish(world: World) -> tuple[Any, Any]:
    await world.mkdir("/d")
    await world.touch("/d/x")
    await world.mkdir("/e")
    opened = await world.open("/f", os.O_CREAT | os.O_WRONLY)
    world.chunks.write(opened.attributes.inode, 100)
    return opened, await world.open("/", os.O_WRONLY, unnamed=True)


@pytest.mark.parametrize(("method", "request_"), REQUESTS, ids=[f"{i}-{row[0]}" for i, row in enumerate(REQUESTS)])
async def test_a_repeated_request_gets_the_first_reply_and_changes_nothing(
    tmp_path: Path, method: str, request_: Any
) -> None:
    clock, chunks = ManualClock(), MemoryChunks()
    engine = RocksEngine(str(tmp_path / "kv"), time.monotonic)
    world = await World(engine, clock, chunks).start()
    opened, unnamed = await furnish(world)
    request = type(request_).FromString(request_.SerializeToString())
    request.request_id = 1 << 40
    if method in ("close", "sync_file"):
        request.inode, request.session = opened.attributes.inode, opened.session
    if method == "publish":
        request.inodes.append(unnamed.attributes.inode)
    first = await world.ask(method, request)
    state = await dump(world)
    assert await world.ask(method, request) == first
    assert await dump(world) == state
    await engine.close()
    again = RocksEngine(str(tmp_path / "kv"), time.monotonic)
    world = await World(again, clock, chunks).start()
    assert await world.ask(method, request) == first
    assert await dump(world) == state
    await world.collect()
    assert await check(again) == []
    await again.close()


async def dump(world: World) -> list[tuple[bytes, bytes]]:
    """Everything but the id allocators, which only ever move on."""
    rows = await world.engine.begin().scan(b"", b"\xf0", 10_000)
    return [row for row in rows if row[0][:4] not in (b"NEXT", b"META")]


async def test_a_failed_request_leaves_no_record(world: World) -> None:
    request = meta_pb2.RenameRequest(source=place("/a"), target=place("/b"), request_id=7)
    with pytest.raises(FileNotFoundError):
        await world.ask("rename", request)
    await world.touch("/a")
    await world.ask("rename", request)
    assert await world.listdir("/") == ["b"]


async def test_clients_do_not_share_request_ids(world: World) -> None:
    for client in (b"client-a--------", b"client-b--------"):
        request = meta_pb2.OpenRequest(place=place("/" + client.decode()), flags=os.O_CREAT, mode=0o644, request_id=1)
        assert (await world.ask("open", request, client=client)).created
    assert len(await world.listdir("/")) == 2


async def test_a_late_request_of_a_client_that_is_gone_is_refused(world: World) -> None:
    request = meta_pb2.OpenRequest(place=place("/a"), flags=os.O_CREAT, mode=0o644, request_id=1 << 40)
    await world.ask("open", request)
    await world.unlink("/a")
    world.namespace.client_ended(world.client)
    await world.namespace.clients.step()
    with pytest.raises(StatusError) as caught:
        await world.ask("open", request)
    assert caught.value.status is Status.SESSION_ENDED
    assert await world.listdir("/") == []


async def test_one_id_for_two_methods_is_refused(world: World) -> None:
    await world.touch("/a")
    await world.ask("truncate", meta_pb2.TruncateRequest(place=place("/a"), length=1, request_id=9))
    with pytest.raises(StatusError) as caught:
        await world.ask("rename", meta_pb2.RenameRequest(source=place("/a"), target=place("/b"), request_id=9))
    assert caught.value.status is Status.INVALID


@pytest.mark.parametrize("target", [100, 4095])
async def test_a_batch_of_the_largest_size_is_carried_out_once(world: World, target: int) -> None:
    """1024 symlinks with long targets: the recorded reply is far over 100 kB, the limit of a value."""
    entries = [
        NewEntry(place=place(f"/{i:04}".ljust(256, "n")), type=FILE_TYPE_SYMLINK, target=b"t" * target)
        for i in range(1024)
    ]
    request = meta_pb2.CreateRequest(entries=entries, request_id=7)
    reply = await world.ask("create", request)
    assert set(reply.statuses) == {0}
    again = await world.ask("create", request)
    assert again == reply
    assert not await check(world.engine)
    await world.touch("/next")
    await world.namespace.clients.sweep()
    await world.namespace.renewed(world.client, RenewClientRequest(acknowledged_request=7))
    assert await world.engine.begin().scan(b"IDEM" + world.client + (7).to_bytes(8, "big"), b"IDEN", 2) == []


@pytest.mark.parametrize("length", [-1, 0, 1])
async def test_replies_around_the_length_of_a_piece(length: int) -> None:
    engine = MemoryEngine(lambda: 0.0)
    for pieces in (1, 2):
        txn = engine.begin()
        done = idempotency.Done(3, 4, bytes(pieces * idempotency.PIECE_BYTES + length))
        idempotency.write(txn, b"key", done)
        await txn.commit()
        txn = engine.begin()
        first = await txn.get(b"key")
        assert first is not None
        assert await idempotency.complete(txn, b"key", first) == done


async def records(world: World) -> int:
    return len(await world.engine.begin().scan(b"IDEM", b"IDEN", 1000))


async def test_records_go_when_acknowledged_when_old_and_with_their_client(world: World) -> None:
    for i in range(10):
        await world.touch(f"/{i}")
    assert await records(world) == 10
    await world.namespace.renewed(world.client, RenewClientRequest(acknowledged_request=4))
    assert await records(world) == 6
    await world.namespace.clients.sweep()
    assert await records(world) == 6
    world.clock.wall += idempotency.RETENTION_NS
    await world.touch("/new")
    await world.namespace.clients.sweep()
    assert await records(world) == 1
    world.namespace.client_ended(world.client)
    await world.namespace.clients.step()
    assert await records(world) == 0


async def test_inode_numbers_are_never_used_twice(tmp_path: Path) -> None:
    seen: set[int] = set()
    for life, clean in enumerate((True, False, True, False)):
        engine = RocksEngine(str(tmp_path / "kv"), time.monotonic)
        world = await World(engine).start()
        world.client = b"client-%09d" % life
        for _ in range(3):
            number = (await world.open("/", os.O_WRONLY, unnamed=True)).attributes.inode
            assert number not in seen
            seen.add(number)
        if clean:
            await world.namespace.close()
        await engine.close()
