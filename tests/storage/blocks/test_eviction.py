"""What makes blocks go: too many of them, quotas, time, deletes; and what keeps them: pins, leases, reads that are under way."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from emberfs.proto.blocks import HARD_PIN
from emberfs.proto.errors import Status
from emberfs.proto.gen import kvcache_pb2
from emberfs.proto.rpc import KVCACHE

from .test_service import run
from .world import ANY_LENGTH, NAMESPACE, TENANT, Blocks, content, key, namespaces

OK = Status.OK
LARGE = 1 << 20
SMALL_TARGET = 64 << 20


async def settled(world: Blocks) -> None:
    """Until nothing is evicted any more, and slots are back."""
    await world.store.evictor.settle()


async def put_all(world: Blocks, numbers: range, length: int = LARGE, **more: Any) -> None:
    """One after the other, as often as it takes; every one is acknowledged."""
    for number in numbers:
        async with asyncio.timeout(60):
            while True:
                reply = await world.put({key(number): content(number, length)}, namespace=ANY_LENGTH, **more)
                if not reply.status:
                    break
                assert list(reply.status) == [Status.WOULD_BLOCK], Status(reply.status[0]).name
                await settled(world)


def test_more_blocks_than_there_is_room_for(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await put_all(world, range(200))
        await settled(world)
        here = await world.match([key(n) for n in range(200)], namespace=ANY_LENGTH)
        assert 20 < sum(here) < 64
        assert here[199] == 1
        found = await world.get([key(n) for n in range(200)], LARGE, namespace=ANY_LENGTH)
        for number, (there, got) in enumerate(zip(here, found, strict=True)):
            assert got == (content(number, LARGE) if there else Status.NOT_FOUND)
        shelf = world.store.directory.shelf(ANY_LENGTH)
        assert shelf.evictions == 200 - sum(here)
        used = world.open[0].engine.space_info()
        assert used.used - used.reclaimable == sum(here) * LARGE

    run(test, tmp_path, capacity=SMALL_TARGET)


def test_what_was_evicted_stays_so_and_the_rest_is_there_after_a_restart(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await put_all(world, range(150))
        await settled(world)
        here = await world.match([key(n) for n in range(150)], namespace=ANY_LENGTH)
        await world.restart(clean=False)
        assert await world.match([key(n) for n in range(150)], namespace=ANY_LENGTH) == here
        await put_all(world, range(150, 200))

    run(test, tmp_path, capacity=SMALL_TARGET)


def test_pinned_blocks_stay(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await put_all(world, range(4), pin_s=HARD_PIN)
        await put_all(world, range(4, 8))
        pin = {"namespace": ANY_LENGTH}
        assert await world.touch([key(4), key(5), key(77)], "PIN", 3600, **pin) == [OK, OK, Status.NOT_FOUND]
        await put_all(world, range(10, 150))
        await settled(world)
        assert await world.match([key(n) for n in range(6)], namespace=ANY_LENGTH) == [1] * 6
        await world.restart(clean=False)
        await put_all(world, range(200, 300))
        await settled(world)
        assert await world.match([key(n) for n in range(6)], namespace=ANY_LENGTH) == [1] * 6
        usage = await world.usage()
        assert usage.pinned_bytes[list(usage.namespace).index(ANY_LENGTH)] == 6 * LARGE
        assert await world.touch([key(n) for n in range(6)], "UNPIN", **pin) == [OK] * 6
        assert sum((await world.usage()).pinned_bytes) == 0

    run(test, tmp_path, capacity=SMALL_TARGET)


def test_a_pin_changes_neither_bytes_nor_generation(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        reply = await world.put({key(1): content(1)})
        assert await world.touch([key(1)], "PIN", HARD_PIN) == [OK]
        assert await world.get([key(1)], generation=reply.generation) == [content(1)]
        await world.restart(clean=False)
        assert await world.get([key(1)], generation=reply.generation) == [content(1)]
        assert await world.delete([key(1)]) == [OK]
        again = await world.put({key(1): content(1)})
        assert again.generation[0] > reply.generation[0] + 1, "a number of the removed chunk was used again"

    run(test, tmp_path)


def test_pins_leave_half_of_a_target_to_others(tmp_path: Path) -> None:
    half = SMALL_TARGET // LARGE // 2

    async def test(world: Blocks) -> None:
        pinned, more = [key(n) for n in range(half)], {key(99): content(99, LARGE)}
        there: dict[str, Any] = {"namespace": ANY_LENGTH}
        await put_all(world, range(half), pin_s=HARD_PIN)
        assert list((await world.put(more, pin_s=1, **there)).status) == [Status.QUOTA_EXCEEDED]
        await put_all(world, range(200, 250))
        assert await world.touch([key(249)], "PIN", 60, **there) == [Status.QUOTA_EXCEEDED]
        assert await world.touch(pinned, "PIN", 60, **there) == [OK] * half, "no more than before"
        await world.restart(clean=False)
        assert list((await world.put(more, pin_s=1, **there)).status) == [Status.QUOTA_EXCEEDED]
        assert await world.touch(pinned[:1], "UNPIN", **there) == [OK]
        await put_all(world, range(99, 100), pin_s=1)
        assert await world.delete(pinned[1:2], **there) == [OK]
        await put_all(world, range(101, 102), pin_s=1)
        assert sum(world.store.directory.pinned.values()) == half * LARGE
        world.env.wall_ns = lambda: time.time_ns() + 3600 * 10**9  # type: ignore[method-assign]
        world.store.evictor._pins_looked = float("-inf")
        await put_all(world, range(300, 300 + half), pin_s=HARD_PIN)  # the others are over
        assert sum(world.store.directory.pinned.values()) == half * LARGE

    run(test, tmp_path, capacity=SMALL_TARGET)


def test_many_pins_at_once_do_not_pass_the_limit(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        puts = [world.put({key(n): content(n, LARGE)}, namespace=ANY_LENGTH, pin_s=HARD_PIN) for n in range(60)]
        done = sum(not reply.status for reply in await asyncio.gather(*puts))
        assert 1 <= done <= SMALL_TARGET // LARGE // 2
        assert sum(world.store.directory.pinned.values()) == done * LARGE

    run(test, tmp_path, capacity=SMALL_TARGET)


def test_leased_blocks_stay_until_the_lease_is_over(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await put_all(world, range(3))
        leased = [key(n) for n in range(3)]
        request = kvcache_pb2.MatchRequest(**world.runs(leased, namespace=ANY_LENGTH, lease_ms=60_000))
        lease = (await world.call(KVCACHE.Match, request)).lease
        assert lease
        assert await world.delete([key(0)], namespace=ANY_LENGTH) == [Status.BUSY_RESOURCE]
        await put_all(world, range(10, 150))
        await settled(world)
        assert await world.match(leased, namespace=ANY_LENGTH) == [1, 1, 1]
        renewal = {"namespace": ANY_LENGTH, "lease": lease, "chain": [], "chain_version": [], "count": []}
        assert await world.touch([], "RENEW", **renewal, lease_ms=60_000) == []
        assert await world.touch([], "RELEASE", **renewal) == []
        reply = await world.call(KVCACHE.Touch, kvcache_pb2.TouchRequest(**world.runs([], **renewal, action="RELEASE")))
        assert list(reply.status) == [Status.NOT_FOUND]
        assert await world.delete(leased, namespace=ANY_LENGTH) == [OK] * 3

    run(test, tmp_path, capacity=SMALL_TARGET)


def test_a_lease_ends_by_itself(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await put_all(world, range(1))
        request = kvcache_pb2.MatchRequest(**world.runs([key(0)], namespace=ANY_LENGTH, lease_ms=1))
        await world.call(KVCACHE.Match, request)
        async with asyncio.timeout(60):
            while await world.delete([key(0)], namespace=ANY_LENGTH) != [OK]:
                await asyncio.sleep(0.005)

    run(test, tmp_path)


def test_blocks_whose_time_is_over(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        clock = Clock(world)
        await world.put_ok({key(1): content(1), key(2): content(2), key(3): content(3)}, ttl_s=[10, 100, 0])
        assert await world.touch([key(3)], "TTL", 50) == [OK]
        clock.advance(11)
        assert await world.match([key(1), key(2), key(3)]) == [0, 1, 1]
        assert await world.get([key(1)]) == [Status.NOT_FOUND]
        # A new one under the same key before the old one was taken away.
        reply = await world.put({key(1): content(1)})
        assert (list(reply.existed), list(reply.status)) == ([], [])
        assert await world.get([key(1)]) == [content(1)]
        clock.advance(60)
        await settled(world)
        assert len(world.store.directory) == 2
        assert world.store.directory.shelf(NAMESPACE).expired == 1
        await world.restart(clean=False)
        clock = Clock(world, 200)
        await settled(world)
        assert await world.match([key(1), key(2), key(3)]) == [1, 0, 0]
        assert world.open[0].engine.space_info().chunks == 1

    run(test, tmp_path)


def test_the_namespace_says_how_long_blocks_live(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        clock = Clock(world)
        await world.put_ok({key(1): content(1), key(2): content(2)}, ttl_s=[0, 1000])
        clock.advance(31)
        assert await world.match([key(1), key(2)]) == [0, 1]

    made = namespaces()
    made[0].ttl_s = 30
    run(test, tmp_path, namespaces=made)


class Clock:
    """A wall clock for a world, that goes when it is told to."""

    def __init__(self, world: Blocks, ahead: int = 0) -> None:
        self.now = 1_800_000_000 + ahead
        world.env.wall_ns = lambda: self.now * 1_000_000_000  # type: ignore[method-assign]

    def advance(self, seconds: int) -> None:
        self.now += seconds


def test_a_tenant_over_its_quota_evicts_its_own(tmp_path: Path) -> None:
    other = namespaces()
    for number in (0, 1):
        other[number].tenant = f"tenant {number}"

    async def test(world: Blocks) -> None:
        await world.put_ok({key(n): content(n) for n in range(100)})
        await put_all(world, range(60))
        await settled(world)
        here = await world.match([key(n) for n in range(60)], namespace=ANY_LENGTH)
        assert 5 <= sum(here) <= 8
        assert sum(await world.match([key(n) for n in range(100)])) == 100
        reply = await world.put({key(99): content(1, 9 << 20)}, namespace=ANY_LENGTH)
        assert list(reply.status) == [Status.QUOTA_EXCEEDED]

    run(test, tmp_path, namespaces=other, quotas={"tenant 1": 8 * LARGE})


def test_pins_take_half_of_a_quota(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        status = OK
        for number in range(30):
            reply = await world.put({key(number): content(1, LARGE)}, namespace=ANY_LENGTH, pin_s=HARD_PIN)
            status = Status(reply.status[0]) if reply.status else OK
            await settled(world)
        assert status is Status.QUOTA_EXCEEDED
        assert sum(await world.match([key(n) for n in range(30)], namespace=ANY_LENGTH)) == 4

    run(test, tmp_path, quotas={TENANT: 8 * LARGE})


def test_a_quota_is_shared_by_the_chains_of_the_table(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        reply = await world.put({key(1): content(1, 5 * LARGE)}, namespace=ANY_LENGTH)
        assert list(reply.status) == [Status.QUOTA_EXCEEDED]
        await put_all(world, range(4))

    run(test, tmp_path, quotas={TENANT: 8 * LARGE}, targets=2)


def test_bytes_that_are_on_their_way_are_those_of_the_block(tmp_path: Path) -> None:
    """Eviction during a read: slots are used again only after the reader left."""

    async def test(world: Blocks) -> None:
        await put_all(world, range(30))
        stop = asyncio.Event()

        async def read() -> int:
            rounds = 0
            while not stop.is_set():
                keys = [key(n) for n in range(30)]
                found = await world.get(keys, LARGE, namespace=ANY_LENGTH)
                for number, got in enumerate(found):
                    assert got in (content(number, LARGE), Status.NOT_FOUND)
                rounds += 1
            return rounds

        readers = [asyncio.create_task(read()) for _ in range(2)]
        await put_all(world, range(100, 160))
        stop.set()
        assert all(await asyncio.gather(*readers))

    run(test, tmp_path, capacity=SMALL_TARGET)


def test_blocks_of_a_namespace_that_was_dropped(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await world.put_ok({key(1): content(1)})
        await put_all(world, range(2))
        world.namespaces = world.namespaces[1:]
        world.announce()
        evictor = world.store.evictor
        await settled(world)
        assert len(world.store.directory) == 3, "it may be news that has not come yet"
        evictor._missing[NAMESPACE] = float("-inf")  # a minute later
        await settled(world)
        assert len(world.store.directory) == 2
        assert world.open[0].engine.space_info().chunks == 2
        assert await world.match([key(0), key(1)], namespace=ANY_LENGTH) == [1, 1]

    run(test, tmp_path)


def test_an_evicted_block_can_be_put_again(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await put_all(world, range(120))
        await settled(world)
        here = await world.match([key(n) for n in range(120)], namespace=ANY_LENGTH)
        gone = here.index(0)
        await put_all(world, range(gone, gone + 1))
        assert await world.get([key(gone)], LARGE, namespace=ANY_LENGTH) == [content(gone, LARGE)]

    run(test, tmp_path, capacity=SMALL_TARGET)
