"""Writing chunks: batches of new bytes (see batches.py), and making durable what was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...proto.env import Call
from ...proto.errors import StatusError, error, status_of
from ...proto.gen.storage_pb2 import SyncReply, SyncRequest, WriteRequest
from ...proto.region import Slice
from ...proto.rpc import STORAGE
from .batches import ChunkUpdate, Part, UpdateBatch
from .budget import Budget
from .channels import Channels
from .cluster import Cluster
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


class WriteBatch(UpdateBatch[Update]):
    """New bytes for several chunks."""

    __slots__ = ("_budget", "bytes")

    def __init__(
        self, cluster: Cluster, channels: Channels, lease: Lease, budget: Budget, updates: list[Update]
    ) -> None:
        super().__init__(cluster, channels, lease, updates)
        self._budget = budget
        self.bytes = sum(update.source.length for update in updates)

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
        )

    def succeeded(self, update: Update, reply: Any, row: int) -> None:
        update.file.arrived_end = max(update.file.arrived_end, update.end)

    async def look_again(self, update: Update) -> None:
        await super().look_again(update)
        update.file.came_after(update.truncate_version, update.end)

    def released(self) -> None:
        for update in self.updates:
            self._budget.give(update.buffer)


async def sync_chains(cluster: Cluster, chains: Sequence[int]) -> None:
    """Make all that was written to these chains durable on every replica. Raises StatusError."""
    patience = cluster.patience()
    left = sorted(set(chains))
    while left:
        nodes: dict[int, list[int]] = {}
        failure: StatusError | None = None
        try:
            for chain in left:
                nodes.setdefault(cluster.table.head(chain).node, []).append(chain)
            replies = await _sync(cluster, nodes)
        except StatusError as broken:
            failure = broken
            await cluster.recover(broken)
        else:
            left = []
            for (node, chosen), reply in zip(nodes.items(), replies, strict=True):
                broken_chains, why = await _sync_result(cluster, node, chosen, reply)
                left += broken_chains
                failure = why or failure
        if failure is not None:
            await patience.again(failure)


async def _sync(cluster: Cluster, nodes: dict[int, list[int]]) -> list[SyncReply | StatusError]:
    """Ask every node about the chains that it leads, all at once; per node its reply or its error."""
    calls = []
    for node, chains in nodes.items():
        versions = [cluster.table.route(chain).version for chain in chains]
        request = SyncRequest(chain=chains, chain_version=versions)
        calls.append((node, chains, cluster.head_call(node, STORAGE.Sync, request, chains)))
    tickets = [cluster.env.start(call) for _, _, call in calls]
    replies: list[SyncReply | StatusError] = []
    try:
        for (node, chains, _), ticket in zip(calls, tickets, strict=True):
            try:
                replies.append(await cluster.answer_of_head(ticket, node, chains))
            except StatusError as failure:
                replies.append(failure)
    except BaseException:
        for ticket in tickets[len(replies) :]:
            cluster.env.abandon(ticket)
        raise
    return replies


async def _sync_result(
    cluster: Cluster, node: int, chains: list[int], reply: SyncReply | StatusError
) -> tuple[list[int], StatusError | None]:
    """Which of a request's chains are not synced yet, and why."""
    if isinstance(reply, StatusError):
        await cluster.recover(reply, node)
        return chains, reply
    cluster.learn_chains(reply.chains)
    failed = [(chain, status_of(code)) for chain, code in zip(chains, reply.status, strict=True) if code]
    if not failed:
        return [], None
    return [chain for chain, _ in failed], error(failed[0][1], f"syncing chain {failed[0][0]}: {failed[0][1].name}")
