"""Reads where a chunk has several replicas: spread over them, from another one at once when one fails, with a rival when one is slow."""

from __future__ import annotations

import random
from typing import Any

import pytest

from emberfs.client.core.bulk import BulkRead
from emberfs.client.core.file import Handle
from emberfs.client.core.replicas import HEDGE_SECONDS_MIN
from emberfs.client.core.turns import TURN_SECONDS_MIN
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen.cluster_pb2 import Routing
from emberfs.proto.gen.common_pb2 import TARGET_STATE_SYNCING, Chain

from .chain_world import MEMBERS, ChainWorld, opened, run

CHUNK = 64 << 10
CHUNKS = 48
STALL_SECONDS_MAX = 0.1  # of a read, whatever happens to one replica
DATA = random.Random(3).randbytes(CHUNKS * CHUNK)


async def written(world: ChainWorld, **options: Any) -> Handle:
    """A file of many chunks, open for reading; nothing is read ahead."""
    core = await world.client(**options)
    file = await opened(core, "/f", "wb", chunk_size=CHUNK)
    await file.write(DATA)
    await file.close()
    return await opened(core, "/f", buffered=False)


async def read_some(world: ChainWorld, file: Handle, chance: random.Random) -> float:
    """A read of one of four kinds; how long it took."""
    kind = chance.randrange(4)
    at, length = chance.randrange(len(DATA) - 5 * CHUNK), chance.choice((100, 4096, 3 * CHUNK))
    if kind == 0:
        found, seconds = await world.timed(file.pread(length, at))
        assert found == DATA[at : at + length]
    elif kind == 1:
        file.seek(at)
        found, seconds = await world.timed(file.read(length))
        assert found == DATA[at : at + length]
    elif kind == 2:
        offsets = [chance.randrange(len(DATA) - 4096) for _ in range(20)]
        bulk = BulkRead(file.core, [file], [0] * 20, offsets, [4096] * 20)
        found, seconds = await world.timed(in_bulk(bulk))
        assert found == b"".join(DATA[offset : offset + 4096] for offset in offsets)
    else:
        ranges = [(chance.randrange(len(DATA) - 4096), 4096) for _ in range(20)]
        views, seconds = await world.timed(file.preadv_batch(ranges))
        assert [bytes(view) for view in views] == [DATA[offset : offset + length] for offset, length in ranges]
    return seconds


async def in_bulk(bulk: BulkRead) -> bytes:
    await bulk.start()
    try:
        return bytes(await bulk.finish())
    finally:
        bulk.release()


def test_reads_go_to_the_replica_in_the_same_rack_while_it_answers() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world, memory=64 << 20, rack="rack-1")
        for index in range(CHUNKS):
            await file.pread(100, index * CHUNK)
        assert [member.reads for member in world.members] == [0, CHUNKS, 0]
        world.members[1].host.crash()
        for index in range(CHUNKS):
            found, seconds = await world.timed(file.pread(100, index * CHUNK))
            assert found == DATA[index * CHUNK :][:100] and seconds <= STALL_SECONDS_MAX
        assert sum(member.reads for member in world.members) >= 2 * CHUNKS

    run(story)


def test_reads_are_spread_over_the_replicas_and_a_small_batch_is_one_request() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world, memory=64 << 20)
        for index in range(CHUNKS):
            await file.pread(100, index * CHUNK)
        assert [member.reads for member in world.members] == [CHUNKS // MEMBERS] * MEMBERS
        await file.preadv_batch([(index * CHUNK, 100) for index in range(CHUNKS)])
        assert sum(member.reads for member in world.members) == CHUNKS + 1
        before = [member.reads for member in world.members]
        await file.preadv_batch([(0, len(DATA))] * 2)  # 6 MiB
        assert all(member.reads > reads for member, reads in zip(world.members, before, strict=True))

    run(story)


def test_a_bulk_read_leaves_memory_into_which_a_stopped_replica_may_still_move_bytes() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world, memory=64 << 20)
        pool = file.core.env.pool
        await file.pread(100, 0)
        used = [member.reads for member in world.members].index(1)
        offsets = [index * 4096 for index in range(CHUNKS)]
        bulk = BulkRead(file.core, [file], [0] * CHUNKS, offsets, [4096] * CHUNKS)
        await bulk.start()
        asked, first = bulk._home, bulk._slice
        assert asked is not None and first is not None
        world.members[used].host.freeze()
        found, seconds = await world.timed(bulk.finish())
        assert bytes(found) == DATA[: CHUNKS * 4096] and seconds <= STALL_SECONDS_MAX
        assert asked.spoiled == (bulk._slice is not first)
        bulk.release()
        world.members[used].host.thaw()
        for _ in range(50):
            await read_some(world, file, random.Random(1))
        assert pool.take(1 << 20)

    run(story)


