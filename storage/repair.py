"""Repair: a damaged or missing chunk of a SERVING member is brought back from another one, under its own version.

Who finds the damage only reports it: a read of an edge, an update that has to merge old bytes, the scrubber, a client. The repair waits
in the line of the chunk in the replica's machine (event `Repair`): when its turn comes, every update that passed through here is
committed here and further down the chain, and the next one has to wait. So the committed version of every other SERVING member is the
one that belongs here too, and what is written is what was there before the damage.

A chunk without another replica stays what it is: every read of the damaged part answers CHECKSUM, and the log names it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..proto.env import Environment
from ..proto.errors import Status, StatusError, error
from ..proto.gen.common_pb2 import TARGET_STATE_SERVING
from ..proto.gen.storage_pb2 import ListChunksRequest, ReadRequest
from ..proto.ids import ChunkId
from ..proto.layout import UNIT_SMALL
from ..proto.region import Region, Slice
from ..proto.rpc import STORAGE
from ..proto.settings import time_scale
from .engine import job as chunks
from .engine.checksum import crc32c
from .engine.records import ChunkInfo
from .engine.slots import SLOT_BYTES_MAX
from .events import Repair
from .exchange import entries_of
from .inspection import inspect
from .peers import Peers
from .resync import PAGE_CHUNKS, Entry
from .target import Target
from .updates import chunk_name

WAITING_MAX = 10_000  # chunks to repair; the scrubber finds again what is not remembered
CALL_S = 10.0  # of one request to another member; scaled
TRIES = 5  # in a row, where it may work a little later
RETRY_S = 1.0  # scaled
HOPELESS_S = (
    10.0  # what no other replica could give is asked for again after this: a disk may be readable again; scaled
)

_LATER = frozenset(
    (
        Status.BUSY,
        Status.UNAVAILABLE,
        Status.DEADLINE,
        Status.STALE_CHAIN_VERSION,
        Status.STALE_ROUTING,
        Status.NOT_COMMITTED,
        Status.MAYBE_COMMITTED,
        Status.FENCED,
    )
)


class Repairer:
    """Of one target: one chunk at a time."""

    def __init__(self, target: Target, peers: Peers, env: Environment, log: Any) -> None:
        self._target = target
        self._peers = peers
        self._env = env
        self._log = log
        self._waiting: dict[bytes, None] = {}
        self._working = False
        self._hopeless: dict[bytes, float] = {}  # chunks that nobody could give, and when to ask again
        self.repaired = 0  # since the start of the process
        target.mend = self.mend
        target.damage_watchers.append(self.report)
        target.chain_watchers.append(self.routing_changed)

    def report(self, chunk: bytes) -> bool:
        """This chunk is damaged or missing, or may be. Whether it will be looked at: without another replica, or where that has just
        not helped, it is left alone for a while or until the chain changes."""
        if len(self._waiting) >= WAITING_MAX or not self._sources():
            return False
        if self._hopeless.get(chunk, float("-inf")) > self._env.now():
            return False
        self._waiting[chunk] = None
        if not self._working:
            self._working = True
            self._env.spawn(self._work, f"repairs of target {self._target.id}")
        return True

    def routing_changed(self) -> None:
        """Somebody may be there now who has what is damaged here."""
        self._hopeless.clear()
        for chunk in list(self._target.damaged):
            self.report(chunk)

    async def _work(self) -> None:
        while self._waiting and not self._target.engine.failed:
            chunk = next(iter(self._waiting))
            await self.repair(chunk)
            self._waiting.pop(chunk, None)
        self._working = False

    async def repair(self, chunk: bytes) -> Status:
        """OK when the chunk is sound now. What went wrong otherwise was logged."""
        status = Status.OK
        for _ in range(TRIES):
            ticket = self._env.promise()
            self._target.submit(Repair(ticket, chunk))
            status = Status((await ticket)[0].status)
            if status not in _LATER:
                break
            await self._env.sleep(RETRY_S * time_scale())
        if status is not Status.OK:
            if status not in _LATER and len(self._hopeless) < WAITING_MAX:
                self._hopeless[chunk] = self._env.now() + HOPELESS_S * time_scale()
            self._log.error("chunk not repaired", target=self._target.id, chunk=chunk_name(chunk), error=status.name)
        return status

    async def mend(self, chunk: bytes) -> None:
        """Look at the chunk, and bring it back if that is necessary. Its line is ours meanwhile. Raises StatusError."""
        target = self._target
        chain = target.replica.chain
        info = target.engine.info(chunk)
        if info is not None and info.version and await inspect(target, chunk) and chunk not in target.damaged:
            return
        failure: StatusError | None = None
        for source in self._sources():
            try:
                # What belongs here our own row says. A member before us may still have that version pending, if our answer was lost.
                entry = _entry_of(info) or await self._entry(source, chunk)
                if entry is None:
                    continue  # it is nowhere: nobody misses it
                data, unit = await self._content(source, entry)
                await self._replace(entry, data, unit, info, chain)
            except StatusError as failed:
                failure = failed
                self._log.warning("no repair from there", target=target.id, source=source, error=failed.strerror)
                continue
            self.repaired += 1
            target.damaged.pop(chunk, None)
            self._log.warning("chunk repaired", target=target.id, chunk=chunk_name(chunk), source=source)
            return
        if failure is not None:
            raise failure
        if info is not None:
            raise error(Status.CHECKSUM, f"chunk {chunk_name(chunk)} is damaged, and there is no other replica")

    async def look_for_missing(self, first: bytes, last: bytes, here: Collection[bytes]) -> int:
        """Report the chunks with first <= id < last that another member has committed and that are not `here`; how many they are. One
        that was written meanwhile is found sound by its repair. Raises StatusError."""
        found = 0
        more = bool(self._sources())
        while more:
            entries, more = await self._list(self._sources()[0], first, last, PAGE_CHUNKS)
            missing = [entry.chunk for entry in entries if entry.number and entry.chunk not in here]
            for chunk in missing:
                self.report(chunk)
            found += len(missing)
            if entries:
                first = entries[-1].chunk + b"\0"
            more = more and bool(self._sources())
        return found

    def _sources(self) -> list[int]:
        """The other SERVING members, the tail first."""
        replica = self._target.replica
        if not replica.serving or replica.chain is None:
            return []
        serving = [m.target for m in replica.chain.members if m.state == TARGET_STATE_SERVING]
        return [target for target in reversed(serving) if target != self._target.id]

    async def _entry(self, source: int, chunk: bytes) -> Entry | None:
        """What another member says of a chunk that is not here. Raises NOT_COMMITTED while it has an update of it under way: that may be
        the remove which has been done here already."""
        entries, _ = await self._list(source, chunk, chunk + b"\0", 1)
        if entries and entries[0].pending:
            raise error(Status.NOT_COMMITTED, f"target {source} has not finished an update of the chunk")
        return entries[0] if entries and entries[0].number else None

    async def _list(self, source: int, first: bytes, last: bytes, count: int) -> tuple[list[Entry], bool]:
        """A page of another member's chunks, and whether there are more."""
        chain = self._target.replica.chain
        assert chain is not None
        request = ListChunksRequest(
            chain=chain.id, chain_version=chain.version, first=first, last=last, chunks_max=count
        )
        reply = await self._peers.call(source, STORAGE.ListChunks, request, CALL_S * time_scale())
        if reply.status != Status.OK:
            raise error(Status(reply.status), f"the list of target {source}: {Status(reply.status).name}")
        return entries_of(reply), reply.more

    async def _content(self, source: int, entry: Entry) -> tuple[bytearray, int]:
        """The chunk's bytes from another member, compared with its checksum, and the bytes per checksum."""
        chain = self._target.replica.chain
        assert chain is not None
        place = ChunkId.unpack(entry.chunk)
        request = ReadRequest(
            chain=[chain.id],
            chain_version=[chain.version],
            inode=[place.inode],
            index=[place.index],
            offset=[0],
            length=[entry.length],
            tenant=place.tenant,
            version=[entry.number],
        )
        data = bytearray(entry.length)
        memory = Slice(Region(memoryview(data)), 0, entry.length)
        reply = await self._peers.call(source, STORAGE.Read, request, CALL_S * time_scale(), target=(memory,))
        status = Status(reply.status[0]) if len(reply.status) == 1 else Status.PROTOCOL
        if status is Status.OK and (reply.returned[0] != entry.length or crc32c(data) != entry.checksum):
            status = Status.CHECKSUM
        if status is not Status.OK:
            raise error(status, f"chunk {chunk_name(entry.chunk)} on target {source}: {status.name}")
        return data, reply.unit[0]

    async def _replace(self, entry: Entry, data: bytearray, unit: int, before: Any, chain: Any) -> None:
        """`before` is what was here under the entry `chain`. Raises BUSY where that is not so any more: what belonged here then may have
        been removed since, by a chain that we had left, and we have been made equal to it."""
        target = self._target
        engine = target.engine
        changed = error(Status.BUSY, f"chunk {chunk_name(entry.chunk)} or its chain was changed meanwhile")
        if engine.info(entry.chunk) != before or target.replica.chain != chain:
            raise changed
        size = 1 << 20 if unit == UNIT_SMALL else SLOT_BYTES_MAX
        same = (entry.truncate_version, entry.version_chain, entry.number)
        update = chunks.Update(
            chunks.Kind.REPLACE, entry.chunk, 0, data, entry.checksum, size, *same, block=entry.block
        )
        job = engine.prepare(update)
        try:
            await target.blocking(job.run)
        except BaseException:
            engine.abandon(job)
            raise
        if target.replica.chain != chain:
            engine.abandon(job)
            raise changed
        engine.stage([job], commit=True)


def _entry_of(info: ChunkInfo | None) -> Entry | None:
    """What our own row says was committed here, if it does."""
    if info is None or not info.version:
        return None
    return Entry(
        info.chunk,
        info.version,
        info.chain_version,
        info.length,
        info.truncate_version,
        info.checksum,
        bool(info.pending),
        info.block,
    )
