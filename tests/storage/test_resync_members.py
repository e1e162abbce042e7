"""A resync between real targets in one process: what the returning member lacks is copied while clients go on, and in the end both hold
the same, byte for byte and record for record."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.errors import Status
from emberfs.proto.gen import cluster_pb2, storage_pb2
from emberfs.proto.ids import channel_of, chunk_key
from emberfs.proto.rpc import STORAGE
from emberfs.storage.engine.engine import Kind, Receipt, Update
from emberfs.storage.exchange import entries_here
from emberfs.storage.resync import Finish, Phase, PutRecords, Resync
from emberfs.storage.resyncer import LANES, Share

from .members import CHUNK, OFFLINE, SECONDS, SERVING, SYNCING, Member, Members, holdings
from .world import World, memory


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[Members]:
    made = await Members(tmp_path).start()
    yield made
    await made.stop()


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Members]:
    made = await Members(tmp_path, 3).start()
    yield made
    await made.stop()


def assert_equal(members: Members, *numbers: int) -> None:
    first, *others = [holdings(members.members[number - 1].engine) for number in numbers or range(1, members.count + 1)]
    for other in others:
        assert other["chunks"].keys() == first["chunks"].keys()
        for chunk, held in first["chunks"].items():
            assert other["chunks"][chunk] == held, f"chunk {chunk.hex()}"
        assert other["receipts"] == first["receipts"]
        assert other["floors"] == first["floors"]


async def test_an_empty_member_gets_everything(members: Members) -> None:
    members.announce(SERVING, OFFLINE)
    await members.churn(60, 1)
    assert members.members[1].engine.space_info().chunks == 0
    members.announce(SERVING, SYNCING)
    await members.synced(2)
    assert_equal(members)
    members.announce(SERVING, SERVING)
    await members.churn(20, 2)
    assert_equal(members)


async def test_the_end_of_a_sync_is_not_taken_for_the_end_of_the_next_one(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain changes when everything was compared, just before the other side is told so. What was on its way to it is committed without
    it then, and comes with the next sync."""
    members.announce(SERVING, OFFLINE)
    assert await members.write(0, b"before") is Status.OK
    head, second = members.members
    perform, forward = head.resyncer._perform, head.target.forward
    writing: list[asyncio.Task[Status]] = []
    told = asyncio.Event()

    async def unanswered(effect: Any) -> None:
        return None

    async def begins_late(machine: Resync, *what: Any) -> None:
        effect = what[-1]
        if isinstance(effect, PutRecords) and not writing:
            head.target.forward = unanswered
            writing.append(asyncio.create_task(members.write(1, b"on its way")))
            while not head.engine.pending:
                await asyncio.sleep(0.01)
        if isinstance(effect, Finish) and not told.is_set():
            members.announce(SERVING, SYNCING)
            await perform(machine, *what)
            told.set()
        else:
            await perform(machine, *what)

    monkeypatch.setattr(head.resyncer, "_perform", begins_late)
    members.announce(SERVING, SYNCING)
    async with asyncio.timeout(SECONDS):
        await told.wait()
        assert await writing[0] is Status.OK
    assert second.engine.info(chunk_key(5, 1)) is None
    assert second.target.synced != members.version
    head.target.forward = forward
    await members.synced(2)
    assert_equal(members)


