"""Gets: whole blocks, or parts of them, straight into the client's memory.

Whole blocks are found through the directory alone: place, generation and checksum are in its columns, so a get asks neither the index
nor a row. The client verifies one checksum over identity and content. Parts of blocks go through the engine's plans, as reads of
files do, and are verified by the checksums of their units.

Slots stay pinned until the last byte has moved, so what is evicted meanwhile is read as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ...proto.blocks import chunk_of
from ...proto.errors import Status, StatusError, error
from ...proto.gen.cluster_pb2 import KvNamespace
from ...proto.gen.kvcache_pb2 import GetReply, GetRequest
from ...proto.rpc import Context, Sink
from ..engine.reads import ReadPlan
from ..engine.slots import CLASS_BYTES
from ..reads import INLINE_READ_BYTES_MAX, Batch, note_failure
from .directory import Shelf
from .requests import Run, Runs, column, keys_of
from .store import Store

FILL_BYTES_MAX = 64 << 10  # of one block that is copied without being asked after in the page cache first

_OK = Status.OK
_NOTHING = ReadPlan(Status.INTERNAL)


class Get:
    """One request."""

    def __init__(
        self,
        request: GetRequest,
        context: Context,
        namespace: KvNamespace,
        runs: Runs,
        now: float,
    ) -> None:
        """Raises INVALID for columns that do not fit, or where nobody says how long the blocks are."""
        self.keys = keys_of(request.keys)
        count = len(self.keys)
        if not request.length and not namespace.block_bytes and count:
            raise error(Status.INVALID, "blocks of this namespace have any length: the request says which")
        self.lengths = column(request.length, count, namespace.block_bytes)
        self.offsets = column(request.offset, count, 0) if request.offset else None
        self.generations = column(request.generation, count, 0) if request.generation else None
        self.is_special = bool(request.length) or self.offsets is not None or self.generations is not None
        self.namespace = namespace
        self.context = context
        self.runs = runs
        self.now = now
        self.status = [0] * count
        self.generation = [0] * count
        self.length = [0] * count  # of whole blocks
        self.checksum = [0] * count
        self.plans: dict[int, ReadPlan] = {}  # of parts
        self.positions = [0, *accumulate(self.lengths)]
        self.sink: Sink = context.sink(self.positions[-1])
        parts = self.sink.buffers(0, self.positions[-1]) if self.positions[-1] else ()
        self.whole = parts[0] if len(parts) == 1 else None

    async def answer(self) -> GetReply:
        if (reply := self._small()) is not None:
            return reply
        for run, store in self.runs:
            if isinstance(store, Store):
                await self._get(run, store)
            else:
                self.status[run.begin : run.end] = [int(store)] * (run.end - run.begin)
        self._mark_filled()
        reply = GetReply(generation=self.generation)
        if any(self.status):
            reply.status.extend(self.status)
        if not self.namespace.block_bytes:
            reply.length.extend(self.length)
        if self.offsets is None:
            reply.checksum.extend(self.checksum)
            return reply
        for i in range(len(self.keys)):
            plan = self.plans.get(i, _NOTHING)
            reply.checksum.extend(plan.checksums)
            reply.checksums.append(len(plan.checksums))
            reply.unit.append(plan.unit)
        return reply

    def _small(self) -> GetReply | None:
        """The commonest get, all done here and now: small blocks of a namespace that says how long they are, on one chain, all of them here
        and in memory. None where that is not so. Nothing is done for a single key that a list can do for all, and nothing is
        pinned, for nothing else runs between the look and the last byte."""
        length, whole, runs = self.namespace.block_bytes, self.whole, self.runs
        if not 0 < length <= FILL_BYTES_MAX or whole is None or len(whole) > INLINE_READ_BYTES_MAX:
            return None
        if self.is_special or len(runs) != 1 or not isinstance(store := runs[0][1], Store):
            return None
        directory = store.directory
        shelf = directory.shelf(self.namespace.id)
        slots = directory.find(shelf, self.keys, self.now)
        if -1 in slots or not _fill(store, slots, whole, length):
            return None
        if (
            store.may_read(runs[0][0].version) is not _OK
        ):  # stopped for longer than this process may speak for the chain
            return None
        self.sink.filled(0, len(whole))
        directory.seal(slots, self.namespace.digest)
        store.touched(slots)
        self._count(store, shelf, len(slots), len(whole))
        shelf.hits += len(slots)
        generation, checksum = directory.generation, directory.checksum
        return GetReply(generation=[generation[slot] for slot in slots], checksum=[checksum[slot] for slot in slots])

    @staticmethod
    def _count(store: Store, shelf: Shelf, blocks: int, size: int) -> None:
        counters = store.target.counters
        counters.reads += blocks
        counters.bytes_read += size
        shelf.bytes_read += size

    async def _get(self, run: Run, store: Store) -> None:
        directory = store.directory
        shelf = directory.shelf(self.namespace.id)
        whole = run.begin == 0 and run.end == len(self.keys)
        places = range(run.begin, run.end)
        found = directory.find(shelf, self.keys if whole else [self.keys[i] for i in places], self.now)
        hits = self._check(store, shelf, places, found)
        if self.offsets is not None:
            await self._parts(store, hits)
        elif not self._fill(store, hits):
            await self._move(store, hits)
        status = store.may_read(run.version)
        if status is not _OK:  # this process may have been stopped for longer than it may speak for the chain
            self.status[run.begin : run.end] = [int(status)] * (run.end - run.begin)

    def _check(self, store: Store, shelf: Shelf, places: Sequence[int], found: Sequence[int]) -> list[tuple[int, int]]:
        """(position in the request, slot) of what can be read."""
        directory, status, lengths, offsets = store.directory, self.status, self.lengths, self.offsets
        generation, length = directory.generation, directory.length
        hits = []
        for i, slot in zip(places, found, strict=True):
            if slot < 0:
                status[i] = 20  # NOT_FOUND
                continue
            size = length[slot]
            self.generation[i] = generation[slot]
            self.length[i] = size
            if self.generations is not None and self.generations[i] not in (0, generation[slot]):
                status[i] = int(Status.STALE_HANDLE)
            elif size != lengths[i] if offsets is None else offsets[i] + lengths[i] > size:
                status[i] = int(Status.TOO_LARGE)
            else:
                hits.append((i, slot))
        shelf.hits += len(hits)
        shelf.misses += len(places) - len(hits)
        store.touched([slot for _, slot in hits])
        return hits

    # --- whole blocks ---

    def _fill(self, store: Store, hits: Sequence[tuple[int, int]]) -> bool:
        """The commonest: small blocks of one length, in memory, moved here and now. Nothing is pinned, for nothing else runs meanwhile."""
        if not hits:
            return True
        length = self.lengths[hits[0][0]]
        whole = self.whole
        if whole is None or length > FILL_BYTES_MAX or len(hits) * length > INLINE_READ_BYTES_MAX:
            return False
        if self.lengths.count(length) != len(self.keys):
            return False
        directory, disk = store.directory, store.target.engine.disk
        places = [(directory.handle[slot], directory.offset[slot]) for _, slot in hits]
        if len(hits) == len(self.keys):
            if disk.fill(places, whole, length) < len(places):
                return False
        else:
            for (i, _), at in zip(hits, places, strict=True):
                if not disk.fill((at,), whole[i * length : (i + 1) * length], length):
                    return False
        self._note(store, hits, len(hits) * length)
        return True

    async def _move(self, store: Store, hits: Sequence[tuple[int, int]]) -> None:
        """Blocks of any length: what is in the page cache here and now, the rest in a thread."""
        target, engine = store.target, store.target.engine
        batch = Batch(target, [i for i, _ in hits], self.positions, self.sink, self.context)
        ticket = engine.space.enter()
        try:
            # Checksums now: what is evicted meanwhile gives its place in the directory away.
            self._note(store, hits, sum([self.lengths[i] for i, _ in hits]))
            plans = [self._plan(store, i, slot) for i, slot in hits]
            missed = batch.move(plans, self.whole)
            if missed:
                target.counters.reads_missed += len(missed)
                with target.at_work():
                    await target.blocking(batch.move_missed, missed)
        finally:
            batch.returned(lambda: engine.space.leave(ticket))
        for i, plan in zip(batch.places, plans, strict=True):
            if (failed := batch.failures.get(i)) is not None:
                self._fail(store, i, plan, failed)

    def _plan(self, store: Store, i: int, slot: int) -> ReadPlan:
        length = self.lengths[i]
        chunk = chunk_of(self.namespace.id, self.keys[i])
        segments = ((store.directory.handle[slot], store.directory.offset[slot], length),)
        return ReadPlan(_OK, length, self.generation[i], CLASS_BYTES[0], segments, (self.checksum[i],), (), chunk)

    def _note(self, store: Store, hits: Sequence[tuple[int, int]], size: int) -> None:
        """The checksums of blocks that are about to be moved, or were."""
        directory = store.directory
        directory.seal([slot for _, slot in hits], self.namespace.digest)
        for i, slot in hits:
            self.checksum[i] = directory.checksum[slot]
        self._count(store, store.directory.shelf(self.namespace.id), len(hits), size)

    # --- parts ---

    async def _parts(self, store: Store, hits: Sequence[tuple[int, int]]) -> None:
        assert self.offsets is not None
        target = store.target
        reads = [(chunk_of(self.namespace.id, self.keys[i]), self.offsets[i], self.lengths[i]) for i, _ in hits]
        if not reads:
            return
        batch = Batch(target, [i for i, _ in hits], self.positions, self.sink, self.context)
        planned = target.engine.plan(reads)
        try:
            missed = batch.move(planned.plans, self.whole)
            if missed:
                target.counters.reads_missed += len(missed)
                with target.at_work():
                    await target.blocking(batch.move_missed, missed)
        finally:
            batch.returned(planned.release)
        size = 0
        for i, plan in zip(batch.places, planned.plans, strict=True):
            failed = batch.failures.get(i)
            if failed is None and plan.status is _OK:
                self.plans[i] = plan
                size += plan.length
            elif failed is not None:
                self._fail(store, i, plan, failed)
            else:
                self.status[i] = int(Status.NOT_FOUND)
        self._count(store, store.directory.shelf(self.namespace.id), len(hits), size)

    # --- the answer ---

    def _fail(self, store: Store, i: int, plan: ReadPlan, failed: StatusError) -> None:
        self.status[i] = int(failed.status)
        note_failure(store.target, plan, failed)

    def _mark_filled(self) -> None:
        if not any(self.status):
            if self.positions[-1]:
                self.sink.filled(0, self.positions[-1])
            return
        for i, status in enumerate(self.status):
            if not status and self.lengths[i]:
                self.sink.filled(self.positions[i], self.lengths[i])


def _fill(store: Store, slots: Sequence[int], buffer: memoryview, length: int) -> bool:
    """Fill the buffer with blocks of one length, those that lie side by side with one system call. False: they are not in memory."""
    handle, offset, fill = store.directory.handle, store.directory.offset, store.target.engine.disk.fill
    begin, first = 0, slots[0]
    file, start = handle[first], offset[first]
    reached = start
    for n, slot in enumerate(slots):
        if offset[slot] != reached or handle[slot] != file:
            if not fill(((file, start),), buffer[begin : n * length], n * length - begin):
                return False
            begin, file, start = n * length, handle[slot], offset[slot]
            reached = start
        reached += length
    return bool(fill(((file, start),), buffer[begin:], len(buffer) - begin))
