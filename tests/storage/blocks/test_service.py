"""The KvCache service over real engines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c as crc

from emberfs.proto.blocks import HARD_PIN, KV_TENANT, TABLE_OF_FILES
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import cluster_pb2, kvcache_pb2
from emberfs.proto.rpc import KVCACHE, STORAGE, Identity

from ..world import memory
from .world import ANY_LENGTH, BLOCK, NAMESPACE, Blocks, content, key

OK = Status.OK


def run(test: Callable[[Blocks], Awaitable[None]], root: Path, **more: Any) -> None:
    async def begin() -> None:
        world = await Blocks(root, **more).start()
        try:
            await test(world)
        finally:
            await world.stop()

    asyncio.run(begin())


def some(count: int, first: int = 0, length: int = BLOCK) -> dict[bytes, bytes]:
    return {key(n): content(n, length) for n in range(first, first + count)}


def test_what_was_put_is_matched_and_got(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        blocks = some(40)
        await world.put_ok(blocks)
        assert await world.match([*blocks, key(99)]) == [1] * 40 + [0]
        assert await world.get(list(blocks)) == list(blocks.values())

    run(test, tmp_path)


@pytest.mark.parametrize("missing", [0, 7, 15])
def test_a_miss_leaves_its_place_and_the_others_come(tmp_path: Path, missing: int) -> None:
    async def test(world: Blocks) -> None:
        blocks = some(16)
        gone = key(missing)
        await world.put_ok({k: v for k, v in blocks.items() if k != gone})
        found = await world.get(list(blocks))
        assert found == [Status.NOT_FOUND if k == gone else v for k, v in blocks.items()]
        assert await world.match(list(blocks)) == [int(k != gone) for k in blocks]

    run(test, tmp_path)


@pytest.mark.parametrize("length", [1, 100, 4096, 5000, 65_536, 300_000, 1 << 20, 4_497_408])
def test_blocks_of_any_length(tmp_path: Path, length: int) -> None:
    async def test(world: Blocks) -> None:
        blocks = some(3, length=length)
        await world.put_ok(blocks, namespace=ANY_LENGTH)
        reply = await world.call(
            KVCACHE.Match, kvcache_pb2.MatchRequest(**world.runs([*blocks, key(9)], namespace=ANY_LENGTH))
        )
        assert list(reply.length) == [length] * 3 + [0]
        assert await world.get(list(blocks), length, namespace=ANY_LENGTH) == list(blocks.values())
        assert await world.get([key(0)], length + 1, namespace=ANY_LENGTH) == [Status.TOO_LARGE]

    run(test, tmp_path)


def test_a_block_that_is_here_is_a_cheap_success(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await world.put_ok(some(4))
        used = world.open[0].engine.space_info().used
        reply = await world.put(some(6))
        assert (list(reply.existed), list(reply.status)) == ([1, 1, 1, 1, 0, 0], [])
        assert world.open[0].engine.space_info().used == used + 2 * BLOCK
        again = await world.put_many([key(8), key(8)], [content(8)] * 2)
        assert (list(again.existed), len(set(again.generation))) == ([0, 1], 1)

    run(test, tmp_path)


def test_bytes_of_blocks_that_are_known_to_be_here_need_not_travel(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await world.put_ok(some(2))
        keys = [key(0), key(5), key(9)]
        request = kvcache_pb2.PutRequest(**world.runs(keys, checksum=[0, crc(content(5)), 0], skip=[True, False, True]))
        reply = await world.call(KVCACHE.Put, request, source=[memory(content(5))])
        assert list(reply.status) == [OK, OK, Status.NOT_FOUND]
        assert await world.get(keys[:2]) == [content(0), content(5)]

    run(test, tmp_path)


def test_who_puts_the_same_block_at_the_same_time(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        big = some(8, length=600_000)
        replies = await asyncio.gather(*[world.put(big, namespace=ANY_LENGTH) for _ in range(6)])
        assert all(not reply.status for reply in replies)
        assert sorted(sum(reply.existed) for reply in replies) == [0, 8, 8, 8, 8, 8]
        assert len({tuple(reply.generation) for reply in replies}) == 1
        assert world.open[0].engine.space_info().chunks == 8

    run(test, tmp_path)


def test_the_first_putter_fails_and_the_second_does_it(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        data = content(1, 600_000)
        bad = world.put({key(1): data}, namespace=ANY_LENGTH, checksum=[1])
        good = world.put({key(1): data}, namespace=ANY_LENGTH)
        first, second = await asyncio.gather(bad, good)
        assert (list(first.status), list(second.status)) == ([Status.CHECKSUM], [])
        assert await world.get([key(1)], 600_000, namespace=ANY_LENGTH) == [data]

    run(test, tmp_path)


def test_a_put_with_the_wrong_checksum_or_length_leaves_nothing(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        checksums = [crc(content(0)), 1, crc(content(2))]
        reply = await world.put(some(3), checksum=checksums)
        assert list(reply.status) == [OK, Status.CHECKSUM, OK]
        assert await world.get([key(0), key(1), key(2)]) == [content(0), Status.NOT_FOUND, content(2)]
        reply = await world.put({key(7): b"too short", key(8): content(8)})
        assert list(reply.status) == [Status.TOO_LARGE, OK]
        info = world.open[0].engine.space_info()
        assert (info.chunks, info.used) == (3, 3 * BLOCK)

    run(test, tmp_path)


def test_killed_and_started_again(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        blocks = some(20)
        await world.put_ok(blocks)
        await world.put_ok(some(2, 50, 3 << 20), namespace=ANY_LENGTH)
        await world.delete([key(3)])
        await world.restart(clean=False)
        found = await world.get(list(blocks))
        assert found == [Status.NOT_FOUND if k == key(3) else v for k, v in blocks.items()]
        assert await world.get([key(50)], 3 << 20, namespace=ANY_LENGTH) == [content(50, 3 << 20)]
        reply = await world.put(blocks)
        assert sum(reply.existed) == 19
        assert await world.get([key(3)]) == [content(3)]

    run(test, tmp_path)


def test_deleted_blocks_are_gone_and_a_generation_is_never_used_twice(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        blocks = some(5)
        before = (await world.put(blocks)).generation
        assert await world.delete([key(1), key(1), key(77)]) == [OK, OK, Status.NOT_FOUND]
        assert await world.match(list(blocks)) == [1, 0, 1, 1, 1]
        after = await world.put(blocks)
        assert list(after.existed) == [1, 0, 1, 1, 1]
        assert after.generation[1] > before[1]
        stale = await world.get([key(1), key(2)], generation=[before[1], before[2]])
        assert stale == [Status.STALE_HANDLE, content(2)]

    run(test, tmp_path)


def test_everything_of_a_namespace(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await world.put_ok(some(30))
        await world.put_ok(some(1), namespace=ANY_LENGTH)
        request = kvcache_pb2.DeleteRequest(**world.runs([], count=[0], everything=True))
        reply = await world.call(KVCACHE.Delete, request)
        assert not reply.status
        assert await world.match([key(n) for n in range(30)]) == [0] * 30
        assert await world.match([key(0)], namespace=ANY_LENGTH) == [1]
        await world.put_ok(some(2))
        assert await world.get([key(0), key(1), key(2)]) == [content(0), content(1), Status.NOT_FOUND]

    run(test, tmp_path)


def test_parts_of_blocks(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        data = content(1, 200_000)
        await world.put_ok({key(1): data}, namespace=ANY_LENGTH)
        for offset, length in ((0, 200_000), (16_384, 32_768), (100, 50), (180_000, 20_000)):
            reply, into = await world.get_raw([key(1)], [length], offset=[offset], namespace=ANY_LENGTH)
            assert into == data[offset : offset + length]
            position = 0
            for checksum in reply.checksum:
                unit = reply.unit[0]
                size = length if len(reply.checksum) == 1 else min(unit - (offset + position) % unit, length - position)
                assert crc(into[position : position + size]) == checksum
                position += size
            assert position == length
        reply, _ = await world.get_raw([key(1)], [10], offset=[199_995], namespace=ANY_LENGTH)
        assert list(reply.status) == [Status.TOO_LARGE]

    run(test, tmp_path)


def test_no_keys_and_very_many(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        assert await world.match([]) == []
        assert await world.get([]) == []
        assert not (await world.put({})).status
        keys = [key(n) for n in range(4096)]
        await world.put_many(keys, [b"x"] * 4096, namespace=ANY_LENGTH)
        assert await world.match(keys, namespace=ANY_LENGTH) == [1] * 4096
        assert await world.get(keys, 1, namespace=ANY_LENGTH) == [b"x"] * 4096
        with pytest.raises(StatusError) as refused:
            await world.match([*keys, key(5000)])
        assert refused.value.status is Status.TOO_LARGE

    run(test, tmp_path)


@pytest.mark.parametrize(
    "columns",
    [
        {"count": [2]},
        {"count": [1, 1]},
        {"keys": b"x" * 31},
        {"chain": []},
        {"length": [BLOCK, BLOCK]},
        {"depth": [1, 2, 3]},
        {"checksum": []},
        {"ttl_s": [1, 1]},
        {"skip": [True, True]},
        {"count": [0xFFFFFFFF]},
    ],
)
def test_damaged_puts_are_refused(tmp_path: Path, columns: dict[str, Any]) -> None:
    async def test(world: Blocks) -> None:
        request = {**world.runs([key(1)]), "checksum": [1], "length": [BLOCK], **columns}
        with pytest.raises(StatusError) as refused:
            await world.call(KVCACHE.Put, kvcache_pb2.PutRequest(**request), source=[memory(content(1))])
        assert refused.value.status is Status.INVALID
        await world.put_ok(some(1))

    run(test, tmp_path)


def test_damaged_gets_are_refused(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await world.put_ok(some(1))
        for columns in ({"offset": [0, 0]}, {"generation": [1, 2]}, {"length": [1, 2]}, {"count": [5]}):
            request = {**world.runs([key(0)]), **columns}
            with pytest.raises(StatusError) as refused:
                await world.call(KVCACHE.Get, kvcache_pb2.GetRequest(**request), target=[memory(BLOCK)])
            assert refused.value.status is Status.INVALID
        with pytest.raises(StatusError):  # longer than what the client offers
            await world.call(
                KVCACHE.Get, kvcache_pb2.GetRequest(**world.runs([key(0)], length=[1 << 31])), target=[memory(BLOCK)]
            )
        reply, _ = await world.get_raw([key(0)], [4096], offset=[0xFFFFFFFF])
        assert list(reply.status) == [Status.TOO_LARGE]
        with pytest.raises(StatusError) as refused:
            await world.call(KVCACHE.Get, kvcache_pb2.GetRequest(**world.runs([key(0)], namespace=ANY_LENGTH)))
        assert refused.value.status is Status.INVALID

    run(test, tmp_path)


def test_more_or_less_bytes_than_announced(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        request = kvcache_pb2.PutRequest(**world.runs([key(1)], checksum=[crc(content(1))]))
        for data in (content(1) + b"x", content(1)[:-1], b""):
            with pytest.raises(StatusError) as refused:
                await world.call(KVCACHE.Put, request, source=[memory(data)])
            assert refused.value.status is Status.INVALID

    run(test, tmp_path)


def test_chains_that_changed_and_chains_of_others(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        world.announce(chain_version=7)
        request = kvcache_pb2.MatchRequest(
            **world.runs([key(1), key(2)], chain=[1, 9], chain_version=[1, 7], count=[1, 1])
        )
        reply = await world.call(KVCACHE.Match, request)
        assert list(reply.run_status) == [Status.STALE_CHAIN_VERSION, Status.STALE_ROUTING]
        assert [(c.id, c.version) for c in reply.chains] == [(1, 7)]
        reply = await world.put(some(1), chain_version=[1])
        assert (list(reply.status), reply.chains[0].version) == ([Status.STALE_CHAIN_VERSION], 7)
        reply, _ = await world.get_raw([key(1)], [BLOCK], chain_version=[1])
        assert (list(reply.status), reply.chains[0].version) == ([Status.STALE_CHAIN_VERSION], 7)
        await world.put_ok(some(1))

    run(test, tmp_path)


def test_runs_on_several_targets(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        keys, data = [key(n) for n in range(6)], [content(n) for n in range(6)]
        spread = {"chain": [2, 1, 2], "chain_version": [1, 1, 1], "count": [1, 3, 2]}
        reply = await world.put_many(keys, data, **spread)
        assert not reply.status
        assert [target.engine.space_info().chunks for target in world.open] == [3, 3]
        assert await world.get(keys, **spread) == data
        assert await world.match(keys) == [0, 1, 1, 1, 0, 0]

    run(test, tmp_path, targets=2)


def test_who_may_do_what(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await world.put_ok(some(1))
        peer = world.network.peer(world.env.credentials)

        async def refused(work: Awaitable[Any]) -> Status:
            try:
                await work
            except StatusError as failed:
                return failed.status
            return OK

        denied = Status.PERMISSION_DENIED
        for identity, read, write in (
            (Identity(1000, 1), OK, OK),
            (Identity(1, 100), OK, denied),
            (Identity(1, 1, (5, 100)), OK, denied),
            (Identity(1, 1), denied, denied),
        ):
            peer.identity = identity
            peer.attachments.clear()
            assert await refused(world.match([key(0)])) is read
            assert await refused(world.get([key(0)])) is read
            assert await refused(world.put(some(1))) is write
            assert await refused(world.touch([key(0)], "PIN", 5)) is write
            assert await refused(world.touch([key(0)], "TOUCH")) is read
            assert await refused(world.delete([key(9)])) is write
            assert list((await world.usage()).namespace) == ([NAMESPACE] if read is OK else [])

    run(test, tmp_path)


def test_a_namespace_that_nobody_knows(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        with pytest.raises(StatusError) as refused:
            await world.match([key(1)], namespace=99)
        assert refused.value.status is Status.NOT_FOUND

    run(test, tmp_path)


def test_a_namespace_that_was_registered_a_moment_ago(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        asked = 0

        async def refresh() -> None:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0)
            world.namespaces.append(cluster_pb2.KvNamespace(id=99, digest=bytes(32), block_bytes=BLOCK))
            world.announce()

        world.blocks._refresh = refresh
        assert await asyncio.gather(*[world.match([key(1)], namespace=99) for _ in range(5)]) == [[0]] * 5
        assert asked == 1
        for _ in range(3):
            with pytest.raises(StatusError):
                await world.match([key(1)], namespace=98)
        assert asked <= 2, "one that was dropped is not asked after each time"

    run(test, tmp_path)


def test_a_list_in_pages(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        numbers = range(25)
        await world.put_ok(some(25), depth=list(numbers), ttl_s=[0, *[5000] * 24])
        await world.touch([key(0)], "PIN", 100)
        found: dict[bytes, tuple[int, int, bool]] = {}
        after, pages = b"", 0
        while True:
            request = kvcache_pb2.ListBlocksRequest(
                namespace=NAMESPACE, chain=1, chain_version=1, after=after, blocks_max=7
            )
            page = await world.call(KVCACHE.ListBlocks, request)
            keys = [page.keys[at : at + 32] for at in range(0, len(page.keys), 32)]
            assert keys == sorted(keys) and list(page.length) == [BLOCK] * len(keys)
            found.update(zip(keys, zip(page.depth, page.ttl_s, page.pinned, strict=True), strict=True))
            pages += 1
            if not page.more:
                break
            after = keys[-1]
        assert pages == 4 and len(found) == 25
        assert found[key(0)] == (0, 0, True)
        assert {found[key(n)][0] for n in numbers} == set(numbers)
        assert all(4900 <= found[key(n)][1] <= 5000 and not found[key(n)][2] for n in numbers[1:])
        stale = kvcache_pb2.ListBlocksRequest(namespace=NAMESPACE, chain=1, chain_version=9)
        assert (await world.call(KVCACHE.ListBlocks, stale)).chains[0].version == 1

    run(test, tmp_path)


def test_chains_of_files_take_no_blocks_and_blocks_are_no_files(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        world.open[1].table = TABLE_OF_FILES
        other = {"chain": [2], "chain_version": [1]}
        assert list((await world.put(some(1), **other)).status) == [Status.STALE_ROUTING]
        assert list((await world.get_raw([key(0)], [BLOCK], **other))[0].status) == [Status.STALE_ROUTING]
        request = world.write_request([(1, 0, 0, b"x", 1, None)])
        request.tenant = KV_TENANT
        with pytest.raises(StatusError) as refused:
            await world.call(STORAGE.Write, request, source=[memory(b"x")])
        assert refused.value.status is Status.INVALID

    run(test, tmp_path, targets=2)


def test_a_pin_and_a_time_to_live_that_are_said_at_once_both_hold(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        keys = list(some(20))
        await world.put_ok(some(20))
        pinned, timed = await asyncio.gather(
            world.touch(keys, "PIN", HARD_PIN), world.touch(list(reversed(keys)), "TTL", 1000)
        )
        assert pinned == timed == [OK] * 20
        directory = world.store.directory
        slots = directory.find(directory.shelf(NAMESPACE), keys, 0)
        assert all(directory.pin[slot] == HARD_PIN for slot in slots)
        assert all(directory.expiry[slot] for slot in slots)

    run(test, tmp_path)


def test_touches_of_all_kinds_that_mean_nothing(tmp_path: Path) -> None:
    async def test(world: Blocks) -> None:
        await world.put_ok(some(1))
        with pytest.raises(StatusError) as refused:
            await world.call(KVCACHE.Touch, kvcache_pb2.TouchRequest(**world.runs([key(0)], action=77)))
        assert refused.value.status is Status.INVALID
        assert await world.touch([key(0), key(0), key(5)], "TOUCH") == [OK, OK, Status.NOT_FOUND]
        assert await world.touch([key(0)], "PIN", 0) == [OK], "a pin of no time"
        assert await world.touch([key(0)], "TTL", 0xFFFFFFFF) == [OK]
        assert await world.match([key(0)]) == [1]
        release = kvcache_pb2.TouchRequest(namespace=NAMESPACE, action="RELEASE", lease=0xFFFFFFFFFFFFFFFF)
        assert list((await world.call(KVCACHE.Touch, release)).status) == [Status.NOT_FOUND]

    run(test, tmp_path)
