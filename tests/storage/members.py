"""Several storage services in this process, members of one chain: real engines, real handlers, the local transport. The test is the
manager: it says who is in which state, and every member that runs hears of it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import cluster_pb2, storage_pb2
from emberfs.proto.gen.common_pb2 import (
    TARGET_STATE_OFFLINE,
    TARGET_STATE_SERVING,
    TARGET_STATE_SYNCING,
    Chain,
    ChainMember,
)
from emberfs.proto.ids import channel_of
from emberfs.proto.routing import RoutingTable
from emberfs.proto.rpc import STORAGE, Method
from emberfs.proto.transport.local import LocalNetwork
from emberfs.storage.engine.engine import ChunkEngine
from emberfs.storage.engine.target import open_target
from emberfs.storage.events import Tick
from emberfs.storage.lease import Lease
from emberfs.storage.peers import Peers
from emberfs.storage.repair import Repairer
from emberfs.storage.resyncer import Resyncer, Share
from emberfs.storage.service import StorageService
from emberfs.storage.target import Target

from .world import World, memory

SERVING, SYNCING, OFFLINE = TARGET_STATE_SERVING, TARGET_STATE_SYNCING, TARGET_STATE_OFFLINE
CHUNK = 1 << 20
CAPACITY = 256 << 20
SECONDS = 60.0


class Member:
    """One storage process of one target, as far as it concerns chains."""

    def __init__(self, number: int, path: Path, network: LocalNetwork, log: Any, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.number = number
        self.path = path
        self.network = network
        self.log = log
        self.running = False

    async def start(self) -> None:
        self.pool = ThreadPoolExecutor(4)
        engine, found = open_target(str(self.path), cluster="c", capacity=self.capacity)
        self.env = AioEnvironment(local=self.network)
        self.lease = Lease()
        self.lease.renewed(self.env.now(), 3600)
        self.routing = RoutingTable()

        def blocking(work: Callable[..., Any], *arguments: Any) -> Any:
            return asyncio.get_running_loop().run_in_executor(self.pool, work, *arguments)

        self.target = Target(engine, str(self.path), found.incarnation, blocking, self.env, self.log, self.lease)
        peers = Peers(self.env, self.routing, "")
        self.repairer = Repairer(self.target, peers, self.env, self.log)
        self.resyncer = Resyncer(self.target, peers, self.env, self.log, Share(self.env, self.load))
        self.service = StorageService(self.routing, [self.target], self.env, self.log, self.lease)
        self.address = self.network.serve(f"storage-{self.number}", [self.service])
        self.incarnation = found.incarnation
        self.env.spawn(self._tick, "tick")
        self.running = True

    async def _tick(self) -> None:
        while True:
            await self.env.sleep(0.02)
            self.target.submit(Tick())

    def load(self) -> tuple[int, int]:
        counters = self.target.counters
        return counters.bytes_read + counters.bytes_written, counters.reads + counters.writes

    async def kill(self) -> None:
        """As kill -9: the lock of the target is given up, nothing else is done."""
        self.running = False
        self.network.stop(f"storage-{self.number}")
        await self.env.close()
        self.target.engine.failed = self.target.engine.failed or "killed"
        self.pool.shutdown(wait=True)
        self.target.engine.close()

    @property
    def engine(self) -> ChunkEngine:
        return self.target.engine


@dataclass
class Members:
    """Targets 1, 2, … of nodes 1, 2, … in chain 1."""

    root: Path
    count: int = 2
    log: Any = field(default_factory=lambda: structlog.get_logger("emberfs.test"))
    version: int = 0
    sequence: int = 0
    channels: dict[int, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )  # one operation at a time
    patience: float = (
        SECONDS  # of a change before it is tried again: a member that was killed does not break its connections here
    )

    async def start(self) -> Members:
        self.network = LocalNetwork()
        self.members = [Member(n + 1, self.root / f"target-{n + 1}", self.network, self.log) for n in range(self.count)]
        for member in self.members:
            await member.start()
        self.env = AioEnvironment(local=self.network)
        return self

    async def stop(self) -> None:
        for member in self.members:
            if member.running:
                await member.kill()
        await self.env.close()

    def announce(self, *states: int, order: Sequence[int] = (), full: Sequence[int] = ()) -> None:
        """The manager speaks: the members, in `order` (numbers), are in these states, under a new version; these are `full`."""
        self.version += 1
        chain = Chain(id=1, version=self.version)
        routing = cluster_pb2.Routing(version=self.version, cluster="c", capability_epoch=1, capability_key=b"k" * 32)
        for number, state in zip(order or range(1, self.count + 1), states, strict=True):
            member = self.members[number - 1]
            chain.members.append(ChainMember(target=number, node=number, state=state, incarnation=member.incarnation))
        for member in self.members:
            routing.targets.append(
                cluster_pb2.Target(
                    id=member.number,
                    node=member.number,
                    incarnation=member.incarnation,
                    full=member.number in full,
                )
            )
            routing.nodes.append(cluster_pb2.Node(id=member.number, addresses=[f"local:storage-{member.number}"]))
        routing.chains.append(chain)
        self.states = dict(zip(order or range(1, self.count + 1), states, strict=True))
        for member in self.members:
            if member.running:
                member.service.routing_changed(member.routing.apply(routing))

    @property
    def head(self) -> Member:
        return next(self.members[number - 1] for number, state in self.states.items() if state == SERVING)

    async def synced(self, number: int, seconds: float = SECONDS) -> None:
        """Until the member says that it holds everything of this chain version."""
        target = self.members[number - 1].target
        async with asyncio.timeout(seconds):
            while target.synced != self.version:
                await asyncio.sleep(0.01)

    # --- a client ---

    async def call(self, member: Member, method: Method, request: Any, **bulk: Any) -> Any:
        """Once: a machine that stops for a while is waited for."""
        return await self.env.call(Call(member.address, method, request, SECONDS, **bulk))

    async def attempt(self, method: Method, request: Any, **bulk: Any) -> Any:
        """One of several, at the head."""
        return await self.env.call(Call(self.head.address, method, request, self.patience, **bulk))

    async def write(self, index: int, data: bytes, *, offset: int = 0, inode: int = 5, truncate: int = 0) -> Status:
        """Through the head, until it is answered for good, under one sequence."""
        async with self.channels[channel_of(inode, index)], asyncio.timeout(SECONDS):
            self.sequence += 1
            piece = (inode, index, offset, data, self.sequence, None)
            while True:
                request = World.write_request([piece], 1, self.version)
                request.truncate_version[:] = [truncate]
                try:
                    reply = await self.attempt(STORAGE.Write, request, source=[memory(data)])
                except StatusError as failed:
                    status = failed.status
                else:
                    status = Status(reply.status[0])
                if status in (Status.OK, Status.STALE_TRUNCATE_VERSION, Status.CHECKSUM):
                    return status
                await asyncio.sleep(0.02)

    async def truncate(self, index: int, length: int, version: int, *, inode: int = 5) -> Status:
        async with self.channels[channel_of(inode, index)], asyncio.timeout(SECONDS):
            self.sequence += 1
            while True:
                request = storage_pb2.TruncateChunkRequest(
                    chain=[1], chain_version=[self.version], inode=[inode], index=[index], length=[length],
                    truncate_version=[version], channel=[channel_of(inode, index)], sequence=[self.sequence],
                    chunk_size=[CHUNK],
                )  # fmt: skip
                try:
                    status = Status((await self.attempt(STORAGE.Truncate, request)).status[0])
                except StatusError as failed:
                    status = failed.status
                if status in (Status.OK, Status.STALE_TRUNCATE_VERSION):
                    return status
                await asyncio.sleep(0.02)

    async def clone(
        self, source: tuple[int, int], made: tuple[int, int], limit: int = CHUNK, *, known: int = 0, truncate: int = 0
    ) -> Status:
        """Make the chunk `made` (inode, index) equal to `source`, under the truncate versions `known` of the source and `truncate`."""
        async with self.channels[channel_of(*made)], asyncio.timeout(SECONDS):
            self.sequence += 1
            while True:
                request = storage_pb2.CloneRequest(
                    chain=[1], chain_version=[self.version], source_inode=[source[0]], source_index=[source[1]],
                    source_truncate_version=[known], inode=[made[0]], index=[made[1]], length=[limit],
                    channel=[channel_of(*made)], sequence=[self.sequence], truncate_version=[truncate], chunk_size=[CHUNK],
                )  # fmt: skip
                try:
                    status = Status((await self.attempt(STORAGE.Clone, request)).status[0])
                except StatusError as failed:
                    status = failed.status
                if status in (Status.OK, Status.STALE_TRUNCATE_VERSION):
                    return status
                await asyncio.sleep(0.02)

    async def remove(self, first: int, last: int, *, inode: int = 5) -> None:
        async with asyncio.timeout(SECONDS):
            while True:
                request = storage_pb2.RemoveChunksRequest(
                    chain=[1], chain_version=[self.version], inode=[inode], first=[first], last=[last]
                )
                try:
                    reply = await self.attempt(STORAGE.Remove, request)
                    if not reply.status[0] and not reply.more[0]:
                        return
                except StatusError as failed:
                    assert failed.retryable or failed.status is Status.DEADLINE
                await asyncio.sleep(0.02)

    async def read(self, number: int, index: int, *, inode: int = 5) -> tuple[Status, bytes]:
        request = storage_pb2.ReadRequest(
            chain=[1], chain_version=[self.version], inode=[inode], index=[index], offset=[0], length=[CHUNK]
        )
        into = memory(CHUNK)
        reply = await self.call(self.members[number - 1], STORAGE.Read, request, target=[into])
        return Status(reply.status[0]), bytes(into.view[: reply.returned[0]])

    async def churn(self, rounds: int, seed: int, *, files: int = 4, indexes: int = 8) -> None:
        """Random writes, clones, truncates, removed files, new files; each seed has files of its own."""
        chance = random.Random(seed)
        fresh = itertools.count(seed * 1000 + 1)
        inodes = [next(fresh) for _ in range(files)]
        floors: dict[int, int] = {}
        for _ in range(rounds):
            which, index = chance.randrange(files), chance.randrange(indexes)
            inode, what = inodes[which], chance.random()
            if what < 0.15:
                other = inodes[chance.randrange(files)]
                known, truncate = floors.get(other, 0), floors.get(inode, 0)
                limit = chance.choice([CHUNK, 5000])
                source = (other, (index + 1) % indexes)
                await self.clone(source, (inode, index), limit, known=known, truncate=truncate)
            elif what < 0.75:
                data = chance.randbytes(chance.choice([100, 5000, 70_000, 300_000]))
                offset = chance.choice([0, 0, 4096, 50_000])
                await self.write(index, data, offset=offset, inode=inode, truncate=floors.get(inode, 0))
            elif what < 0.95:
                floors[inode] = floors.get(inode, 0) + 1
                await self.truncate(index, chance.choice([0, 1, 4096, 99_999]), floors[inode], inode=inode)
            else:
                await self.remove(0, indexes, inode=inode)
                inodes[which] = next(fresh)


def holdings(engine: ChunkEngine) -> dict[str, Any]:
    """All that a member holds, content included; what two equal members have in common."""
    chunks = {}
    for info in engine.chunks(b"", b"\xff" * 17):
        assert not info.pending
        content = bytes(engine.read(info.chunk))
        chunks[info.chunk] = (content, info.version, info.chain_version, info.truncate_version, info.checksum)
    records = engine.records(limit=100_000)
    return {"chunks": chunks, "receipts": records.receipts, "floors": records.floors}
