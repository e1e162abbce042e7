"""Several servers over one engine: whatever two of them do at once is as if one came after the other, what one knows of a client the
other finds in the engine, and whoever is in charge cleans up after all."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from emberfs.meta import keys
from emberfs.meta.kv import retry
from emberfs.meta.kv.engine import KEYS_END, Engine, Transaction
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace.check import check
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import RenewClientRequest
from emberfs.proto.gen.meta_pb2 import CreateRequest, NewEntry, OpenRequest

from .test_races import ACTIONS, YieldingEngine, outcome, serial, tree
from .world import ManualClock, MemoryChunks, World, place

READ, CREATE, W = os.O_RDONLY, os.O_CREAT, os.O_WRONLY
PAIRS = list(itertools.product(ACTIONS, ACTIONS))
SAMPLE_OF_MEMORY, SAMPLE_OF_POSTGRES = 100, 25  # of the 500 pairs; which ones is chance, and the same each time


async def servers(engine: Engine, clock: ManualClock, count: int = 2) -> list[World]:
    """As many servers, each with a client of its own, over the same chunks."""
    chunks, made = MemoryChunks(), list[World]()
    for number in range(1, count + 1):
        world = World(engine, clock, chunks)
        world.namespace.random_u64 = itertools.count(number << 32).__next__
        world.client = b"client-server-%02d" % number
        made.append(await world.start())
    return made


async def furnish(world: World) -> None:
    """As `test_races.furnish`."""
    await world.mkdir("/d")
    await world.mkdir("/d/s")
    await world.touch("/d/f")
    await world.mkdir("/e")
    await world.touch("/g")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "postgres"])
async def engine(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[Any]:
    """The engine that all share."""
    if request.param == "memory":
        yield YieldingEngine(MemoryEngine(clock.now), 1)
        return
    url = request.getfixturevalue("postgres_url")
    from emberfs.meta.kv.postgres import PostgresEngine

    made = PostgresEngine(url, clock.now)
    yield made
    await made.close()


async def emptied(engine: Engine) -> None:
    transaction = engine.begin()
    transaction.delete_range(b"", KEYS_END)
    await transaction.commit()


async def test_a_pair_at_two_servers_is_as_if_one_came_after_the_other(
    engine: Engine, clock: ManualClock, request: pytest.FixtureRequest
) -> None:
    sample = SAMPLE_OF_MEMORY if isinstance(engine, YieldingEngine) else SAMPLE_OF_POSTGRES
    for one, two in random.Random(3).sample(PAIRS, sample):
        a, b = ACTIONS[one], ACTIONS[two]
        forward = await serial(a, b)
        status_b, status_a, after = await serial(b, a)
        await emptied(engine)
        first, second = await servers(engine, clock)
        await furnish(first)
        done = await asyncio.gather(outcome(first, a), outcome(second, b))
        for server in (first, second):  # both see the same, whatever they remember
            assert (*done, await tree(server)) in [forward, (status_a, status_b, after)], f"{one} with {two}"
        assert await check(engine) == [], f"{one} with {two}"


@pytest.mark.parametrize("seed", range(3))
async def test_many_at_several_servers_keep_every_invariant(engine: Engine, clock: ManualClock, seed: int) -> None:
    chance = random.Random(seed)
    worlds = await servers(engine, clock, 3)
    await furnish(worlds[0])

    async def user(world: World) -> None:
        for _ in range(10):
            await outcome(world, ACTIONS[chance.choice(list(ACTIONS))])

    async def collector(world: World) -> None:
        for _ in range(5):
            await world.namespace.collector.step()
            clock.time += 0.1

    await asyncio.gather(*(user(world) for world in worlds * 2), *(collector(world) for world in worlds))
    assert await check(engine) == []
    leader = worlds[1]
    await leader.namespace.take_charge()
    for world in worlds:
        leader.namespace.client_ended(world.client)
    await leader.namespace.clients.step()
    await leader.collect()
    assert await check(engine) == []
    inodes, pending = await leader.namespace.counts()
    assert (inodes, pending) == (1 + len({row[-1] for row in await tree(leader)}), 0)


async def test_creators_at_two_servers_in_one_directory_do_not_conflict(
    engine: Engine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who waits for a connection on a busy machine is no conflict.
    monkeypatch.setattr("emberfs.meta.kv.postgres_connections.WAIT_SECONDS_MAX", 60.0)
    first, second = await servers(engine, clock)
    await furnish(first)
    await asyncio.gather(first.touch("/d/0"), second.touch("/d/1"))  # ranges of numbers are taken
    before = retry.RETRIES._value.get()
    await asyncio.gather(*(world.touch(f"/d/{world.client!r}{i}") for world in (first, second) for i in range(40)))
    assert retry.RETRIES._value.get() - before <= 80 * 0.05
    assert (await first.stat("/d")).nlink == 3


async def test_a_permission_that_one_takes_away_holds_at_the_other_at_once(engine: Engine, clock: ManualClock) -> None:
    from .world import ALICE

    first, second = await servers(engine, clock)
    await first.mkdir("/p")
    await first.touch("/p/f")
    for i in range(10):
        assert (await second.stat("/p/f", ALICE)).inode
        await first.set("/p", mode=0o700)
        with pytest.raises(StatusError) as refused:
            await second.stat("/p/f", ALICE)
        assert refused.value.status is Status.PERMISSION_DENIED
        await first.set("/p", mode=0o755)


async def test_numbers_are_used_once(engine: Engine, clock: ManualClock) -> None:
    worlds = await servers(engine, clock, 3)
    for world in worlds:
        world.namespace.inode_numbers._size = 4
    made = await asyncio.gather(*(world.touch(f"/{world.client!r}{i}") for world in worlds for i in range(15)))
    assert len({attributes.inode for attributes in made}) == 45


# What is known of a client.


async def test_a_request_that_was_sent_to_both_counts_once(engine: Engine, clock: ManualClock) -> None:
    first, second = await servers(engine, clock)
    second.client = first.client
    request = CreateRequest(entries=[NewEntry(place=place("/x"), type=1, mode=0o644)], request_id=77)  # type: ignore[arg-type]
    replies = await asyncio.gather(first.ask("create", request), second.ask("create", request))
    assert replies[0] == replies[1] and replies[0].statuses[0] == 0
    assert await first.ask("create", request) == replies[0]


async def test_a_late_copy_of_an_answered_request_is_refused_everywhere(engine: Engine, clock: ManualClock) -> None:
    first, second = await servers(engine, clock)
    second.client = first.client
    request = CreateRequest(entries=[NewEntry(place=place("/x"), type=1, mode=0o644)], request_id=5)  # type: ignore[arg-type]
    await first.ask("create", request)
    await first.unlink("/x")
    await first.namespace.renewed(first.client, RenewClientRequest(acknowledged_request=5, renewal=1))
    with pytest.raises(StatusError) as refused:
        await second.ask("create", request)
    assert refused.value.status is Status.DUPLICATE
    assert not await second.exists("/x")


async def test_a_client_that_is_gone_is_refused_everywhere(engine: Engine, clock: ManualClock) -> None:
    first, second = await servers(engine, clock)
    second.client = first.client
    await second.touch("/x")

    async def end(txn: Transaction) -> None:
        txn.put(keys.ended_client_key(first.client), b"over")  # as the manager does, before anybody cleans up

    await retry.run(engine, end)
    for attempt in (second.touch("/y"), second.open("/x", READ)):
        with pytest.raises(StatusError) as refused:
            await attempt
        assert refused.value.status is Status.SESSION_ENDED
    first.namespace.client_ended(first.client)
    await first.namespace.clients.step()
    with pytest.raises(StatusError):
        await second.touch("/y")


async def test_what_a_client_reads_by_one_server_waits_at_the_other(engine: Engine, clock: ManualClock) -> None:
    """Opened at a follower, renewed and collected at the leader."""
    leader, follower = await servers(engine, clock)
    reader = follower.client
    opened = await follower.touch("/f")
    await follower.open("/f", READ)
    await leader.unlink("/f")

    async def collect() -> bool:
        clock.time += 30
        for _ in range(3):
            await leader.namespace.collector.step()
        return opened.inode in leader.chunks.removed

    mark = b""

    async def renew(number: int, *held: int) -> None:
        nonlocal mark
        report = RenewClientRequest(open_inodes=held, reported=mark, renewal=number)
        reply = await leader.namespace.renewed(reader, report)
        mark = reply.mark or mark

    for number in (1, 2, 3):
        assert not await collect()
        await renew(number, opened.inode)
    assert mark  # the leader knows that it has to ask for reports
    for number in (4, 5, 6):
        await renew(number)
    assert await collect()
    assert await check(engine) == []


async def test_what_was_opened_without_a_name_is_let_go_by_whoever_takes_the_report(
    engine: Engine, clock: ManualClock
) -> None:
    leader, follower = await servers(engine, clock)
    reader, mark = follower.client, b""
    number = (await leader.touch("/f")).inode
    await follower.open("/f", READ)
    await leader.unlink("/f")
    await follower.namespace.clients.readers.hold(reader, number)

    async def renew(renewal: int, *held: int) -> None:
        nonlocal mark
        report = RenewClientRequest(open_inodes=held, reported=mark, renewal=renewal)
        mark = (await leader.namespace.renewed(reader, report)).mark or mark
        clock.time += 30
        for _ in range(3):
            await leader.namespace.collector.step()

    for renewal in range(1, 5):
        await renew(renewal, number)
        assert number not in leader.chunks.removed
    for renewal in range(5, 9):
        await renew(renewal)
    assert number in leader.chunks.removed
    assert await engine.begin().scan(*keys.prefix_range(keys.HELD), 9) == []
    assert await engine.begin().scan(*keys.prefix_range(keys.HOLD), 9) == []
    assert await check(engine) == []


async def test_what_is_opened_again_without_a_name_is_held_again(engine: Engine, clock: ManualClock) -> None:
    """The follower remembers that its client held the file; the leader has heard since that it does not."""
    leader, follower = await servers(engine, clock)
    reader, mark, renewal = follower.client, b"", 0
    number = (await leader.touch("/f")).inode
    writing = await leader.open("/f", W)  # keeps the file until it is closed
    await follower.open("/f", READ)
    await leader.unlink("/f")
    by_number = OpenRequest(place=place("", number), flags=READ)
    await follower.ask("open", by_number)

    async def renew(*held: int) -> None:
        nonlocal mark, renewal
        for _ in range(2):  # with the second one it says that it has heard of the first one's reply
            renewal += 1
            report = RenewClientRequest(open_inodes=held, reported=mark, renewal=renewal)
            mark = (await leader.namespace.renewed(reader, report)).mark or mark

    async def is_gone() -> bool:
        clock.time += 30
        for _ in range(3):
            await leader.namespace.collector.step()
        return number in leader.chunks.removed

    await renew(number)
    assert not await is_gone()
    await renew()
    assert await engine.begin().scan(*keys.prefix_range(keys.HOLD), 9) == []
    await follower.ask("open", by_number)
    await leader.close(writing, 0)
    assert not await is_gone()
    await renew()
    assert await is_gone()


async def test_a_reader_of_another_server_that_never_reported_is_found(engine: Engine, clock: ManualClock) -> None:
    leader, follower = await servers(engine, clock)
    number = (await leader.touch("/f")).inode
    await follower.open("/f", READ)
    await leader.unlink("/f")
    await follower.namespace.clients.readers.hold(follower.client, number)
    assert follower.client in await leader.namespace.session_clients()
    leader.namespace.client_ended(follower.client)
    await leader.namespace.clients.step()
    for letters in (keys.READER, keys.HOLD, keys.HELD):
        assert await engine.begin().scan(*keys.prefix_range(letters), 9) == []
    await leader.collect()
    assert number in leader.chunks.removed
    assert await check(engine) == []


async def test_the_next_one_in_charge_goes_on_where_the_last_one_stopped(engine: Engine, clock: ManualClock) -> None:
    first, second = await servers(engine, clock)
    await first.mkdir("/t")
    for i in range(300):
        await (first, second)[i % 2].touch(f"/t/{i}")
    writer = await first.open("/left", CREATE | W)
    first.chunks.write(writer.attributes.inode, 4096)
    await second.remove_tree("/t")
    for _ in range(2):
        await first.namespace.collector.step()  # and is killed
    await second.namespace.take_charge()
    assert first.client in await second.namespace.session_clients()
    second.namespace.client_ended(first.client)
    await second.namespace.clients.step()
    await second.collect()
    assert await check(engine) == []
    assert (await second.stat("/left")).length == 4096
    assert await second.namespace.counts() == (2, 0)
