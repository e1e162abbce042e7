"""Storage processes for blocks, in this process: real engines, the real service, the local transport. The test is the manager."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from crc32c import crc32c

from emberfs.proto.blocks import KEY_BYTES, TABLE_OF_BLOCKS, seed_of
from emberfs.proto.errors import Status
from emberfs.proto.gen import cluster_pb2, kvcache_pb2
from emberfs.proto.gen.common_pb2 import TARGET_STATE_SERVING, Chain, ChainMember
from emberfs.proto.rpc import KVCACHE
from emberfs.storage.blocks.service import KvCacheService
from emberfs.storage.blocks.store import Store

from ..world import KEY, World, memory

NAMESPACE = 3
ANY_LENGTH = 4  # a namespace whose blocks have any length
BLOCK = 8192
TENANT = "tenant"


def key(number: int) -> bytes:
    return random.Random(number).randbytes(KEY_BYTES)


def content(number: int, length: int = BLOCK) -> bytes:
    return random.Random(-number - 1).randbytes(length)


def digest(namespace: int) -> bytes:
    return bytes([namespace]) * 32


def namespaces() -> list[cluster_pb2.KvNamespace]:
    common: dict[str, Any] = {"tenant": TENANT, "uid": 1000, "gid": 100, "mode": 0o640, "table_version": 1}
    return [
        cluster_pb2.KvNamespace(id=NAMESPACE, digest=digest(NAMESPACE), name="fixed", block_bytes=BLOCK, **common),
        cluster_pb2.KvNamespace(id=ANY_LENGTH, digest=digest(ANY_LENGTH), name="any", **common),
    ]


@dataclass
class Blocks(World):
    """Target i alone in chain i, all of them for blocks."""

    namespaces: list[cluster_pb2.KvNamespace] = field(default_factory=namespaces)
    quotas: dict[str, int] = field(default_factory=dict)
    chain_version: int = 1

    async def start(self) -> Blocks:
        await super().start()
        for target in self.open:
            target.table = TABLE_OF_BLOCKS
        self.blocks = KvCacheService(self.routing, self.service, self.env, self.log)
        self.address = self.network.serve("storage", [self.service, self.blocks])
        return self

    def announce(self, chain_version: int = 1, ended: Sequence[bytes] = ()) -> None:
        self.version += 1
        self.chain_version = chain_version
        routing = cluster_pb2.Routing(version=self.version, cluster="c", capability_epoch=1, capability_key=KEY)
        for i, target in enumerate(self.open):
            number = i + 1
            routing.targets.append(
                cluster_pb2.Target(id=number, node=1, incarnation=target.incarnation, table=TABLE_OF_BLOCKS)
            )
            member = ChainMember(target=number, node=1, state=TARGET_STATE_SERVING, incarnation=target.incarnation)
            routing.chains.append(Chain(id=number, version=chain_version, members=[member]))
        routing.tables.append(
            cluster_pb2.ChainTable(id=TABLE_OF_BLOCKS, version=1, chains=range(1, len(self.open) + 1))
        )
        routing.namespaces.extend(self.namespaces)
        routing.quotas.extend(cluster_pb2.TenantQuota(tenant=t, bytes=b) for t, b in self.quotas.items())
        self.service.routing_changed(self.routing.apply(routing))

    @property
    def store(self) -> Store:
        return self.blocks.store(self.open[0])

    # --- calls ---

    def runs(self, keys: Sequence[bytes], **more: Any) -> dict[str, Any]:
        """What every request begins with: one run."""
        made = {
            "namespace": NAMESPACE,
            "chain": [1],
            "chain_version": [self.chain_version],
            "count": [len(keys)],
            "keys": b"".join(keys),
        }
        return {**made, **more}

    async def match(self, keys: Sequence[bytes], **more: Any) -> list[int]:
        reply = await self.call(KVCACHE.Match, kvcache_pb2.MatchRequest(**self.runs(keys, **more)))
        return list(reply.present)

    async def put(self, blocks: dict[bytes, bytes], **more: Any) -> Any:
        """The reply."""
        return await self.put_many(list(blocks), list(blocks.values()), **more)

    async def put_many(self, keys: Sequence[bytes], contents: Sequence[bytes], **more: Any) -> Any:
        columns = {"checksum": [crc32c(c) for c in contents], "length": [len(c) for c in contents], **more}
        request = kvcache_pb2.PutRequest(**self.runs(keys, **columns))
        return await self.call(KVCACHE.Put, request, source=[memory(b"".join(contents))])

    async def put_ok(self, blocks: dict[bytes, bytes], **more: Any) -> None:
        reply = await self.put(blocks, **more)
        assert not reply.status, [Status(status).name for status in reply.status]

    async def get(self, keys: Sequence[bytes], length: int = BLOCK, **more: Any) -> list[bytes | Status]:
        """Whole blocks, verified as a client does; the status of those that did not come."""
        reply, into = await self.get_raw(keys, [length] * len(keys), **more)
        statuses = reply.status or [0] * len(keys)
        found: list[bytes | Status] = []
        for i, status in enumerate(statuses):
            if status:
                found.append(Status(status))
                continue
            data = into[i * length : (i + 1) * length]
            number = more.get("namespace", NAMESPACE)
            right = crc32c(data, seed_of(digest(number), keys[i], reply.generation[i])) == reply.checksum[i]
            found.append(data if right else Status.CHECKSUM)
        return found

    async def get_raw(self, keys: Sequence[bytes], lengths: Sequence[int], **more: Any) -> tuple[Any, bytes]:
        into = memory(sum(lengths))
        request = kvcache_pb2.GetRequest(**self.runs(keys, length=lengths, **more))
        return await self.call(KVCACHE.Get, request, target=[into]), bytes(into.view)

    async def touch(self, keys: Sequence[bytes], action: str, seconds: int = 0, **more: Any) -> list[Status]:
        action_number = kvcache_pb2.TouchRequest.Action.Value(action)
        request = kvcache_pb2.TouchRequest(**self.runs(keys, action=action_number, seconds=seconds, **more))
        reply = await self.call(KVCACHE.Touch, request)
        return [Status(status) for status in reply.status or [0] * len(keys)]

    async def delete(self, keys: Sequence[bytes], **more: Any) -> list[Status]:
        reply = await self.call(KVCACHE.Delete, kvcache_pb2.DeleteRequest(**self.runs(keys, **more)))
        return [Status(status) for status in reply.status or [0] * len(keys)]

    async def usage(self) -> Any:
        return await self.call(KVCACHE.Usage, kvcache_pb2.UsageRequest())
