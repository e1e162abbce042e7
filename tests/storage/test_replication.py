"""A chain of three storage services over real engines: what one member acknowledged, every member holds, byte for byte."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from crc32c import crc32c

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import storage_pb2
from emberfs.proto.gen.common_pb2 import TARGET_STATE_LASTSRV, TARGET_STATE_WAITING
from emberfs.proto.ids import channel_of, chunk_key
from emberfs.proto.rpc import STORAGE, Identity
from emberfs.storage.events import ALWAYS, Kind, Update, Version
from emberfs.storage.forwarding import Forwarder

from .members import CHUNK, OFFLINE, SECONDS, SERVING, SYNCING, Member, Members, holdings
from .world import World, memory, verify

LASTSRV, WAITING = TARGET_STATE_LASTSRV, TARGET_STATE_WAITING


@pytest_asyncio.fixture
async def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Members]:
    monkeypatch.setattr("emberfs.storage.forwarding.ASK_TAIL_S_MAX", SECONDS)  # readers are not sent away in a hurry
    members = await Members(tmp_path, 3, patience=0.5).start()
    members.announce(SERVING, SERVING, SERVING)
    yield members
    await members.stop()


async def settled(members: Members) -> None:
    """Until no member has anything under way."""
    async with asyncio.timeout(SECONDS):
        while any(m.running and m.target.replica.in_flight for m in members.members):
            await asyncio.sleep(0.01)


async def assert_equal(members: Members, *numbers: int) -> None:
    await settled(members)
    first, *others = [holdings(members.members[number - 1].engine) for number in numbers or (1, 2, 3)]
    for other in others:
        assert set(other["receipts"]) ^ set(first["receipts"]) == set()
        assert other["chunks"].keys() == first["chunks"].keys()
        for chunk, held in first["chunks"].items():
            assert other["chunks"][chunk] == held, f"chunk {chunk.hex()}: {other['chunks'][chunk][1:]}, {held[1:]}"
        assert other == first


async def read_all(members: Members, index: int) -> list[tuple[Status, bytes]]:
    return [await members.read(number, index) for number in (1, 2, 3)]


async def sync(members: Members) -> Status:
    request = storage_pb2.SyncRequest(chain=[1], chain_version=[members.version])
    return Status((await members.call(members.head, STORAGE.Sync, request)).status[0])


async def test_every_member_has_what_the_head_acknowledged(chain: Members) -> None:
    data = random.Random(1).randbytes(CHUNK)
    assert await chain.write(0, data) is Status.OK
    assert await chain.write(0, b"patch", offset=5000) is Status.OK  # an unaligned one, merged on each member
    data = data[:5000] + b"patch" + data[5005:]
    assert await read_all(chain, 0) == [(Status.OK, data)] * 3
    assert await chain.truncate(0, 70_000, 1) is Status.OK
    assert await read_all(chain, 0) == [(Status.OK, data[:70_000])] * 3
    assert await chain.write(0, b"old", truncate=0) is Status.STALE_TRUNCATE_VERSION
    assert await sync(chain) is Status.OK
    assert all(m.engine.checkpointed >= m.engine.epoch - 1 and not m.engine.is_dirty for m in chain.members)
    await assert_equal(chain)
    await chain.remove(0, 1)
    assert await read_all(chain, 0) == [(Status.CHUNK_NOT_FOUND, b"")] * 3
    assert await chain.write(0, b"anew", inode=6) is Status.OK
    await assert_equal(chain)


async def test_many_clients_at_once(chain: Members) -> None:
    await asyncio.gather(*(chain.churn(25, seed) for seed in range(4)))
    await assert_equal(chain)


async def test_only_the_head_takes_writes_and_every_member_refuses_an_old_version(chain: Members) -> None:
    request = World.write_request([(5, 0, 0, b"data", 1, None)], 1, 1)
    for number in (2, 3):
        reply = await chain.call(chain.members[number - 1], STORAGE.Write, request, source=[memory(b"data")])
        assert reply.status == [Status.STALE_ROUTING]
    chain.announce(SERVING, SERVING, SERVING)
    for member in chain.members:
        reply = await chain.call(member, STORAGE.Write, request, source=[memory(b"data")])
        assert reply.status == [Status.STALE_CHAIN_VERSION]
        assert reply.chains[0].version == 2


@pytest.mark.parametrize("gone", [1, 2, 3])
async def test_a_member_goes_under_load_and_is_copied_to_again(chain: Members, gone: int) -> None:
    left = [number for number in (1, 2, 3) if number != gone]
    load = asyncio.gather(*(chain.churn(25, seed) for seed in range(3)))
    await asyncio.sleep(0.05)
    await chain.members[gone - 1].kill()
    await asyncio.sleep(0.05)  # writes wait for the successor, or for a head
    chain.announce(SERVING, SERVING, OFFLINE, order=[*left, gone])
    await load
    await assert_equal(chain, *left)
    load = asyncio.gather(*(chain.churn(10, seed) for seed in range(10, 13)))
    await chain.members[gone - 1].start()
    chain.announce(SERVING, SERVING, SYNCING, order=[*left, gone])
    await chain.synced(gone)
    chain.announce(SERVING, SERVING, SERVING, order=[*left, gone])
    await load
    await assert_equal(chain)


async def test_all_die_with_an_update_half_way_and_any_of_them_revives(tmp_path: Path) -> None:
    members = await Members(tmp_path, 3, patience=0.5).start()
    members.announce(SERVING, SERVING, SERVING)
    try:
        for reviver in (1, 2, 3):
            assert await members.write(reviver, b"acknowledged") is Status.OK
            await members.members[2].kill()
            last = asyncio.ensure_future(members.write(reviver, b"under way", offset=4096))
            while not all(member.engine.pending for member in members.members[:2]):  # they cannot reach 3
                await asyncio.sleep(0.01)
            for member in members.members[:2]:
                await member.kill()
            for member in members.members:
                await member.start()
            rest = [number for number in (1, 2, 3) if number != reviver]
            members.announce(SERVING, SYNCING, WAITING, order=[reviver, *rest])
            assert await last is Status.OK  # found done by its number, or done now
            await members.synced(rest[0])
            members.announce(SERVING, SERVING, SYNCING, order=[reviver, *rest])
            await members.synced(rest[1])
            members.announce(SERVING, SERVING, SERVING, order=[reviver, *rest])
            await assert_equal(members)
            content = b"acknowledged".ljust(4096, b"\0") + b"under way"
            assert await members.read(rest[1], reviver) == (Status.OK, content)
            members.announce(SERVING, SERVING, SERVING)
    finally:
        await members.stop()


async def pause_forwards(member: Member) -> asyncio.Event:
    """Hold back what this member forwards until the event is set."""
    go, forward = asyncio.Event(), member.target.forward
    assert forward is not None

    async def later(effect: Any) -> Any:
        await go.wait()
        return await forward(effect)

    member.target.forward = later
    return go


async def until_pending(member: Member) -> None:
    async with asyncio.timeout(SECONDS):
        while not member.engine.pending:
            await asyncio.sleep(0.001)


async def test_a_member_with_a_pending_version_serves_what_the_tail_says(chain: Members) -> None:
    assert await chain.write(0, b"one") is Status.OK
    await settled(chain)
    go = await pause_forwards(chain.members[1])
    write = asyncio.ensure_future(chain.write(0, b"two"))
    await until_pending(chain.members[1])
    assert await read_all(chain, 0) == [(Status.OK, b"one")] * 3  # nobody has committed it yet
    # The tail commits; the others do not know it yet.
    tail = chain.members[2].target
    numbered = (chain.env.client, channel_of(5, 0), chain.sequence)
    data = memoryview(b"two")
    update = Update(Kind.WRITE, chunk_key(5, 0), 0, 3, crc32c(data), *numbered, 0, CHUNK, data, Version(1, 2))
    results = await tail.start_update(1, [update], sender=2, session=1 << 60, number=1)
    assert results[0].status == Status.OK
    assert chain.members[0].engine.pending and chain.members[1].engine.pending
    assert await read_all(chain, 0) == [(Status.OK, b"two")] * 3  # from the pending slot
    chain.network.stop("storage-3")
    assert (await chain.read(1, 0))[0] is Status.NOT_COMMITTED  # the client goes to the tail itself
    assert await chain.read(1, 7) == (Status.CHUNK_NOT_FOUND, b"")  # other chunks do not care
    chain.members[2].address = chain.network.serve("storage-3", [chain.members[2].service])
    chain.announce(SERVING, SERVING, SERVING)
    go.set()
    assert await write is Status.OK
    await assert_equal(chain)


async def test_what_the_tail_says_is_not_passed_on_by_who_serves_no_more(chain: Members) -> None:
    # Not even that a chunk is not there, for which no bytes are read.
    await pause_forwards(chain.members[1])
    write = asyncio.ensure_future(chain.write(0, b"one"))
    await until_pending(chain.members[1])
    forwarder = chain.members[1].service._forwarders[2]
    ask = forwarder.committed

    async def meanwhile(chunks: Any) -> Any:
        numbers = await ask(chunks)
        chain.members[1].target.disabled = True  # an administrator has said so
        return numbers

    assert await chain.read(2, 0) == (Status.CHUNK_NOT_FOUND, b"")
    forwarder.committed = meanwhile  # type: ignore[method-assign]
    assert (await chain.read(2, 0))[0] is Status.TARGET_OFFLINE
    write.cancel()


async def test_servers_read_exactly_one_version(chain: Members) -> None:
    assert await chain.write(0, b"one") is Status.OK
    go = await pause_forwards(chain.members[1])
    write = asyncio.ensure_future(chain.write(0, b"two"))
    await until_pending(chain.members[1])

    async def read(version: int) -> tuple[Status, bytes]:
        request = storage_pb2.ReadRequest(
            chain=[1], chain_version=[1], inode=[5], index=[0], offset=[0], length=[CHUNK], version=[version]
        )
        into = memory(CHUNK)
        reply = await chain.call(chain.members[1], STORAGE.Read, request, target=[into])
        if reply.status[0] == Status.OK:
            verify(reply, 0, 0, bytes(into.view))
        return Status(reply.status[0]), bytes(into.view[: reply.returned[0]])

    assert await read(1) == (Status.OK, b"one")
    assert await read(2) == (Status.OK, b"two")
    assert (await read(3))[0] is Status.NOT_COMMITTED
    go.set()
    assert await write is Status.OK


async def test_without_a_lease_nothing_is_served_and_nothing_is_lost(chain: Members) -> None:
    assert await chain.write(0, b"one") is Status.OK
    chain.members[1].lease.lost()
    assert (await chain.read(2, 0))[0] is Status.FENCED
    assert await chain.read(1, 0) == (Status.OK, b"one")
    write = asyncio.ensure_future(chain.write(0, b"two"))
    await asyncio.sleep(0.3)
    assert not write.done()
    chain.members[1].lease.renewed(chain.members[1].env.now(), 3600)
    assert await write is Status.OK
    await assert_equal(chain)


async def test_a_refusal_teaches_the_newer_entry(chain: Members) -> None:
    # Only the middle hears of version 2: the head learns it from the refusal of what it forwards.
    head, middle = chain.members[0], chain.members[1]
    for member in (head, chain.members[2]):
        member.running = False  # the manager does not reach them
    chain.announce(SERVING, SERVING, SERVING)
    for member in (head, chain.members[2]):
        member.running = True
    assert (head.target.replica.chain or 0).version == 1
    assert middle.target.replica.chain is not None and middle.target.replica.chain.version == 2
    chain.version = 1
    write = asyncio.ensure_future(chain.write(0, b"data"))
    async with asyncio.timeout(SECONDS):
        while head.target.replica.chain is None or head.target.replica.chain.version != 2:
            await asyncio.sleep(0.01)
    chain.version = 2
    assert await write is Status.OK
    assert chain.members[2].target.replica.chain is not None
    await assert_equal(chain)


async def test_contents_that_are_too_many_for_one_forward_go_in_parts(
    chain: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emberfs.storage.forwarding.WHOLE_BYTES_MAX", 2 * CHUNK)
    chain.announce(SERVING, SERVING, SYNCING)
    pieces = [(5, i, 0, bytes([i]) * 5000, i + 1, None) for i in range(7)]
    source = memory(b"".join(piece[3] for piece in pieces))
    reply = await chain.call(chain.head, STORAGE.Write, World.write_request(pieces, 1, chain.version), source=[source])
    assert list(reply.status) == [Status.OK] * 7
    await chain.synced(3)
    chain.announce(SERVING, SERVING, SERVING)
    await assert_equal(chain)


async def test_only_servers_of_the_cluster_forward(chain: Members) -> None:
    chain.network.peer(chain.env.credentials).identity = Identity(4711, 4711)
    for method, request in [
        (STORAGE.Forward, storage_pb2.ForwardRequest(chain=1, chain_version=1, target=1)),
        (STORAGE.Committed, storage_pb2.CommittedRequest(chain=1, chain_version=1)),
    ]:
        with pytest.raises(StatusError) as refused:
            await chain.call(chain.members[1], method, request)
        assert refused.value.status is Status.PERMISSION_DENIED


ABSURD: dict[str, list[Any]] = {
    "target": [0],
    "kind": [0, 77],
    "client": [1],
    "clients": [b"short"],
    "channel": [1024, 1 << 16],
    "truncate_version": [ALWAYS, 1 << 40],
    "version_number": [0],
    "block": [b"no record"],
}


@pytest.mark.parametrize(("column", "value"), [(name, value) for name, values in ABSURD.items() for value in values])
async def test_what_no_member_forwards_is_refused_and_does_no_harm(chain: Members, column: str, value: Any) -> None:
    assert await chain.write(0, b"good") is Status.OK
    head, second = chain.members[0], chain.members[1]
    session, number = head.target.replica._sending.next()
    request = storage_pb2.ForwardRequest(
        chain=1, chain_version=chain.version, target=1, session=session, number=number, kind=[Kind.WRITE],
        chunks=chunk_key(5, 1), offset=[0], length=[4], checksum=[crc32c(b"bad!")], truncate_version=[0],
        chunk_size=[CHUNK], version_chain=[chain.version], version_number=[1], clients=[b"c" * 16], client=[0],
        channel=[1], sequence=[1], block=[b""],
    )  # fmt: skip
    if column == "target":
        request.target = value
    else:
        getattr(request, column)[0] = value
    with pytest.raises(StatusError) as refused:
        await chain.call(second, STORAGE.Forward, request, source=[memory(b"bad!")])
    assert refused.value.status in (Status.INVALID, Status.BAD_FORMAT)
    assert not second.engine.failed
    async with asyncio.timeout(SECONDS):
        for index in (0, 1):
            assert await chain.write(index, b"next") is Status.OK
    await assert_equal(chain)


async def test_a_bug_in_forwarding_is_tried_again(chain: Members) -> None:
    forwarder: Forwarder = chain.members[0].service._forwarders[1]
    broken = [True]

    async def forward(effect: Any) -> Any:
        if broken:
            broken.clear()
            raise ZeroDivisionError("a bug")
        return await forwarder.forward(effect)

    chain.members[0].target.forward = forward
    assert await chain.write(0, b"data") is Status.OK
    await assert_equal(chain)
