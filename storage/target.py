"""A target in its process: hosts the replica's machine over the chunk engine, and knows what is wrong with the disk.

The machine decides, this shell performs its effects in order and tells it what came of them. Blocking I/O (bytes of updates, missed reads,
checkpoints) runs through `blocking`, whole batches at once; decisions and index writes stay on the loop.

What the disk does to a target: a write that fails makes it read-only (what it holds can still be read and copied away), a failed
fdatasync or index takes it offline, for nobody knows any more what is on the disk. The process and its other targets go on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ..proto.blocks import TABLE_OF_FILES
from ..proto.env import Environment, Promise
from ..proto.errors import Status, StatusError, error
from ..proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, LOCAL_STATE_ONLINE, LOCAL_STATE_UPTODATE, LocalState
from ..proto.gen.cluster_pb2 import Target as TargetEntry
from ..proto.gen.common_pb2 import Chain
from ..proto.transport.readiness import Luck
from .blocks.directory import Directory
from .checkpoints import Checkpoints
from .craq import Replica
from .engine import job as chunks
from .engine.checkpoint import Beside
from .engine.checkpoint import Checkpoint as Begun
from .engine.checksum import crc32c
from .engine.engine import ChunkEngine
from .engine.job import Job
from .events import (
    Checkpoint,
    ClientsEnded,
    Commit,
    CommitDone,
    Discard,
    Effect,
    Event,
    Fate,
    FenceRequest,
    Forward,
    ForwardAck,
    Mend,
    MendDone,
    Persist,
    PersistDone,
    Reply,
    Result,
    RoutingChanged,
    Suspect,
    SyncRequest,
    Tick,
    Update,
    WriteRequest,
)
from .fullness import Fullness
from .lease import Lease
from .resync import Resync
from .updates import EngineRows, chunk_name, engine_update, is_quick, receipt, run_jobs

INLINE_BYTES_MAX = 64 << 10  # of a batch of new bytes: a hop to a thread and back would cost more than writing them
TICK_SECONDS = 0.05  # for what the machine tries again
DAMAGED_MAX = 10_000  # chunks known to be damaged that are remembered

Blocking = Callable[..., Awaitable[Any]]  # (function, *arguments) -> its result, computed where blocking is allowed


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
    forwards: int = 0  # batches that the successor answered
    forwards_unanswered: int = 0  # tried again
    bytes_forwarded: int = 0
    bytes_copied: int = 0  # of these, whole chunks for a successor that is synced or differs


@dataclass
class Target:
    """One target. `id` is 0 until the manager has given it one."""

    engine: ChunkEngine
    path: str
    incarnation: int
    blocking: Blocking
    env: Environment
    log: Any
    lease: Lease = field(default_factory=Lease)
    id: int = 0
    table: int = TABLE_OF_FILES  # chain table that it is for: of files, or of KV blocks
    read_only: str = ""  # why
    disabled: bool = False  # by an administrator
    others_have_room: bool = False  # of its chain, one that serves or is about to
    counters: Counters = field(default_factory=Counters)
    damaged: dict[bytes, str] = field(default_factory=dict)  # chunk -> what is wrong with it
    synced: int = 0  # chain version under which our predecessor has brought everything
    records_of: int = 0  # chain version of the sync that began with empty records here
    syncing: Resync | None = None  # the sync of our successor
    state_watchers: list[Callable[[], None]] = field(default_factory=list)  # told when `entry()` has a new state
    chain_watchers: list[Callable[[], None]] = field(default_factory=list)  # told after the machine of a changed chain
    damage_watchers: list[Callable[[bytes], bool]] = field(default_factory=list)  # told of damage: will they see to it?
    forward: Callable[[Forward], Awaitable[Sequence[Result] | None]] | None = None  # to the successor (forwarding.py)
    unreached: Callable[[], Sequence[int]] = tuple  # members of the chain that do not answer (reach.py)
    mend: Callable[[bytes], Awaitable[None]] | None = None  # brings a chunk back from another member (repair.py)
    beside: Beside | None = None  # work in another thread, for whoever is in one of `blocking`'s
    luck: Luck | None = None  # of looks whether the disk has read something; None: a thread waits for it

    def __post_init__(self) -> None:
        self.replica = Replica(self.id, EngineRows(self.engine), self.lease)
        self.checkpoints = Checkpoints(self.engine, self.env, self._write_checkpoint, self._spawn)
        self._under_way = 0  # effects that are carried out in the background
        self._quiet: Promise[None] | None = None  # told when there are none
        self._offline_told = False
        self._not_run: Begun | None = None  # a checkpoint that found no thread: it is taken next
        self.fullness = Fullness(self.engine)
        self.directory = Directory(self.engine)

    # --- what routing says ---

    def assign(self, target_id: int) -> None:
        """The manager's number for this target, before its chain is known."""
        if target_id == self.id:
            return
        self.id = target_id
        self.replica = Replica(target_id, EngineRows(self.engine), self.lease)

    def routing_changed(self, chain: Chain | None) -> None:
        if self.replica.chain != chain:
            self.synced = self.records_of = 0  # said under the entry before; another chain may have the same version
            self.submit(RoutingChanged(chain))
            if self.replica.serving and self.engine.lost:
                self._found_again()
            for tell in self.chain_watchers:
                tell()

    def _found_again(self) -> None:
        """It serves, so it was copied to, or an administrator does without what its index lost."""
        try:
            self.engine.complete()
        except StatusError:
            self.tell_offline()

    def clients_ended(self, ended: Iterable[bytes], fresh: Iterable[bytes]) -> None:
        """Writes of `ended` clients are refused from now on; what was kept to recognise retries of the `fresh` ones among them may go."""
        self.submit(ClientsEnded(ended))
        if self.engine.failed:
            return
        try:
            for client in fresh:
                self.engine.forget_client(client)
        except StatusError:
            self.tell_offline()  # and the other targets hear of it, too

    # --- the machine's shell ---

    def start_update(
        self, chain_version: int, updates: Sequence[Update], *, sender: int = 0, session: int = 0, number: int = 0
    ) -> Promise[Sequence[Result]]:
        """Send a batch of updates through the chain; one result each is promised."""
        ticket: Promise[Sequence[Result]] = self.env.promise()
        if refusal := self._refused(chain_version, writing=True):
            ticket.set([Result(refusal)] * len(updates))
        else:
            self.submit(WriteRequest(ticket, chain_version, updates, sender, session, number))
        return ticket

    def start_sync(
        self, chain_version: int, *, sender: int = 0, session: int = 0, number: int = 0
    ) -> Promise[Sequence[Result]]:
        """Everything acknowledged before is durable on every member when the one result that is promised is OK."""
        ticket: Promise[Sequence[Result]] = self.env.promise()
        if refusal := self._refused(chain_version, writing=False):
            ticket.set([Result(refusal)])
        else:
            self.submit(SyncRequest(ticket, chain_version, sender, session, number))
        return ticket

    def fence(self, chain_version: int, client: bytes, sequence: int) -> Promise[Sequence[Result]]:
        """Updates of this client numbered up to there are refused from now on, when the one result that is promised is OK."""
        ticket: Promise[Sequence[Result]] = self.env.promise()
        if refusal := self._refused(chain_version, writing=False):
            ticket.set([Result(refusal)])
        else:
            self.submit(FenceRequest(ticket, chain_version, client, sequence))
        return ticket

    def may_read(self, chain_version: int) -> Status:
        """OK when reads may be answered under this chain version, right now."""
        return self._refused(chain_version, writing=False) or self.replica.may_read(chain_version, self.env.now())

    def may_write(self, chain_version: int) -> Status:
        """OK when updates may enter here under this chain version, right now, as far as the disk and the chain are concerned."""
        return self._refused(chain_version, writing=True) or self.replica.may_read(chain_version, self.env.now())

    def _refused(self, chain_version: int, *, writing: bool) -> Status | None:
        """As `refusal`; but whoever comes with another version of the chain shall hear of the one that we have: there it may say who
        serves instead."""
        refusal = self.refusal(writing=writing)
        if refusal is None:
            return None
        chain = self.replica.chain
        return Status.STALE_CHAIN_VERSION if chain is not None and chain.version != chain_version else refusal

    def refusal(self, *, writing: bool) -> Status | None:
        """Why this target takes no requests (of this kind), if it does not."""
        if self.engine.failed:
            self.tell_offline()
            return Status.TARGET_OFFLINE
        if self.is_out:
            return Status.TARGET_OFFLINE
        return Status.READ_ONLY if writing and self.read_only else None

    @property
    def is_out(self) -> bool:
        """Whether it serves nothing and says so to the manager, which then gives its place away: from the moment at which that is
        said, an older entry of the chain must not be served by it any more. The last one that serves stays, for reads."""
        if self.engine.failed or self.disabled:
            return True
        return bool(self.read_only or self.fullness.is_aside) and self.replica.shared and self.replica.others_serve

    def submit(self, event: Event) -> None:
        """Tell the machine, and perform what it wants."""
        for effect in self.replica.step(self.env.now(), event):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Persist):
            self._persist(effect)
        elif isinstance(effect, Reply):
            effect.ticket.set(effect.results)
        elif isinstance(effect, Forward):
            self._spawn(self._forward, effect)
        elif isinstance(effect, Checkpoint):
            self._sync(effect.batch)
        elif isinstance(effect, Commit):
            self._commit(effect)
        elif isinstance(effect, Mend):
            self._spawn(self._mend, effect)
        elif isinstance(effect, Discard):
            self._discard()
        elif isinstance(effect, Suspect):
            self.log.error("the successor holds other bytes", target=effect.target, chunk=chunk_name(effect.chunk))

    async def _forward(self, effect: Forward) -> None:
        results: Sequence[Result] | None = None
        try:
            if self.forward is not None:
                results = await self.forward(effect)
        except Exception as bug:
            self.log.error("forwarding failed for a reason that nobody thought of", target=self.id, exc_info=bug)
        self.submit(ForwardAck(effect.batch, effect.session, effect.number, results))

    def _discard(self) -> None:
        try:
            self.engine.discard(sorted(self.engine.pending))
        except StatusError:
            self.tell_offline()

    async def keep_retrying(self) -> None:
        """Background: what the machine tries again after a while."""
        while not self.engine.failed:
            await self.env.sleep(TICK_SECONDS)
            if self.replica.in_flight:
                self.submit(Tick())
            self._come_back()

    def _spawn(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Carry out an effect in the background; `close` waits for it."""
        self._under_way += 1

        async def run() -> None:
            try:
                await work(*arguments)
            finally:
                self._end_work()

        self.env.spawn(run, "effect")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The engine is used in another thread meanwhile: `close` waits for it."""
        self._under_way += 1
        try:
            yield
        finally:
            self._end_work()

    def _end_work(self) -> None:
        self._under_way -= 1
        if not self._under_way and self._quiet is not None:
            self._quiet.set(None)

    # --- updates ---

    def _persist(self, effect: Persist) -> None:
        results: list[Result] = [Result(Status.INTERNAL)] * len(effect.updates)
        jobs: list[tuple[int, Job]] = []
        behind_head = bool(self.replica.predecessor)
        for i, update in enumerate(effect.updates):
            try:
                jobs.append((i, self.engine.prepare(engine_update(update, decided=behind_head))))
            except StatusError as refused:
                results[i] = self._note_refused(update, refused)
            except Exception as bug:
                results[i] = self._note_bug(update, bug)
        if all(is_quick(job) for _, job in jobs) and sum(job.bytes_moved for _, job in jobs) <= INLINE_BYTES_MAX:
            self._persisted(effect, jobs, results, run_jobs([job for _, job in jobs]))
        else:
            self._spawn(self._persist_elsewhere, effect, jobs, results)

    async def _persist_elsewhere(self, effect: Persist, jobs: list[tuple[int, Job]], results: list[Result]) -> None:
        failures: Sequence[Exception | None]
        try:
            failures = await self.blocking(run_jobs, [job for _, job in jobs])
        except Exception as broken:  # there is no thread to run them in any more
            failures = [broken] * len(jobs)
        self._persisted(effect, jobs, results, failures)

    def _persisted(
        self,
        effect: Persist,
        jobs: list[tuple[int, Job]],
        results: list[Result],
        failures: Sequence[Exception | None],
    ) -> None:
        staged: list[tuple[int, Job]] = []
        for (i, job), failure in zip(jobs, failures, strict=True):
            update = effect.updates[i]
            if failure is None:
                job.receipt = receipt(update, job) if update.client else None
                staged.append((i, job))
                continue
            self.engine.abandon(job)
            results[i] = self._note_failed(update, failure)
        fate = self.replica.fate(effect.batch)
        if fate is Fate.DROP:
            for i, job in staged:
                self.engine.abandon(job)
                results[i] = Result(Status.STALE_ROUTING)
        elif staged:
            self._stage(effect, staged, results, commit=fate is Fate.COMMIT)
        self.checkpoints.relieve()
        self.submit(PersistDone(effect.batch, results, fate is Fate.COMMIT))

    def _stage(self, effect: Persist, staged: list[tuple[int, Job]], results: list[Result], *, commit: bool) -> None:
        try:
            self.engine.stage([job for _, job in staged], commit=commit)
        except StatusError as failed:
            for i, _ in staged:
                results[i] = Result(failed.status)
            self.tell_offline()
        except Exception as bug:
            # Half of it may be in the rows: nobody knows any more what the index will hold.
            for i, _ in staged:
                results[i] = self._note_bug(effect.updates[i], bug)
            self.engine.failed = f"a bug while staging: {bug!r}"
            self.tell_offline()
        else:
            for i, job in staged:
                results[i] = Result(Status.OK, job.version, job.length, job.state.whole)
                self.counters.bytes_written += effect.updates[i].length if job.kind is chunks.Kind.WRITE else 0
                if job.damaged:
                    self.found_damaged(job.chunk, "it was damaged where it came from")
            self.counters.writes += sum(job.kind is not chunks.Kind.REPLACE for _, job in staged)

    def _commit(self, effect: Commit) -> None:
        try:
            self.engine.commit([(u.chunk, u.version.number) for u in effect.updates if u.version is not None])
        except StatusError as failed:
            # The target is out: its pending updates are resolved by whoever is left, or when it is opened again.
            self.log.error("cannot commit", target=self.id, error=failed.strerror)
            self.tell_offline()
            self.submit(CommitDone(effect.batch, failed.status))
        else:
            self.submit(CommitDone(effect.batch))

    def _note_refused(self, update: Update, refused: StatusError) -> Result:
        if refused.status is Status.BUSY and self.engine.wants_checkpoint:
            self.checkpoints.relieve()  # it is full until then: the client's next try finds room
        elif refused.status is Status.NO_SPACE:
            return Result(self._note_full(update, refused))
        elif refused.status not in (Status.BUSY, Status.STALE_TRUNCATE_VERSION):
            self.log.warning("update refused", target=self.id, chunk=chunk_name(update.chunk), error=refused.strerror)
        return Result(refused.status)

    def _note_bug(self, update: Update, bug: Exception) -> Result:
        """Not the disk's fault, nor the client's: the batch must not stay in line for ever because of it."""
        self.log.error(
            "an update failed for a reason that nobody thought of",
            target=self.id,
            chunk=chunk_name(update.chunk),
            error=f"{type(bug).__name__}: {bug}",
            exc_info=bug,
        )
        return Result(Status.INTERNAL)

    def _note_failed(self, update: Update, failure: Exception) -> Result:
        if not isinstance(failure, StatusError):
            return self._note_bug(update, failure)
        if failure.status is Status.IO_ERROR:
            self.note_io_error(failure)
            if self.is_out:
                return Result(Status.TARGET_OFFLINE)  # not the client's trouble: the next head takes it
        elif failure.status is Status.NO_SPACE:
            return self._note_refused(update, failure)
        elif failure.status is Status.CHECKSUM:
            return self._note_checksum(update, failure)
        return Result(failure.status)

    def note_io_error(self, failure: StatusError) -> None:
        """A write failed: read-only until the process starts again. In a chain of several the place is given away, so that the others
        go on."""
        self.counters.io_errors += 1
        if not self.read_only:
            self.read_only = str(failure.strerror)
            message = "writing failed; the target is read-only from now on"
            self.log.error(message, target=self.id, path=self.path, error=failure.strerror)
            self.state_changed()

    def _note_full(self, update: Update, refused: StatusError) -> Status:
        """What others can take is left to them: what the head has decided, and what is there already, in any case (they have not failed
        at it yet), new chunks as long as one of them has room. A chain whose members are all full keeps them."""
        decided = bool(self.replica.predecessor) or self.engine.info(update.chunk) is not None
        if not (decided or self.others_have_room):
            return Status.NO_SPACE
        if self.fullness.step_aside(self.env.now()):
            message = "the target is full; it leaves its place to others until it has room"
            self.log.error(message, target=self.id, path=self.path, error=refused.strerror)
            self.state_changed()
        if self.is_out:
            return Status.TARGET_OFFLINE
        return (
            Status.BUSY if self.others_have_room else Status.NO_SPACE
        )  # BUSY: one is being copied to, and will take it

    def _come_back(self) -> None:
        if self.fullness.come_back(self.env.now()):
            self.state_changed()

    def _note_checksum(self, update: Update, failure: StatusError) -> Result:
        """The bytes did not arrive as they were sent; or old ones that they have to be merged with are damaged here. Those may be
        repaired: the next try will do."""
        if update.data is None or crc32c(update.data) == update.checksum:
            damaged = update.source.chunk if update.source is not None else update.chunk
            will_do = self.found_damaged(damaged, str(failure.strerror))
            return Result(Status.BUSY if will_do else Status.CHECKSUM)
        self.log.error(
            "an update does not match its checksum",
            target=self.id,
            chunk=chunk_name(update.chunk),
            error=failure.strerror,
        )
        return Result(Status.CHECKSUM)

    async def _mend(self, effect: Mend) -> None:
        status = Status.OK
        try:
            if self.mend is not None:
                await self.mend(effect.chunk)
        except StatusError as failed:
            status = failed.status
        except Exception as bug:
            status = Status.INTERNAL
            self.log.error("mending failed for a reason that nobody thought of", target=self.id, exc_info=bug)
        self.submit(MendDone(effect.batch, status))

    # --- checkpoints ---

    def _sync(self, batch: int) -> None:
        def tell(failed: StatusError | None) -> None:
            self.submit(PersistDone(batch, [Result(failed.status if failed is not None else Status.OK)]))

        self.checkpoints.when_reached(tell)

    async def checkpoint(self) -> None:
        """Everything staged before is durable when this returns. Raises TARGET_OFFLINE."""
        await self.checkpoints.reach()

    def _write_checkpoint(self) -> Awaitable[None]:
        """Begin a checkpoint at once; to be awaited, which raises TARGET_OFFLINE, or BUSY where there is no thread for it."""
        try:
            begun = self._not_run = self._not_run or self.engine.begin_checkpoint()
        except Exception as failed:
            return self._finish_checkpoint(failed)
        try:
            running = self.blocking(begun.run, self.beside)
        except Exception as failed:
            return self._finish_checkpoint(error(Status.BUSY, f"a checkpoint has to wait: {failed}"))
        self._not_run = None
        return self._finish_checkpoint(begun, running)

    async def _finish_checkpoint(self, begun: Begun | Exception, running: Awaitable[None] | None = None) -> None:
        try:
            if isinstance(begun, Exception):
                raise begun
            if running is not None:
                await running
            self.engine.finish_checkpoint(begun)
        finally:
            if self.engine.failed:
                self.tell_offline()

    def tell_offline(self) -> None:
        if not self._offline_told:
            self._offline_told = True
            self.log.error("target offline", target=self.id, path=self.path, error=self.engine.failed)
            self.state_changed()

    def state_changed(self) -> None:
        """The manager had better hear of it now than with the next heartbeat."""
        for tell in self.state_watchers:
            tell()

    # --- damage ---

    def found_damaged(self, chunk: bytes, why: str) -> bool:
        """A chunk whose bytes are not what was written: loud once, remembered. Whether somebody will try to repair it."""
        self.counters.checksum_errors += 1
        if chunk not in self.damaged:
            if len(self.damaged) < DAMAGED_MAX:
                self.damaged[chunk] = why
            self.log.error("damaged chunk", target=self.id, path=self.path, chunk=chunk_name(chunk), error=why)
        return self.may_be_damaged(chunk)

    def may_be_damaged(self, chunk: bytes) -> bool:
        """Whoever can repair this chunk shall look at it; whether anybody will."""
        return any(tell(chunk) for tell in self.damage_watchers)

    # --- for the manager, and the end ---

    def entry(self) -> TargetEntry:
        """What the heartbeat says of this target."""
        entry = TargetEntry(id=self.id, incarnation=self.incarnation, path=self.path, table=self.table)
        entry.state = self._local_state()
        entry.damaged, entry.power_losses = self.engine.lost, self.engine.found.power_losses
        space = self.engine.space_info()
        entry.capacity, entry.used, entry.chunks = self.engine.space.capacity_now(), space.used, space.chunks
        entry.full = self.fullness.is_full
        if self.syncing is not None:
            entry.sync_done, entry.sync_total = self.syncing.done, max(self.syncing.done, self.syncing.total)
        return entry

    def _local_state(self) -> LocalState:
        """UPTODATE only under the chain version that the machine has: for a member that serves, or was brought everything."""
        replica = self.replica
        chain = replica.chain
        replicated = chain is not None and len(chain.members) > 1
        if self.is_out:
            return LOCAL_STATE_OFFLINE  # another member holds what this one cannot take any more
        if chain is None or replica.serving or not replicated:
            return LOCAL_STATE_UPTODATE
        is_synced = bool(replica.predecessor) and self.synced == chain.version
        return LOCAL_STATE_UPTODATE if is_synced else LOCAL_STATE_ONLINE

    async def close(self) -> None:
        """Let effects finish, then a last checkpoint and the mark of a clean end."""
        if self._not_run is not None:
            with suppress(StatusError):
                await self.checkpoint()
        while self._under_way:
            self._quiet = self.env.promise()
            await self._quiet
        try:
            await self.blocking(self.engine.close)
        except StatusError as failed:
            self.log.error("target not closed cleanly", target=self.id, path=self.path, error=failed.strerror)
