"""A storage service in this process: real engines on a directory, chains of one, called over the local transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from crc32c import crc32c

from emberfs.proto.capability import Rights, issue
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.env import Call
from emberfs.proto.errors import Status
from emberfs.proto.gen import cluster_pb2, storage_pb2
from emberfs.proto.gen.common_pb2 import TARGET_STATE_SERVING, Chain, ChainMember
from emberfs.proto.ids import channel_of
from emberfs.proto.region import Region, Slice
from emberfs.proto.routing import RoutingTable
from emberfs.proto.rpc import STORAGE, Identity, Method
from emberfs.proto.transport.local import LocalNetwork
from emberfs.storage.engine.target import open_target
from emberfs.storage.service import StorageService
from emberfs.storage.target import Target

KEY = b"k" * 32
CHUNK = 1 << 20
CAPACITY = 256 << 20
SECONDS = 60.0  # of a call


def memory(data: bytes | int) -> Slice:
    """A region of its own, with these bytes or of this size."""
    buffer = bytearray(data)
    return Slice(Region(memoryview(buffer)), 0, len(buffer))


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes that differ from those beside them, and from those of another seed."""
    return bytes((i * 7 + i // 251 + seed) & 0xFF for i in range(length))


@dataclass
class World:
    """Targets 1, 2, … of node 1, target i alone in chain i."""

    root: Path
    targets: int = 1
    capacity: int = CAPACITY
    routing: RoutingTable = field(default_factory=RoutingTable)
    log: Any = field(default_factory=lambda: structlog.get_logger("emberfs.test"))
    version: int = 0

    async def start(self) -> World:
        self.pool = ThreadPoolExecutor(4)
        self.network = LocalNetwork()
        self.env = AioEnvironment(local=self.network)
        self.open = [await self._open(i + 1) for i in range(self.targets)]
        self.service = StorageService(self.routing, self.open, self.env, self.log)
        self.address = self.network.serve("storage", [self.service])
        self.announce()
        return self

    async def _open(self, number: int) -> Target:
        engine, found = open_target(str(self.root / f"target-{number}"), cluster="c", capacity=self.capacity)

        def blocking(work: Callable[..., Any], *arguments: Any) -> Any:
            return asyncio.get_running_loop().run_in_executor(self.pool, work, *arguments)

        return Target(engine, str(self.root / f"target-{number}"), found.incarnation, blocking, self.env, self.log)

    def announce(self, chain_version: int = 1, ended: Sequence[bytes] = ()) -> None:
        """The manager speaks: our targets in chains of one, under this chain version."""
        self.version += 1
        routing = cluster_pb2.Routing(version=self.version, cluster="c", capability_epoch=1, capability_key=KEY)
        routing.ended_clients.extend(ended)
        for i, target in enumerate(self.open):
            number = i + 1
            routing.targets.append(cluster_pb2.Target(id=number, node=1, incarnation=target.incarnation))
            member = ChainMember(target=number, node=1, state=TARGET_STATE_SERVING, incarnation=target.incarnation)
            routing.chains.append(Chain(id=number, version=chain_version, members=[member]))
        self.service.routing_changed(self.routing.apply(routing))

    async def stop(self, *, clean: bool = True) -> None:
        """Close, or forget everything as kill -9 would (the lock of the target is given up, nothing else is done)."""
        for target in self.open:
            if not clean:
                target.engine.failed = "killed"
            await target.close()
        await self.env.close()
        self.pool.shutdown()

    async def restart(self, *, clean: bool = True) -> None:
        await self.stop(clean=clean)
        self.routing, self.version = RoutingTable(), 0
        await self.start()

    # --- calls ---

    async def call(self, method: Method, request: Any, **bulk: Any) -> Any:
        return await self.env.call(Call(self.address, method, request, SECONDS, **bulk))

    def untrust(self) -> None:
        """From now on our environment is any user's, who needs capabilities."""
        self.network.peer(self.env.credentials).identity = Identity(4711, 4711)

    def capability(self, inode: int, rights: int = Rights.READ | Rights.WRITE, epoch: int = 1) -> bytes:
        return issue(KEY, client=self.env.client, inode=inode, rights=rights, epoch=epoch)

    async def write(
        self,
        data: bytes,
        *,
        inode: int = 5,
        index: int = 0,
        offset: int = 0,
        sequence: int = 1,
        channel: int | None = None,
        **columns: Any,
    ) -> Status:
        """One write; its status."""
        reply = await self.write_many([(inode, index, offset, data, sequence, channel)], **columns)
        return Status(reply.status[0])

    async def write_many(
        self,
        pieces: Sequence[tuple[int, int, int, bytes, int, int | None]],
        *,
        chain: int = 1,
        version: int = 1,
        truncate_version: int = 0,
        checksums: Sequence[int] = (),
        capabilities: Sequence[bytes] = (),
        client: bytes = b"",
    ) -> Any:
        """Writes as (inode, index, offset, data, sequence, channel)."""
        request = self.write_request(pieces, chain, version)
        request.truncate_version[:] = [truncate_version] * len(pieces)
        request.checksum[:] = checksums or request.checksum
        request.capabilities.extend(capabilities)
        request.client = client
        return await self.call(STORAGE.Write, request, source=[memory(b"".join(p[3] for p in pieces))])

    @staticmethod
    def write_request(
        pieces: Sequence[tuple[int, int, int, bytes, int, int | None]], chain: int = 1, version: int = 1
    ) -> storage_pb2.WriteRequest:
        count = len(pieces)
        return storage_pb2.WriteRequest(
            chain=[chain] * count,
            chain_version=[version] * count,
            inode=[p[0] for p in pieces],
            index=[p[1] for p in pieces],
            offset=[p[2] for p in pieces],
            length=[len(p[3]) for p in pieces],
            checksum=[crc32c(p[3]) for p in pieces],
            channel=[channel_of(p[0], p[1]) if p[5] is None else p[5] for p in pieces],
            sequence=[p[4] for p in pieces],
            truncate_version=[0] * count,
            chunk_size=[CHUNK] * count,
        )

    async def read_many(
        self,
        pieces: Sequence[tuple[int, int, int, int]],
        *,
        chains: Sequence[int] = (),
        version: int = 1,
        capabilities: Sequence[bytes] = (),
    ) -> tuple[Any, bytes]:
        """Reads as (inode, index, offset, length): the reply and the bytes."""
        count = len(pieces)
        request = storage_pb2.ReadRequest(
            chain=chains or [1] * count,
            chain_version=[version] * count,
            inode=[p[0] for p in pieces],
            index=[p[1] for p in pieces],
            offset=[p[2] for p in pieces],
            length=[p[3] for p in pieces],
            capabilities=capabilities,
        )
        target = memory(sum(p[3] for p in pieces))
        reply = await self.call(STORAGE.Read, request, target=[target])
        return reply, bytes(target.view)

    async def read(self, *, inode: int = 5, index: int = 0, offset: int = 0, length: int = CHUNK) -> bytes:
        """One read, verified against the checksums of the reply as a client does."""
        reply, data = await self.read_many([(inode, index, offset, length)])
        assert reply.status[0] == Status.OK, Status(reply.status[0]).name
        verify(reply, 0, offset, data)
        return data[: reply.returned[0]]

    async def remove(self, first: int, last: int, *, limit: int = 0, version: int | None = None) -> tuple[int, bool]:
        """Remove chunks [first, last) of inode 5 in chain 1: how many went, and whether there are more."""
        request = storage_pb2.RemoveChunksRequest(
            chain=[1], chain_version=[1], inode=[5], first=[first], last=[last], chunks_max=limit,
            truncate_version=None if version is None else [version],
        )  # fmt: skip
        reply = await self.call(STORAGE.Remove, request)
        assert list(reply.status) == [Status.OK]
        return reply.removed[0], reply.more[0]


def verify(reply: Any, operation: int, offset: int, data: bytes) -> None:
    """Check operation `operation`, which began at `offset` of its chunk; `data` begins with its bytes."""
    begin = sum(reply.checksums[:operation])
    count, length, unit = reply.checksums[operation], reply.returned[operation], reply.unit[operation]
    position = 0
    for checksum in reply.checksum[begin : begin + count]:
        size = length if count == 1 else min(unit - (offset + position) % unit, length - position)
        assert crc32c(data[position : position + size]) == checksum, f"the bytes at {offset + position}"
        position += size
    assert position == length
