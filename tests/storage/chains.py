"""A chain of replica machines with everything around it that can go wrong: a network, a manager, clients, resyncs.

What really happens is left out (bytes, processes, clocks), what can happen is all there: messages are lost, late, doubled and overtake
each other; members stop, lose their lease, are killed and come back with their disk; each hears of the chain's changes when
it hears of them. The manager is the real one's `next_chain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from emberfs.meta.cluster.chain import Lease as Held
from emberfs.meta.cluster.chain import Report, next_chain, with_members
from emberfs.proto.errors import Status
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_ONLINE, LOCAL_STATE_UPTODATE
from emberfs.proto.gen.common_pb2 import (
    TARGET_STATE_SERVING,
    TARGET_STATE_SYNCING,
    TARGET_STATE_WAITING,
    Chain,
    ChainMember,
    TargetState,
)
from emberfs.storage.craq import Replica
from emberfs.storage.engine.records import ChunkInfo
from emberfs.storage.events import (
    ALWAYS,
    Checkpoint,
    Commit,
    CommitDone,
    CopyChunks,
    Discard,
    Effect,
    Forward,
    ForwardAck,
    Kind,
    Persist,
    PersistDone,
    Reply,
    Result,
    RoutingChanged,
    Source,
    Suspect,
    SyncRequest,
    Tick,
    Update,
    Version,
    WriteRequest,
)
from emberfs.storage.lease import Lease
from emberfs.storage.reads import settle

from .machines import NAME_BYTES, Rows, held, persisted, write

REMOVED_CHUNK = 3  # this one is also truncated and removed; the others are only written
CLONED_CHUNK = 4  # this one is only made equal to the first
Chunk = int


@dataclass(eq=False)
class Member:
    """A machine with its disk and what it has still to do."""

    target: int
    rows: Rows = field(default_factory=Rows)
    lease: Lease = field(default_factory=held)
    machine: Replica = field(init=False)
    todo: list[Effect] = field(default_factory=list)
    stopped: bool = False
    inbox: list[Any] = field(default_factory=list)  # what it hears when it wakes
    restarted: bool = False  # and not registered yet
    synced: int = 0  # chain version
    resync: Resync | None = None

    def start(self) -> None:
        """A new process over the same disk."""
        self.machine = Replica(self.target, self.rows, self.lease)
        self.todo, self.inbox, self.synced, self.resync = [], [], 0, None

    @property
    def version(self) -> int:
        return self.machine.chain.version if self.machine.chain is not None else 0


@dataclass(eq=False)
class Exchange:
    """A forward and its answer. Whoever sent it hears once what became of it."""

    sender: Member
    process: Replica
    forward: Forward
    updates: Sequence[Update]
    to: int
    results: Sequence[Result] | None = None  # on their way back
    over: bool = False


@dataclass(eq=False)
class Resync:
    """What the last SERVING member does to the SYNCING one; each step may come much later than the one before."""

    version: int
    ours: dict[bytes, Any] | None = None
    theirs: dict[bytes, Any] | None = None
    copying: bool = False


@dataclass(eq=False)
class Operation:
    """What a client wants, until it is acknowledged."""

    update: Update
    hidden: frozenset[bytes] = frozenset()  # a remove's: names that must not be seen any more once it is acknowledged


class Cluster:
    def __init__(self, members: int) -> None:
        self.now = 1.0
        states = [
            ChainMember(target=i + 1, node=i + 1, state=TARGET_STATE_SERVING, incarnation=i + 1) for i in range(members)
        ]
        self.chain = Chain(id=1, version=1, members=states)
        self.members = {i + 1: Member(i + 1) for i in range(members)}
        self.network: list[Exchange] = []
        self.wanted: dict[tuple[bytes, Chunk], Operation] = {}
        self.sequences: dict[tuple[bytes, Chunk], int] = {}
        self.acknowledged: list[Update] = []
        self.hidden: set[bytes] = set()
        self.cloned = 0  # bytes of the longest clone that was acknowledged: its source only grows
        self.seen: dict[Chunk, int] = {}  # the highest number that anybody was told of
        self.names: dict[tuple[bytes, Version], bytes | None] = {}
        for member in self.members.values():
            member.start()
            self.learn(member.target)

    # --- clients ---

    def write(self, client: bytes, chunk: Chunk, target: int, kind: Kind = Kind.WRITE) -> None:
        """A client has (still) something to do with this chunk, and asks this member."""
        slot = (client, chunk)  # a channel per chunk
        if slot not in self.wanted:
            self.sequences[slot] = self.sequences.get(slot, 0) + 1
            update = write(self.sequences[slot], bytes([chunk]), client=client, channel=chunk)
            operation = Operation(update)
            if kind is Kind.TRUNCATE and chunk == REMOVED_CHUNK:
                operation.update = update._replace(kind=kind, length=NAME_BYTES)
            elif kind is Kind.CLONE:
                operation.update = update._replace(kind=kind, length=1 << 20, source=Source(bytes([1])))
            elif kind is Kind.REMOVE and chunk == REMOVED_CHUNK:
                known = frozenset(_name(done) for done in self.acknowledged if done.chunk == update.chunk)
                gone = Update(kind, update.chunk, 0, 0, 0, b"", 0, 0, ALWAYS, 0)
                operation = Operation(gone, known)
            self.wanted[slot] = operation
        operation = self.wanted[slot]
        self.step(
            self.members[target], WriteRequest((slot, operation), self.members[target].version, [operation.update])
        )

    def read(self, target: int, chunk: Chunk) -> None:
        """A reader must never be told less than anybody was told before."""
        member, key = self.members[target], bytes([chunk])
        if member.stopped or not member.version or member.machine.may_read(member.version, self.now) is not Status.OK:
            return
        number = 0
        if key in member.rows.unresolved and not member.machine.decides:
            tail = self.members[member.machine.last_serving]
            machine = tail.machine
            if tail.stopped or machine.may_read(member.version, self.now) is not Status.OK or not machine.decides:
                return
            row = tail.rows.chunk(key)
            found = settle(_info(member.rows, key), row.committed.number if row is not None else 0)
            if isinstance(found, Status):
                assert found in (Status.NOT_COMMITTED, Status.CHUNK_NOT_FOUND)
                assert found is Status.NOT_COMMITTED or not self.seen.get(chunk) or chunk == REMOVED_CHUNK
                return
            number = found
        row = member.rows.chunk(key)
        number = number or (row.committed.number if row is not None else 0)
        self.tell(chunk, number)

    def tell(self, chunk: Chunk, number: int) -> None:
        if chunk == REMOVED_CHUNK:
            return
        assert number >= self.seen.get(chunk, 0), f"chunk {chunk}: {number} after {self.seen[chunk]} was seen"
        self.seen[chunk] = number

    def replied(self, slot: Any, operation: Operation, result: Result) -> None:
        if result.status != Status.OK or self.wanted.get(slot) is not operation:
            return
        del self.wanted[slot]
        if operation.update.kind is Kind.WRITE:
            self.acknowledged.append(operation.update)
            self.tell(slot[1], max(result.number, self.seen.get(slot[1], 0)))
        elif operation.update.kind is Kind.CLONE:
            self.cloned = max(self.cloned, result.length)
        self.hidden |= operation.hidden

    # --- members ---

    def step(self, member: Member, event: Any) -> None:
        if member.stopped:
            member.inbox.append(event)
            return
        for effect in member.machine.step(self.now, event):
            if isinstance(effect, Persist | Forward | Checkpoint):
                member.todo.append(effect)  # carried out in the background
            else:
                self.perform(member, effect)

    def advance(self, target: int, effects: int = 1) -> int:
        """Carry out a few of a member's effects that take time; how many there were."""
        member = self.members[target]
        done = 0
        while done < effects and member.todo and not member.stopped:
            self.perform(member, member.todo.pop(0))
            done += 1
        return done

    def perform(self, member: Member, effect: Effect) -> None:
        rows = member.rows
        if isinstance(effect, Persist):
            done = persisted(member.machine, rows, effect)
            for update in effect.updates:
                self.check_name(rows, update)
            self.step(member, done)
        elif isinstance(effect, Commit):
            for update in effect.updates:
                rows.commit(update)
            self.step(member, CommitDone(effect.batch))
        elif isinstance(effect, Forward):
            updates = [rows.whole(u) for u in effect.updates] if effect.whole else effect.updates
            known = [u for u in updates if u is not None]
            if len(known) == len(updates):
                self.network.append(Exchange(member, member.machine, effect, known, effect.target))
            else:  # we have left the chain meanwhile
                results = [Result(Status.NOT_COMMITTED)] * len(updates)
                self.step(member, ForwardAck(effect.batch, effect.session, effect.number, results))
        elif isinstance(effect, Reply):
            if isinstance(effect.ticket, Exchange):
                effect.ticket.results = effect.results
                self.network.append(effect.ticket)
            elif isinstance(effect.ticket, Resync):
                self.copied(member, effect.ticket, effect.results)
            else:
                self.replied(*effect.ticket, effect.results[0])
        elif isinstance(effect, Discard):
            rows.unresolved.clear()
            rows.channels.clear()  # the first page of a sync does this; the predecessor's come at its end
        elif isinstance(effect, Checkpoint):
            self.step(member, PersistDone(effect.batch, [Result(Status.OK)]))
        else:
            assert not isinstance(effect, Suspect), "the replicas differ"

    def check_name(self, rows: Rows, update: Update) -> None:
        """Rule 1: "a name is never used again for other content"."""
        assert update.version is not None
        content = rows.unresolved.get(update.chunk) or rows.chunks.get(update.chunk)
        if content is not None and content.version == update.version:
            assert self.names.setdefault((update.chunk, content.version), content.data) == content.data

    def crash(self, target: int) -> None:
        """kill -9: the disk stays, and what peers wait for breaks."""
        member = self.members[target]
        member.restarted, member.stopped = True, False
        member.lease.lost()
        member.start()
        for exchange in self.network:
            if target == exchange.to and not exchange.over:
                self.finish(exchange, None)
        self.network = [e for e in self.network if target != e.to]  # its sockets are gone

    def stop(self, target: int) -> None:
        """SIGSTOP, or cut off from the manager: its lease runs out."""
        self.members[target].stopped = True
        self.members[target].lease.lost()

    def fence(self, target: int) -> None:
        """Cut off from the manager, not from the others."""
        self.members[target].lease.lost()

    def wake(self, target: int) -> None:
        member = self.members[target]
        member.stopped = False
        events, member.inbox = member.inbox, []
        for event in events:
            self.step(member, event)
        self.renew(member)

    def renew(self, member: Member) -> None:
        """A heartbeat, or the registration of a new process. The answer that renews the lease brings what has changed."""
        if member.restarted:
            self.manage(registering=member)
            member.restarted = False
        self.learn(member.target)
        member.lease.until = float("inf")

    def learn(self, target: int) -> None:
        member = self.members[target]
        if self.chain.version > member.version and not member.stopped and not member.restarted:
            self.step(member, RoutingChanged(self.chain))

    # --- the network ---

    def deliver(self, place: int, *, twice: bool = False) -> None:
        if not self.network:
            return
        exchange = self.network.pop(place % len(self.network))
        if exchange.results is not None:
            self.finish(exchange, exchange.results)
            return
        member = self.members[exchange.to]
        if member.stopped:
            self.network.append(exchange)  # it waits in the socket
            return
        forward = exchange.forward
        for _ in range(1 + twice):
            arrived = Exchange(
                exchange.sender, exchange.process, forward, exchange.updates, exchange.to, None, exchange.over
            )
            sender = (exchange.sender.target, forward.session, forward.number)
            if exchange.updates:
                self.step(member, WriteRequest(arrived, forward.chain_version, exchange.updates, *sender))
            else:
                self.step(member, SyncRequest(arrived, forward.chain_version, *sender))

    def lose(self, place: int) -> None:
        """The connection breaks."""
        if self.network:
            self.finish(self.network.pop(place % len(self.network)), None)

    def give_up(self, place: int) -> None:
        """The answer takes too long; the message is still on its way."""
        if self.network:
            self.finish(self.network[place % len(self.network)], None)

    def finish(self, exchange: Exchange, results: Sequence[Result] | None) -> None:
        forward, sender = exchange.forward, exchange.sender
        if not exchange.over and sender.machine is exchange.process:
            self.step(sender, ForwardAck(forward.batch, forward.session, forward.number, results))
        exchange.over = True

    def tick(self, seconds: float = 0.11) -> None:
        self.now += seconds
        for member in self.members.values():
            self.step(member, Tick())

    # --- the manager ---

    def manage(self, registering: Member | None = None) -> None:
        reports = {}
        for member in self.members.values():
            uptodate = member.machine.serving or (member.machine.syncing and member.synced == member.version)
            silent = member.lease.until < 0 and member is not registering
            reports[member.target] = Report(
                LOCAL_STATE_UPTODATE if uptodate else LOCAL_STATE_ONLINE,
                member.target,
                member is registering,
                member.version,
                Held.OVER if silent else Held.HELD,
            )
        self.chain = next_chain(self.chain, reports)

    def depose(self, target: int) -> None:
        """An administrator begins to remove a member that serves, and then goes away."""
        members = {member.target: member for member in self.chain.members}
        serving = [member for member in members.values() if member.state == TARGET_STATE_SERVING]
        if members[target] not in serving or len(serving) < 2:
            return
        syncing = [self.members[number] for number, member in members.items() if member.state == TARGET_STATE_SYNCING]
        if any(other.version != self.chain.version and other.lease.until > 0 for other in syncing):
            return  # it may be on its way out as well, and not have heard of it: as the manager does
        rest = [
            _with(m, TARGET_STATE_WAITING if m.state == TARGET_STATE_SYNCING else m.state) for m in members.values()
        ]
        rest[list(members).index(target)].state = TARGET_STATE_SYNCING
        self.chain = with_members(self.chain, rest)

    # --- resync ---

    def sync(self, target: int) -> None:
        """The next step of what the last SERVING member does for the one that syncs."""
        member = self.members[target]
        machine = member.machine
        if member.stopped or not (machine.tail and machine.successor):
            return
        if member.resync is None or member.resync.version != member.version:
            member.resync = Resync(member.version)
        resync, other = member.resync, self.members[machine.successor]
        if resync.copying or other.stopped or other.version != member.version or not other.machine.syncing:
            return
        if resync.ours is None:
            resync.ours = _listing(member.rows)
        elif resync.theirs is None:
            resync.theirs = _listing(other.rows)
        else:
            differ = [
                c for c in resync.ours.keys() | resync.theirs.keys() if resync.ours.get(c) != resync.theirs.get(c)
            ]
            if differ:
                resync.copying = True
                self.step(member, CopyChunks(resync, resync.version, sorted(differ)))
            else:
                # What is pending has not reached the other side: its receipts would answer a retry with success.
                waits = {(u.client, u.channel) for u in member.rows.pending()}
                theirs = other.rows.channels
                for key, row in member.rows.channels.items():
                    known = row._replace(sequence=row.sequence - (key in waits))
                    theirs[key] = max(known, theirs.get(key, known))
                other.rows.floor = max(other.rows.floor, member.rows.floor)
                other.rows.removed = max(other.rows.removed, member.rows.removed)
                other.synced = resync.version

    def copied(self, member: Member, resync: Resync, results: Sequence[Result]) -> None:
        resync.copying = False
        resync.ours = resync.theirs = None  # compare again, until nothing differs
        if member.resync is resync and any(r.status == Status.STALE_CHAIN_VERSION for r in results):
            member.resync = None

    # --- the end ---

    def settle(self) -> None:
        """Everything heals: it must come to rest, with every member in its place."""
        for target in self.members:
            self.wake(target)
        for _ in range(300):
            self.manage()
            for target in self.members:
                self.learn(target)
            head = self.chain.members[0].target
            for slot in list(self.wanted):
                self.write(*slot, head)
            self.tick(1.0)
            while sum(self.advance(t) for t in self.members) or self.network:
                self.deliver(0)
            for target in self.members:
                self.sync(target)
            serving = all(m.state == TARGET_STATE_SERVING for m in self.chain.members)
            if serving and not self.wanted and not any(m.machine.in_flight for m in self.members.values()):
                return
        raise AssertionError(f"the chain does not come to rest: {self.chain}")

    def check(self) -> None:
        first = self.members[1].rows
        for member in self.members.values():
            assert not member.rows.unresolved
            assert {c: (x.version, x.data) for c, x in member.rows.chunks.items()} == {
                c: (x.version, x.data) for c, x in first.chunks.items()
            }
        for chunk in first.chunks:
            names = first.names(chunk)
            assert len(names) == len(set(names)), "an update was done twice"
            for client in {client for client, _ in names}:
                mine = [sequence for c, sequence in names if c == client]
                assert mine == sorted(mine)
        for update in self.acknowledged:
            if update.chunk != bytes([REMOVED_CHUNK]):
                assert (update.client, update.sequence) in first.names(update.chunk), "an acknowledged write is lost"
        clone = first.names(bytes([CLONED_CHUNK]))
        assert clone == first.names(bytes([1]))[: len(clone)], "the clone is nothing that its source ever was"
        assert len(clone) * NAME_BYTES >= self.cloned, "an acknowledged clone is lost"
        left = first.chunks.get(bytes([REMOVED_CHUNK]))
        for name in self.hidden:
            assert left is None or left.data is None or name not in _names(left.data), "a removed chunk came back"


def _with(member: ChainMember, state: TargetState) -> ChainMember:
    copy = ChainMember()
    copy.CopyFrom(member)
    copy.state = state
    return copy


def _name(update: Update) -> bytes:
    return update.client[:1] + update.sequence.to_bytes(NAME_BYTES - 1, "big")


def _names(data: bytes) -> set[bytes]:
    return {data[at : at + NAME_BYTES] for at in range(0, len(data), NAME_BYTES)}


def _listing(rows: Rows) -> dict[bytes, Any]:
    return {chunk: (content.version, content.checksum) for chunk, content in rows.chunks.items()}


def _info(rows: Rows, chunk: bytes) -> ChunkInfo:
    row, pending = rows.chunk(chunk), rows.unresolved[chunk]
    number = row.committed.number if row is not None else 0
    return ChunkInfo(chunk, number, 0, 0, 0, 0, pending.version.number, 0, 0, pending_removes=pending.data is None)