async def test_a_sync_survives_whatever_keeps_it_from_looking(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no thread for a moment, say: it is tried again, and not only when the chain changes."""
    members.announce(SERVING, OFFLINE)
    assert await members.write(0, b"here") is Status.OK
    head = members.members[0]
    blocking, refused = head.target.blocking, list[str]()

    def exhausted(work: Callable[..., Any], *arguments: Any) -> Any:
        if work is entries_here and not refused:
            refused.append("once")
            raise RuntimeError("can't start new thread")
        return blocking(work, *arguments)

    monkeypatch.setattr(head.target, "blocking", exhausted)
    members.announce(SERVING, SYNCING)
    await members.synced(2)
    assert refused
    assert_equal(members)


async def test_only_differences_travel(members: Members) -> None:
    members.announce(SERVING, SERVING)
    for index in range(30):
        assert await members.write(index, b"x" * 10_000) is Status.OK
    members.announce(SERVING, OFFLINE)
    await members.write(3, b"changed", offset=5)
    await members.write(77, b"new")
    await members.remove(8, 10)
    members.announce(SERVING, SYNCING)
    machine = members.members[0].target.syncing
    await members.synced(2)
    assert machine is not None and machine.copied == 4
    assert_equal(members)


async def test_the_predecessor_wins_whatever_the_other_side_holds(members: Members) -> None:
    """Newer versions, the same version with other bytes, updates that nobody committed: nothing is fatal."""
    members.announce(SERVING, OFFLINE)
    for index in range(6):
        assert await members.write(index, b"right" * 1000) is Status.OK
    engine = members.members[1].engine
    info = members.members[0].engine.info(chunk_key(5, 0))
    assert info is not None
    wrong = b"wrong" * 1000
    engine.apply(
        [
            Update(Kind.REPLACE, chunk_key(5, 0), 0, wrong, 1, 1 << 20, 0, info.chain_version, info.version),
            Update(Kind.REPLACE, chunk_key(5, 1), 0, wrong, 1, 1 << 20, 0, 99, 99),
            Update(Kind.REPLACE, chunk_key(6, 1), 0, wrong, 1, 1 << 20, 0, 1, 1),
        ],
        receipts=[Receipt(b"x" * 16, 3, 1000, 1, 1)],
    )
    job = engine.prepare(Update(Kind.WRITE, chunk_key(5, 2), 0, wrong, 1, 1 << 20, 0, 1, 7))
    job.run()
    engine.stage([job])
    engine.put_records([], [(chunk_key(7, 0)[:10], 5)], 0)
    members.announce(SERVING, SYNCING)
    await members.synced(2)
    assert_equal(members)


async def test_writes_go_on_meanwhile(members: Members) -> None:
    members.announce(SERVING, OFFLINE)
    draw = random.Random(1)
    for index in range(100):
        await members.write(index, draw.randbytes(100_000), inode=9)
    await members.churn(50, 1)
    members.announce(SERVING, SYNCING)
    live = asyncio.gather(members.churn(40, 2), members.churn(40, 3, files=2), overwrite(members, draw, 60))
    await members.synced(2)
    members.announce(SERVING, SERVING)
    await live
    assert_equal(members)


async def overwrite(members: Members, draw: random.Random, count: int) -> None:
    for _ in range(count):
        await members.write(draw.randrange(100), draw.randbytes(3000), offset=draw.randrange(90_000), inode=9)


async def test_the_member_in_the_middle_is_synced_by_the_last_that_serves(three: Members) -> None:
    three.announce(SERVING, SERVING, OFFLINE)
    await three.churn(40, 1)
    three.announce(SERVING, SERVING, SYNCING)
    assert three.members[0].target.syncing is None
    await asyncio.gather(three.churn(30, 2), three.synced(3))
    three.announce(SERVING, SERVING, SERVING)
    assert_equal(three)


async def test_killed_while_it_is_synced(members: Members) -> None:
    members.announce(SERVING, OFFLINE)
    draw = random.Random(3)
    for index in range(120):
        await members.write(index, draw.randbytes(200_000), inode=9)
    for again in range(3):
        members.announce(SERVING, SYNCING)
        machine = members.members[0].target.syncing
        while machine is not None and machine.copied == 0 and machine.phase is not Phase.DONE:
            await asyncio.sleep(0)
        await members.members[1].kill()
        members.announce(SERVING, OFFLINE)
        await members.churn(20, again)
        await members.members[1].start()
    members.announce(SERVING, SYNCING)
    await members.synced(2)
    assert_equal(members)


async def test_the_one_that_copies_is_killed(three: Members) -> None:
    """The member before it goes on with the sync; what was copied is found equal."""
    three.announce(SERVING, SERVING, OFFLINE)
    draw = random.Random(4)
    for index in range(120):
        await three.write(index, draw.randbytes(100_000), inode=9)
    three.announce(SERVING, SERVING, SYNCING)
    machine = three.members[1].target.syncing
    assert machine is not None
    while machine.copied == 0:
        await asyncio.sleep(0)
    await three.members[1].kill()
    three.announce(SERVING, OFFLINE, SYNCING)
    await asyncio.gather(three.churn(20, 5), three.synced(3))
    assert_equal(three, 1, 3)
    three.announce(SERVING, OFFLINE, SERVING)
    await three.members[1].start()
    three.announce(SERVING, SERVING, SYNCING, order=(1, 3, 2))
    await three.synced(2)
    assert_equal(three)


async def test_retries_after_a_sync_are_answered_as_before(members: Members) -> None:
    members.announce(SERVING, OFFLINE)
    data = b"once"
    request = World.write_request([(5, 0, 0, data, 41, None)], 1, members.version)
    assert (await members.call(members.head, STORAGE.Write, request, source=[memory(data)])).status[0] == Status.OK
    members.announce(SERVING, SYNCING)
    await members.synced(2)
    members.announce(SERVING, OFFLINE, order=(2, 1))
    receipt = members.members[1].engine.receipt(members.env.client, channel_of(5, 0))
    assert receipt is not None and receipt.sequence == 41
    request.chain_version[:] = [members.version]
    reply = await members.call(members.head, STORAGE.Write, request, source=[memory(data)])
    assert reply.status[0] == Status.OK
    assert members.members[1].engine.info(chunk_key(5, 0)) == members.members[0].engine.info(chunk_key(5, 0))


async def test_a_sync_begins_however_many_records_the_live_updates_bring(members: Members) -> None:
    members.announce(SERVING, OFFLINE)
    assert await members.write(0, b"x") is Status.OK
    second = members.members[1]
    engine, blocking = second.engine, second.target.blocking
    clients = itertools.count(1)

    async def busy(work: Callable[..., Any], *arguments: Any) -> Any:
        if work == engine.records:  # a live update is faster than each look at the records
            engine.put_records([Receipt(next(clients).to_bytes(16, "big"), 1, 1, 1, 1)], [], 0)
        return await blocking(work, *arguments)

    second.target.blocking = busy
    members.announce(SERVING, SYNCING)
    await members.synced(2)
    assert engine.receipt(members.env.client, channel_of(5, 0)) is not None


async def test_live_updates_wait_until_the_records_of_before_are_gone(members: Members) -> None:
    """One that came before was recognised by a receipt that went afterwards; its sender, which had no answer yet, brought none."""
    members.announce(SERVING, OFFLINE)
    assert await members.write(0, b"x") is Status.OK
    first, second = members.members
    engine, blocking, start_update = second.engine, second.target.blocking, second.target.start_update
    began_with: list[int] = []

    async def slow(work: Callable[..., Any], *arguments: Any) -> Any:
        if work == engine.records:
            while not first.target.replica.in_flight:  # until the write below is on its way
                await asyncio.sleep(0)
            for _ in range(100):
                await asyncio.sleep(0)
        return await blocking(work, *arguments)

    async def start(version: int, *arguments: Any, **forwarded: Any) -> Any:
        began_with.append(second.target.records_of)
        return await start_update(version, *arguments, **forwarded)

    second.target.blocking, second.target.start_update = slow, start
    members.announce(SERVING, SYNCING)
    assert await members.write(0, b"y") is Status.OK
    await members.synced(2)
    assert set(began_with) == {members.version}
    assert_equal(members)


async def test_an_old_chain_version_is_refused_with_the_newer_entry(members: Members) -> None:
    members.announce(SERVING, SYNCING)
    second = members.members[1]
    for method, request in (
        (STORAGE.ListChunks, storage_pb2.ListChunksRequest(chain=1, chain_version=99)),
        (STORAGE.PutRecords, storage_pb2.PutRecordsRequest(chain=1, chain_version=99)),
        (STORAGE.FinishSync, storage_pb2.FinishSyncRequest(chain=1, chain_version=99)),
    ):
        reply = await members.call(second, method, request)
        assert reply.status == Status.STALE_CHAIN_VERSION
        assert [chain.version for chain in reply.chains] == [members.version]


async def test_what_a_target_says_of_itself(members: Members) -> None:
    members.announce(SERVING, OFFLINE)
    states = [member.target.entry().state for member in members.members]
    assert states == [cluster_pb2.LOCAL_STATE_UPTODATE, cluster_pb2.LOCAL_STATE_ONLINE]
    members.announce(SERVING, SYNCING)
    await members.synced(2)
    assert members.members[1].target.entry().state == cluster_pb2.LOCAL_STATE_UPTODATE
    members.announce(SERVING, OFFLINE)  # good news from before the change is no news
    assert members.members[1].target.entry().state == cluster_pb2.LOCAL_STATE_ONLINE


async def test_who_has_lost_its_index_says_so_until_it_serves_again(members: Members) -> None:
    members.announce(SERVING, SERVING)
    assert await members.write(0, b"x" * 1000) is Status.OK
    second = members.members[1]
    await second.kill()
    shutil.rmtree(second.path / "index")
    await second.start()
    assert second.target.entry().damaged  # so that nobody lets it revive a chain
    members.announce(SERVING, SYNCING)
    await members.synced(2)
    assert second.target.entry().damaged
    members.announce(SERVING, SERVING)
    assert not second.target.entry().damaged
    assert_equal(members)


async def test_a_node_that_cannot_be_reached_holds_up_no_copies_to_others() -> None:
    env = AioEnvironment()
    share = Share(env, lambda: (0, 0))
    async with AsyncExitStack() as held, asyncio.timeout(SECONDS):
        for _ in range(LANES):
            await held.enter_async_context(share.lane(1))
        async with share.lane(2):
            pass
        waits = asyncio.ensure_future(share.lane(1).__aenter__())
        await asyncio.sleep(0)
        assert not waits.done()
    await waits
    await env.close()


async def test_a_head_whose_disk_fails_leaves_the_update_to_the_next_one(members: Members) -> None:
    members.announce(SERVING, SERVING)
    head = members.members[0]

    def broken(handle: int, buffers: object, offset: int, cold: bool = False) -> None:
        raise OSError(5, "Input/output error")

    head.engine.disk.pwritev = broken  # type: ignore[method-assign]
    request = World.write_request([(5, 0, 0, b"data", 1, None)], 1, members.version)
    reply = await members.call(head, STORAGE.Write, request, source=[memory(b"data")])
    assert reply.status[0] == Status.TARGET_OFFLINE  # which a client tries again
    assert head.target.entry().state == cluster_pb2.LOCAL_STATE_OFFLINE
    members.announce(SERVING, OFFLINE, order=(2, 1))
    request.chain_version[:] = [members.version]
    reply = await members.call(members.head, STORAGE.Write, request, source=[memory(b"data")])
    assert reply.status[0] == Status.OK


async def test_a_full_member_leaves_its_place_to_those_that_have_room(tmp_path: Path) -> None:
    """It cannot take what the head has decided; waiting for it would stop every write to the chain."""
    members = await Members(tmp_path).start()
    await members.members[1].kill()
    members.members[1] = Member(2, tmp_path / "small", members.network, members.log, 64 << 20)
    await members.members[1].start()
    small = members.members[1].target
    said: list[int] = []
    small.state_watchers.append(lambda: said.append(small.entry().state))
    members.announce(SERVING, SERVING)
    writing = asyncio.create_task(overfill(members, 70))
    async with asyncio.timeout(SECONDS):
        while cluster_pb2.LOCAL_STATE_OFFLINE not in said:
            await asyncio.sleep(0.01)
    members.announce(SERVING, OFFLINE)
    await writing
    await members.stop()


async def overfill(members: Members, count: int) -> None:
    for index in range(count):
        assert await members.write(index, b"x" * CHUNK) is Status.OK


async def test_of_a_dead_file_nothing_is_left_on_any_member(members: Members) -> None:
    members.announce(SERVING, SERVING)
    for inode in (1, 2):
        await members.write(0, b"x" * 100, inode=inode)
        await members.truncate(0, 0 if inode == 1 else 50, 1, inode=inode)
        await members.remove(0, 8, inode=inode)
    assert [member.engine.records().floors for member in members.members] == [[], []]


async def test_good_news_is_of_one_chain_only(members: Members) -> None:
    """Another chain that the target is moved to may have the same version."""
    members.announce(SERVING, SYNCING)
    await members.synced(2)
    second = members.members[1].target
    chain = second.replica.chain
    assert chain is not None
    second.routing_changed(None)
    second.routing_changed(chain)
    assert second.entry().state == cluster_pb2.LOCAL_STATE_ONLINE
