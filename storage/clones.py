"""Clones and extents: chunks that share their bytes with others of the same chain, and which chunks of a file are there at all.

A clone is an update of the chunk that it makes, numbered as a write of it would be, under the right to read the source and to write what
is made. Without a source the chunk becomes a hole: that is how a client punches one. The truncate versions of both files are checked at
the head: a source that was cut since the client looked, or a file that was, is refused, and the client looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..proto.capability import Rights
from ..proto.errors import Status, error
from ..proto.gen.storage_pb2 import CloneReply, CloneRequest, ExtentsReply, ExtentsRequest
from ..proto.ids import chunk_key
from ..proto.routing import RoutingTable
from ..proto.rpc import Context
from .columns import check_columns, end_key
from .engine.records import ChunkInfo
from .events import Kind, Result, Source, Update
from .grants import refusals
from .target import Target
from .writes import check_numbers

EXTENTS_MAX = 4096  # chunks listed in one reply
INDEX_BYTES = 4  # of a chunk id, at its end

_OK = Status.OK
_READ, _WRITE = int(Rights.READ), int(Rights.WRITE)
_ANY = 0  # whoever may do anything with a file may know which chunks it has: a writer punches holes, too

RunUpdates = Callable[[Sequence[int], Sequence[int], Sequence[Update], dict[int, Status]], Any]  # as Writes.update


class Clones:
    """Handlers of Clone and Extents. `member(chain)` is our target in that chain, `newer(statuses, chains)` the entries that go with
    refusals for a stale chain version, `update` runs updates through their chains' machines."""

    def __init__(
        self,
        routing: RoutingTable,
        member: Callable[[int], Target | None],
        newer: Callable[[Sequence[int], Sequence[int]], list[Any]],
        update: RunUpdates,
    ) -> None:
        self._routing = routing
        self._member = member
        self._newer = newer
        self._update = update

    async def clone(self, request: CloneRequest, context: Context) -> CloneReply:
        count = len(request.inode)
        sources = (request.source_inode, request.source_index, request.source_truncate_version)
        check_columns(count, request.chain, request.chain_version, request.index, request.length, *sources)
        check_columns(count, request.channel, request.sequence, request.truncate_version, request.chunk_size)
        check_numbers(request)
        inodes, tenant = request.inode[:], request.tenant
        refused = refusals(
            context.peer, self._routing, request.capabilities, request.capability, inodes, _WRITE, tenant
        )
        refused.update(self._source_refusals(request, context))
        updates = [_update_of(request, i, context.peer.client) for i in range(count)]
        results: list[Result] = await self._update(request.chain[:], request.chain_version[:], updates, refused)
        statuses = [result.status for result in results]
        return CloneReply(
            status=statuses,
            commit_version=[result.number for result in results],
            chunk_length=[result.length for result in results],
            chains=self._newer(statuses, request.chain),
        )

    def _source_refusals(self, request: CloneRequest, context: Context) -> dict[int, Status]:
        """The operations whose source this peer may not read."""
        sources, which = request.source_inode[:], request.source_capability[:]
        if which and len(which) != len(sources):
            raise error(Status.INVALID, f"columns of different lengths: {len(which)} and {len(sources)}")
        rows = [i for i, inode in enumerate(sources) if inode]
        if not rows:
            return {}
        found = refusals(
            context.peer,
            self._routing,
            request.source_capabilities,
            [which[i] for i in rows] if which else (),
            [sources[i] for i in rows],
            _READ,
            request.tenant,
        )
        return {rows[i]: status for i, status in found.items()}

    async def extents(self, request: ExtentsRequest, context: Context) -> ExtentsReply:
        """A page of the chunks of each file: at least all that were acknowledged, for these are committed on every member that serves. One
        that has only a pending version counts, too: a chunk too many is no hole too many."""
        count, inodes = len(request.inode), request.inode[:]
        check_columns(count, request.chain, request.chain_version, request.first, request.last)
        refused = refusals(
            context.peer, self._routing, request.capabilities, request.capability, inodes, _ANY, request.tenant
        )
        reply = ExtentsReply()
        limit = min(request.chunks_max or EXTENTS_MAX, max(1, EXTENTS_MAX // max(1, count)))  # everybody gets on
        for i, inode in enumerate(inodes):
            target, version = self._member(request.chain[i]), request.chain_version[i]
            status = refused.get(i) or (target.may_read(version) if target is not None else Status.STALE_ROUTING)
            found: list[ChunkInfo] = []
            if target is not None and status is _OK:
                first = chunk_key(inode, request.first[i], request.tenant)
                last = end_key(inode, request.last[i], request.tenant)
                found = await target.blocking(target.engine.chunks, first, last, limit + 1)
                status = target.may_read(version)
            if status is not _OK:
                found = []
            reply.status.append(status)
            reply.more.append(len(found) > limit)
            there = found[:limit]
            reply.chunks.append(len(there))
            reply.index.extend([int.from_bytes(info.chunk[-INDEX_BYTES:]) for info in there])
            reply.length.extend([info.length if info.version else info.pending_length for info in there])
        reply.chains.extend(self._newer(reply.status, request.chain))
        return reply


def _update_of(request: CloneRequest, i: int, client: bytes) -> Update:
    source = None
    if request.source_inode[i]:
        place = chunk_key(request.source_inode[i], request.source_index[i], request.tenant)
        source = Source(place, request.source_truncate_version[i])
    return Update(
        Kind.CLONE,
        chunk_key(request.inode[i], request.index[i], request.tenant),
        0,
        request.length[i],
        0,
        client,
        request.channel[i],
        request.sequence[i],
        request.truncate_version[i],
        request.chunk_size[i],
        source=source,
    )
