"""The Storage service: requests in, columns of statuses and values out.

Every operation names its chain and chain version and is refused where they do not fit; the refusal brings the chain's entry along.
An operation that fails has its status in its column; only what concerns the whole request (a malformed one, memory that is gone) is
raised. The order of updates is decided by the replica's machine (craq.py), the place of bytes by the engine; this module
checks, groups by target, and puts the columns together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, Protocol

from ..proto.capability import Rights
from ..proto.env import Environment
from ..proto.errors import Status, StatusError, error
from ..proto.gen.common_pb2 import TARGET_STATE_SERVING, TARGET_STATE_SYNCING, TARGET_STATE_WAITING, Chain
from ..proto.gen.storage_pb2 import (
    AddTargetReply,
    AddTargetRequest,
    CloneReply,
    CloneRequest,
    CommittedReply,
    CommittedRequest,
    DropTargetReply,
    DropTargetRequest,
    ExtentsReply,
    ExtentsRequest,
    FenceReply,
    FenceRequest,
    FinishSyncReply,
    FinishSyncRequest,
    ForwardReply,
    ForwardRequest,
    ListChunksReply,
    ListChunksRequest,
    PutRecordsReply,
    PutRecordsRequest,
    QueryLastReply,
    QueryLastRequest,
    ReadReply,
    ReadRequest,
    RemoveChunksReply,
    RemoveChunksRequest,
    ReportCorruptionReply,
    ReportCorruptionRequest,
    SpaceReply,
    SpaceRequest,
    SyncReply,
    SyncRequest,
    TruncateChunkReply,
    TruncateChunkRequest,
    WriteReply,
    WriteRequest,
)
from ..proto.ids import boot_id, chunk_key, chunk_keys
from ..proto.routing import Change, RoutingTable
from ..proto.rpc import STORAGE, Context
from .clones import Clones
from .columns import check_columns, grouped, need_trust
from .engine.reads import ReadPlan
from .engine.records import LastChunk
from .exchange import Exchange
from .forwarding import Forwarder, Forwarding
from .grants import refusals
from .inspection import inspect
from .lease import Lease
from .peers import Peers
from .reads import Batch, read_target, read_units, reply_of, settle
from .target import Target
from .writes import Writes

REPORTS_MAX = 64  # damaged chunks that are looked at for one request
INODE_BYTES = 10  # of a chunk id: tenant and inode
UPDATES_POLL_S = 0.01  # between looks whether the updates of a file are over
TAKING = (TARGET_STATE_SERVING, TARGET_STATE_SYNCING, TARGET_STATE_WAITING)  # updates, now or once they are copied to

_OK = Status.OK
_UNPLANNED = ReadPlan(Status.INTERNAL)
_READ = int(Rights.READ)


class TargetKeeper(Protocol):
    """Whoever opens the targets of this process."""

    async def add(self, path: str, capacity: int, table: int) -> Target:
        """Format one more target for this chain table (0: of files), beside the others where no path is given."""

    async def drop(self, number: int) -> None:
        """Delete a target that no chain has."""


class StorageService:
    """Handlers of proto.rpc.STORAGE over the targets of this process."""

    spec = STORAGE

    def __init__(
        self, routing: RoutingTable, targets: Sequence[Target], env: Environment, log: Any, lease: Lease | None = None
    ) -> None:
        self._routing = routing
        self._env = env
        self._log = log
        self._lease = lease or Lease()
        self._targets = {target.id: target for target in targets if target.id}
        self._all = list(targets)
        self._by_chain: dict[int, Target] = {}
        self._peers = Peers(env, routing, boot_id())
        self._forwarding = Forwarding(self._target, self._chain, self._learn)
        self._forwarders: dict[int, Forwarder] = {}  # by target
        self._writes = Writes(routing, self._target, self._chains)
        self._clones = Clones(routing, self._target, self._chains, self._writes.update)
        self._exchange = Exchange(self._target, self._chain)
        self.keeper: TargetKeeper | None = None
        self.watchers: list[Callable[[], None]] = []  # told after the targets of every change of the routing

    # --- routing ---

    def host(self, targets: Sequence[Target]) -> None:
        """These are the targets of this process from now on."""
        gone = {target.id for target in self._all}.difference(target.id for target in targets)
        for number in gone:
            if (forwarder := self._forwarders.pop(number, None)) is not None:
                forwarder.reach.closed = True
        self._all = list(targets)
        self.routing_changed(Change(full=True, any=True))

    def routing_changed(self, change: Change) -> None:
        """The routing table was changed: find our targets' numbers and chains again, and tell the machines."""
        by_incarnation = {entry.incarnation: entry.id for entry in self._routing.targets.values()}
        for target in self._all:
            if number := by_incarnation.get(target.incarnation):
                target.assign(number)
        self._targets = {target.id: target for target in self._all if target.id}
        for number, target in self._targets.items():
            record = self._routing.targets.get(number)
            target.disabled = record is not None and record.disabled
        self._by_chain = {}
        chains: dict[int, Any] = {}
        for chain in self._routing.chains.values():
            for member in chain.members:
                mine = self._targets.get(member.target)
                if mine is not None and member.incarnation in (0, mine.incarnation):
                    self._by_chain[chain.id] = mine
                    chains[mine.id] = chain
        for target in self._targets.values():
            if target.id not in self._forwarders:
                forwarder = self._forwarders[target.id] = Forwarder(target, self._peers, self._learn)
                target.forward, target.unreached = forwarder.forward, forwarder.reach.unreached
                self._env.spawn(forwarder.reach.keep, "reach")
            if change.ended_clients or change.full:
                target.clients_ended(self._routing.ended_clients, change.ended_clients)
            target.others_have_room = self._others_have_room(target, chains.get(target.id))
            target.routing_changed(chains.get(target.id))
        for tell in self.watchers:
            tell()

    def _others_have_room(self, target: Target, chain: Chain | None) -> bool:
        """Whether another member, which serves or is about to, is not known to be full."""
        others = [m for m in chain.members if m.target != target.id] if chain is not None else []
        records = [self._routing.targets.get(m.target) for m in others if m.state in TAKING]
        return any(record is not None and not record.full for record in records)

    def _learn(self, chains: Iterable[Chain]) -> None:
        """Newer entries came with a refusal."""
        news = [chain.id for chain in chains if self._routing.learn_chain(chain)]
        if news:
            self.routing_changed(Change(chains=frozenset(news), any=True))

    def _chains(self, statuses: Iterable[int], chains: Sequence[int]) -> list[Any]:
        """The entries that go with refusals for a stale chain version, once each."""
        stale = {chain for chain, status in zip(chains, statuses, strict=True) if status == Status.STALE_CHAIN_VERSION}
        return [self._routing.chains[chain] for chain in stale if chain in self._routing.chains]

    def _target(self, chain: int) -> Target | None:
        return self._by_chain.get(chain)

    # --- for the service of blocks, which has the same targets ---

    @property
    def targets(self) -> Sequence[Target]:
        return self._all

    def member(self, chain: int) -> Target | None:
        """Our target in that chain."""
        return self._by_chain.get(chain)

    def newer(self, statuses: Iterable[int], chains: Sequence[int]) -> list[Chain]:
        """The entries that go with refusals for a stale chain version."""
        return self._chains(statuses, chains)

    def _chain(self, chain: int) -> list[Any]:
        return self._chains((Status.STALE_CHAIN_VERSION,), (chain,))

    # --- reads ---

    async def read(self, request: ReadRequest, context: Context) -> ReadReply:
        # Columns are copied out once: a look into a column of a message costs more than a look into a list.
        chains, versions = request.chain[:], request.chain_version[:]
        inodes, indexes, offsets, lengths = request.inode[:], request.index[:], request.offset[:], request.length[:]
        count = len(inodes)
        check_columns(count, chains, versions, indexes, offsets, lengths)
        refused: dict[int, Status] = refusals(
            context.peer, self._routing, request.capabilities, request.capability, inodes, _READ, request.tenant
        )
        chunks = chunk_keys(inodes, indexes, request.tenant)
        total = sum(lengths)
        sink = context.sink(total)
        parts = sink.buffers(0, total) if total else ()
        whole = parts[0] if len(parts) == 1 else None
        exact = _exact(request, chunks, context)
        if whole is not None and not refused and not exact:
            units = await self._read_units(chains, versions, chunks, offsets, lengths, whole, context)
            if units is not None:
                sink.filled(0, total)
                return units
        reads = list(zip(chunks, offsets, lengths, strict=True))
        positions = [0, *accumulate(lengths)]
        plans: list[ReadPlan] = [_UNPLANNED] * count
        for chain, version, places in grouped(chains, versions, refused):
            target = self._by_chain.get(chain)
            status = self._may_read(target, version)
            if status is not _OK or target is None:
                refused.update(dict.fromkeys(places, status))
                continue
            await self._read_group(
                target, version, places, reads, plans, refused, (positions, sink, context, whole, exact)
            )
        self._mark_filled(sink, plans, positions, total, refused)
        reply = reply_of(plans, refused)
        if refused:
            reply.chains.extend(self._chains(reply.status, chains))
        return reply

    async def _read_units(
        self,
        chains: Sequence[int],
        versions: Sequence[int],
        chunks: Sequence[bytes],
        offsets: Sequence[int],
        lengths: Sequence[int],
        whole: memoryview,
        context: Context,
    ) -> ReadReply | None:
        """The short way of batches of small reads; None where it does not lead."""
        chain, version, length, count = chains[0], versions[0], lengths[0], len(chunks)
        if not chains.count(chain) == versions.count(version) == lengths.count(length) == count:
            return None
        target = self._by_chain.get(chain)
        if target is None or self._may_read(target, version) is not _OK:
            return None
        if not target.engine.pending.isdisjoint(chunks) and not target.replica.decides:
            return None
        reply = await read_units(target, chunks, offsets, length, whole, context)
        # Asked again after the bytes were read: a thread may have waited for the disk, or this process have been stopped.
        return reply if self._may_read(target, version) is _OK else None

    async def _read_group(
        self,
        target: Target,
        version: int,
        places: Sequence[int],
        reads: list[tuple[bytes, int, int]],
        plans: list[ReadPlan],
        refused: dict[int, Status],
        moving: tuple[Any, ...],
    ) -> None:
        positions, sink, context, whole, exact = moving
        asked = places
        if not exact and target.engine.pending and not target.replica.decides:
            exact = await self._ask_tail(target, places, reads, refused)
            places = [place for place in places if place not in refused]
        mine = reads if len(places) == len(reads) else [reads[place] for place in places]
        batch = Batch(target, places, positions, sink, context)
        try:
            await read_target(batch, plans, mine, whole, exact)
        except StatusError as failed:
            refused.update(dict.fromkeys(places, failed.status))
            return
        refused.update((place, failed.status) for place, failed in batch.failures.items())
        # Asked again after the bytes were read: the chain may have changed while a thread waited for the disk, or we for the tail.
        status = self._may_read(target, version)
        if status is not _OK:
            refused.update(dict.fromkeys(asked, status))

    async def _ask_tail(
        self, target: Target, places: Sequence[int], reads: list[tuple[bytes, int, int]], refused: dict[int, Status]
    ) -> dict[bytes, int]:
        """For chunks with a version that is not committed here: which one the chain's is. The last SERVING member knows; without its
        answer the client has to go there."""
        pending = target.engine.pending
        chunks = sorted({reads[place][0] for place in places if reads[place][0] in pending})
        numbers = await self._forwarders[target.id].committed(chunks) if chunks else []
        settled = {
            chunk: settle(target.engine.info(chunk), number)
            for chunk, number in zip(chunks, numbers if numbers is not None else [-1] * len(chunks), strict=True)
        }
        for place in places:
            found = settled.get(reads[place][0])
            if isinstance(found, Status):
                refused[place] = found
        return {chunk: found for chunk, found in settled.items() if not isinstance(found, Status) and found}

    def _may_read(self, target: Target | None, version: int) -> Status:
        if target is None:
            return Status.STALE_ROUTING
        return target.may_read(version)

    @staticmethod
    def _mark_filled(
        sink: Any, plans: Sequence[ReadPlan], positions: Sequence[int], total: int, refused: dict[int, Status]
    ) -> None:
        if not refused and sum([plan.length for plan in plans]) == total:
            sink.filled(0, total)
            return
        for i, plan in enumerate(plans):
            if plan.length and i not in refused:
                sink.filled(positions[i], plan.length)

    # --- updates ---

    async def write(self, request: WriteRequest, context: Context) -> WriteReply:
        return await self._writes.write(request, context)

    async def truncate(self, request: TruncateChunkRequest, context: Context) -> TruncateChunkReply:
        return await self._writes.truncate(request, context)

    async def remove(self, request: RemoveChunksRequest, context: Context) -> RemoveChunksReply:
        return await self._writes.remove(request, context)

    async def clone(self, request: CloneRequest, context: Context) -> CloneReply:
        return await self._clones.clone(request, context)

    async def extents(self, request: ExtentsRequest, context: Context) -> ExtentsReply:
        return await self._clones.extents(request, context)

    # --- the rest ---

    async def query_last(self, request: QueryLastRequest, context: Context) -> QueryLastReply:
        need_trust(context)
        count = len(request.inode)
        check_columns(count, request.chain, request.chain_version, request.truncate_version)
        reply = QueryLastReply()
        # Whoever asks knows a routing under which a writer is over: from an older one that writer's updates would still be taken.
        late = request.routing_version > self._routing.version
        for i in range(count):
            target = self._by_chain.get(request.chain[i])
            status = Status.STALE_ROUTING if late else self._may_read(target, request.chain_version[i])
            last = LastChunk(False)
            if target is not None and status is _OK:
                inode = chunk_key(request.inode[i], 0, request.tenant)[:INODE_BYTES]
                await self._finish_updates(target, inode, context)
                last = await target.blocking(target.engine.query_last, inode, request.truncate_version[i])
                status = self._may_read(target, request.chain_version[i])
            reply.status.append(status)
            reply.found.append(last.found)
            reply.index.append(last.chunk_index)
            reply.length.append(last.length)
            reply.chunks.append(last.chunks)
            reply.bytes.append(last.content)
        reply.chains.extend(self._chains(reply.status, request.chain))
        return reply

    async def _finish_updates(self, target: Target, file: bytes, context: Context) -> None:
        """Wait for the updates of a file that are under way now: they are a part of what there is."""
        waiting = target.replica.updating(file)
        while waiting and context.remaining() > UPDATES_POLL_S:
            await self._env.sleep(UPDATES_POLL_S)
            waiting &= target.replica.updating(file)
        if waiting:
            raise error(Status.BUSY, f"target {target.id}: updates of the file are still under way; ask again")

    async def sync(self, request: SyncRequest, context: Context) -> SyncReply:
        check_columns(len(request.chain), request.chain_version)
        targets = [self._by_chain.get(chain) for chain in request.chain]
        syncs = [
            target.start_sync(version) if target is not None else None
            for target, version in zip(targets, request.chain_version, strict=True)
        ]
        statuses = [Status((await sync)[0].status) if sync is not None else Status.STALE_ROUTING for sync in syncs]
        return SyncReply(status=statuses, chains=self._chains(statuses, request.chain))

    async def fence(self, request: FenceRequest, context: Context) -> FenceReply:
        check_columns(len(request.chain), request.chain_version)
        statuses = []
        for chain, version in zip(request.chain, request.chain_version, strict=True):
            target = self._by_chain.get(chain)
            fenced = target.fence(version, context.peer.client, request.sequence) if target is not None else None
            statuses.append(Status((await fenced)[0].status) if fenced is not None else Status.STALE_ROUTING)
        return FenceReply(status=statuses, chains=self._chains(statuses, request.chain))

    async def space(self, request: SpaceRequest, context: Context) -> SpaceReply:
        reply = SpaceReply()
        for target in self._targets.values():
            info = target.engine.space_info()
            reply.target.append(target.id)
            reply.capacity.append(info.capacity)
            reply.used.append(info.used)
            reply.chunks.append(info.chunks)
            reply.bytes_read.append(target.counters.bytes_read)
            reply.bytes_written.append(target.counters.bytes_written)
        for address, spoken in self._env.spoken().items():
            reply.peer.append(address)
            reply.peer_transport.append(spoken.transport)
            reply.peer_reason.append(spoken.reason)
        return reply

    async def report_corruption(self, request: ReportCorruptionRequest, context: Context) -> ReportCorruptionReply:
        count = len(request.inode)
        check_columns(count, request.chain, request.target, request.index)
        for i in range(min(count, REPORTS_MAX)):
            target = self._targets.get(request.target[i])
            if target is None or target.engine.failed:
                continue
            chunk = chunk_key(request.inode[i], request.index[i], request.tenant)
            self._log.warning(
                "a client reports a damaged chunk",
                target=target.id,
                inode=f"{request.inode[i]:x}",
                index=request.index[i],
                peer=context.peer.name,
            )
            if not await inspect(target, chunk):
                target.may_be_damaged(chunk)  # nothing to read here: another member may have it
        return ReportCorruptionReply()

    async def forward(self, request: ForwardRequest, context: Context) -> ForwardReply:
        return await self._forwarding.forward(request, context)

    async def committed(self, request: CommittedRequest, context: Context) -> CommittedReply:
        return await self._forwarding.committed(request, context)

    async def list_chunks(self, request: ListChunksRequest, context: Context) -> ListChunksReply:
        return await self._exchange.list_chunks(request, context)

    async def put_records(self, request: PutRecordsRequest, context: Context) -> PutRecordsReply:
        return await self._exchange.put_records(request, context)

    async def finish_sync(self, request: FinishSyncRequest, context: Context) -> FinishSyncReply:
        return await self._exchange.finish_sync(request, context)

    async def add_target(self, request: AddTargetRequest, context: Context) -> AddTargetReply:
        need_trust(context)
        target = await self._keeper().add(request.path, request.capacity, request.table)
        return AddTargetReply(target=target.id, path=target.path)

    async def drop_target(self, request: DropTargetRequest, context: Context) -> DropTargetReply:
        need_trust(context)
        await self._keeper().drop(request.target)
        return DropTargetReply()

    def _keeper(self) -> TargetKeeper:
        if self.keeper is None:
            raise error(Status.UNAVAILABLE, "this server is starting; try again")
        return self.keeper


def _exact(request: ReadRequest, chunks: Sequence[bytes], context: Context) -> dict[bytes, int]:
    """The versions that another server asks for; empty in every client's request."""
    if not request.version:
        return {}
    need_trust(context)
    check_columns(len(chunks), request.version)
    return {chunk: number for chunk, number in zip(chunks, request.version, strict=True) if number}
