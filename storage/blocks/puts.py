"""Puts: reserve, take the bytes, verify them, write them, acknowledge.

A block is acknowledged when it survives the death of the process, and in a chain of several when every member has it. Who puts a block that
is here succeeds at once; who puts one that is being put waits for the outcome, and tries itself if that failed. A reservation lives
as long as the request that made it, so none is ever left behind.

Chains of one take new blocks on a short way (engine/fresh.py): all of a request together, one index write. Everything else (several
members, a block in the place of one that leaves or whose time is over) runs through the replica's machine, as any update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ...proto.blocks import BLOCK_BYTES_MAX, chunk_of, chunks_of
from ...proto.env import Environment
from ...proto.errors import Status, StatusError, error
from ...proto.gen.cluster_pb2 import KvNamespace
from ...proto.gen.kvcache_pb2 import PutReply, PutRequest
from ...proto.layout import UNIT_SMALL
from ...proto.rpc import Context
from ..engine.fresh import Bulk, FreshChunks
from ..engine.slots import CLASS_BYTES, SLOT_BYTES_MAX, class_for
from ..events import Kind, Update
from .directory import Shelf
from .record import moment, pack_record, pack_records
from .requests import Run, Runs, column, keys_of
from .store import Store

ROUNDS_MAX = 4  # of waiting for others who put the same block, until the client had better come back
INLINE_BYTES_MAX = 1 << 20  # of one request written on the loop: what a hop to a thread costs, a few times over
BORROWED_BYTES_MIN = 16 << 10  # of a block, on average, from which on it is written out of the client's memory
CHUNK_BYTES_SMALL = 1 << 20  # a chunk size with the small checksum unit

_OK = Status.OK


@dataclass(slots=True)
class Batch:
    """A request in columns; `status`, `generation` and `existed` are its answer."""

    namespace: KvNamespace
    now: float  # seconds since the epoch
    keys: list[bytes]
    lengths: Sequence[int]
    checksums: Sequence[int]
    depths: Sequence[int]
    expiries: Sequence[int]
    skips: Sequence[bool]
    pin: int
    durable: bool
    status: list[int]
    generation: list[int]
    existed: bytearray
    positions: list[int] = field(default_factory=list)  # of each block in the bulk, and where that ends
    views: dict[int, memoryview] = field(default_factory=dict)
    data: Bulk = field(default_factory=lambda: Bulk((), private=True))
    uniform: bool = False  # all blocks are as long as the namespace says, and all bytes come along

    def view(self, i: int) -> memoryview:
        """The bytes of a block, which are private."""
        (view,) = self.data.cut(self.positions[i], self.positions[i] + self.lengths[i])
        return view

    def take(self, data: Bulk) -> None:
        """Raises INVALID."""
        if len(data) != self.positions[-1]:
            raise error(Status.INVALID, f"{self.positions[-1]} bytes announced, {len(data)} sent")
        self.data = data

    def pick(self, column: Sequence[Any], places: Sequence[int]) -> Sequence[Any]:
        """The entries of a column at these places."""
        return column[: len(places)] if len(places) == len(self.keys) else [column[i] for i in places]

    def record(self, i: int) -> bytes:
        return pack_record(self.namespace.id, self.keys[i], self.depths[i], self.expiries[i], self.pin)


def batch_of(request: PutRequest, namespace: KvNamespace, now: float) -> Batch:
    """Raises INVALID for columns that do not fit."""
    keys = keys_of(request.keys)
    count = len(keys)
    size = namespace.block_bytes
    if len(request.checksum) != count or not (request.length or size or not count):
        raise error(
            Status.INVALID, "a put says the checksum of every block, and its length where the namespace does not"
        )
    batch = Batch(
        namespace,
        now,
        keys,
        column(request.length, count, size),
        request.checksum[:],
        column(request.depth, count, 0),
        _expiries(column(request.ttl_s, count, 0), namespace.ttl_s, now),
        column(request.skip, count, False),
        moment(now, request.pin_s),
        request.durable,
        [0] * count,
        [0] * count,
        bytearray(count),
    )
    lengths = batch.lengths
    if request.skip:
        lengths = [0 if skip else length for skip, length in zip(batch.skips, lengths, strict=True)]
    batch.positions = [0, *accumulate(lengths)]
    batch.uniform = bool(size) and not request.length and not request.skip and size <= BLOCK_BYTES_MAX
    return batch


def _expiries(ttls: Sequence[int], otherwise: int, now: float) -> Sequence[int]:
    """When each block is over."""
    if not otherwise and not any(ttls):
        return ttls
    return [moment(now, ttl or otherwise) for ttl in ttls]


class Puts:
    """Of all targets of the process."""

    def __init__(self, env: Environment) -> None:
        self._env = env

    async def put(self, request: PutRequest, context: Context, namespace: KvNamespace, runs: Runs) -> PutReply:
        batch = batch_of(request, namespace, self._env.wall_ns() / 1e9)
        work: list[tuple[Store, Run, list[int], int]] = []
        for run, store in runs:
            missing = self._admit(batch, run, store)
            if missing and isinstance(store, Store):
                work.append((store, run, missing, store.directory.additions))
        if work:
            if not self._borrow(batch, context, [store for store, *_ in work]):
                await self._pull(batch, context)
            for store, run, missing, additions in work:
                await self._put(store, run, missing, additions, batch, context)
            batch.data.release()
        if batch.durable:
            await self._make_durable(batch, runs)
        return PutReply(
            status=batch.status if any(batch.status) else (),
            generation=batch.generation,
            existed=bytes(batch.existed) if any(batch.existed) else b"",
        )

    @staticmethod
    def _borrow(batch: Batch, context: Context, stores: Sequence[Store]) -> bool:
        """Take the bytes from where they lie in the client's memory, if they can be written from there: without a copy before, and only
        those of blocks that are wanted."""
        if batch.positions[-1] < BORROWED_BYTES_MIN * len(batch.keys):
            return False
        if not all(store.is_alone and store.target.engine.disk.buffered for store in stores):
            return False
        parts = context.lent()
        if parts is None:
            return False
        batch.take(Bulk(parts, private=False))
        return True

    @staticmethod
    async def _pull(batch: Batch, context: Context) -> None:
        batch.take(Bulk([memoryview(await context.pull())], private=True))  # a view of our own, to be released

    # --- what is to be done at all ---

    def _admit(self, batch: Batch, run: Run, store: Store | Status) -> list[int]:
        """The keys of a run whose bytes are wanted; all others have their status. Before anything is moved."""
        places = range(run.begin, run.end)
        if not isinstance(store, Store):
            batch.status[run.begin : run.end] = [int(store)] * len(places)
            return []
        missing = self._missing(batch, store, places)
        if not missing:
            return missing
        shelf = store.directory.shelf(batch.namespace.id)
        wanted = []
        ahead = 0
        if batch.uniform:
            size = CLASS_BYTES[class_for(batch.namespace.block_bytes)]
            if self._room(store, batch, size * len(missing)) is _OK:
                return missing
        for i in missing:
            status = self._refusal(batch, i)
            if status is _OK:
                size = CLASS_BYTES[class_for(batch.lengths[i])]
                status = self._room(store, batch, size, ahead)
            if status is _OK:
                ahead += size
                wanted.append(i)
            else:
                batch.status[i] = status
                shelf.puts_refused += 1
        return wanted

    @staticmethod
    def _room(store: Store, batch: Batch, size: int, ahead: int = 0) -> Status:
        """Whether slots of `size` bytes may be taken, behind others of the batch that take `ahead`."""
        status = store.evictor.admit(batch.namespace.id, size, ahead)
        if status is _OK and batch.pin:
            status = store.evictor.may_pin(batch.namespace.id, ahead + size)
        return status

    @staticmethod
    def _refusal(batch: Batch, i: int) -> Status:
        """Why a block cannot be put, whoever is here already."""
        length, size = batch.lengths[i], batch.namespace.block_bytes
        if batch.skips[i]:
            return Status.NOT_FOUND
        if not length:
            return Status.INVALID
        return Status.TOO_LARGE if (size and length != size) or length > BLOCK_BYTES_MAX else _OK

    @staticmethod
    def _missing(batch: Batch, store: Store, places: Sequence[int]) -> list[int]:
        """Those that are not here; the others are answered."""
        directory = store.directory
        shelf = directory.shelf(batch.namespace.id)
        keys = batch.pick(batch.keys, places)
        if shelf.slots.keys().isdisjoint(keys):
            return list(places)
        found = directory.find(shelf, keys, batch.now)
        missing, here = [], []
        for i, slot in zip(places, found, strict=True):
            if slot < 0:
                missing.append(i)
                continue
            batch.generation[i] = directory.generation[slot]
            batch.existed[i] = 1
            here.append(slot)
        if here:
            shelf.puts_existing += len(here)
            store.touched(here)
        return missing

    # --- the blocks of one target ---

    async def _put(
        self, store: Store, run: Run, missing: list[int], additions: int, batch: Batch, context: Context
    ) -> None:
        if store.directory.additions != additions:
            missing = self._missing(batch, store, missing)  # others may have put some of them meanwhile
        for _ in range(ROUNDS_MAX):
            status = store.may_change(run.version)
            if status is not _OK:  # the chain was changed while the bytes came, or while others were waited for
                self._refuse(missing, batch, store.directory.shelf(batch.namespace.id), status)
                return
            mine, theirs = self._split(store, missing, batch)
            if mine:
                await self._write(store, run, mine, batch, context)
            if not theirs:
                return
            for i in theirs:
                other = store.reserved.get((batch.namespace.id, batch.keys[i]))
                if other is not None:
                    await other
            missing = self._missing(batch, store, theirs)
        for i in missing:
            batch.status[i] = Status.WOULD_BLOCK

    @staticmethod
    def _split(store: Store, missing: Sequence[int], batch: Batch) -> tuple[list[int], list[int]]:
        """Those that nobody puts, and those that somebody does: another request, or this one a few keys before."""
        namespace, keys, reserved = batch.namespace.id, batch.keys, store.reserved
        if not reserved and len(set(batch.pick(keys, missing))) == len(missing):
            return list(missing), []
        mine, theirs = [], []
        seen: set[bytes] = set()
        for i in missing:
            key = keys[i]
            if key in seen or (reserved and (namespace, key) in reserved):
                theirs.append(i)
            else:
                seen.add(key)
                mine.append(i)
        return mine, theirs

    async def _write(self, store: Store, run: Run, mine: list[int], batch: Batch, context: Context) -> None:
        """Nobody else puts these, and they are not here."""
        shelf = store.directory.shelf(batch.namespace.id)
        takes = self._slot_bytes(batch, mine)
        status = self._room(store, batch, takes)
        if status is not _OK:  # there was room, but others of the tenant have put meanwhile
            self._refuse(mine, batch, shelf, status)
            return
        short, long = mine, list[int]()
        if not store.is_alone:
            short, long = [], mine
        elif shelf.leaving or shelf.timed:
            # A row is there still: of a block that leaves, or whose time is over.
            is_there = [batch.keys[i] in shelf.leaving or batch.keys[i] in shelf.slots for i in mine]
            short = [i for i, there in zip(mine, is_there, strict=True) if not there]
            long = [i for i, there in zip(mine, is_there, strict=True) if there]
        size = sum([batch.lengths[i] for i in short])
        if not long and size <= INLINE_BYTES_MAX:
            self._write_now(store, run, short, batch, shelf)  # nothing else runs meanwhile: no reservation
            return
        reserved = [(batch.namespace.id, batch.keys[i]) for i in mine]
        promise = self._env.promise()
        for key in reserved:
            store.reserved[key] = promise
        tenant = store.evictor.tenant_of(batch.namespace.id)
        store.evictor.expect(tenant, takes)
        pins = takes if batch.pin else 0
        store.directory.count_pins(batch.namespace.id, pins)
        try:
            if short:
                await self._write_fresh(store, run, short, batch, shelf)
            if long:
                if not batch.data.private:
                    await self._pull(batch, context)
                await self._write_updates(store, run, long, batch, shelf)
        finally:
            store.evictor.expect(tenant, -takes)
            store.directory.count_pins(batch.namespace.id, -pins)
            for key in reserved:
                del store.reserved[key]
            promise.set(None)

    @staticmethod
    def _slot_bytes(batch: Batch, mine: Sequence[int]) -> int:
        """Of disk space that these take."""
        if batch.uniform:
            return len(mine) * CLASS_BYTES[class_for(batch.namespace.block_bytes)]
        return sum([CLASS_BYTES[class_for(batch.lengths[i])] for i in mine])

    def _write_now(self, store: Store, run: Run, mine: Sequence[int], batch: Batch, shelf: Shelf) -> None:
        fresh = self._fresh(store, run, mine, batch, shelf)
        if fresh is None:
            return
        try:
            fresh.run()
        except StatusError as failed:
            self._fail(store, fresh, mine, batch, shelf, failed)
        else:
            self._stage(store, fresh, mine, batch, shelf)

    async def _write_fresh(self, store: Store, run: Run, mine: Sequence[int], batch: Batch, shelf: Shelf) -> None:
        fresh = self._fresh(store, run, mine, batch, shelf)
        if fresh is None:
            return
        target = store.target
        try:
            with target.at_work():
                await target.blocking(fresh.run)
        except StatusError as failed:
            self._fail(store, fresh, mine, batch, shelf, failed)
            return
        except BaseException:
            fresh.abandon()
            raise
        status = store.may_change(run.version)
        if status is not _OK or not store.is_alone:
            # The chain was changed: somebody comes behind us now, and must not miss this.
            fresh.abandon()
            self._refuse(mine, batch, shelf, Status.STALE_CHAIN_VERSION if status is _OK else status)
            return
        self._stage(store, fresh, mine, batch, shelf)

    def _fresh(self, store: Store, run: Run, mine: Sequence[int], batch: Batch, shelf: Shelf) -> FreshChunks | None:
        pick = batch.pick
        chunks = chunks_of(batch.namespace.id, pick(batch.keys, mine))
        columns = (pick(batch.positions, mine), pick(batch.lengths, mine), pick(batch.checksums, mine))
        try:
            return FreshChunks(store.target.engine, chunks, batch.data, *columns, run.version)
        except StatusError as refused:
            self._refuse(mine, batch, shelf, self._pressure(store, refused))
        return None

    def _stage(self, store: Store, fresh: FreshChunks, mine: Sequence[int], batch: Batch, shelf: Shelf) -> None:
        keys, depths, expiries = (batch.pick(column, mine) for column in (batch.keys, batch.depths, batch.expiries))
        try:
            fresh.stage(pack_records(batch.namespace.id, keys, depths, expiries, batch.pin))
        except StatusError as failed:
            store.target.tell_offline()
            self._refuse(mine, batch, shelf, failed.status)
            return
        columns: Sequence[Sequence[Any]]
        columns = (keys, fresh.slots, fresh.places, fresh.lengths, fresh.checksums, depths, expiries)
        if fresh.failed:
            self._refuse([mine[n] for n in fresh.failed], batch, shelf, Status.CHECKSUM)
            mine, *columns = [[x for n, x in enumerate(c) if n not in fresh.failed] for c in (mine, *columns)]
        keys, places, where, lengths, checksums, depths, expiries = columns
        store.directory.add(shelf, keys, fresh.version, places, where, lengths, checksums, depths, expiries, batch.pin)
        if len(mine) == len(batch.keys):
            batch.generation = [fresh.version] * len(mine)
        else:
            for i in mine:
                batch.generation[i] = fresh.version
        written = sum(lengths)
        counters = store.target.counters
        counters.writes += len(mine)
        counters.bytes_written += written
        shelf.puts += len(mine)
        shelf.bytes_written += written
        store.evictor.look()
        if store.tier.is_over:
            store.trim()
        store.target.checkpoints.relieve()

    def _fail(
        self,
        store: Store,
        fresh: FreshChunks,
        mine: Sequence[int],
        batch: Batch,
        shelf: Shelf,
        failed: StatusError,
    ) -> None:
        fresh.abandon()
        if failed.status is Status.IO_ERROR:
            store.target.note_io_error(failed)
        self._refuse(mine, batch, shelf, self._pressure(store, failed))

    async def _write_updates(self, store: Store, run: Run, mine: Sequence[int], batch: Batch, shelf: Shelf) -> None:
        """Through the machine."""
        namespace, updates = batch.namespace.id, []
        for i in mine:
            key, length = batch.keys[i], batch.lengths[i]
            is_there = key in shelf.leaving or key in shelf.slots
            updates.append(
                Update(
                    Kind.REPLACE if is_there else Kind.WRITE,
                    chunk_of(namespace, key),
                    0,
                    length,
                    batch.checksums[i],
                    b"",
                    0,
                    0,
                    0,
                    CHUNK_BYTES_SMALL if length <= UNIT_SMALL else SLOT_BYTES_MAX,
                    batch.view(i),
                    block=batch.record(i),
                )
            )
        results = await store.target.start_update(run.version, updates)
        store.evictor.look()
        for i, update, result in zip(mine, updates, results, strict=True):
            update.data.release()
            if result.status:
                self._refuse((i,), batch, shelf, _answer(result.status))
            else:
                batch.generation[i] = result.number
                shelf.puts += 1
                shelf.bytes_written += update.length

    @staticmethod
    def _refuse(mine: Sequence[int], batch: Batch, shelf: Shelf, status: int) -> None:
        for i in mine:
            batch.status[i] = status
        shelf.puts_refused += len(mine)

    @staticmethod
    def _pressure(store: Store, refused: StatusError) -> int:
        """No room: a checkpoint or an eviction will make some."""
        store.evictor.wake()
        store.target.checkpoints.relieve()
        return _answer(refused.status)

    async def _make_durable(self, batch: Batch, runs: Runs) -> None:
        for run, store in runs:
            if not isinstance(store, Store):
                continue
            (result,) = await store.target.start_sync(run.version)
            if result.status:
                for i in range(run.begin, run.end):
                    batch.status[i] = batch.status[i] or result.status


def _answer(status: int) -> int:
    """What the machine says, in a client's words."""
    return Status.WOULD_BLOCK if status == Status.BUSY else status
