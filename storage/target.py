"""A target in its process: hosts the replica's machine over the chunk engine, and knows what is wrong with the disk.

The machine decides, this shell performs its effects in order and tells it what came of them. Blocking I/O (bytes of updates, missed reads,
checkpoints) runs through `blocking`, whole batches at once; decisions and index writes stay on the loop.

What the disk does to a target: a write that fails makes it read-only (what it holds can still be read and copied away), a failed
fdatasync or index takes it offline, for nobody knows any more what is on the disk. The process and its other targets go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..proto.errors import Status, StatusError, error
from ..proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, LOCAL_STATE_UPTODATE
from ..proto.gen.cluster_pb2 import Target as TargetEntry
from ..proto.gen.common_pb2 import Chain
from ..proto.ids import ChunkId
from ..proto.layout import UNIT_SMALL
from .craq import Replica
from .engine import job as chunks
from .engine.checksum import crc32c
from .engine.engine import ChunkEngine
from .engine.job import Job, Shape
from .engine.reads import ReadPlan, verify
from .engine.records import Receipt
from .engine.slots import SLOT_BYTES_MAX
from .events import (
    ALWAYS,
    ChannelRow,
    Checkpoint,
    ChunkRow,
    ClientsEnded,
    Commit,
    CommitDone,
    Effect,
    Event,
    Forward,
    ForwardAck,
    Kind,
    Persist,
    PersistDone,
    Recovered,
    Reply,
    Result,
    RoutingChanged,
    Suspect,
    SyncRequest,
    Update,
    Version,
    WriteRequest,
)

INLINE_BYTES_MAX = 64 << 10  # of a batch of new bytes: a hop to a thread and back would cost more than writing them
CHECKPOINT_SECONDS = 1.0  # what was acknowledged is durable after this at the latest
FOLD_BYTES_MAX = 4 << 20  # of a chunk that is folded: it is written on the loop, in a millisecond
DAMAGED_MAX = 10_000  # chunks known to be damaged that are remembered

_Result = TypeVar("_Result")
Blocking = Callable[..., Awaitable[Any]]  # (function, *arguments) -> its result, computed where blocking is allowed


class EngineRows:
    """The machine's look-ups, answered by the engine."""

    def __init__(self, engine: ChunkEngine) -> None:
        self._engine = engine

    def chunk(self, key: bytes) -> ChunkRow | None:
        info = self._engine.info(key)
        if info is None or not info.version:
            return None
        return ChunkRow(Version(info.chain_version, info.version), info.length, info.truncate_version)

    def channel(self, client: bytes, channel: int) -> ChannelRow | None:
        receipt = self._engine.receipt(client, channel)
        return ChannelRow(receipt.sequence, receipt.version, receipt.length) if receipt is not None else None

    def truncate_floor(self, key: bytes) -> int:
        return self._engine.truncate_floor(key)

    def version_floor(self) -> int:
        return self._engine.version_floor


@dataclass
class Counters:
    """Since the start of the process."""

    bytes_read: int = 0  # served to clients
    bytes_written: int = 0
    reads: int = 0
    reads_missed: int = 0  # not in the page cache
    writes: int = 0
    checksum_errors: int = 0
    io_errors: int = 0


