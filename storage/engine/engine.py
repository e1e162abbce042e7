"""The chunk engine: the chunks of one target, over a `Disk` of block files and an `Index` of rows.

Rules:
1. All decisions are synchronous and belong to one thread, the owner's event loop. Blocking I/O is in three places, which may run in any
   other thread: `Job.run`, `ReadPlan.read_into` and `Checkpoint.run`; so may the listings (`chunks`, `query_last`, `removable`,
   `receipts`, `records`), which only look at the index. Index writes are calls of a few µs on the loop. `read`, `apply` and `close` block
   whoever calls them.
2. An update is prepared (decided, slots allocated), run (bytes written), staged (a row names them: from here on it survives kill -9) and
   committed or discarded. A chain of one stages and commits in one index write. A chunk has one update under way.
3. No byte that any state refers to is overwritten (job.py); no slot is used again before a checkpoint passed and readers left (space.py).
4. A checkpoint syncs the block files and the log of the index (checkpoint.py). Until the next one, rows keep the state that the last
   one covered (row.py, recovery.py).
5. A failed fdatasync or index write takes the target out for good: nobody knows any more what is on the disk. So does an index that cannot
   be read. Every call then raises TARGET_OFFLINE; the process goes on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NoReturn, Protocol

from ...proto.errors import Status, error
from .checkpoint import Checkpoint
from .disk import Disk
from .index import Change, Index, Lookups
from .job import Job, Kind, Shape, Update
from .planner import Planner, ReadBatch, Units
from .reads import ReadPlan, verify
from .records import ChunkInfo, LastChunk, Read, Receipt, Records, SpaceInfo
from .recovery import LOST_KEY, VERSION_KEY, Found, Opened, pack_number, recover, row_changes, session_record
from .row import CHANNEL, CHUNK, FLOOR, Row, State, decode_row, encode_row
from .rows import PATCH_COST, Floors, Receipts, Rows, chunk_info, successor
from .space import Space

CACHE_BYTES = 80 << 20  # rows and pages of checksums in memory, as rows.py reckons their size
LIST_CHUNKS_MAX = 10_000  # of one listing
LIST_RECORDS_MAX = 1000
PRESSURE_PART = 8  # a checkpoint is wanted when slots that it would free take 1/8 of the capacity

_INDEX = struct.Struct(">I")
Version = tuple[int, int]  # chain version, number


class BlockWatcher(Protocol):
    """Who knows which chunks are blocks of the KV cache."""

    def committed(self, chunk: bytes, old: State | None, new: State | None) -> None:
        """A chunk that was a block, or is one now, is about to be committed in this index write. None: it is not there."""


class ChunkEngine:
    """One target. The class is long because it is the face of the room; what it decides is in job, space, row, reads and recovery.

    `found` says how the target was found when it was opened: whether power was lost, which chunks fell back, which updates are pending.
    """

    def __init__(
        self,
        disk: Disk,
        index: Index,
        *,
        capacity: int,
        boot: str,
        cache_bytes: int = CACHE_BYTES,
        known: bool = False,
    ) -> None:
        """Open (or begin) a target over its block files and index. `boot` is the machine's boot id, `known` says that the target was
        formatted before. Raises BAD_FORMAT, OSError."""
        self.disk = disk
        self.index = index
        self.failed = ""  # why the target is out
        self.space = Space(disk, capacity)
        self.found: Found = recover(index, disk, self.space, boot, known=known)
        self.lost = self.found.lost  # chunks that were here may be missing; remembered until `complete`
        self.epoch = self.found.epoch + 1  # which checkpoint will cover what is written now
        self.checkpointed = self.found.checkpoint  # the last one that passed
        self._boot = boot
        self._version_floor = self.found.version_floor
        self._chunks = self.found.chunks
        self._content = self.found.content_bytes
        self._lookups = Lookups(index, self._fail)
        self._rows = Rows(self._lookups, cache_bytes)
        self._planner = Planner(self._rows, self.space)
        self._receipts = Receipts(self._lookups)
        self._floors = Floors(self._lookups)
        self.pending = set(self.found.pending)  # chunks with a version that is not committed
        self._busy: set[bytes] = set()  # chunks with a job under way
        self._dirty: set[int] = set()  # handles written since the last checkpoint began
        self._unsynced = False  # the index was written since then
        self._checkpoint: Checkpoint | None = None  # under way
        self._closers: list[Callable[[], None]] = [disk.close, index.close]
        self.blocks: BlockWatcher | None = None  # who is told of every commit that concerns a block

    # --- updates ---

    def prepare(self, update: Update) -> Job:
        """Decide how the update is done and allocate what it needs. No I/O, except for a look at the index.

        Afterwards the chunk is busy until the job was staged or abandoned. `job.version` and `job.length` tell the outcome.
        Raises BUSY (another update of the chunk is under way or pending; or the target is full until the next checkpoint:
        `wants_checkpoint` is then true), NO_SPACE, STALE_TRUNCATE_VERSION, INVALID, TARGET_OFFLINE."""
        self._check()
        chunk = update.chunk
        if chunk in self._busy:
            raise error(Status.BUSY, f"another update of chunk {chunk.hex()} is under way")
        row = self._rows.get(chunk)
        old = row.committed if row is not None else None
        if row is not None and row.pending is not None and update.kind is not Kind.REPLACE:
            raise error(Status.BUSY, f"version {row.pending.version} of chunk {chunk.hex()} is pending")
        source = self._source(update) if update.kind is Kind.CLONE else None
        if update.kind in (Kind.WRITE, Kind.TRUNCATE, Kind.CLONE):
            if not update.version:
                self._check_truncate_version(update, old)  # otherwise the head of the chain has decided
            if old is not None and update.kind is not Kind.CLONE:
                self._rows.load_pages(chunk, old)
        job = Job(update, old, self._next_version(update, old), self.space, self.disk, source)
        self._busy.add(chunk)
        return job

    def _source(self, update: Update) -> State | None:
        """What a clone takes: the committed content of its source, if there is any. Raises BUSY while that is changed, INVALID."""
        chunk = update.source
        row = self._rows.get(chunk) if chunk else None
        if chunk == update.chunk:
            raise error(Status.INVALID, f"chunk {chunk.hex()} is to be cloned to itself")
        if chunk in self._busy or (row is not None and row.pending is not None):
            raise error(Status.BUSY, f"an update of chunk {chunk.hex()}, which is to be cloned, is under way")
        if row is None or row.committed is None:
            return None
        self._rows.load_pages(chunk, row.committed)
        return row.committed

    def _check_truncate_version(self, update: Update, old: State | None) -> None:
        floor = max(self._floors.get(update.chunk), old.truncate_version if old is not None else 0)
        if update.truncate_version < floor:
            raise error(
                Status.STALE_TRUNCATE_VERSION,
                f"chunk {update.chunk.hex()}: written under truncate version {update.truncate_version}, it has seen {floor}",
            )

    def _next_version(self, update: Update, old: State | None) -> int:
        # A chunk that comes back after a remove goes on counting: a version is never given to other content.
        last = old.version if old is not None else self._version_floor
        if not update.version:
            return (max(last, self._version_floor) if update.kind is Kind.REPLACE else last) + 1
        absolute = update.kind in (Kind.REPLACE, Kind.REMOVE) or (update.kind is Kind.TRUNCATE and not update.offset)
        if old is not None and update.version <= last and not absolute:
            raise error(Status.INVALID, f"chunk {update.chunk.hex()}: version {update.version} after {last}")
        return update.version

    def abandon(self, job: Job) -> None:
        """The job is not staged: its slots are free again. Not while it runs."""
        for slot in job.fresh:
            self.space.release(slot)
        for slot in job.shared:
            self.space.unshare(slot)
        job.fresh, job.shared = [], []
        self._busy.discard(job.chunk)

    def stage(self, jobs: Sequence[Job], *, commit: bool = False, receipts: Iterable[Receipt] = ()) -> None:
        """Persist jobs that have run, with the channels' receipts, in one index write: they survive kill -9 when this returns. They are
        pending, or with `commit` (nobody comes behind us in the chain) committed at once. All or none. Raises TARGET_OFFLINE."""
        self._check()
        changes: list[Change] = []
        for job in jobs:
            row = self._stage(job, changes)
            if commit:
                self._commit(job.chunk, row, changes)
            else:
                changes.append((CHUNK + job.chunk, encode_row(row)))
            self._busy.discard(job.chunk)
        self._receipts.add(receipts, changes)
        self._receipts.add([job.receipt for job in jobs if job.receipt is not None], changes)
        self._write(changes)

    def _stage(self, job: Job, changes: list[Change]) -> Row:
        assert job.ran or (job.shape is Shape.NONE and job.state.removed), "a job is run before it is staged"
        chunk, state = job.chunk, job.state
        row = self._rows.get(chunk)
        if row is None:
            row = self._rows.put(chunk, Row())
        if row.pending is not None:
            self._retire(row.pending, row.committed)  # replaced by a resync
            row.pending = None
        state.epoch = self.epoch
        self._rows.place_pages(chunk, row, state, job.old, job.touched, changes)
        row.pending = state
        row.receipt = job.receipt
        self.pending.add(chunk)
        if job.shape is Shape.PATCH:
            self._rows.cached.charge(PATCH_COST)
        if job.shape is not Shape.NONE:
            self._dirty.add(self.space.place(job.fresh[0] if job.fresh else state.slot)[0])
        job.fresh, job.shared = [], []
        if job.kind in (Kind.TRUNCATE, Kind.REPLACE):  # what replaces a chunk may be what a truncate left of it
            self._floors.rise(chunk, job.update.truncate_version, changes)
        elif job.kind is Kind.REMOVE:
            # The file is dead: what keeps its older writes out goes with its chunks, on every member.
            self._floors.forget(chunk, changes)
        return row

    def commit(self, versions: Iterable[tuple[bytes, int]], *, receipts: Iterable[Receipt] = ()) -> None:
        """Make pending versions, given as (chunk, version), the committed ones, in one index write. One that is committed already
        is passed over. Raises NOT_FOUND (nothing of that version is pending; nothing was changed)."""
        self._check()
        due = [(chunk, row) for chunk, version in versions if (row := self._pending_row(chunk, version)) is not None]
        changes: list[Change] = []
        for chunk, row in due:
            self._commit(chunk, row, changes)
        self._receipts.add(receipts, changes)
        self._write(changes)

    def _pending_row(self, chunk: bytes, version: int) -> Row | None:
        """The row to commit this version in; None when it is committed already."""
        row = self._rows.get(chunk)
        if row is not None and row.pending is not None and row.pending.version == version:
            return row
        if row is not None and row.committed is not None and row.committed.version >= version:
            return None
        if row is None and self._version_floor >= version:
            return None  # a remove that was committed
        raise error(Status.NOT_FOUND, f"version {version} of chunk {chunk.hex()} is not pending")

    def _commit(self, chunk: bytes, row: Row, changes: list[Change]) -> None:
        assert row.pending is not None
        new, old = row.pending, row.committed
        row.pending = row.receipt = None
        self.pending.discard(chunk)
        if old is not None:
            self._retire(old, new)
            self._chunks -= 1
            self._content -= old.length
        if new.removed:
            row.committed, row.fallbacks = None, ()
            self._rows.cached.drop(chunk)
            if old is not None and max(new.version, old.version) > self._version_floor:
                self._version_floor = max(new.version, old.version)
                changes.append((VERSION_KEY, pack_number(self._version_floor)))
        else:
            row.fallbacks = self._fallbacks(new, old, row.fallbacks)
            row.committed = new
            self._chunks += 1
            self._content += new.length
        changes += row_changes(chunk, row)
        if self.blocks is not None and (new.block or (old is not None and old.block)):
            self.blocks.committed(chunk, old, row.committed)

    def _fallbacks(self, new: State, old: State | None, older: tuple[State, ...]) -> tuple[State, ...]:
        """What a power loss may have to go back to: one state per checkpoint that has not passed, and the newest that has."""
        if new.epoch <= self.checkpointed:
            return ()
        kept: list[State] = []
        epoch = new.epoch
        for state in (old, *older):
            if state is None or state.epoch >= epoch:
                continue
            kept.append(state)
            epoch = state.epoch
            if epoch <= self.checkpointed:
                break
        return tuple(kept)

    def _retire(self, old: State, new: State | None) -> None:
        kept = frozenset(new.slots()) if new is not None else frozenset()
        for slot in old.slots():
            if slot not in kept:
                self.space.retire(slot, self.epoch)

    def discard(self, chunks: Iterable[bytes]) -> None:
        """Forget the pending updates of these chunks: only for a member that left its chain. Chunks without one are passed over."""
        self._check()
        changes: list[Change] = []
        for chunk in chunks:
            row = self._rows.get(chunk)
            if row is None or row.pending is None:
                continue
            pending, row.pending, row.receipt = row.pending, None, None
            self.pending.discard(chunk)
            self._retire(pending, row.committed)
            if row.committed is None:
                self._rows.cached.drop(chunk)
            elif row.committed.slot == pending.slot:
                # Until the next checkpoint a power loss may bring the pending state back: nothing is written over its bytes.
                row.committed.high = max(row.committed.high, pending.high)
            changes += row_changes(chunk, row)
        self._write(changes)

    def apply(self, updates: Sequence[Update], *, receipts: Iterable[Receipt] = ()) -> None:
        """Do updates of different chunks at once and commit them, blocking: for tests, tools and resync of small batches. All or none."""
        jobs: list[Job] = []
        try:
            for update in updates:
                try:
                    jobs.append(self.prepare(update))
                except BlockingIOError:
                    if not self.space.short:
                        raise
                    self.checkpoint()
                    jobs.append(self.prepare(update))
            for job in jobs:
                job.run()
        except BaseException:
            for job in jobs:
                self.abandon(job)
            raise
        self.stage(jobs, commit=True, receipts=receipts)

    # --- receipts: exactly-once ---

    def receipt(self, client: bytes, channel: int) -> Receipt | None:
        """The last update of this client's channel, if any."""
        return self._receipts.get(client, channel)

    def receipts(self, client: bytes = b"") -> Iterator[Receipt]:
        """All of them, or one client's: they travel in a resync."""
        return self._receipts.scan(client)

    def forget_client(self, client: bytes) -> None:
        """The client's session is over: its receipts go. The caller refuses its later writes."""
        self._check()
        self._write(self._receipts.forget(self._receipts.scan(client)))

    # --- records in a resync: receipts and truncate floors together ---

    def records(self, after: bytes = b"", limit: int = LIST_RECORDS_MAX) -> Records:
        """A page of all receipts, then all truncate floors, from the place on that the page before named. May run in any thread."""
        self._check()
        receipts: list[Receipt] = []
        first = after[1:] if after[:1] == FLOOR else b""
        if not first:
            receipts = list(islice(self._receipts.scan(b"", after[1:]), limit))
            if len(receipts) == limit:
                last = receipts[-1]
                return Records(receipts, [], CHANNEL + last.client + last.channel.to_bytes(2, "big") + b"\0")
        room = limit - len(receipts)
        floors = list(islice(self._floors.scan(first), room))
        return Records(receipts, floors, FLOOR + floors[-1][0] + b"\0" if len(floors) == room else None)

    def put_records(self, receipts: Iterable[Receipt], floors: Iterable[tuple[bytes, int]], version_floor: int) -> None:
        """Take over what another member knows; where both know something the higher value stays. Raises TARGET_OFFLINE."""
        self._check()
        changes: list[Change] = []
        self._receipts.rise(receipts, changes)
        for file, truncate_version in floors:
            self._floors.rise(file, truncate_version, changes)
        if version_floor > self._version_floor:
            self._version_floor = version_floor
            changes.append((VERSION_KEY, pack_number(version_floor)))
        self._write(changes)

    def forget_records(self, records: Records) -> None:
        """Drop these receipts and floors: they are from before a resync, and count for nothing. Raises TARGET_OFFLINE."""
        self._check()
        changes = self._receipts.forget(records.receipts)
        for file, _ in records.floors:
            self._floors.forget(file, changes)
        self._write(changes)

    # --- reads ---

    def plan(self, reads: Sequence[Read], *, versions: dict[bytes, int] | None = None) -> ReadBatch:
        """Where the bytes of a batch of (chunk, offset, length) lie, with their checksums; all slots stay pinned until the batch
        is released.

        Each reads the committed version, or for chunks in `versions` exactly that one, committed or pending. A plan's status is OK
        (length may be less than wanted at the chunk's end), CHUNK_NOT_FOUND, NOT_COMMITTED (the version wanted is not here)
        or INVALID. Chunks that are not cached are looked up in one call."""
        self._check()
        return self._planner.plan(reads, versions)

    def units(self, chunks: Sequence[bytes], offsets: Sequence[int], length: int) -> Units | None:
        """As `plan`, in columns, where every read is of one whole unit (`length` bytes) of the committed version and all is known in
        memory; otherwise None. Nothing is pinned: the places are good until the caller lets anything else run."""
        self._check()
        return self._planner.units(chunks, offsets, length)

    def read(self, chunk: bytes, offset: int = 0, length: int = 1 << 30, *, version: int = 0) -> bytearray:
        """Verified bytes in memory of our own, blocking: for resync, the scrubber and tools. Raises CHUNK_NOT_FOUND, NOT_COMMITTED,
        CHECKSUM, IO_ERROR."""
        with self.plan([(chunk, offset, length)], versions={chunk: version} if version else None) as (plan,):
            if plan.status is not Status.OK:
                raise error(plan.status, f"chunk {chunk.hex()}: {plan.status.name}")
            data = bytearray(plan.length)
            if plan.length:
                plan.read_into(self.disk, (data,), True)
                verify(plan, offset, memoryview(data))
        return data

    # --- rows ---

    def info(self, chunk: bytes) -> ChunkInfo | None:
        """What is known of a chunk, or None."""
        row = self._rows.get(chunk)
        return chunk_info(chunk, row) if row is not None else None

    def is_shared(self, chunk: bytes) -> bool:
        """Whether other chunks refer to the base slot of the committed content, too."""
        row = self._rows.get(chunk)
        return row is not None and row.committed is not None and self.space.is_shared(row.committed.slot)

    def content(self, chunk: bytes, version: Version) -> State | None:
        """What the chunk is under this version, pending or committed; None when that is not here (any more)."""
        row = self._rows.get(chunk)
        for state in (row.pending, row.committed) if row is not None else ():
            if state is not None and (state.chain_version, state.version) == version:
                return state
        return None

    def units_of(self, chunk: bytes, state: State) -> bytes:
        """The CRC32C of every unit of a chunk's state, u32 little-endian. Raises BAD_FORMAT when the index has lost them."""
        self._rows.load_pages(chunk, state)
        return b"".join([page.tobytes() for page in state.crcs if page is not None])

    def unresolved(self) -> list[tuple[bytes, State, Receipt | None]]:
        """All that is pending, with the receipts that came with it."""
        found = []
        for chunk in sorted(self.pending):
            row = self._rows.get(chunk)
            assert row is not None and row.pending is not None
            found.append((chunk, row.pending, row.receipt))
        return found

    def chunks(
        self, first: bytes, last: bytes, limit: int = LIST_CHUNKS_MAX, *, reverse: bool = False
    ) -> list[ChunkInfo]:
        """The chunks with first <= id < last, in order of their ids or backwards, at most `limit`. Go on from the last one."""
        self._check()
        return list(islice(self._rows.scan(first, last, reverse=reverse), limit))

    def scan_blocks(self, first: bytes, last: bytes) -> Iterator[State]:
        """The committed content of the chunks with first <= id < last that are blocks of the KV cache."""
        for _, value in self._lookups.scan(CHUNK + first, CHUNK + last):
            state = decode_row(value).committed
            if state is not None and state.block:
                yield state

    def query_last(self, inode: bytes, truncate_version: int = 0) -> LastChunk:
        """The last chunk of a file, given as tenant and inode (the first 10 bytes of its chunk ids), how many there are and their
        bytes. Only committed ones count that were written under `truncate_version` or later."""
        last: ChunkInfo | None = None
        count = total = 0
        for info in self._rows.scan(inode, successor(inode)):
            if info.version and info.truncate_version >= truncate_version:
                last, count, total = info, count + 1, total + info.length
        if last is None:
            return LastChunk(False)
        return LastChunk(True, _INDEX.unpack(last.chunk[12:])[0], last.length, count, total)

    def remove_range(
        self, first: bytes, last: bytes, limit: int, *, truncate_version: int | None = None
    ) -> tuple[int, bool]:
        """Remove the chunks with first <= id < last, at most `limit`, committed at once (chains of one): how many, and whether there are
        more. With `truncate_version` those written under it or later stay, and older writes to the file are refused from now on;
        without, the file is gone. A chunk whose update is under way is left for the next call."""
        self._check()
        changes: list[Change] = []
        jobs: list[Job] = []
        more = False
        for info in self.removable(first, last, limit + 1, truncate_version=truncate_version):
            if len(jobs) == limit or info.chunk in self._busy or info.pending:
                more = True
                continue
            jobs.append(self.prepare(Update(Kind.REMOVE, info.chunk)))
        for job in jobs:
            self._commit(job.chunk, self._stage(job, changes), changes)
            self._busy.discard(job.chunk)
        if truncate_version is not None:
            self._floors.rise(first, truncate_version, changes)
        elif not more:
            self._floors.forget(first, changes)
        self._write(changes)
        return len(jobs), more

    def removable(
        self, first: bytes, last: bytes, limit: int, *, truncate_version: int | None = None
    ) -> list[ChunkInfo]:
        """The chunks that `remove_range` would take: a chain removes them by versioned updates."""
        old = (
            info
            for info in self._rows.scan(first, last)
            if truncate_version is None or info.truncate_version < truncate_version
        )
        return list(islice(old, limit))

    def truncate_floor(self, chunk: bytes) -> int:
        """Writes to this chunk's file under an older truncate version are refused."""
        return self._floors.get(chunk)

    @property
    def version_floor(self) -> int:
        """The highest version of any chunk that was removed here: a new chunk's first version is higher."""
        return self._version_floor

    def space_info(self) -> SpaceInfo:
        space = self.space
        return SpaceInfo(space.capacity, space.used_bytes, space.retired_bytes, self._chunks, self._content)

    # --- checkpoints ---

    @property
    def is_dirty(self) -> bool:
        """Whether a checkpoint would make anything durable, or free anything."""
        return self._unsynced or bool(self._dirty) or bool(self.space.excess)

    @property
    def wants_checkpoint(self) -> bool:
        """Space is short, or would be, for slots that only a checkpoint frees: take one now instead of at the next second."""
        return self.space.short or self.space.retired_bytes * PRESSURE_PART > self.space.capacity

    def begin_checkpoint(self) -> Checkpoint:
        """Decide what the next checkpoint covers: all that was staged before. Then `run` it (blocking, any thread) and
        `finish_checkpoint`. One at a time. To sync: note `epoch`, and wait until `checkpointed` is at least that."""
        self._check()
        if self._checkpoint is not None:
            raise error(Status.BUSY, "a checkpoint is under way")
        trims = self.space.choose_trim()
        names = self.space.new_names
        handles = sorted(self._dirty)
        made = Checkpoint(self.epoch, handles, names, trims, self.space, self.disk, self.index, self.checkpointed)
        self.epoch += 1
        self._dirty.clear()
        self._unsynced = self.space.new_names = self.space.short = False
        self._checkpoint = made
        return made

    def finish_checkpoint(self, checkpoint: Checkpoint) -> None:
        """What it covers is durable; slots that were given up before are free. Raises TARGET_OFFLINE when it failed: never try again."""
        self._checkpoint = None
        if checkpoint.failed:
            self._fail(checkpoint.failed)
        self.checkpointed = checkpoint.number
        self.space.trimmed(checkpoint.trims, kept=checkpoint.kept)
        self.space.checkpoint_passed(checkpoint.number)

    def checkpoint(self) -> None:
        """All three steps here and now, blocking."""
        checkpoint = self.begin_checkpoint()
        checkpoint.run()
        self.finish_checkpoint(checkpoint)

    def close(self) -> None:
        """A last checkpoint and the mark of a clean end, unless the target is out; then everything is closed. Blocking. Raises
        TARGET_OFFLINE when the end was no clean one."""
        try:
            if not self.failed:
                self.checkpoint()
                self._write([session_record(self._boot, clean=True)], sync=True)
        finally:
            self.failed = self.failed or "it was closed"
            for closer in self._closers:
                closer()
            self._closers.clear()

    # --- inside ---

    def complete(self) -> None:
        """All that belongs here is here again: another member has copied it, or an administrator does without. Raises TARGET_OFFLINE."""
        self._check()
        self.lost = False
        self._write([(LOST_KEY, None)])

    def on_close(self, closer: Callable[[], None]) -> None:
        """Something else to let go of at the end (the target's lock)."""
        self._closers.append(closer)

    def _check(self) -> None:
        if self.failed:
            raise error(Status.TARGET_OFFLINE, f"the target is offline: {self.failed}")

    def _fail(self, why: str) -> NoReturn:
        self.failed = self.failed or why
        raise error(Status.TARGET_OFFLINE, f"the target is offline: {self.failed}")

    def _write(self, changes: list[Change], *, sync: bool = False) -> None:
        if not changes:
            return
        self._unsynced = True
        try:
            self.index.write(changes, sync=sync)
        except Exception as failed:  # rocksdict raises bare Exceptions
            self._fail(f"writing the index: {failed}")


__all__ = [
    "ChunkEngine",
    "ChunkInfo",
    "Job",
    "Kind",
    "LastChunk",
    "Opened",
    "ReadBatch",
    "ReadPlan",
    "Receipt",
    "Records",
    "SpaceInfo",
    "Update",
    "verify",
]
