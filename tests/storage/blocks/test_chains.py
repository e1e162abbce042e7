"""Blocks on chains of several members: every member has bytes, row and directory, also one that was away."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from emberfs.proto.blocks import HARD_PIN, TABLE_OF_BLOCKS, chunk_of, seed_of
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import kvcache_pb2, storage_pb2
from emberfs.proto.ids import ChunkId
from emberfs.proto.routing import Change
from emberfs.proto.rpc import KVCACHE, STORAGE
from emberfs.proto.transport.local import LocalNetwork
from emberfs.storage.blocks.service import KvCacheService

from ..members import CAPACITY, OFFLINE, SECONDS, SERVING, SYNCING, Member, Members, holdings
from ..world import memory
from .world import ANY_LENGTH, content, digest, key, namespaces

OK = Status.OK
LENGTH = 20_000


class Replicated(Members):
    """Members with the service of blocks."""

    capacity = CAPACITY

    async def start(self) -> Replicated:
        self.network = LocalNetwork()
        paths = [self.root / f"target-{n + 1}" for n in range(self.count)]
        self.members = [Member(n + 1, path, self.network, self.log, self.capacity) for n, path in enumerate(paths)]
        for member in self.members:
            await member.start()
        self.env = AioEnvironment(local=self.network)
        return self

    async def serve(self) -> None:
        for member in self.members:
            if member.running:
                await self.serve_one(member)

    async def serve_one(self, member: Member) -> None:
        member.target.table = TABLE_OF_BLOCKS
        blocks = KvCacheService(member.routing, member.service, member.env, member.log)
        member.blocks = blocks  # type: ignore[attr-defined]
        member.address = member.network.serve(f"storage-{member.number}", [member.service, blocks])

    def announce(self, *states: int, **more: Any) -> None:
        super().announce(*states, **more)
        for member in self.members:
            if member.running:
                member.routing.namespaces.update({n.id: n for n in namespaces()})
                member.service.routing_changed(Change(any=True))

    def runs(self, keys: Sequence[bytes], **more: Any) -> dict[str, Any]:
        made = {"namespace": ANY_LENGTH, "chain": [1], "chain_version": [self.version], "count": [len(keys)]}
        return {**made, "keys": b"".join(keys), **more}

    async def put(self, numbers: Sequence[int], length: int = LENGTH, **more: Any) -> list[Status]:
        """At the head."""
        blocks = [content(n, length) for n in numbers]
        columns = {"checksum": [crc32c(b) for b in blocks], "length": [length] * len(blocks), **more}
        request = kvcache_pb2.PutRequest(**self.runs([key(n) for n in numbers], **columns))
        reply = await self.attempt(KVCACHE.Put, request, source=[memory(b"".join(blocks))])
        return [Status(status) for status in reply.status or [0] * len(blocks)]

    async def get(self, number: int, numbers: Sequence[int], length: int = LENGTH) -> list[Status | bool]:
        """From one member: whether each is what it should be, or why it did not come."""
        into = memory(length * len(numbers))
        request = kvcache_pb2.GetRequest(**self.runs([key(n) for n in numbers], length=[length] * len(numbers)))
        reply = await self.call(self.members[number - 1], KVCACHE.Get, request, target=[into])
        found: list[Status | bool] = []
        for i, n in enumerate(numbers):
            if reply.status and reply.status[i]:
                found.append(Status(reply.status[i]))
                continue
            data = bytes(into.view[i * length : (i + 1) * length])
            right = crc32c(data, seed_of(digest(ANY_LENGTH), key(n), reply.generation[i])) == reply.checksum[i]
            found.append(right and data == content(n, length))
        return found

    async def delete(self, numbers: Sequence[int]) -> None:
        request = kvcache_pb2.DeleteRequest(**self.runs([key(n) for n in numbers]))
        reply = await self.call(self.head, KVCACHE.Delete, request)
        assert not reply.status

    def records(self, number: int) -> dict[bytes, Any]:
        """What a member's directory says, by key."""
        directory = self.members[number - 1].target.directory
        shelf = directory.shelf(ANY_LENGTH)
        assert not shelf.leaving
        return {k: (directory.record(slot), directory.length[slot]) for k, slot in shelf.slots.items()}


def run(test: Callable[[Replicated], Awaitable[None]], root: Path, count: int = 2, capacity: int = CAPACITY) -> None:
    async def begin() -> None:
        members = Replicated(root, count)
        members.capacity = capacity
        await members.start()
        await members.serve()
        try:
            await test(members)
        finally:
            await members.stop()

    asyncio.run(begin())


