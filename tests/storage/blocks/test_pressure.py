"""What a client may do without meaning well: thousands of leases, times to live, drops and puts at once. Nothing grows without end, nothing
keeps the server from answering others, nothing that was acknowledged goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from emberfs.proto.errors import Status
from emberfs.proto.gen import kvcache_pb2
from emberfs.proto.rpc import KVCACHE
from emberfs.storage.blocks import directory as directories
from emberfs.storage.blocks import leases as leasing
from emberfs.storage.blocks import listing
from emberfs.storage.blocks import tier as tiers
from emberfs.storage.blocks.leases import Holder, Leases

from .test_eviction import settled
from .test_service import run, some
from .world import ANY_LENGTH, BLOCK, NAMESPACE, TENANT, Blocks, content, key

OK = Status.OK
SMALL = 16  # bytes of a block


def small(first: int, count: int) -> dict[bytes, bytes]:
    return {key(n): content(n, SMALL) for n in range(first, first + count)}


async def turns_during(work: Awaitable[object]) -> int:
    """How often others had their turn on the loop meanwhile."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.ensure_future(count())
    await asyncio.sleep(0)
    try:
        await work
    finally:
        counting.cancel()
    return turns


def test_what_is_put_while_a_drop_is_under_way_stays(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        old = small(0, 1000)
        await world.put_ok(old, namespace=ANY_LENGTH)
        request = kvcache_pb2.DeleteRequest(**world.runs([], count=[0], everything=True, namespace=ANY_LENGTH))
        await world.call(KVCACHE.Delete, request)
        again = [key(n) for n in (127, 128, 500, 640, 999)]
        large = content(7, 300_000)  # written by a thread: the drop goes on meanwhile
        await asyncio.gather(*[world.put_ok({each: large}, namespace=ANY_LENGTH) for each in again])
        shelf = world.store.directory.shelf(ANY_LENGTH)
        async with asyncio.timeout(60):
            while shelf.leaving:
                await asyncio.sleep(0)
        assert await world.match(list(old), namespace=ANY_LENGTH) == [int(each in again) for each in old]
        assert await world.get(again, len(large), namespace=ANY_LENGTH) == [large] * len(again)
        await world.restart(clean=False)
        assert await world.match(list(old), namespace=ANY_LENGTH) == [int(each in again) for each in old]

    run(test, tmp_path)


def test_others_have_their_turn_while_many_blocks_go(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        blocks = small(0, 3000)
        evictor = world.store.evictor
        await world.put_ok(blocks, namespace=ANY_LENGTH)
        world.quotas = {TENANT: 16}
        world.announce()
        assert await turns_during(settled(world)) >= 3
        assert not len(world.store.directory)
        world.quotas = {}
        world.announce()
        await world.put_ok(blocks, namespace=ANY_LENGTH)
        assert await turns_during(world.store.empty(ANY_LENGTH)) >= 3
        assert not len(world.store.directory)
        await world.put_ok(blocks, namespace=ANY_LENGTH, ttl_s=[50] * len(blocks))
        later = 3600  # seconds: long after the last of them is over, and the step of time in which it is looked for
        found = world.store.directory.over(time.time() + later)
        assert len(found) == directories.OVER_MAX, "the others are named the next times"
        world.store.directory.not_yet(found, time.time())
        world.env.wall_ns = lambda: time.time_ns() + later * 1_000_000_000  # type: ignore[method-assign]
        assert await turns_during(evictor._expire()) >= 2
        assert not len(world.store.directory)

    run(test, tmp_path)


def test_a_shelf_leaves_at_once(tmp_path: Path) -> None:
    """Whatever the number of its blocks, a drop takes no time on the loop: the shelf's table is handed over, not copied."""

    async def test(world: Blocks) -> None:
        blocks = small(0, 300)
        await world.put_ok(blocks, namespace=ANY_LENGTH, ttl_s=[60] * 300)
        directory, shelf = world.store.directory, world.store.directory.shelf(ANY_LENGTH)
        table, keys = shelf.slots, list(blocks)
        slots = directory.leave_all(shelf, staying=[keys[5], key(999)])
        assert shelf.leaving is table and list(shelf.slots) == [keys[5]]
        assert (len(slots), shelf.bytes_here, shelf.timed) == (299, SMALL, 1)
        assert [directory.is_here(slot) for slot in (table[keys[0]], shelf.slots[keys[5]])] == [False, True]
        directory.stay(slots)
        assert (len(shelf.slots), shelf.leaving, shelf.bytes_here, shelf.timed) == (300, {}, 300 * SMALL, 300)
        await world.store.empty(ANY_LENGTH)
        assert (len(directory), shelf.leaving, shelf.bytes_here, shelf.timed) == (0, {}, 0, 0)

    run(test, tmp_path)


def test_a_listing_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LISTINGS_MAX", 1)

    async def test(world: Blocks) -> None:
        blocks = small(0, 500)
        await world.put_ok(blocks, namespace=ANY_LENGTH)
        keys = sorted(blocks)

        async def page(after: bytes, count: int = 100) -> list[bytes]:
            found, more = await listed(world, after, count)
            assert more == (bool(found) and found[-1] != keys[-1])
            return found

        listings = world.blocks._listings
        assert await page(b"") == keys[:100]
        (kept,) = listings._listings.values()
        await world.delete(keys[100:250], namespace=ANY_LENGTH)
        assert await page(keys[99]) == keys[250:300], "those of this page that are still there"
        assert await page(keys[199]) == keys[250:300]
        assert [*listings._listings.values()] == [kept], "nothing was sorted twice"
        assert await page(keys[99], 10) == keys[250:260], "whole pages that are gone are passed over"
        assert await page(keys[489]) == keys[490:]
        assert not listings._listings, "it came to its end"
        assert await page(keys[299]) == keys[300:400], "one that was forgotten begins anew"
        assert await page(b"\xff" * 32) == []

    run(test, tmp_path)


def test_a_listing_that_nobody_goes_on_with_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LISTING_SECONDS", 0.05)

    async def test(world: Blocks) -> None:
        await world.put_ok(blocks := small(0, 500), namespace=ANY_LENGTH)
        for _ in range(2):
            await listed(world, b"", 100)
            async with asyncio.timeout(60):
                while world.blocks._listings._listings:
                    await asyncio.sleep(0.01)
        assert await listed(world, sorted(blocks)[99], 10) == (sorted(blocks)[100:110], True)

    run(test, tmp_path)


async def listed(world: Blocks, after: bytes, count: int) -> tuple[list[bytes], bool]:
    """A page of the listing, and whether there is more."""
    where: dict[str, Any] = {"namespace": ANY_LENGTH, "chain": 1, "chain_version": 1}
    request = kvcache_pb2.ListBlocksRequest(**where, after=after, blocks_max=count)
    reply = await world.call(KVCACHE.ListBlocks, request)
    return [reply.keys[at : at + 32] for at in range(0, len(reply.keys), 32)], reply.more


def test_dropped_namespaces_and_tenants_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emberfs.storage.blocks.evictor.DROPPED_SECONDS", 0.0)

    async def test(world: Blocks) -> None:
        await world.put_ok(small(0, 20), namespace=ANY_LENGTH)
        evictor, tenants = world.store.evictor, world.blocks._tenants
        number = tenants.names[TENANT]
        kept, world.namespaces = world.namespaces, []
        world.announce()
        world.routing.namespaces.clear()
        world.blocks.routing_changed()
        await settled(world)
        await settled(world)
        assert not world.store.directory.shelves and not len(world.store.directory)
        assert not tenants.names and not tenants.of_namespace and not evictor._tenant_of and not evictor._missing
        world.namespaces = kept
        world.announce()
        assert tenants.names[TENANT] > number, "numbers are not used again"
        await world.put_ok(small(0, 20), namespace=ANY_LENGTH)
        assert evictor.policy.bytes_of(tenants.names[TENANT]) > 0

    run(test, tmp_path)


def test_leases_cost_nothing_while_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    leases, holder = Leases(), Holder()
    monkeypatch.setattr(leasing, "CONNECTION_PART", 1)
    for number in range(1, 20_001):
        leases.take(number, [(number, 1)], 100.0 + number, holder)
    began = time.process_time()
    for _ in range(20_000):
        leases.expire(50.0)
    assert time.process_time() - began < 5.0
    leases.renew(1, 30_000.0)
    leases.expire(100.0 + 19_999)
    assert sorted(leases.held) == [1, 20_000]
    for number in range(100_000, 110_000):
        leases.take(number, [(7, 1)], 1e9, holder)
        leases.release(number)
    assert len(leases._ends) < 5000
    leases.expire(30_001.0)
    assert not leases.held
    assert holder == Holder()


def test_one_connection_does_not_take_all_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "BLOCKS_MAX", 32)

    async def test(world: Blocks) -> None:
        blocks = some(5)
        await world.put_ok(blocks)
        runs = world.runs(list(blocks), lease_ms=60_000, chain=[1, 1], chain_version=[1, 1], count=[1, 4])
        request = kvcache_pb2.MatchRequest(**runs)
        reply = await world.call(KVCACHE.Match, request)
        assert list(reply.present) == [1] * 5
        assert not reply.lease, "five are more than an eighth of 32"
        assert not world.store.leases.held, "what the first run took is given back"
        few = kvcache_pb2.MatchRequest(**world.runs(list(blocks)[:4], lease_ms=60_000))
        mine = (await world.call(KVCACHE.Match, few)).lease
        assert mine
        assert not (await world.call(KVCACHE.Match, few)).lease
        leases = world.store.leases
        assert leases.take(1, [(0, 1)] * 4, 1e9, Holder()), "another connection has its own part"
        await world.touch([], "RELEASE", lease=mine)
        assert (await world.call(KVCACHE.Match, few)).lease

    run(test, tmp_path)


def test_a_lease_of_several_runs_on_one_chain_ends(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        blocks = some(4)
        await world.put_ok(blocks)
        runs = world.runs(list(blocks), lease_ms=60_000, chain=[1, 1], chain_version=[1, 1], count=[1, 3])
        reply = await world.call(KVCACHE.Match, kvcache_pb2.MatchRequest(**runs))
        assert await world.delete(list(blocks)) == [Status.BUSY_RESOURCE] * 4
        assert (await world.touch([], "RELEASE", lease=reply.lease)) in ([], [OK])
        assert not world.store.leases.held
        assert await world.delete(list(blocks)) == [OK] * 4

    run(test, tmp_path)


def test_blocks_that_come_and_go_leave_nothing_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "EXPIRING_SLACK", 10)
    monkeypatch.setattr(tiers, "QUEUE_SLACK", 10)

    async def test(world: Blocks) -> None:
        blocks = some(20)
        directory, tier = world.store.directory, world.store.tier
        for _ in range(20):
            await world.put_ok(blocks, ttl_s=[100_000] * len(blocks))
            assert await world.touch(list(blocks), "TTL", 200_000) == [OK] * 20
            assert await world.delete(list(blocks)) == [OK] * 20
        slots = len(directory.state)
        assert slots <= 40
        assert sum(map(len, directory._expiring.values())) == directory._times <= 2 * slots + 11
        assert len(tier._queue) <= 2 * slots + 10 + len(blocks)
        assert not tier.used
        await world.put_ok(blocks, ttl_s=[100_000] * len(blocks))
        directory._forget_times()
        assert sorted(directory.over(time.time() + 100_100)) == sorted(directory.shelf(NAMESPACE).slots.values())
        assert tier.used == len(blocks) * BLOCK

    run(test, tmp_path)


def test_files_do_not_write_where_blocks_live(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        world.untrust()
        assert await world.write(b"x" * 4096, capabilities=[world.capability(5)]) is Status.INVALID
        assert world.open[0].engine.space_info().chunks == 0

    run(test, tmp_path)


def test_many_puts_at_once_do_not_pass_a_quota(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        length, share = 1 << 20, 8 << 20
        world.quotas = {TENANT: share}
        world.announce()
        puts = [world.put({key(n): content(n, length)}, namespace=ANY_LENGTH) for n in range(40)]
        replies = await asyncio.gather(*puts)
        assert {status for reply in replies for status in reply.status} == {Status.WOULD_BLOCK}
        assert 1 <= sum(not reply.status for reply in replies) <= share // length
        assert not world.store.evictor._coming
        await settled(world)
        await world.put_ok({key(99): content(99, length)}, namespace=ANY_LENGTH)

    run(test, tmp_path)