def test_the_same_chunk_is_asked_of_the_same_replica_again() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        for _ in range(10):
            await file.pread(100, 0)
        assert sorted(member.reads for member in world.members) == [0, 0, 10]

    run(story)


@pytest.mark.parametrize("fault", ["kill", "stop"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_member_that_dies_or_stops_stalls_no_read(fault: str, place: int) -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        chance, worst = random.Random(place), 0.0
        victim = world.member(place)
        for _ in range(30):
            await read_some(world, file, chance)
        if fault == "kill":
            victim.host.crash()
        else:
            victim.host.freeze()
        until = world.now + 20
        while world.now < until:
            worst = max(worst, await read_some(world, file, chance))
            await world.sleep(0.05)
            if fault == "stop" and world.now > until - 10:
                victim.host.thaw()
        assert worst <= STALL_SECONDS_MAX
        assert world.states() == [True, True, False], "the manager has moved the chain meanwhile"

    for seed in range(3):
        run(story, seed=seed)


def test_readahead_that_waits_for_a_stopped_member_goes_elsewhere() -> None:
    async def story(world: ChainWorld) -> None:
        await written(world, memory=32 << 20)
        core = await world.client(memory=32 << 20)
        file = await opened(core, "/f")
        found, worst = bytearray(), 0.0
        while len(found) < len(DATA):
            if len(found) == CHUNK * 8:
                world.member(1).host.freeze()
            piece, seconds = await world.timed(file.read(CHUNK))
            found += piece
            worst = max(worst, seconds)
        assert bytes(found) == DATA
        assert worst <= STALL_SECONDS_MAX
        await file.close()
        assert core.env.pool.used == 0, "the simulated network moves nothing late"

    run(story)


@pytest.mark.parametrize(
    "status", [Status.FENCED, Status.TARGET_OFFLINE, Status.UNAVAILABLE, Status.BUSY, Status.IO_ERROR, Status.INTERNAL]
)
@pytest.mark.parametrize("whole", [False, True])
def test_a_replica_that_refuses_is_replaced_at_once(status: Status, whole: bool) -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        for member in world.members[:2]:
            if whole:
                member.raises.extend([error(status)] * 10)
            else:
                member.statuses.extend([status] * 10)
        for index in range(6):
            found, seconds = await world.timed(file.pread(5000, index * CHUNK))
            assert found == DATA[index * CHUNK : index * CHUNK + 5000]
            assert seconds < HEDGE_SECONDS_MIN, "nobody waits for the routing or for a pause"

    run(story)


def test_who_failed_is_left_alone_for_a_while_and_then_asked_again() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        member = world.member(1)
        member.raises.extend([error(Status.UNAVAILABLE)] * 2)
        for index in range(CHUNKS):
            await file.pread(100, index * CHUNK)
        assert member.reads == 0 and len(member.raises) == 1
        for _ in range(3):
            await world.sleep(1.1)
            for index in range(CHUNKS):
                await file.pread(100, index * CHUNK)
        assert member.reads >= CHUNKS // 3

    run(story)


def test_an_uncommitted_version_is_read_from_the_tail() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        for member in world.members:
            member.uncommitted = {(file.file.id, index) for index in range(CHUNKS)}
        for asked in (2, 4, 6):
            found, seconds = await world.timed(file.pread(CHUNK, 0))
            assert found == DATA[:CHUNK] and seconds < HEDGE_SECONDS_MIN
            assert sum(member.reads for member in world.members) == asked
        views = await file.preadv_batch([(index * CHUNK, 4096) for index in range(CHUNKS)])
        assert b"".join(views[3:5]) == DATA[3 * CHUNK :][:4096] + DATA[4 * CHUNK :][:4096]

    run(story)


def test_a_node_that_has_not_heard_of_a_newer_chain_is_passed_over() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        member = world.member(0)
        member.statuses.extend([Status.STALE_CHAIN_VERSION] * 3)  # it attaches the entry that it knows
        found, seconds = await world.timed(file.pread(CHUNK, 0))
        assert found == DATA[:CHUNK] and seconds < HEDGE_SECONDS_MIN

    run(story)


def test_a_slow_answer_gets_a_rival_and_usual_slowness_does_not() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        world.member(0).delay = 0.5
        found, seconds = await world.timed(file.pread(CHUNK, 0))
        assert found == DATA[:CHUNK] and HEDGE_SECONDS_MIN <= seconds < 2 * HEDGE_SECONDS_MIN
        for member in world.members:
            member.delay = 0.05  # all of them, always: that is how it is
        for index in range(300):
            await file.pread(100, index % CHUNKS * CHUNK)
        before = sum(len(member.requests) for member in world.members)
        for index in range(100):
            await file.pread(100, index % CHUNKS * CHUNK)
        assert sum(len(member.requests) for member in world.members) - before < 105

    run(story)


def test_a_member_that_stops_while_answers_are_slower_than_usual_stalls_no_read() -> None:
    """How long a rival waits follows how long answers take, but not beyond what a read may be stalled."""

    async def story(world: ChainWorld) -> None:
        file = await written(world)
        for member in world.members:
            member.delay = 0.03
        for index in range(300):
            await file.pread(100, index % CHUNKS * CHUNK)
        world.member(0).host.freeze()
        for index in range(CHUNKS):
            _, seconds = await world.timed(file.pread(100, index * CHUNK))
            assert seconds <= STALL_SECONDS_MAX

    run(story)


def test_who_was_slow_a_moment_ago_is_asked_when_all_others_are_slow_now() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        for slow in world.members:
            for member in world.members:
                member.delay = 0.3 if member is slow else 0.0
            for index in range(MEMBERS):
                await file.pread(100, index * CHUNK)
            for member in world.members:
                member.delay = 0.0 if member is slow else 0.3
            for index in range(MEMBERS):
                _, seconds = await world.timed(file.pread(100, index * CHUNK))
                assert seconds <= STALL_SECONDS_MAX

    run(story)


def test_the_time_before_a_rival_was_asked_is_not_its_own() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        cluster = file.core.cluster
        world.member(0).delay = 0.5
        for index in range(400):
            await file.preadv_batch([(index % MEMBERS * CHUNK, 100), (index % MEMBERS * CHUNK + 7, 100)])
            await world.sleep(1.0)
        [chain] = cluster.table.chains
        for replica in cluster.table.route(chain).serving[1:]:
            assert cluster.replicas.hedge_seconds(replica) == HEDGE_SECONDS_MIN

    run(story)


def test_the_best_address_of_a_node_is_left_for_a_while_and_longer_when_it_fails_again() -> None:
    async def story(world: ChainWorld) -> None:
        cluster = (await world.client()).cluster
        node = cluster.table.nodes[world.member(0).node]
        best, other = cluster.node_address(node.id), "local:elsewhere"
        routing = Routing(cluster=cluster.table.cluster, since=cluster.table.version, version=cluster.table.version + 1)
        routing.nodes.add().CopyFrom(node)
        routing.nodes[0].addresses.append(other)
        await cluster.learn(routing)
        for seconds in (TURN_SECONDS_MIN, 2 * TURN_SECONDS_MIN):
            cluster.note(error(Status.UNAVAILABLE, "gone"), node.id)
            assert cluster.node_address(node.id) == other
            await world.sleep(0.9 * seconds)
            assert cluster.node_address(node.id) == other
            await world.sleep(0.2 * seconds)
            assert cluster.node_address(node.id) == best

    run(story)


def test_a_chunk_that_one_replica_has_lost_comes_from_another_and_is_reported() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        inode = file.file.id
        world.member(0).missing = {(inode, index) for index in range(3)}
        assert await file.pread(3 * CHUNK, 0) == DATA[: 3 * CHUNK]
        assert set(world.member(0).reports) <= {(world.member(0).target, inode, index) for index in range(3)}
        assert world.member(0).reports
        for member in world.members:
            member.missing = {(inode, 7)}
        with pytest.raises(StatusError) as lost:
            await file.pread(100, 7 * CHUNK)
        assert lost.value.status is Status.LOST_DATA
        targets = ", ".join(str(member.target) for member in world.members)
        assert f"targets {targets}" in str(lost.value)

    run(story)


def test_damaged_bytes_of_one_replica_come_from_another() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        world.member(0).flips.extend([1] * 2)
        assert await file.pread(5000, 0) == DATA[:5000]
        assert world.member(0).reports == [(world.member(0).target, file.file.id, 0)]
        for member in world.members:
            member.flips.extend([1] * 2)
        with pytest.raises(StatusError) as damaged:
            await file.pread(5000, 0)
        assert damaged.value.status is Status.CHECKSUM

    run(story)


def test_when_all_replicas_are_silent_a_read_ends_at_its_deadline_and_later_goes_on() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world, timeout=3.0)
        for member in world.members:
            member.host.freeze()
        began = world.now
        with pytest.raises(TimeoutError, match="gave up after 3 s"):
            await file.pread(100, 0)
        assert world.now - began < 4
        for member in world.members:
            member.host.thaw()
        assert await file.pread(100, 0) == DATA[:100]

    run(story)


def test_a_client_that_has_not_heard_of_a_new_member_finds_it_while_the_only_one_that_it_knows_is_silent() -> None:
    async def story(world: ChainWorld) -> None:
        file = await written(world)
        table = file.core.cluster.table
        [chain] = table.chains.values()
        old = Chain()
        old.CopyFrom(chain)
        old.version -= 1
        for member in old.members[1:]:
            member.state = TARGET_STATE_SYNCING
        table.chains[chain.id], table.version = old, 0
        table._routes.clear()
        world.member(0).host.freeze()
        found, seconds = await world.timed(file.pread(CHUNK, 0))
        assert found == DATA[:CHUNK] and seconds < 1

    run(story)