def test_every_member_has_it_and_answers(tmp_path: Path) -> None:
    async def test(members: Replicated) -> None:
        members.announce(SERVING, SERVING, SERVING)
        assert await members.put(range(10), depth=list(range(10)), pin_s=HARD_PIN) == [OK] * 10
        for number in (1, 2, 3):
            assert await members.get(number, range(11)) == [True] * 10 + [Status.NOT_FOUND]
            assert members.records(number) == members.records(1)
        assert [r.depth for r, _ in members.records(3).values()] == list(range(10))
        await members.delete([3])
        for number in (1, 2, 3):
            assert (await members.get(number, [3, 4])) == [Status.NOT_FOUND, True]

    run(test, tmp_path, 3)


def test_changes_enter_at_the_head(tmp_path: Path) -> None:
    async def test(members: Replicated) -> None:
        members.announce(SERVING, SERVING)
        request = kvcache_pb2.PutRequest(**members.runs([key(1)], checksum=[1], length=[10]))
        reply = await members.call(members.members[1], KVCACHE.Put, request, source=[memory(10)])
        assert list(reply.status) == [Status.STALE_ROUTING]
        reply = await members.call(
            members.members[1], KVCACHE.Delete, kvcache_pb2.DeleteRequest(**members.runs([key(1)]))
        )
        assert list(reply.status) == [Status.STALE_ROUTING]
        request = kvcache_pb2.MatchRequest(**members.runs([key(1)], lease_ms=100))
        assert list((await members.call(members.members[1], KVCACHE.Match, request)).run_status) == [
            Status.STALE_ROUTING
        ]

    run(test, tmp_path)


def test_a_member_returns(tmp_path: Path) -> None:
    async def test(members: Replicated) -> None:
        members.announce(SERVING, SERVING)
        assert await members.put(range(20)) == [OK] * 20
        members.announce(SERVING, OFFLINE)
        await members.members[1].kill()
        await members.delete([1, 2, 3])
        assert await members.put(range(20, 40), depth=[7] * 20) == [OK] * 20
        await members.members[1].start()
        await members.serve_one(members.members[1])
        members.announce(SERVING, SYNCING)
        assert await members.put(range(40, 50)) == [OK] * 10
        await members.synced(2)
        members.announce(SERVING, SERVING)
        assert await members.put([50]) == [OK]
        assert members.records(1) == members.records(2)
        assert len(members.records(2)) == 48
        # It becomes the head, and has nothing to read first.
        members.announce(OFFLINE, SERVING)
        await members.members[0].kill()
        assert await members.get(2, [0, 1, 25, 45, 50]) == [True, Status.NOT_FOUND, True, True, True]
        assert await members.put([1, 60]) == [OK, OK]
        await members.members[1].kill()
        await members.members[1].start()
        await members.serve_one(members.members[1])
        members.announce(OFFLINE, SERVING)
        assert len(members.records(2)) == 50
        assert await members.get(2, [1, 50, 60]) == [True] * 3

    run(test, tmp_path)


def test_a_chain_of_one_becomes_one_of_two_while_blocks_are_put(tmp_path: Path) -> None:
    async def test(members: Replicated) -> None:
        members.announce(SERVING, order=(1,))
        await members.put(range(5))
        work = [asyncio.create_task(members.put(range(n, n + 5), 300_000)) for n in range(100, 160, 5)]
        await asyncio.sleep(0)
        members.announce(SERVING, SYNCING)
        results = [status for task in work for status in await task]
        assert {*results} <= {OK, Status.STALE_CHAIN_VERSION, Status.WOULD_BLOCK}
        await members.synced(2)
        members.announce(SERVING, SERVING)
        assert members.records(1) == members.records(2)
        assert holdings(members.members[0].engine)["chunks"] == holdings(members.members[1].engine)["chunks"]

    run(test, tmp_path)


async def put_until(members: Replicated, number: int, length: int) -> None:
    """As a client: again at whoever is the head, until it is acknowledged."""
    while True:
        with suppress(StatusError):
            if await members.put([number], length) == [OK]:
                return
        await asyncio.sleep(0.01)


