"""Chains of replica machines, driven through every order of effects, crashes and changes that hypothesis finds."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberfs.proto.errors import Status
from emberfs.proto.gen.common_pb2 import (
    Chain,
    ChainMember,
)
from emberfs.storage import craq
from emberfs.storage.craq import Replica
from emberfs.storage.events import (
    Commit,
    CommitDone,
    Effect,
    Forward,
    ForwardAck,
    Persist,
    PersistDone,
    Recovered,
    Reply,
    RoutingChanged,
    Tick,
    Update,
)

from .machines import CLIENT, OFFLINE, OTHER, SERVING, Rows, request, write


@dataclass
class Member:
    """A machine with its disk and what it has still to do; a crash loses everything but the disk."""

    target: int
    rows: Rows = field(default_factory=Rows)
    machine: Replica = field(init=False)
    todo: list[Effect] = field(default_factory=list)

    def start(self, entry: Chain) -> None:
        self.machine = Replica(self.target, self.rows)
        self.todo = self.machine.step(0, Recovered(list(self.rows.pending.values())))
        self.todo += self.machine.step(0, RoutingChanged(entry))


class Cluster:
    """A chain of members and clients that repeat each write until it is acknowledged."""

    def __init__(self, members: int) -> None:
        self.now = 0.0
        self.version = 1
        self.members = {i + 1: Member(i + 1) for i in range(members)}
        self.alive = list(self.members)
        self.wanted: dict[tuple[bytes, int], Update] = {}  # (client, channel) -> the write that is not acknowledged yet
        self.sequences: dict[tuple[bytes, int], int] = {}
        self.acknowledged: list[Update] = []
        for member in self.members.values():
            member.start(self.entry())

    def entry(self) -> Chain:
        states = [SERVING if t in self.alive else OFFLINE for t in self.members]
        ordered = sorted(zip(self.members, states, strict=True), key=lambda pair: pair[1] != SERVING)
        return Chain(id=1, version=self.version, members=[ChainMember(target=t, state=s) for t, s in ordered])

    def client_writes(self, client: bytes, chunk: int) -> None:
        slot = (client, chunk)  # one channel per chunk
        if slot not in self.wanted:
            self.sequences[slot] = self.sequences.get(slot, 0) + 1
            self.wanted[slot] = write(self.sequences[slot], bytes([chunk]), client=client, channel=chunk)
        head = self.members[self.alive[0]]
        head.todo += head.machine.step(self.now, request(self.wanted[slot], ticket=slot, version=self.version))

    def advance(self, target: int) -> bool:
        """One effect of one member is carried out."""
        member = self.members[target]
        if not member.todo or target not in self.alive:
            return False
        effect = member.todo.pop(0)
        if isinstance(effect, Persist):
            done = PersistDone(effect.batch, [member.rows.persist(u, effect.commit) for u in effect.updates])
            member.todo += member.machine.step(self.now, done)
        elif isinstance(effect, Commit):
            for update in effect.updates:
                member.rows.commit(update)
            member.todo += member.machine.step(self.now, CommitDone(effect.batch))
        elif isinstance(effect, Forward):
            peer = self.members[effect.target]
            ticket = (member, effect.batch, member.machine)
            peer.todo += peer.machine.step(
                self.now, request(*effect.updates, ticket=ticket, version=effect.chain_version, forwarded=True)
            )
        elif isinstance(effect, Reply):
            self.reply(member, effect)
        return True

    def reply(self, member: Member, effect: Reply) -> None:
        if len(effect.ticket) == 3:
            predecessor, batch, machine = effect.ticket
            if predecessor.machine is machine:  # otherwise it has been restarted and does not remember
                predecessor.todo += machine.step(self.now, ForwardAck(batch, effect.results))
        elif effect.results[0].status == Status.OK and effect.ticket in self.wanted:
            self.acknowledged.append(self.wanted.pop(effect.ticket))

    def crash(self, target: int) -> None:
        """kill -9 and restart within the lease; whoever waited for its answer sees the connection break."""
        if target not in self.alive:
            return
        crashed = self.members[target]
        crashed.start(self.entry())
        place = self.alive.index(target)
        if place:
            before = self.members[self.alive[place - 1]]
            for batch in list(before.machine._batches.values()):
                if batch.stage is craq.Stage.FORWARDING:
                    before.todo += before.machine.step(self.now, ForwardAck(batch.id, None))

    def drop(self, target: int) -> None:
        """The manager takes a member out for good."""
        if len(self.alive) == 1 or target not in self.alive:
            return
        self.alive.remove(target)
        self.version += 1
        for other in self.alive:
            member = self.members[other]
            member.todo += member.machine.step(self.now, RoutingChanged(self.entry()))

    def settle(self) -> None:
        for _ in range(200):
            self.now += 1
            for slot in list(self.wanted):
                self.client_writes(*slot)
            for target in self.alive:
                member = self.members[target]
                member.todo += member.machine.step(self.now, Tick())
            while sum(self.advance(t) for t in self.alive):
                pass
            if not self.wanted and not any(self.members[t].machine.in_flight for t in self.alive):
                return
        raise AssertionError("the chain does not come to rest")


STEPS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from([CLIENT, OTHER]), st.integers(1, 3)),
    st.tuples(st.just("advance"), st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.just("crash"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("drop"), st.integers(1, 3), st.just(0)),
)


@pytest.mark.parametrize("members", [1, 2, 3])
@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, max_size=60))
def test_every_acknowledged_write_is_on_every_member_once_and_in_one_order(members: int, steps: list) -> None:
    cluster = Cluster(members)
    for step, first, second in steps:
        if step == "write":
            cluster.client_writes(first, second)
        elif first <= members:
            if step == "advance":
                for _ in range(second):
                    cluster.advance(first)
            elif step == "crash":
                cluster.crash(first)
            else:
                cluster.drop(first)
    cluster.settle()
    histories = [cluster.members[t].rows.history for t in cluster.alive]
    assert all(h == histories[0] for h in histories)
    for updates in histories[0].values():
        assert len(updates) == len(set(updates))  # exactly once
        for client in (CLIENT, OTHER):
            mine = [sequence for c, sequence in updates if c == client]
            assert mine == sorted(mine)
    for update in cluster.acknowledged:
        assert (update.client, update.sequence) in histories[0][update.chunk]