@dataclass
class Target:
    """One target. `id` is 0 until the manager has given it one."""

    engine: ChunkEngine
    path: str
    incarnation: int
    blocking: Blocking
    now: Callable[[], float]
    log: Any
    id: int = 0
    read_only: str = ""  # why
    counters: Counters = field(default_factory=Counters)
    damaged: dict[bytes, str] = field(default_factory=dict)  # chunk -> what is wrong with it
    wants_checkpoint: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.replica = Replica(self.id, EngineRows(self.engine))
        self._checkpointing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # effects under way
        self._offline_told = False

    # --- what routing says ---

    def assign(self, target_id: int) -> None:
        """The manager's number for this target, before its chain is known."""
        if target_id == self.id:
            return
        self.id = target_id
        self.replica = Replica(target_id, EngineRows(self.engine))
        self.submit(Recovered([self._recovered(chunk) for chunk in self.engine.found.pending]))

    def _recovered(self, chunk: bytes) -> Update:
        info = self.engine.info(chunk)
        assert info is not None
        version = Version(info.pending_chain_version, info.pending)
        kind = Kind.REMOVE if info.pending_removes else Kind.WRITE
        return Update(kind, chunk, 0, info.pending_length, 0, b"", 0, 0, info.truncate_version, 0, None, version)

    def routing_changed(self, chain: Chain | None) -> None:
        if self.replica.chain != chain:
            self.submit(RoutingChanged(chain))

    def clients_ended(self, ended: Iterable[bytes], fresh: Iterable[bytes]) -> None:
        """Writes of `ended` clients are refused from now on; what was kept to recognise retries of the `fresh` ones among them may go."""
        self.submit(ClientsEnded(ended))
        if not self.engine.failed:
            for client in fresh:
                self.engine.forget_client(client)

    # --- the machine's shell ---

    async def update(
        self, chain_version: int, updates: Sequence[Update], *, forwarded: bool = False
    ) -> Sequence[Result]:
        """Run a batch of updates through the chain; one result each."""
        if refusal := self.refusal(writing=True):
            return [Result(refusal)] * len(updates)
        ticket: asyncio.Future[Sequence[Result]] = asyncio.get_running_loop().create_future()
        self.submit(WriteRequest(ticket, chain_version, updates, forwarded))
        return await ticket

    async def sync(self, chain_version: int) -> Status:
        """Everything acknowledged before is durable on every member when this returns OK."""
        if refusal := self.refusal(writing=False):
            return refusal
        ticket: asyncio.Future[Sequence[Result]] = asyncio.get_running_loop().create_future()
        self.submit(SyncRequest(ticket, chain_version))
        return Status((await ticket)[0].status)

    def refusal(self, *, writing: bool) -> Status | None:
        """Why this target takes no requests (of this kind), if it does not."""
        if self.engine.failed:
            self._tell_offline()
            return Status.TARGET_OFFLINE
        return Status.READ_ONLY if writing and self.read_only else None

    def submit(self, event: Event) -> None:
        """Tell the machine, and perform what it wants."""
        for effect in self.replica.step(self.now(), event):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Persist):
            self._persist(effect)
        elif isinstance(effect, Reply):
            if not effect.ticket.done():
                effect.ticket.set_result(effect.results)
        elif isinstance(effect, Checkpoint):
            self._spawn(self._sync(effect.batch))
        elif isinstance(effect, Commit):
            self._commit(effect)
        elif isinstance(effect, Forward):
            # Chains of one have nobody to forward to; an entry with more members is resolved when it is gone again.
            self.log.error("cannot forward", target=self.id, successor=effect.target)
            self.submit(ForwardAck(effect.batch, None))
        elif isinstance(effect, Suspect):
            self.log.error("the successor holds other bytes", target=effect.target, chunk=chunk_name(effect.chunk))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- updates ---

    def _persist(self, effect: Persist) -> None:
        results: list[Result] = [Result(Status.INTERNAL)] * len(effect.updates)
        jobs: list[tuple[int, Job]] = []
        for i, update in enumerate(effect.updates):
            try:
                jobs.append((i, self.engine.prepare(engine_update(update))))
            except StatusError as refused:
                results[i] = Result(refused.status)
                self._note_refused(update, refused)
        if all(is_quick(job) for _, job in jobs) and sum(job.bytes_moved for _, job in jobs) <= INLINE_BYTES_MAX:
            self._persisted(effect, jobs, results, run_jobs([job for _, job in jobs]))
        else:
            self._spawn(self._persist_elsewhere(effect, jobs, results))

    async def _persist_elsewhere(self, effect: Persist, jobs: list[tuple[int, Job]], results: list[Result]) -> None:
        failures = await self.blocking(run_jobs, [job for _, job in jobs])
        self._persisted(effect, jobs, results, failures)

    def _persisted(
        self,
        effect: Persist,
        jobs: list[tuple[int, Job]],
        results: list[Result],
        failures: list[StatusError | None],
    ) -> None:
        staged: list[tuple[int, Job]] = []
        for (i, job), failure in zip(jobs, failures, strict=True):
            if failure is None:
                staged.append((i, job))
                continue
            self.engine.abandon(job)
            results[i] = Result(failure.status)
            self._note_failed(effect.updates[i], failure)
        receipts = [receipt(effect.updates[i], job) for i, job in staged if effect.updates[i].client]
        try:
            if staged:
                self.engine.stage([job for _, job in staged], commit=effect.commit, receipts=receipts)
        except StatusError as failed:
            for i, _ in staged:
                results[i] = Result(failed.status)
            self._tell_offline()
        else:
            for i, job in staged:
                results[i] = Result(Status.OK, job.version, job.length, job.state.whole)
                self.counters.bytes_written += effect.updates[i].length if job.kind is chunks.Kind.WRITE else 0
            self.counters.writes += len(staged)
        if self.engine.wants_checkpoint:
            self.wants_checkpoint.set()
        self.submit(PersistDone(effect.batch, results))

    def _commit(self, effect: Commit) -> None:
        try:
            self.engine.commit([(u.chunk, u.version.number) for u in effect.updates if u.version is not None])
        except StatusError as failed:
            # The target is out: its pending updates are resolved by whoever is left, or when it is opened again.
            self.log.error("cannot commit", target=self.id, error=failed.strerror)
            self._tell_offline()
            self.submit(CommitDone(effect.batch, failed.status))
        else:
            self.submit(CommitDone(effect.batch))

    def _note_refused(self, update: Update, refused: StatusError) -> None:
        if refused.status is Status.BUSY and self.engine.wants_checkpoint:
            self.wants_checkpoint.set()  # it is full until then: the client's next try finds room
        elif refused.status not in (Status.BUSY, Status.NO_SPACE, Status.STALE_TRUNCATE_VERSION):
            self.log.warning("update refused", target=self.id, chunk=chunk_name(update.chunk), error=refused.strerror)

    def _note_failed(self, update: Update, failure: StatusError) -> None:
        if failure.status is Status.IO_ERROR:
            self.counters.io_errors += 1
            self.read_only = self.read_only or str(failure.strerror)
            self.log.error(
                "writing failed; the target is read-only from now on",
                target=self.id,
                path=self.path,
                error=failure.strerror,
            )
        elif failure.status is Status.CHECKSUM:
            self.log.error(
                "an update does not match its checksum",
                target=self.id,
                chunk=chunk_name(update.chunk),
                error=failure.strerror,
            )

    # --- checkpoints ---

    async def _sync(self, batch: int) -> None:
        status = Status.OK
        try:
            await self.checkpoint()
        except StatusError as failed:
            status = failed.status
        self.submit(PersistDone(batch, [Result(status)]))

    async def checkpoint(self) -> None:
        """Everything staged before is durable when this returns; calls that come meanwhile share the next one. Raises TARGET_OFFLINE."""
        wanted = self.engine.epoch if self.engine.is_dirty else self.engine.epoch - 1
        while self.engine.checkpointed < wanted:
            if self._checkpointing is None:
                self._checkpointing = asyncio.get_running_loop().create_task(self._checkpoint())
            await asyncio.shield(self._checkpointing)

    async def _checkpoint(self) -> None:
        try:
            checkpoint = self.engine.begin_checkpoint()
            await self.blocking(checkpoint.run)
            self.engine.finish_checkpoint(checkpoint)
        except StatusError:
            self._tell_offline()
            raise
        finally:
            self._checkpointing = None

    def forget_file(self, first: bytes, last: bytes) -> None:
        """A dead file has no chunks left in this range: what kept its older writes out goes as well."""
        if not self.engine.failed and self.engine.truncate_floor(first):
            self.engine.remove_range(first, last, 0)

    async def keep_checkpointing(self) -> None:
        """Background: a checkpoint each second, or when space is short for what only a checkpoint frees."""
        while not self.engine.failed:
            try:
                async with asyncio.timeout(CHECKPOINT_SECONDS):
                    await self.wants_checkpoint.wait()
            except TimeoutError:
                pass
            self.wants_checkpoint.clear()
            try:
                await self.checkpoint()
            except StatusError:
                return  # told already; the target is out

    def _tell_offline(self) -> None:
        if not self._offline_told:
            self._offline_told = True
            self.log.error("target offline", target=self.id, path=self.path, error=self.engine.failed)

    # --- damage ---

    def found_damaged(self, chunk: bytes, why: str) -> None:
        """A chunk whose bytes are not what was written: loud once, remembered."""
        self.counters.checksum_errors += 1
        if chunk in self.damaged:
            return
        if len(self.damaged) < DAMAGED_MAX:
            self.damaged[chunk] = why
        self.log.error("damaged chunk", target=self.id, path=self.path, chunk=chunk_name(chunk), error=why)

    async def verify(self, chunk: bytes, *, fold: bool = False) -> int:
        """Read a whole chunk and compare it with its checksums; a damaged one is noted. Returns how many bytes were read. `fold`: put
        the patches of a sound one into one slot, unless somebody is writing to it."""
        with self.engine.plan([(chunk, 0, SLOT_BYTES_MAX)]) as (plan,):
            if plan.status is not Status.OK or not plan.length:
                return 0
            try:
                data = await self.blocking(_read_verified, self.engine, plan)
            except StatusError as failed:
                if failed.status not in (Status.CHECKSUM, Status.IO_ERROR):
                    raise
                self.found_damaged(chunk, str(failed.strerror))
                return plan.length
        self.damaged.pop(chunk, None)
        if fold and len(data) <= FOLD_BYTES_MAX:
            self._fold(chunk, plan.version, data)
        return len(data)

    def _fold(self, chunk: bytes, version: int, data: bytearray) -> None:
        """Write the content anew under its own version. On the loop, so that no update comes between."""
        if self.refusal(writing=True) or self.replica.busy(chunk):
            return
        info = self.engine.info(chunk)
        if info is None or info.version != version or info.pending or not info.patches:
            return
        size = 1 << 20 if info.unit == UNIT_SMALL else SLOT_BYTES_MAX
        same = (info.truncate_version, info.chain_version, info.version)
        update = chunks.Update(chunks.Kind.REPLACE, chunk, 0, data, info.checksum, size, *same)
        try:
            self.engine.apply([update])
        except StatusError as failed:  # no room for it now: it can wait
            self.log.info("not folded", target=self.id, chunk=chunk_name(chunk), error=failed.strerror)

    # --- for the manager, and the end ---

    def entry(self) -> TargetEntry:
        """What the heartbeat says of this target."""
        entry = TargetEntry(id=self.id, incarnation=self.incarnation, path=self.path)
        entry.state = LOCAL_STATE_OFFLINE if self.engine.failed else LOCAL_STATE_UPTODATE
        space = self.engine.space_info()
        entry.capacity, entry.used, entry.chunks = space.capacity, space.used, space.chunks
        return entry

    async def close(self) -> None:
        """Let effects finish, then a last checkpoint and the mark of a clean end."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        if self._checkpointing is not None:
            await asyncio.wait([self._checkpointing])
        try:
            await self.blocking(self.engine.close)
        except StatusError as failed:
            self.log.error("target not closed cleanly", target=self.id, path=self.path, error=failed.strerror)


def _read_verified(engine: ChunkEngine, plan: ReadPlan) -> bytearray:
    data = bytearray(plan.length)
    plan.read_into(engine.disk, (data,), True)
    verify(plan, 0, memoryview(data))
    return data


def chunk_name(chunk: bytes) -> str:
    """A chunk for people: inode and index."""
    return str(ChunkId.unpack(chunk))


def engine_update(update: Update) -> chunks.Update:
    """The machine's update in the engine's words."""
    assert update.version is not None
    kind, offset, truncate_version = chunks.Kind(update.kind), update.offset, update.truncate_version
    if update.kind is Kind.REMOVE:
        # A truncate's remove cuts to nothing, which also makes the file's older writes stay out.
        kind, offset = (chunks.Kind.REMOVE, 0) if truncate_version == ALWAYS else (chunks.Kind.TRUNCATE, 0)
        truncate_version = 0 if truncate_version == ALWAYS else truncate_version
    elif update.kind is Kind.TRUNCATE:
        offset = update.length
    return chunks.Update(
        kind,
        update.chunk,
        offset,
        update.data if update.kind is Kind.WRITE else b"",
        update.checksum,
        update.chunk_size or 1 << 20,
        truncate_version,
        update.version.chain_version,
        update.version.number,
    )


def receipt(update: Update, job: Job) -> Receipt:
    """What makes a retry of this update exactly-once."""
    return Receipt(update.client, update.channel, update.sequence, job.version, job.length)


def is_quick(job: Job) -> bool:
    """Whether running it never waits for a disk to read: no old bytes have to be merged."""
    old, update = job.old, job.update
    if old is None or job.shape is Shape.APPEND:
        return True
    if job.shape is Shape.NONE:
        return job.state.removed
    end = update.offset + len(update.payload)
    aligned = update.offset % old.unit == 0 and (end % old.unit == 0 or end >= old.length)
    return job.shape is Shape.PATCH and aligned


def run_jobs(jobs: Sequence[Job]) -> list[StatusError | None]:
    """Check the payloads (private copies, which nobody can change any more) and write them. Blocking."""
    failures: list[StatusError | None] = []
    for job in jobs:
        try:
            payload = job.update.payload
            if job.kind is chunks.Kind.WRITE and crc32c(payload) != job.update.checksum:
                raise error(
                    Status.CHECKSUM,
                    f"chunk {chunk_name(job.chunk)}: the bytes that arrived do not match their checksum",
                )
            job.run()
            failures.append(None)
        except StatusError as failed:
            failures.append(failed)
    return failures
