"""Writes, truncates and removes of clients and of the metadata server: requests become updates, which run through the chains' machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..proto.blocks import KV_TENANT, TABLE_OF_BLOCKS
from ..proto.capability import Rights
from ..proto.errors import Status, error
from ..proto.gen.storage_pb2 import (
    CloneRequest,
    RemoveChunksReply,
    RemoveChunksRequest,
    TruncateChunkReply,
    TruncateChunkRequest,
    WriteReply,
    WriteRequest,
)
from ..proto.ids import CHANNELS, chunk_key
from ..proto.layout import check_chunk_size
from ..proto.routing import RoutingTable
from ..proto.rpc import Context
from .columns import OPERATIONS_MAX, check_columns, end_key, grouped, need_trust
from .events import ALWAYS, Kind, Result, Update
from .exchange import CLIENT_BYTES
from .grants import refusals
from .target import Target

REMOVES_MAX = 1000  # chunks of one range in one request

_OK = Status.OK
_WRITE = int(Rights.WRITE)
_ADDING = (Kind.WRITE, Kind.CLONE)


class Writes:
    """Handlers of Write, Truncate and Remove. `member(chain)` is our target in that chain, `newer(statuses, chains)` the entries that go
    with refusals for a stale chain version."""

    def __init__(
        self,
        routing: RoutingTable,
        member: Callable[[int], Target | None],
        newer: Callable[[Sequence[int], Sequence[int]], list[Any]],
    ) -> None:
        self._routing = routing
        self._member = member
        self._newer = newer

    async def write(self, request: WriteRequest, context: Context) -> WriteReply:
        count = len(request.inode)
        columns = (request.chain, request.chain_version, request.index, request.offset, request.length)
        numbering = (request.checksum, request.channel, request.sequence, request.truncate_version, request.chunk_size)
        check_columns(count, *columns, *numbering)
        check_numbers(request)
        refused = refusals(
            context.peer,
            self._routing,
            request.capabilities,
            request.capability,
            request.inode[:],
            _WRITE,
            request.tenant,
        )
        data = await context.pull()
        if len(data) != sum(request.length):
            raise error(Status.INVALID, f"{sum(request.length)} bytes announced, {len(data)} sent")
        client = self._client(request.client, context)
        tenant, position = request.tenant, 0
        updates: list[Update] = []
        for i, (inode, index, offset, length) in enumerate(
            zip(request.inode, request.index, request.offset, request.length, strict=True)
        ):
            updates.append(
                Update(
                    Kind.WRITE,
                    chunk_key(inode, index, tenant),
                    offset,
                    length,
                    request.checksum[i],
                    client,
                    request.channel[i],
                    request.sequence[i],
                    request.truncate_version[i],
                    request.chunk_size[i],
                    data[position : position + length],
                )
            )
            position += length
        results = await self.update(request.chain[:], request.chain_version[:], updates, refused)
        for update in updates:
            # Now, not when the last reference goes (a thread may still hold one): the buffer behind is used again only without views.
            update.data.release()
        if request.sync:
            await self._sync(request, results)
        statuses = [result.status for result in results]
        return WriteReply(
            status=statuses,
            commit_version=[result.number for result in results],
            chunk_length=[result.length for result in results],
            chains=self._newer(statuses, request.chain),
        )

    @staticmethod
    def _client(named: bytes, context: Context) -> bytes:
        """Whose update it is: the connection's client, or the one that a server of the cluster forwards for."""
        if named and not context.peer.identity.trusted:
            raise error(Status.PERMISSION_DENIED, "only servers of the cluster may write for another client")
        if named and len(named) != CLIENT_BYTES:
            raise error(Status.INVALID, f"a client has {CLIENT_BYTES} bytes")
        return named or context.peer.client

    async def truncate(self, request: TruncateChunkRequest, context: Context) -> TruncateChunkReply:
        need_trust(context)
        count = len(request.inode)
        check_columns(
            count,
            request.chain,
            request.chain_version,
            request.index,
            request.length,
            request.truncate_version,
            request.channel,
            request.sequence,
            request.chunk_size,
        )
        check_numbers(request)
        client, tenant = context.peer.client, request.tenant
        updates = [
            Update(
                Kind.TRUNCATE if request.length[i] else Kind.REMOVE,
                chunk_key(request.inode[i], request.index[i], tenant),
                0,
                request.length[i],
                0,
                client,
                request.channel[i],
                request.sequence[i],
                request.truncate_version[i],
                request.chunk_size[i],
            )
            for i in range(count)
        ]
        results = await self.update(request.chain[:], request.chain_version[:], updates, {})
        statuses = [result.status for result in results]
        return TruncateChunkReply(status=statuses, chains=self._newer(statuses, request.chain))

    async def update(
        self, chains: Sequence[int], versions: Sequence[int], updates: Sequence[Update], refused: dict[int, Status]
    ) -> list[Result]:
        """Run updates through their chains' machines; one result each. Whatever a file would put where blocks live is refused: eviction and
        quotas would not see it, and the space be lost to them."""
        results = [Result(refused.get(i, Status.STALE_ROUTING)) for i in range(len(updates))]
        groups = []
        for chain, version, places in grouped(chains, versions, refused):
            target = self._member(chain)
            if target is None:
                continue
            if target.table == TABLE_OF_BLOCKS and any(updates[place].kind in _ADDING for place in places):
                for place in places:
                    results[place] = Result(Status.INVALID)
            else:
                groups.append((places, target.start_update(version, [updates[i] for i in places])))
        for places, promise in groups:
            for place, result in zip(places, await promise, strict=True):
                results[place] = result
        return results

    async def _sync(self, request: WriteRequest, results: list[Result]) -> None:
        """What was written becomes durable; where it does not, the update's result says why: it may be sent again, and counts once."""
        failed = {i: Status(result.status) for i, result in enumerate(results) if result.status}
        groups = []
        for chain, version, places in grouped(request.chain[:], request.chain_version[:], failed):
            target = self._member(chain)
            groups.append((places, target.start_sync(version) if target is not None else None))
        for places, promise in groups:
            status = (await promise)[0].status if promise is not None else Status.STALE_ROUTING
            if status:
                for place in places:
                    results[place] = Result(status)

    async def remove(self, request: RemoveChunksRequest, context: Context) -> RemoveChunksReply:
        """Ranges of many files at once: what there is to remove is listed, then removed by one batch of updates per chain."""
        need_trust(context)
        count = len(request.inode)
        check_columns(count, request.chain, request.chain_version, request.first, request.last)
        if request.truncate_version:
            check_columns(count, request.truncate_version)
        limit = min(request.chunks_max or REMOVES_MAX, REMOVES_MAX)
        ranges = [self._range(request, i) for i in range(count)]
        refused: dict[int, Status] = {}
        updates: list[Update] = []
        owners: list[int] = []  # which range each update is for
        more = [False] * count
        for i, (first, last, truncate_version) in enumerate(ranges):
            target = self._member(request.chain[i])
            status = target.may_read(request.chain_version[i]) if target is not None else Status.STALE_ROUTING
            if target is None or status is not _OK:
                refused[i] = status
                continue
            room = min(limit, OPERATIONS_MAX - len(updates))
            found, more[i] = self._removes(target, first, last, room, truncate_version)
            updates += found
            owners += [i] * len(found)
        chains, versions = [request.chain[i] for i in owners], [request.chain_version[i] for i in owners]
        results = await self.update(chains, versions, updates, {})
        removed = [0] * count
        for i, result in zip(owners, results, strict=True):
            if result.status == Status.BUSY:
                more[i] = True  # an update of the chunk is under way: the next call takes it
            elif result.status:
                refused[i] = Status(result.status)
            else:
                removed[i] += bool(result.number)
        statuses = [refused.get(i, _OK) for i in range(count)]
        newer = self._newer(statuses, request.chain)
        return RemoveChunksReply(status=statuses, removed=removed, more=more, chains=newer)

    @staticmethod
    def _range(request: RemoveChunksRequest, i: int) -> tuple[bytes, bytes, int | None]:
        first = chunk_key(request.inode[i], request.first[i], request.tenant)
        last = end_key(request.inode[i], request.last[i], request.tenant)
        return first, last, request.truncate_version[i] if request.truncate_version else None

    @staticmethod
    def _removes(
        target: Target, first: bytes, last: bytes, limit: int, truncate_version: int | None
    ) -> tuple[list[Update], bool]:
        """The updates that take a range away, at most `limit`, and whether there are more."""
        found = target.engine.removable(first, last, limit + 1, truncate_version=truncate_version)
        chunks = [info.chunk for info in found[:limit]]
        if not found and (truncate_version is not None or target.engine.truncate_floor(first)):
            chunks = [first]  # nothing to take away, but older writes are refused from now on, or need not be any more
        under = ALWAYS if truncate_version is None else truncate_version
        return [Update(Kind.REMOVE, chunk, 0, 0, 0, b"", 0, 0, under, 0) for chunk in chunks], len(found) > limit


def check_numbers(request: WriteRequest | TruncateChunkRequest | CloneRequest) -> None:
    """What no layout has and no client counts: it must not reach the machine and the index, which rely on it. Raises INVALID."""
    for size in set(request.chunk_size):
        check_chunk_size(size)
    if request.tenant == KV_TENANT:
        raise error(Status.INVALID, "KV blocks are put through the KvCache service, and never written twice")
    if max(request.channel, default=0) >= CHANNELS or not all(request.sequence):
        raise error(Status.INVALID, f"channels are below {CHANNELS}, sequence numbers above 0")
