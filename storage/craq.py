"""The replica: one member of one chain, as a pure state machine (CRAQ, Terrace and Freedman 2009, with the rules below).

`step(now, event)` returns effects, to be performed in list order: that order is the durability order. The machine awaits nothing
and owns no clock, disk or socket; what is on disk it looks up through `Rows`, synchronously.

Rules:
1. A client's update enters at the head, under the exact chain version. The head names it (its chain version, number + 1); a name
   is never used again for other content, and number + 1 is given only after number was committed.
2. One batch is one client request. It waits until it is first in line for each of its chunks and channels, so that a chunk
   has one update in flight and a channel one sequence (lines.py). A clone stands in the line of its source, too: so what it takes there
   is committed, here and on every member behind.
3. Every member persists an update before it forwards it, commits it after its successor acknowledged it, and only then answers.
   Without a successor (the tail; a chain of one) persisting and committing are one write of the index. Whether there is one is asked at
   that write (`fate`), not when the update came: a successor that appears in between must not miss it.
4. An update that was persisted is only ever resolved forward: forwarded again until acknowledged. What a member finds pending when it
   begins to serve it resolves the same way. Under a new chain version the last SERVING member commits all of it at once: the one that
   was last before may have done so, and have answered reads with it; and whoever is copied to begins anew. Unless that one is the
   successor, SYNCING now because it is to go, and has not heard so yet: it may have shown what is pending, or still show what was
   before. Then nobody is told of either until it has confirmed. Only a member that leaves the chain forgets what is pending: it is made
   equal to its predecessor before it serves again. To the client an error after that point means "maybe applied".
5. (client, channel) keeps the last sequence and its result, persisted with the update: the same sequence gets the same answer, a
   lower one is refused, also after a restart and at a new head.
6. Updates of clients whose session is over, and updates from before a truncate that the chunk has seen, are refused at the head; so are
   those of a client's process that died, from the moment at which its successor, the same client, has said so (a fence): others may
   have written since to the same chunks. Behind it the version alone decides (decisions.py).
7. A SYNCING successor gets whole contents instead of updates, and what it lacks besides comes through the same lines (CopyChunks): so the
   copy of a chunk and its updates cannot overtake each other. Where the bytes of a SERVING one differ it gets the whole content, too.
8. A forward that was not answered may still be on its way, in the socket of a stopped process, and one that was refused may come once
   more. It must not bring back a chunk that was removed since: the successor tells late ones and second ones (sessions.py).
9. A member that was synced and serves now may hold what its predecessor, the last one so far, has not committed yet. It shows nothing
   before it has heard from the predecessor under the new chain version: until then that one may still answer from its own. So a
   member greets a new successor, with a sync.
10. In a chain of several members nothing is read, admitted or answered with success without a lease: another one may serve by now.

The machine does not know whether it is the head: head means "no predecessor", tail means "no successor", and a promotion
changes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..proto.errors import Status, StatusError
from ..proto.gen.common_pb2 import TARGET_STATE_SERVING, TARGET_STATE_SYNCING, Chain
from .decisions import decide, decide_forwarded, named
from .events import (
    ALWAYS,
    Checkpoint,
    ClientsEnded,
    Commit,
    CommitDone,
    CopyChunks,
    Discard,
    Effect,
    Event,
    Fate,
    FenceRequest,
    Forward,
    ForwardAck,
    Kind,
    Mend,
    MendDone,
    Persist,
    PersistDone,
    Repair,
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
from .lease import Lease
from .lines import Batch, Lines, Resource, Stage, Work
from .sessions import Receiving, Sending

UPDATES_MAX = 4096  # of one request
BATCHES_MAX = 4096  # admitted and not yet answered, per replica
FENCES_MAX = 65_536  # clients of a replaced process that have not ended since; the one of longest ago is forgotten
FORWARD_RETRY_S = 0.1  # after a forward that failed

# With these a forward is refused before its number was looked at.
_AT_THE_DOOR = frozenset(
    (Status.STALE_CHAIN_VERSION, Status.STALE_ROUTING, Status.FENCED, Status.TARGET_OFFLINE, Status.READ_ONLY)
)


class Replica:
    """One target's part in its chain. The class is long because it is one machine; each event has one method."""

    def __init__(self, target: int, rows: Rows, lease: Lease) -> None:
        self.target = target
        self.chain: Chain | None = None
        self.serving = False
        self.syncing = False  # made equal to the predecessor
        self.predecessor = 0  # target id; 0: this is the head
        self.successor = 0  # target id; 0: this is the tail
        self.tail = False  # the last SERVING member: its committed version is the chain's
        self.last_serving = 0  # target id of that one
        self.ended: frozenset[bytes] = frozenset()
        self.fences: dict[bytes, int] = {}  # client -> sequences up to this one are a dead process's
        self.shared = False  # the chain has other members: a lease is needed
        self.others_serve = False  # what this member cannot do any more, another one can
        self._copies_whole = False  # the successor is SYNCING
        self._ungreeted = False  # promoted, and the predecessor may not know yet
        self._leaving: frozenset[int] = frozenset()  # SYNCING members that may not know yet that they serve no more
        self._unsettled: set[int] = set()  # batches from before it was told so
        self._rows = rows
        self._lease = lease
        self._now = 0.0
        self._sending = Sending()
        self._receiving = Receiving()
        self._batches: dict[int, Batch] = {}
        self._lines = Lines()
        self._next = 0
        self._handlers: dict[type, Callable[[Any], list[Effect]]] = {
            RoutingChanged: self._routing_changed,
            ClientsEnded: self._clients_ended,
            FenceRequest: self._fence_request,
            WriteRequest: self._write_request,
            SyncRequest: self._sync_request,
            CopyChunks: self._copy_chunks,
            Repair: self._repair,
            PersistDone: self._persist_done,
            MendDone: self._mend_done,
            ForwardAck: self._forward_ack,
            CommitDone: self._commit_done,
            Tick: self._tick,
        }

    def step(self, now: float, event: Event) -> list[Effect]:
        """Take one event at time `now` (seconds on the lease's clock); the effects are to be performed in order."""
        self._now = now
        return self._handlers[type(event)](event)

    # --- what is asked without an event: no object per operation ---

    def may_read(self, chain_version: int, now: float) -> Status:
        """OK when this member may answer reads under that chain version. Asked per batch, before and after its bytes are read."""
        chain = self.chain
        if chain is None:
            return Status.TARGET_OFFLINE
        if chain.version != chain_version:
            return Status.STALE_CHAIN_VERSION
        if not self.serving:
            return Status.TARGET_OFFLINE
        return Status.FENCED if self.shared and (self._ungreeted or not self._lease.holds(now)) else Status.OK

    def fate(self, batch: int) -> Fate:
        """What the index is to be told of a batch whose bytes are written; asked in one breath with writing it."""
        if self._batches[batch].doomed:
            return Fate.DROP
        return Fate.PENDING if self.successor else Fate.COMMIT

    @property
    def decides(self) -> bool:
        """Whether what is committed here is what the chain has committed, also of chunks with a pending version."""
        return self.tail and not self._unsettled

    def busy(self, chunk: bytes) -> bool:
        """Whether an update of this chunk is under way or waits."""
        return chunk in self._lines

    def updating(self, prefix: bytes) -> set[int]:
        """The batches with updates of chunks whose ids begin so."""
        return self._lines.batches(prefix)

    @property
    def in_flight(self) -> int:
        return len(self._batches)

    # --- routing and clients ---

    def _routing_changed(self, event: RoutingChanged) -> list[Effect]:
        served, synced, behind = self.serving, self.syncing, (self.successor, self._copies_whole)
        before, self.chain = self.chain, event.chain
        self._find_neighbours()
        self._leaving = self._find_leaving(before)
        self._unsettled.clear()
        self._sending.begin(self._now)
        self._receiving = Receiving()
        effects: list[Effect] = []
        if (served and not self.serving) or (synced and not self.syncing and not self.serving):
            effects += self._leave_chain()
        if self.syncing and not synced:
            effects.append(Discard())
        self._ungreeted = self.serving and bool(self.predecessor) and (synced or self._ungreeted)
        if self.serving and not served:
            self._adopt()
        if self.serving and (self.successor, self._copies_whole) not in (behind, (0, False), (self.successor, True)):
            self._greet()
        for batch in list(self._batches.values()):
            if batch.stage is Stage.FORWARDING:
                effects += self._resolve_anew(batch)
            # Waiting batches meet the new version when their turn comes, persisting ones when that is done.
        return effects

    def _find_leaving(self, before: Chain | None) -> frozenset[int]:
        """Members that serve nothing under this version, and may still do so under an older one: also where others were between them and
        us when they lost their place."""
        members = self.chain.members if self.chain is not None else ()
        syncing = frozenset(m.target for m in members if m.state == TARGET_STATE_SYNCING)
        if before is None:  # who serves from the start was the last one that did
            return syncing & {self.successor} if self.tail else frozenset()
        served = {m.target for m in before.members if m.state == TARGET_STATE_SERVING}
        return syncing & (self._leaving | served)

    def _resolve_anew(self, batch: Batch) -> list[Effect]:
        """Under a new chain version, what is being forwarded."""
        if not self.tail or batch.work is not Work.UPDATES:
            return self._resolve(batch)
        if self.successor not in self._leaving:
            return self._commit(batch)
        self._unsettled.add(batch.id)
        return self._resolve(batch)

    def _find_neighbours(self) -> None:
        members = self.chain.members if self.chain is not None else ()
        line = [m for m in members if m.state in (TARGET_STATE_SERVING, TARGET_STATE_SYNCING)]
        here = next((i for i, m in enumerate(line) if m.target == self.target), None)
        self.shared = len(members) > 1
        self._copies_whole = False
        serving = [m.target for m in line if m.state == TARGET_STATE_SERVING]
        self.others_serve = any(target != self.target for target in serving)
        if here is None:
            self.serving = self.syncing = self.tail = False
            self.predecessor = self.successor = self.last_serving = 0
            return
        behind = line[here + 1 :]
        self.serving = line[here].state == TARGET_STATE_SERVING
        self.syncing = not self.serving
        self.predecessor = line[here - 1].target if here else 0
        self.successor = behind[0].target if behind else 0
        self.last_serving = serving[-1] if serving else 0
        self.tail = self.last_serving == self.target
        self._copies_whole = bool(behind) and behind[0].state == TARGET_STATE_SYNCING

    def _leave_chain(self) -> list[Effect]:
        effects: list[Effect] = []
        for batch in list(self._batches.values()):
            if batch.stage is Stage.FORWARDING:
                # Whether the others have the update cannot be known here.
                self._fail(batch, Status.MAYBE_COMMITTED)
                effects += self._answer(batch)
            elif batch.stage is Stage.PERSISTING:
                batch.doomed = True
        return effects

    def _adopt(self) -> None:
        """What is pending on disk holds its chunk until it is resolved."""
        try:
            pending = self._rows.pending()
        except StatusError:
            return  # the target is out: the others resolve it, or the next process here
        for update in pending:
            first = self._lines.first(update.chunk)
            if first is not None and first.stage is Stage.COMMITTING:
                continue  # that is about to be carried out
            assert update.version is not None
            batch = self._new_batch(Work.UPDATES, None, 0, (update,))
            self._lines.take(batch, update.chunk)
            batch.live, batch.staged = [0], [update]
            batch.results = [Result(Status.OK, update.version.number, update.length, update.checksum)]
            batch.stage, batch.whole = Stage.FORWARDING, True

    def _greet(self) -> None:
        assert self.chain is not None
        greeting = self._new_batch(Work.SYNC, None, self.chain.version, ())
        greeting.stage, greeting.results = Stage.FORWARDING, [Result(Status.OK)]

    def _clients_ended(self, event: ClientsEnded) -> list[Effect]:
        self.ended = frozenset(event.clients)
        for client in self.ended.intersection(self.fences):
            del self.fences[client]
        return []

    def _fence_request(self, event: FenceRequest) -> list[Effect]:
        """In memory, and at the head alone: what is late names this version of the chain, and lies in a socket of this process."""
        status = self._gate(event.chain_version, 0)
        if status is Status.OK:
            before = self.fences.pop(event.client, 0)
            if len(self.fences) >= FENCES_MAX:
                del self.fences[next(iter(self.fences))]
            self.fences[event.client] = max(before, event.sequence)
        return [Reply(event.ticket, [Result(status)])]

    # --- admission ---

    def _gate(self, chain_version: int, sender: int) -> Status:
        if sender and (self.syncing or self._ungreeted):
            # It takes what its predecessor sends, but answers no reads.
            assert self.chain is not None
            status = Status.OK if self._lease.holds(self._now) else Status.FENCED
            status = status if self.chain.version == chain_version else Status.STALE_CHAIN_VERSION
        else:
            status = self.may_read(chain_version, self._now)
        if status is Status.OK and self.predecessor != sender:
            return Status.STALE_ROUTING  # a client's update belongs to the head, a forwarded one behind it
        return status

    def _admission(self, event: WriteRequest | SyncRequest) -> Status:
        status = self._gate(event.chain_version, event.sender)
        if status is Status.OK and event.sender:
            self._ungreeted = False
            if not self._receiving.takes(event.session, event.number):
                return Status.BUSY
        return Status.BUSY if status is Status.OK and len(self._batches) >= BATCHES_MAX else status

    def _new_batch(self, work: Work, ticket: Any, chain_version: int, updates: Sequence[Update]) -> Batch:
        self._next += 1
        batch = Batch(self._next, ticket, chain_version, updates, [None] * len(updates), work)
        self._batches[batch.id] = batch
        return batch

    def _write_request(self, event: WriteRequest) -> list[Effect]:
        updates = event.updates
        status = self._admission(event)
        if status is Status.OK and len(updates) > UPDATES_MAX:
            status = Status.TOO_LARGE
        if status is not Status.OK or not updates:
            return [Reply(event.ticket, [Result(status)] * len(updates))]
        batch = self._new_batch(Work.UPDATES, event.ticket, event.chain_version, updates)
        batch.sender = event.sender
        for i, update in enumerate(updates):
            mine: tuple[Resource, ...]
            mine = (update.chunk, (update.client, update.channel)) if update.client else (update.chunk,)
            if update.source is not None and update.source.chunk != update.chunk:
                mine = (*mine, update.source.chunk)
            status = self._lines.join(batch, mine)
            if status is Status.OK:
                batch.live.append(i)
            else:
                batch.results[i] = Result(status)
        return self._run([batch]) if not batch.ahead else []

    def _sync_request(self, event: SyncRequest) -> list[Effect]:
        status = self._admission(event)
        if status is not Status.OK:
            return [Reply(event.ticket, [Result(status)])]
        batch = self._new_batch(Work.SYNC, event.ticket, event.chain_version, ())
        batch.sender = event.sender
        batch.stage = Stage.PERSISTING
        return [Checkpoint(batch.id)]

    def _copy_chunks(self, event: CopyChunks) -> list[Effect]:
        return self._join(Work.COPY, event.ticket, event.chain_version, event.chunks)

    def _repair(self, event: Repair) -> list[Effect]:
        return self._join(Work.REPAIR, event.ticket, 0, (event.chunk,))

    def _join(self, work: Work, ticket: Any, chain_version: int, chunks: Sequence[bytes]) -> list[Effect]:
        """Work on chunks that is no update of them; what is to be done is seen when its turn comes."""
        nothing = [Update(Kind.REMOVE, chunk, 0, 0, 0, b"", 0, 0, ALWAYS, 0) for chunk in chunks]
        batch = self._new_batch(work, ticket, chain_version, nothing)
        for i, update in enumerate(nothing):
            status = self._lines.join(batch, (update.chunk,))
            if status is Status.OK:
                batch.live.append(i)
            else:
                batch.results[i] = Result(status)
        return self._run([batch]) if not batch.ahead else []

    # --- a batch whose turn has come ---

    def _run(self, ready: list[Batch]) -> list[Effect]:
        """Begin these batches, and whatever becomes ready when one of them has nothing to do but be answered (a list, not recursion:
        lines are long)."""
        effects: list[Effect] = []
        begun: Effect | None
        while ready:
            batch = ready.pop()
            if not self._rows.usable():
                # A retry must not be recognised by a receipt that is in memory alone.
                self._fail(batch, Status.TARGET_OFFLINE)
                begun = None
            else:
                begun = self._begin(batch)
            if begun is not None:
                effects.append(begun)
            else:
                ready += self._finish(batch, effects)
        return effects

    def _begin(self, batch: Batch) -> Effect | None:
        """None when nothing is left to do but answer. Also where the index cannot be read: nobody may wait behind this batch for ever."""
        try:
            if batch.work is Work.UPDATES:
                return self._prepare(batch)
            return self._prepare_copy(batch) if batch.work is Work.COPY else self._prepare_repair(batch)
        except StatusError as failed:
            self._fail(batch, failed.status)
            return None

    def _prepare(self, batch: Batch) -> Effect | None:
        """Decide each update; None when nothing is left to do but answer."""
        status = self._gate(batch.chain_version, batch.sender)
        if status is not Status.OK:
            self._fail(batch, status)
            return None
        live = []
        for i in batch.live:
            update = batch.updates[i]
            if batch.sender:
                decided = decide_forwarded(update, self._rows, self.serving, self.ended)
            else:
                decided = decide(update, self._rows, batch.chain_version, self.ended, self.fences)
            if isinstance(decided, Result):
                batch.results[i] = decided
            else:
                live.append(i)
                batch.staged.append(update if batch.sender else named(update, decided, self._rows))
        batch.live = live
        if not live:
            return None
        batch.stage = Stage.PERSISTING
        return Persist(batch.id, batch.staged)

    def _prepare_copy(self, batch: Batch) -> Effect | None:
        """Nothing is persisted: what is committed here goes to the successor."""
        chain = self.chain
        if chain is None or chain.version != batch.chain_version or not self._copies_whole:
            self._fail(batch, Status.STALE_CHAIN_VERSION)
        if not batch.live or chain is None:
            return None
        batch.staged = [_copy_of(batch.updates[i].chunk, self._rows, chain.version) for i in batch.live]
        for i in batch.live:
            batch.results[i] = Result(Status.OK)
        batch.stage, batch.whole = Stage.FORWARDING, True
        return self._forward(batch)

    def _prepare_repair(self, batch: Batch) -> Effect | None:
        if not self.serving:
            self._fail(batch, Status.STALE_ROUTING)
        if not batch.live:
            return None
        batch.stage = Stage.PERSISTING
        return Mend(batch.id, batch.updates[0].chunk)

    def _mend_done(self, event: MendDone) -> list[Effect]:
        batch = self._batches[event.batch]
        batch.results = [Result(event.status)]
        return self._answer(batch)

    # --- persisted, forwarded, committed ---

    def _persist_done(self, event: PersistDone) -> list[Effect]:
        batch = self._batches[event.batch]
        if batch.work is Work.SYNC:
            batch.results = [event.results[0]]
            if event.results[0].status != Status.OK:
                return self._answer(batch)
        else:
            self._keep(batch, event.results)
            if event.committed or not batch.live:
                return self._answer(batch)
        if batch.doomed:
            self._fail(batch, Status.MAYBE_COMMITTED)
            return self._answer(batch)
        batch.stage = Stage.FORWARDING
        return self._resolve(batch)

    def _keep(self, batch: Batch, results: Sequence[Result]) -> None:
        """Note what became of each update in flight; those that failed drop out of the batch."""
        live, staged = [], []
        for i, update, result in zip(batch.live, batch.staged, results, strict=True):
            batch.results[i] = result
            if result.status == Status.OK:
                live.append(i)
                staged.append(update)
        batch.live, batch.staged = live, staged

    def _resolve(self, batch: Batch) -> list[Effect]:
        """The one way on for what is persisted: to the successor, or, without one, committed."""
        batch.retry_at = None
        if batch.work is Work.COPY and (self.chain is None or self.chain.version != batch.chain_version):
            self._fail(batch, Status.STALE_CHAIN_VERSION)
            return self._answer(batch)
        return [self._forward(batch)] if self.successor else self._commit(batch)

    def _forward(self, batch: Batch) -> Forward:
        assert self.chain is not None
        batch.sent = self._sending.next()
        whole = batch.whole or self._copies_whole
        return Forward(batch.id, *batch.sent, self.successor, self.chain.version, batch.staged, whole)

    def next_part(self, forward: Forward) -> Forward | None:
        """The same under a number of its own, where it is sent in several parts; None when its session is over."""
        if forward.session != self._sending.session:
            return None
        return replace(forward, number=self._sending.next()[1])

    def _forward_ack(self, event: ForwardAck) -> list[Effect]:
        batch = self._batches.get(event.batch)
        if batch is None or batch.stage is not Stage.FORWARDING or (event.session, event.number) != batch.sent:
            return []  # of an attempt that was given up: another successor has been asked since
        results = event.results
        if results is None or any(result.status in _AT_THE_DOOR for result in results):
            self._sending.not_taken(event.session)
        if results is None:
            batch.retry_at = self._now + FORWARD_RETRY_S
            return []
        if event.session < self._sending.session and any(r.status == Status.BUSY for r in results):
            return self._resolve(batch)  # refused only because another batch's forward raised the session
        if batch.work is Work.COPY:
            self._keep(batch, results)
            return self._answer(batch)
        suspects = self._compare(batch, results)
        if not suspects and all(r.status == Status.OK for r in results):
            return self._commit(batch)
        batch.whole = batch.whole or bool(suspects) or any(r.status == Status.NOT_COMMITTED for r in results)
        batch.retry_at = self._now + FORWARD_RETRY_S
        return suspects

    def _compare(self, batch: Batch, theirs: Sequence[Result]) -> list[Effect]:
        suspects: list[Effect] = []
        for i, update, other in zip(batch.live, batch.staged, theirs, strict=False):
            mine = batch.results[i]
            known = mine is not None and mine.checksum and other.checksum and other.status == Status.OK
            if known and mine is not None and mine.checksum != other.checksum:
                suspects.append(Suspect(self.successor, update.chunk))
        return suspects

    def _commit(self, batch: Batch) -> list[Effect]:
        if batch.work is not Work.UPDATES:
            return self._answer(batch)
        batch.stage = Stage.COMMITTING
        return [Commit(batch.id, batch.staged)]

    def _commit_done(self, event: CommitDone) -> list[Effect]:
        batch = self._batches[event.batch]
        if event.status != Status.OK:
            self._fail(batch, Status.MAYBE_COMMITTED)  # the others have it
        return self._answer(batch)

    @staticmethod
    def _fail(batch: Batch, status: Status) -> None:
        """Answer with this what has no answer yet, or only the one that it would have had."""
        if batch.work is Work.SYNC:
            batch.results = [Result(status)]
        for i in batch.live:
            batch.results[i] = Result(status)
        batch.live = []

    # --- the answer ---

    def _answer(self, batch: Batch) -> list[Effect]:
        """Reply, leave the lines, and run whoever has become first in all of theirs."""
        effects: list[Effect] = []
        ready = self._finish(batch, effects)
        return effects + self._run(ready) if ready else effects

    def _finish(self, batch: Batch, effects: list[Effect]) -> list[Batch]:
        del self._batches[batch.id]
        self._unsettled.discard(batch.id)
        if batch.ticket is not None:
            effects.append(Reply(batch.ticket, self._results(batch)))
        return self._lines.leave(batch)

    def _results(self, batch: Batch) -> list[Result]:
        results = [r if r is not None else Result(Status.INTERNAL) for r in batch.results]
        if self.shared and not self._lease.holds(self._now):
            # It is done here, but we cannot say any more that it is done. The client repeats it under its number.
            return [Result(Status.FENCED) if r.status == Status.OK else r for r in results]
        return results

    # --- time ---

    def _tick(self, event: Tick) -> list[Effect]:
        effects: list[Effect] = []
        for batch in list(self._batches.values()):
            if batch.retry_at is not None and batch.retry_at <= self._now:
                effects += self._resolve(batch)
        return effects


def _copy_of(chunk: bytes, rows: Rows, chain_version: int) -> Update:
    """The update that makes another member's chunk equal to what is committed here."""
    row = rows.chunk(chunk)
    if row is None:
        gone = Version(chain_version, rows.version_floor())
        return Update(Kind.REMOVE, chunk, 0, 0, 0, b"", 0, 0, ALWAYS, 0, None, gone)
    return Update(
        Kind.REPLACE, chunk, 0, row.length, row.checksum, b"", 0, 0, row.truncate_version, 0, None, row.committed
    )
