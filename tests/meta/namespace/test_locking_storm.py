"""Many owners at two servers lock at random, give up, and vanish: what they believe to hold never conflicts, and nothing stays behind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from emberfs.meta import keys
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace import locks
from emberfs.meta.namespace.check import check
from emberfs.meta.namespace.locks import EXCLUSIVE, FLOCK, POSIX, SHARED, Lock, Table
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2

from .world import World

CLIENTS = 5
STEPS = 40  # of each client
FILES = 2
BYTES = 12
PATIENCE_MAX = 0.1  # seconds until a request is given up, or
STEPS_MAX = 80  # of the loop
HANG_SECONDS = 200.0


class Storm:
    """The clients, and what they believe: one table per inode, which must always be one that the rules allow."""

    def __init__(self, worlds: list[World], inodes: list[int], seed: int) -> None:
        self.worlds = worlds
        self.believed: dict[int, Table] = dict.fromkeys(inodes, ())
        self.chance = random.Random(seed)
        self.abandoned: dict[bytes, set[asyncio.Task[Any]]] = {}  # requests whose answers nobody waits for
        self.granted = self.given_up = self.deadlocks = 0

    async def work(self, client: bytes) -> None:
        chance = random.Random(self.chance.random())
        for _ in range(STEPS):
            await self.step(client, chance)

    async def leave(self, client: bytes) -> None:
        """Give everything back, or vanish: then it believes nothing before the server may give its locks to others."""
        if self.chance.random() < 0.5:
            for inode in self.believed:
                for kind in (POSIX, FLOCK):
                    for owner in (1, 2):
                        await self.release(inode, Lock(kind, client, owner, 0, 0, locks.OFFSET_END), self.chance)
            return
        for inode, table in self.believed.items():
            self.believed[inode] = locks.without_clients(table, [client])
        for world in self.worlds:
            world.namespace.client_ended(client)
        await self.worlds[0].namespace.clients.step()

    async def step(self, client: bytes, chance: random.Random) -> None:
        inode = chance.choice(list(self.believed))
        kind = chance.choice([POSIX, POSIX, FLOCK])
        start = 0 if kind == FLOCK else chance.randrange(BYTES)
        length = 0 if kind == FLOCK else chance.choice([0, 1, 3, BYTES])
        wanted = Lock(
            kind, client, chance.choice([1, 2]), chance.choice([SHARED, EXCLUSIVE]), *locks.span(start, length)
        )
        if chance.random() < 0.45:
            await self.release(inode, wanted, chance)
        else:
            await self.acquire(inode, wanted, chance)

    async def release(self, inode: int, unwanted: Lock, chance: random.Random, withdraw: int = 0) -> None:
        self.believed[inode] = locks.release(self.believed[inode], unwanted)
        request = self.request(inode, unwanted, meta_pb2.LOCK_TYPE_UNLOCK)
        request.withdraw = withdraw
        await self.ask(request, unwanted.client, chance)

    async def acquire(self, inode: int, wanted: Lock, chance: random.Random) -> None:
        # What the lock replaces is not counted on while nobody knows how the request ends.
        before = locks.of_owner(self.believed[inode], wanted.kind, wanted.whose)
        self.believed[inode] = locks.release(self.believed[inode], wanted)
        request = self.request(inode, wanted, wanted.type)
        request.number, request.wait = chance.getrandbits(63) | 1, chance.random() < 0.5
        try:
            reply = await self.patiently(self.ask(request, wanted.client, chance), chance)
        except StatusError as refused:
            assert refused.status in (Status.WOULD_BLOCK, Status.DEADLOCK), refused
            self.deadlocks += refused.status is Status.DEADLOCK
            self.restore(inode, before)
            return
        except TimeoutError:
            self.given_up += 1
            await self.release(inode, wanted, chance, withdraw=request.number)
            await asyncio.gather(*self.abandoned.pop(wanted.client, ()), return_exceptions=True)
            held = (await self.tables())[inode]
            assert set(locks.of_owner(tuple(held), wanted.kind, wanted.whose)) == set(
                locks.of_owner(self.believed[inode], wanted.kind, wanted.whose)
            )
            return
        if reply.waiting:
            self.restore(inode, before)
        else:
            self.granted += 1
            self.believe(inode, wanted)

    async def patiently(self, asking: Coroutine[Any, Any, Any], chance: random.Random) -> Any:
        """The answer, unless that takes too long: a few steps of others, or a while. Raises TimeoutError."""
        if chance.random() < 0.5:
            return await asyncio.wait_for(asking, chance.random() * PATIENCE_MAX)
        task = asyncio.create_task(asking)
        for _ in range(chance.randrange(STEPS_MAX)):
            await asyncio.sleep(0)
        if not task.done():
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            raise TimeoutError from None

    def restore(self, inode: int, before: Table) -> None:
        """The lock was not granted: byte ranges are as they were, and a flock that was to be converted is lost."""
        for held in before:
            if held.kind == POSIX:
                self.believe(inode, held)

    async def tables(self) -> dict[int, set[Lock]]:
        """What is held in truth."""
        txn = self.worlds[0].engine.begin()
        return {inode: set(locks.unpack(await txn.get(keys.lock_key(inode), snapshot=True))) for inode in self.believed}

    def believe(self, inode: int, held: Lock) -> None:
        made = locks.acquire(self.believed[inode], held)
        assert not isinstance(made, Lock), f"{held} was granted beside {made}"
        self.believed[inode] = made

    def request(self, inode: int, lock: Lock, type_: Any) -> meta_pb2.LockRequest:
        length = 0 if lock.kind == FLOCK else locks.length_of(lock)
        start = 0 if lock.kind == FLOCK else lock.start
        request_id = self.worlds[0].request_id()
        return meta_pb2.LockRequest(
            request_id=request_id, inode=inode, kind=lock.kind, type=type_, owner=lock.owner, start=start, length=length
        )

    async def ask(self, request: meta_pb2.LockRequest, client: bytes, chance: random.Random) -> Any:
        """Mostly of one server, as clients do that agree on an owner; what was given up is cancelled there."""
        world = self.worlds[chance.random() < 0.1]
        if request.withdraw:
            for other in self.worlds:  # as a client that fails over, and then closes the file
                reply = await other.service.lock(request, other.context(client))
                request.request_id = self.worlds[0].request_id()
            return reply
        context = world.context(client)
        task = asyncio.create_task(world.service.lock(request, context))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # A broken connection is noticed sooner or later than the withdrawal comes in over another one.
            asyncio.get_running_loop().call_later(chance.choice([0, 0.02]), setattr, context, "cancelled", True)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self.abandoned.setdefault(client, set()).add(task)
            raise


@pytest.mark.parametrize("seed", range(4))
async def test_beliefs_never_conflict(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.1")
    envs: list[Any] = [AioEnvironment(), AioEnvironment()]
    chance = random.Random(seed)

    async def pause() -> None:  # in the middle of every transaction, as in real engines
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)

    first = await World(MemoryEngine(time.monotonic, pause), envs[0]).start()
    worlds = [first, await World(first.engine, envs[1]).start()]
    inodes = [(await first.touch(f"/f{number}", mode=0o666)).inode for number in range(FILES)]
    storm = Storm(worlds, inodes, seed)
    clients = [number.to_bytes(16, "big") for number in range(1, CLIENTS + 1)]
    await asyncio.wait_for(asyncio.gather(*map(storm.work, clients)), HANG_SECONDS)
    for world in worlds:  # requests that were given up end
        while world.namespace.locking.waiters.count:
            await asyncio.sleep(0.01)
    assert await storm.tables() == {inode: set(table) for inode, table in storm.believed.items()}
    assert storm.granted > CLIENTS * STEPS / 16
    assert storm.given_up
    for client in clients:
        await storm.leave(client)
    assert await storm.tables() == {inode: set() for inode in inodes}
    txn = first.engine.begin()
    assert await txn.scan(*keys.prefix_range(keys.LOCK_WAIT), 10, snapshot=True) == []
    assert await check(first.engine) == []
    for world, env in zip(worlds, envs, strict=True):
        await world.namespace.close()
        await env.close()
