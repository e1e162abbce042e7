"""Writing chunks: batches of new bytes (see batches.py), and making durable what was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...proto.env import Call
from ...proto.gen.storage_pb2 import SyncRequest, WriteRequest
from ...proto.region import Slice
from ...proto.rpc import STORAGE
from .batches import ChunkUpdate, Part, UpdateBatch
from .budget import Budget
from .channels import Channels
from .cluster import Cluster
from .heads import Beside, ask_heads
from .lease import Lease
from .verify import crc32c


@dataclass(slots=True)
class Update(ChunkUpdate):
    """New bytes for one chunk. The buffer is ours alone until the update is settled."""

    offset: int  # bytes into the chunk
    source: Slice  # what is written
    buffer: Slice  # what it lies in, to be given back
    checksum: int = 0

    @property
    def end(self) -> int:
        """Where it ends in the file, in bytes."""
        return self.index * self.file.chunk_size + self.offset + self.source.length

    @property
    def extent(self) -> tuple[int, int]:
        return self.end - self.source.length, self.end


class WriteBatch(UpdateBatch[Update]):
    """New bytes for several chunks."""

    __slots__ = ("_budget", "bytes", "durable", "durable_chains")

    def __init__(
        self,
        cluster: Cluster,
        channels: Channels,
        lease: Lease,
        budget: Budget,
        updates: list[Update],
        *,
        durable: bool = False,
    ) -> None:
        super().__init__(cluster, channels, lease, updates)
        self._budget = budget
        self.bytes = sum(update.source.length for update in updates)
        self.durable = durable  # they are answered when they are
        self.durable_chains: set[int] = set()  # that have said so

    def stamp(self, update: Update) -> None:
        update.checksum = crc32c(update.source.view)
        update.truncate_version = update.file.truncate_version

    def call(self, part: Part[Update]) -> Call:
        source = [update.source for update in part.updates]
        return self.cluster.head_call(part.node, STORAGE.Write, self._request(part.updates), part.chains, source=source)

    def _request(self, updates: list[Update]) -> WriteRequest:
        table = self.cluster.table
        capabilities: dict[bytes, int] = {}
        capability = [capabilities.setdefault(u.file.capability_write, len(capabilities)) for u in updates]
        return WriteRequest(
            chain=[u.chain for u in updates],
            chain_version=[table.route(u.chain).version for u in updates],
            inode=[u.file.id for u in updates],
            index=[u.index for u in updates],
            offset=[u.offset for u in updates],
            length=[u.source.length for u in updates],
            checksum=[u.checksum for u in updates],
            channel=[u.channel for u in updates],
            sequence=[u.sequence for u in updates],
            truncate_version=[u.truncate_version for u in updates],
            chunk_size=[u.file.chunk_size for u in updates],
            capabilities=list(capabilities),
            capability=capability,
            sync=self.durable,
        )

    def succeeded(self, update: Update, reply: Any, row: int) -> None:
        update.file.arrived_end = max(update.file.arrived_end, update.end)
        if self.durable:
            self.durable_chains.add(update.chain)

    async def look_again(self, update: Update) -> None:
        await super().look_again(update)
        update.file.came_after(update.truncate_version, update.end)

    def released(self) -> None:
        for update in self.updates:
            self._budget.give(update.buffer)


async def sync_chains(cluster: Cluster, chains: Sequence[int], beside: Beside | None = None) -> None:
    """Make all that was written to these chains durable on every replica. `beside` is done meanwhile (heads.py). Raises StatusError."""

    def build(asked: Sequence[int], versions: Sequence[int]) -> SyncRequest:
        return SyncRequest(chain=asked, chain_version=versions)

    await ask_heads(cluster, STORAGE.Sync, chains, build, "syncing", beside=beside)
