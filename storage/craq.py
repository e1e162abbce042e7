"""The replica: one member of one chain, as a pure state machine (CRAQ, Terrace and Freedman 2009, with the rules below).

`step(now, event)` returns effects, to be performed in list order: that order is the durability order. The machine awaits nothing
and owns no clock, disk or socket; what is on disk it looks up through `Rows`, synchronously.

Rules:
1. A client's update enters at the head, under the exact chain version. The head names it (its chain version, number + 1); a name
   is never used again for other content, and number + 1 is given only after number was committed.
2. One batch is one client request. It waits until it is first in line for each of its chunks and channels, so that a chunk
   has one update in flight and a channel one sequence. Lines are joined all at once, so batches cannot wait in a circle.
3. Every member persists an update before it forwards it, commits it after its successor acknowledged it, and only then answers.
   Without a successor (the tail; a chain of one) persisting and committing are one write of the index.
4. An update that was persisted is only ever resolved forward: forwarded again until acknowledged, committed when the successor is
   gone. Only a member that leaves the chain forgets it. To the client an error after that point means "maybe applied".
5. (client, channel) keeps the last sequence and its result, persisted with the update: the same sequence gets the same answer, a
   lower one is refused, also after a restart and at a new head.
6. Updates of clients whose session is over, and updates from before a truncate that the chunk has seen, are refused.

The machine does not know whether it is the head: head means "no predecessor", tail means "no successor", and a promotion
changes nothing else.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..proto.errors import Status
from ..proto.gen.common_pb2 import TARGET_STATE_SERVING, TARGET_STATE_SYNCING, Chain
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
    Rows,
    Suspect,
    SyncRequest,
    Tick,
    Update,
    Version,
    WriteRequest,
)

UPDATES_MAX = 4096  # of one request
LINE_MAX = 32  # batches that wait for one chunk or channel
BATCHES_MAX = 4096  # admitted and not yet answered, per replica
FORWARD_RETRY_S = 0.1  # after a forward that failed


class Stage(enum.Enum):
    """Where a batch is: each state follows the one before, or the batch is answered. Without a successor the last two are skipped."""

    WAITING = 1  # in line for its chunks and channels
    PERSISTING = 2
    FORWARDING = 3
    COMMITTING = 4


@dataclass(eq=False, slots=True)
class _Batch:
    id: int
    ticket: Any  # None: nobody waits for the answer (recovered)
    chain_version: int
    updates: Sequence[Update]  # empty: a sync
    forwarded: bool
    results: list[Result | None]
    stage: Stage = Stage.WAITING
    ahead: int = 0  # lines in which another batch stands before this one
    lines: list[Any] = field(default_factory=list)
    live: list[int] = field(default_factory=list)  # positions of the updates that were not answered yet
    staged: list[Update] = field(default_factory=list)  # those updates, with their versions
    committed: bool = False  # persisted and committed in one write
    retry_at: float | None = None


class Replica:
    """One target's part in its chain. The class is long because it is one machine; each event has one method."""

    def __init__(self, target: int, rows: Rows) -> None:
        self.target = target
        self.chain: Chain | None = None
        self.serving = False
        self.predecessor = 0  # target id; 0: this is the head
        self.successor = 0  # target id; 0: this is the tail
        self.tail = False  # the last SERVING member: its committed version is the chain's
        self.ended: frozenset[bytes] = frozenset()
        self._rows = rows
        self._batches: dict[int, _Batch] = {}
        self._lines: dict[Any, deque[_Batch]] = {}
        self._next = 0
        self._handlers: dict[type, Callable[[float, Any], list[Effect]]] = {
            RoutingChanged: self._routing_changed,
            ClientsEnded: self._clients_ended,
            WriteRequest: self._write_request,
            SyncRequest: self._sync_request,
            PersistDone: self._persist_done,
            CommitDone: self._commit_done,
            ForwardAck: self._forward_ack,
            Recovered: self._recovered,
            Tick: self._tick,
        }

    def step(self, now: float, event: Event) -> list[Effect]:
        """Take one event at time `now` (seconds, any monotonic clock); the effects are to be performed in order."""
        return self._handlers[type(event)](now, event)

    # --- reads: no event and no object per operation ---

    def may_read(self, chain_version: int) -> Status:
        """OK when this member may answer reads under that chain version. Asked once per batch, not per operation."""
        chain = self.chain
        if chain is None:
            return Status.TARGET_OFFLINE
        if chain.version != chain_version:
            return Status.STALE_CHAIN_VERSION
        return Status.OK if self.serving else Status.TARGET_OFFLINE

    def undecided(self, chunk: bytes) -> bool:
        """Whether a read of this chunk must first ask the tail which version is committed (never at the tail itself)."""
        if self.tail:
            return False
        line = self._lines.get(chunk)
        return line is not None and line[0].stage is not Stage.WAITING

    def busy(self, chunk: bytes) -> bool:
        """Whether an update of this chunk is under way or waits."""
        return chunk in self._lines

    @property
    def in_flight(self) -> int:
        return len(self._batches)

    # --- routing and clients ---

    def _routing_changed(self, now: float, event: RoutingChanged) -> list[Effect]:
        self.chain = event.chain
        self._find_neighbours()
        effects: list[Effect] = []
        for batch in list(self._batches.values()):
            if batch.stage is not Stage.FORWARDING:
                continue  # waiting batches meet the new version when their turn comes, persisting ones when that is done
            effects += self._resolve(batch)
        return effects

    def _find_neighbours(self) -> None:
        members = self.chain.members if self.chain is not None else ()
        line = [m for m in members if m.state in (TARGET_STATE_SERVING, TARGET_STATE_SYNCING)]
        here = next((i for i, m in enumerate(line) if m.target == self.target), None)
        self.serving = here is not None and line[here].state == TARGET_STATE_SERVING
        if here is None:
            self.predecessor = self.successor = 0
            self.tail = False
            return
        self.predecessor = line[here - 1].target if here else 0
        self.successor = line[here + 1].target if here + 1 < len(line) else 0
        self.tail = self.serving and not any(m.state == TARGET_STATE_SERVING for m in line[here + 1 :])

    def _clients_ended(self, now: float, event: ClientsEnded) -> list[Effect]:
        self.ended = frozenset(event.clients)
        return []

    # --- admission ---

    def _gate(self, chain_version: int, forwarded: bool) -> Status:
        status = self.may_read(chain_version)
        if status is Status.TARGET_OFFLINE and forwarded and self.predecessor:
            return Status.OK  # a SYNCING member takes what its predecessor sends
        if status is Status.OK and bool(self.predecessor) != forwarded:
            return Status.STALE_ROUTING  # a client's write belongs to the head, a forwarded one behind it
        return status

    def _write_request(self, now: float, event: WriteRequest) -> list[Effect]:
        count = len(event.updates)
        status = self._gate(event.chain_version, event.forwarded)
        if status is Status.OK and count > UPDATES_MAX:
            status = Status.TOO_LARGE
        if status is Status.OK and len(self._batches) >= BATCHES_MAX:
            status = Status.BUSY
        if status is not Status.OK or not count:
            return [Reply(event.ticket, [Result(status)] * count)]
        batch = self._admit(event.ticket, event.chain_version, event.updates, event.forwarded)
        return self._run(batch) if not batch.ahead else []

    def _sync_request(self, now: float, event: SyncRequest) -> list[Effect]:
        status = self._gate(event.chain_version, event.forwarded)
        if status is not Status.OK:
            return [Reply(event.ticket, [Result(status)])]
        batch = self._new_batch(event.ticket, event.chain_version, (), event.forwarded)
        batch.stage = Stage.PERSISTING
        return [Checkpoint(batch.id)]

    def _new_batch(self, ticket: Any, chain_version: int, updates: Sequence[Update], forwarded: bool) -> _Batch:
        self._next += 1
        batch = _Batch(self._next, ticket, chain_version, updates, forwarded, [None] * len(updates))
        self._batches[batch.id] = batch
        return batch

    def _admit(self, ticket: Any, chain_version: int, updates: Sequence[Update], forwarded: bool) -> _Batch:
        """Join all the lines at once: that is the order in which batches that share a chunk or channel run."""
        batch = self._new_batch(ticket, chain_version, updates, forwarded)
        lines = self._lines
        for i, update in enumerate(updates):
            mine: tuple[Any, ...] = (
                (update.chunk, (update.client, update.channel)) if update.client else (update.chunk,)
            )
            status = self._joinable(batch, mine)
            if status is not Status.OK:
                batch.results[i] = Result(status)
                continue
            for resource in mine:
                line = lines.get(resource)
                if line is None:
                    lines[resource] = deque((batch,))
                else:
                    line.append(batch)
                    batch.ahead += 1
            batch.lines += mine
            batch.live.append(i)
        return batch

    def _joinable(self, batch: _Batch, resources: tuple[Any, ...]) -> Status:
        for resource in resources:
            line = self._lines.get(resource)
            if line is None:
                continue
            if line[-1] is batch:
                return (
                    Status.INVALID
                )  # a request updates a chunk once, and uses a channel once: the retry could not be told apart
            if len(line) >= LINE_MAX:
                return Status.BUSY
        return Status.OK

    # --- a batch whose turn has come ---

    def _run(self, batch: _Batch) -> list[Effect]:
        persist = self._prepare(batch)
        return [persist] if persist is not None else self._answer(batch)

    def _prepare(self, batch: _Batch) -> Persist | None:
        """Decide each update; None when nothing is left to do but answer."""
        status = self._gate(batch.chain_version, batch.forwarded)
        live = []
        for i in batch.live:
            update = batch.updates[i]
            decided = Result(status) if status is not Status.OK else self._decide(update)
            if isinstance(decided, Result):
                batch.results[i] = decided
            else:
                live.append(i)
                batch.staged.append(update if update.version is not None else update._replace(version=decided))
        batch.live = live
        if not live:
            return None
        batch.stage = Stage.PERSISTING
        batch.committed = not self.successor
        return Persist(batch.id, batch.staged, batch.committed)

    def _decide(self, update: Update) -> Result | Version:
        """The version under which the update runs, or its result if it does not run (again)."""
        last = self._rows.channel(update.client, update.channel) if update.client else None
        row = self._rows.chunk(update.chunk)
        if update.version is not None:
            return self._decide_forwarded(update.version, update.sequence, row, last)
        if update.client in self.ended:
            return Result(Status.SESSION_ENDED)
        if last is not None and update.sequence <= last.sequence:
            same = update.sequence == last.sequence
            return Result(Status.OK, last.number, last.length) if same else Result(Status.DUPLICATE)
        floor = self._rows.truncate_floor(update.chunk)
        if update.kind is Kind.REMOVE:
            return self._decide_remove(update, row, floor)
        if update.truncate_version < max(floor, row.truncate_version if row is not None else 0):
            return Result(Status.STALE_TRUNCATE_VERSION)
        if row is None and update.kind is Kind.TRUNCATE and update.truncate_version == floor:
            return Result(Status.OK)  # nothing to cut; where the floor rises, that is persisted
        return self._name(row)

    def _decide_remove(self, update: Update, row: ChunkRow | None, floor: int) -> Result | Version:
        # A truncate's remove names the version that it made: chunks written since belong to the regrown file.
        if row is None:
            known = update.truncate_version == ALWAYS or update.truncate_version <= floor
            return Result(Status.OK) if known else self._name(row)
        return Result(Status.OK) if row.truncate_version >= update.truncate_version else self._name(row)

    def _name(self, row: ChunkRow | None) -> Version:
        assert self.chain is not None
        committed = row.committed.number if row is not None else self._rows.version_floor()
        return Version(self.chain.version, committed + 1)

    def _decide_forwarded(
        self, version: Version, sequence: int, row: ChunkRow | None, last: ChannelRow | None
    ) -> Result | Version:
        # The head decided already; refusing here what it persisted would leave it pending for ever. Old news is a success.
        committed = row.committed.number if row is not None else 0
        if version.number <= committed or (last is not None and sequence <= last.sequence):
            return Result(Status.OK, version.number, row.length if row is not None else 0)
        if row is not None and version.number > committed + 1 and self.serving:
            return Result(Status.NOT_COMMITTED)  # the one before is missing here: the predecessor sends it first
        return version

    # --- persisted, forwarded, committed ---

    def _persist_done(self, now: float, event: PersistDone) -> list[Effect]:
        batch = self._batches[event.batch]
        if not batch.updates:
            batch.results = [event.results[0]]
            if event.results[0].status != Status.OK:
                return self._answer(batch)
            return self._resolve(batch)
        self._keep(batch, event.results)
        if batch.committed or not batch.live:
            return self._answer(batch)
        return self._resolve(batch)

    def _keep(self, batch: _Batch, results: Sequence[Result]) -> None:
        """Note what became of each update in flight; those that failed drop out of the batch."""
        live, staged = [], []
        for i, update, result in zip(batch.live, batch.staged, results, strict=True):
            batch.results[i] = result
            if result.status == Status.OK:
                live.append(i)
                staged.append(update)
        batch.live, batch.staged = live, staged

    def _resolve(self, batch: _Batch) -> list[Effect]:
        """The one way on for what is persisted: to the successor, or, without one, committed."""
        batch.stage = Stage.FORWARDING
        batch.retry_at = None
        if not self.serving and not self.predecessor:
            return self._abandon(batch)
        if self.successor:
            assert self.chain is not None
            return [Forward(batch.id, self.successor, self.chain.version, batch.staged)]
        return self._commit(batch)

    def _commit(self, batch: _Batch) -> list[Effect]:
        if not batch.staged:
            return self._answer(batch)
        batch.stage = Stage.COMMITTING
        return [Commit(batch.id, batch.staged)]

    def _commit_done(self, now: float, event: CommitDone) -> list[Effect]:
        batch = self._batches[event.batch]
        if event.status != Status.OK:
            self._fail(batch, Status.MAYBE_COMMITTED)  # the others have it
        return self._answer(batch)

    @staticmethod
    def _fail(batch: _Batch, status: Status) -> None:
        for i in batch.live:
            batch.results[i] = Result(status)

    def _abandon(self, batch: _Batch) -> list[Effect]:
        # This member left the chain: whether the others have the update it cannot know. Resync overwrites what is pending here.
        self._fail(batch, Status.MAYBE_COMMITTED)
        if not batch.updates:
            batch.results = [Result(Status.TARGET_OFFLINE)]
        return self._answer(batch)

    def _forward_ack(self, now: float, event: ForwardAck) -> list[Effect]:
        batch = self._batches.get(event.batch)
        if batch is None or batch.stage is not Stage.FORWARDING:
            return []  # a late answer of a successor that is gone
        suspects = [] if event.results is None else self._compare(batch, event.results)
        if event.results is None or suspects or any(r.status != Status.OK for r in event.results):
            batch.retry_at = now + FORWARD_RETRY_S
            return list(suspects)
        return self._commit(batch)

    def _compare(self, batch: _Batch, theirs: Sequence[Result]) -> list[Suspect]:
        suspects = []
        for i, update, other in zip(batch.live, batch.staged, theirs, strict=False):
            mine = batch.results[i]
            if (
                other.status == Status.OK
                and mine is not None
                and mine.checksum
                and other.checksum not in (0, mine.checksum)
            ):
                suspects.append(Suspect(self.successor, update.chunk))
        return suspects

    def _answer(self, batch: _Batch) -> list[Effect]:
        """Reply, leave the lines, and run whoever has become first in all of theirs (a list, not recursion: chains are long)."""
        effects: list[Effect] = []
        finished = [batch]
        while finished:
            done = finished.pop()
            del self._batches[done.id]
            if done.ticket is not None:
                effects.append(
                    Reply(done.ticket, [r if r is not None else Result(Status.INTERNAL) for r in done.results])
                )
            for ready in self._leave(done):
                persist = self._prepare(ready)
                if persist is None:
                    finished.append(ready)
                else:
                    effects.append(persist)
        return effects

    def _leave(self, batch: _Batch) -> list[_Batch]:
        ready = []
        lines = self._lines
        for resource in batch.lines:
            line = lines[resource]
            line.popleft()
            if not line:
                del lines[resource]
                continue
            line[0].ahead -= 1
            if not line[0].ahead:
                ready.append(line[0])
        return ready

    # --- restart and time ---

    def _recovered(self, now: float, event: Recovered) -> list[Effect]:
        """Each holds its chunk until it is resolved, which waits for the routing to say who this member is."""
        for update in event.updates:
            batch = self._new_batch(None, 0, (update,), False)
            self._lines[update.chunk] = deque((batch,))
            batch.lines, batch.live, batch.staged = [update.chunk], [0], [update]
            batch.results = [Result(Status.OK, update.version.number if update.version is not None else 0)]
            batch.stage = Stage.FORWARDING
        return []

    def _tick(self, now: float, event: Tick) -> list[Effect]:
        effects: list[Effect] = []
        for batch in list(self._batches.values()):
            if batch.retry_at is not None and batch.retry_at <= now:
                effects += self._resolve(batch)
        return effects