async def delete_until(members: Replicated, number: int) -> None:
    while True:
        request = kvcache_pb2.DeleteRequest(**members.runs([key(number)]))
        with suppress(StatusError):
            statuses = list((await members.attempt(KVCACHE.Delete, request)).status)
            if statuses in ([], [Status.NOT_FOUND]):
                return
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(2))
def test_heads_move_while_blocks_are_put_and_deleted(tmp_path: Path, seed: int) -> None:
    """One head after the other is deposed in the middle of puts (each of two clients at once) and deletes, killed or only told so, and
    comes back as the tail. What was acknowledged is on every member then, with its bytes, and under one generation; what was deleted is
    nowhere."""

    async def test(members: Replicated) -> None:
        chance, order, numbers = random.Random(seed), [1, 2, 3], itertools.count()
        members.patience = 0.5
        members.announce(SERVING, SERVING, SERVING)
        there: dict[int, int] = {}
        for is_killed in (False, True, False):
            puts = {number: chance.choice((300, LENGTH, 300_000)) for number in itertools.islice(numbers, 20)}
            gone = [number for number in there if chance.random() < 0.3]
            work = [put_until(members, number, length) for _ in range(2) for number, length in puts.items()]
            tasks = [asyncio.ensure_future(each) for each in [*work, *(delete_until(members, n) for n in gone)]]
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            deposed = order.pop(0)
            if is_killed:
                await members.members[deposed - 1].kill()
            members.announce(SERVING, SERVING, OFFLINE, order=(*order, deposed))
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(*tasks)
            order.append(deposed)
            if is_killed:
                await members.members[deposed - 1].start()
                await members.serve_one(members.members[deposed - 1])
            members.announce(SERVING, SERVING, SYNCING, order=order)
            await members.synced(deposed)
            members.announce(SERVING, SERVING, SERVING, order=order)
            there = {number: length for number, length in (there | puts).items() if number not in gone}
            for member in order:
                assert members.records(member) == members.records(order[0])
                for length in {*there.values()}:
                    mine = [number for number, its in there.items() if its == length]
                    assert await members.get(member, mine, length) == [True] * len(mine)
                assert await members.get(member, gone) == [Status.NOT_FOUND] * len(gone)
            assert len(members.records(order[0])) == len(there)

    run(test, tmp_path, 3)


def test_a_damaged_block_is_repaired_from_the_other_member(tmp_path: Path) -> None:
    async def test(members: Replicated) -> None:
        members.announce(SERVING, SERVING)
        await members.put(range(3))
        damage(members.members[1], 1)
        assert await members.get(2, range(3)) == [True, False, True]
        await report(members, 2, 1)
        async with asyncio.timeout(SECONDS):
            while await members.get(2, range(3)) != [True] * 3:
                await asyncio.sleep(0.01)
        assert members.records(1) == members.records(2)

    run(test, tmp_path)


def test_a_damaged_block_without_another_replica_is_dropped(tmp_path: Path) -> None:
    async def test(members: Replicated) -> None:
        members.announce(SERVING, order=(1,))
        await members.put(range(3))
        damage(members.members[0], 1)
        assert await members.get(1, range(3)) == [True, False, True]
        await report(members, 1, 1)
        async with asyncio.timeout(SECONDS):
            while await members.get(1, range(3)) != [True, Status.NOT_FOUND, True]:
                await asyncio.sleep(0.01)
        assert await members.put([1]) == [OK]
        assert await members.get(1, range(3)) == [True] * 3
        assert not members.members[0].target.damaged

    run(test, tmp_path, 1)


def test_eviction_on_every_member(tmp_path: Path) -> None:
    """The head evicts; the others follow, and none of them leaves its place because it is full."""

    async def test(members: Replicated) -> None:
        members.announce(SERVING, SERVING)
        evictor = members.members[0].blocks.store(members.members[0].target).evictor  # type: ignore[attr-defined]
        for number in range(100):
            async with asyncio.timeout(SECONDS):
                while (status := (await members.put([number], 1 << 20))[0]) is not OK:
                    assert status is Status.WOULD_BLOCK
                    for member in members.members:
                        await member.target.checkpoint()
                    await evictor.settle()
        await evictor.settle()
        records = members.records(1)
        assert 20 < len(records) < 64 and members.records(2) == records
        found = await members.get(2, range(100), 1 << 20)
        assert {*found} == {True, Status.NOT_FOUND} and found.count(True) == len(records)
        assert not any(member.target.fullness.is_aside for member in members.members)

    run(test, tmp_path, capacity=64 << 20)


def damage(member: Member, number: int) -> None:
    """One byte on disk."""
    directory, engine = member.target.directory, member.engine
    slot = directory.shelf(ANY_LENGTH).slots[key(number)]
    handle, offset = engine.space.place(directory.place[slot])
    byte = bytearray(1)
    engine.disk.preadv(handle, [byte], offset + 17, True)
    engine.disk.pwritev(handle, [bytes([byte[0] ^ 4])], offset + 17)


async def report(members: Replicated, number: int, block: int) -> None:
    name = ChunkId.unpack(chunk_of(ANY_LENGTH, key(block)))
    request = storage_pb2.ReportCorruptionRequest(
        chain=[1], target=[number], inode=[name.inode], index=[name.index], tenant=name.tenant
    )
    await members.call(members.members[number - 1], STORAGE.ReportCorruption, request)
