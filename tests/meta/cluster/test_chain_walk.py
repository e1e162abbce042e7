"""Random walks: servers that crash, hang, lose disks and report late, writes that are acknowledged, and a manager that only has
`next_chain`. No acknowledged write is lost by what the function allows, and when things are quiet all members serve again."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from emberfs.meta.cluster.chain import Lease, Report, next_chain
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, LOCAL_STATE_ONLINE, LOCAL_STATE_UPTODATE
from emberfs.proto.gen.common_pb2 import (
    TARGET_STATE_LASTSRV,
    TARGET_STATE_SERVING,
    TARGET_STATE_SYNCING,
    Chain,
    ChainMember,
)

MEMBERS_MAX = 4
REPORTS_MAX = 8  # on their way to the manager


@dataclass
class Server:
    """One member's own truth: what its disk holds, and what its process knows."""

    incarnation: int
    held: set[int] = field(default_factory=set)  # writes on its disk
    running: bool = True
    new: bool = False  # the process has not registered yet
    lease: bool = True  # by its own, careful count
    chain: Chain = field(default_factory=Chain)  # as it last heard of it
    synced: int = 0  # chain version under which its sync was finished

    def state(self, target: int) -> int:
        """Its public state, as it knows it."""
        return next((m.state for m in self.chain.members if m.target == target), 0)


class Walk(RuleBasedStateMachine):
    @initialize(size=st.integers(1, MEMBERS_MAX))
    def begin(self, size: int) -> None:
        members = [ChainMember(target=i, node=i, state=TARGET_STATE_SERVING, incarnation=i) for i in range(1, size + 1)]
        self.chain = Chain(id=1, version=1, members=members)
        self.servers = {i: Server(i, chain=self.chain) for i in range(1, size + 1)}
        self.acknowledged: set[int] = set()
        self.lost_with_disks: set[int] = set()
        self.writes = 0
        self.on_the_way: list[tuple[int, Report]] = []
        self.cut_off: set[int] = set()

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.servers)), label="target")

    # The servers.

    @rule(data=st.data())
    def a_write(self, data: st.DataObject) -> None:
        self.write(data)

    def write(self, data: st.DataObject) -> None:
        """It enters at the head and runs down the chain until somebody refuses; it is acknowledged only at the end."""
        line = [t for t, s in self.servers.items() if s.running and not s.new and s.state(t) == TARGET_STATE_SERVING]
        if not line:
            return
        entry = self.servers[data.draw(st.sampled_from(line), label="asked")].chain
        self.writes += 1
        for member in entry.members:
            if member.state not in (TARGET_STATE_SERVING, TARGET_STATE_SYNCING):
                continue
            if not self.takes(member.target, entry):
                return
            self.servers[member.target].held.add(self.writes)
        self.acknowledged.add(self.writes)

    def takes(self, target: int, entry: Chain) -> bool:
        server = self.servers[target]
        leased = server.lease or len(self.servers) == 1
        same_disk = server.incarnation == next(m.incarnation for m in entry.members if m.target == target)
        return server.running and not server.new and leased and server.chain.version == entry.version and same_disk

    @rule(data=st.data())
    def a_sync(self, data: st.DataObject) -> None:
        self.sync(data)

    def sync(self, data: st.DataObject) -> None:
        """The last SERVING member copies its state to the SYNCING one, whole; both under one version."""
        target = self.pick(data)
        server = self.servers[target]
        entry = server.chain
        serving = [m.target for m in entry.members if m.state == TARGET_STATE_SERVING]
        if server.state(target) != TARGET_STATE_SYNCING or not serving:
            return
        if self.takes(target, entry) and self.takes(serving[-1], entry):
            server.held = set(self.servers[serving[-1]].held)
            server.synced = entry.version

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.servers[self.pick(data)].running = False

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        server = self.servers[self.pick(data)]
        if not server.running:
            server.running = server.new = True
            server.synced = 0

    @rule(data=st.data())
    def lose_the_lease(self, data: st.DataObject) -> None:
        self.servers[self.pick(data)].lease = False

    @rule(data=st.data())
    def wipe(self, data: st.DataObject) -> None:
        """A disk is formatted anew, in a stopped server. What only it had is lost, and nobody can help that."""
        target = self.pick(data)
        server = self.servers[target]
        if server.running or server.incarnation > MEMBERS_MAX:
            return
        self.lost_with_disks |= server.held - self.held_elsewhere(target)
        server.held, server.incarnation = set(), server.incarnation + 100

    def held_elsewhere(self, target: int) -> set[int]:
        """Writes that another member holds who may still revive the chain."""
        whole = [m.target for m in self.chain.members if m.state in (TARGET_STATE_SERVING, TARGET_STATE_LASTSRV)]
        others = [self.servers[t] for t in whole if t != target]
        return set[int]().union(*(s.held for s in others if s.incarnation <= MEMBERS_MAX))

    # Reports and the manager.

    def report_of(self, target: int) -> Report:
        server = self.servers[target]
        public = server.state(target)
        complete = public == TARGET_STATE_SERVING or (
            public == TARGET_STATE_SYNCING and server.synced == server.chain.version
        )
        local = LOCAL_STATE_UPTODATE if complete else LOCAL_STATE_ONLINE
        return Report(local, server.incarnation, chain_version=server.chain.version)

    @rule(data=st.data())
    def send_report(self, data: st.DataObject) -> None:
        target = self.pick(data)
        server = self.servers[target]
        if server.running and not server.new and len(self.on_the_way) < REPORTS_MAX:
            self.on_the_way.append((target, self.report_of(target)))

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data(), count=st.integers(1, REPORTS_MAX))
    def reports_arrive(self, data: st.DataObject, count: int) -> None:
        """In any order, however late; some never do."""
        for _ in range(min(count, len(self.on_the_way))):
            target, report = self.on_the_way.pop(data.draw(st.integers(0, len(self.on_the_way) - 1), label="which"))
            self.move({target: report})

    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        target = self.pick(data)
        server = self.servers[target]
        if server.running and server.new:
            self.move({target: Report(LOCAL_STATE_ONLINE, server.incarnation, restarted=True)})
            server.new, server.lease, server.chain = False, True, self.chain

    @rule(data=st.data())
    def disk_fails(self, data: st.DataObject) -> None:
        """The target says so itself and stops; a new process finds it well again."""
        target = self.pick(data)
        server = self.servers[target]
        if server.running and not server.new:
            server.running = False
            self.move({target: Report(LOCAL_STATE_OFFLINE, server.incarnation, chain_version=server.chain.version)})

    @rule(data=st.data(), late=st.booleans())
    def a_scan(self, data: st.DataObject, late: bool) -> None:
        self.scan(data, late)

    def scan(self, data: st.DataObject, late: bool) -> None:
        """The manager looks at all leases. It says that one is over only if the server, who counts carefully, has said so before."""
        reports = {}
        for target, server in self.servers.items():
            alive = server.running and server.lease and not server.new
            lease = Lease.HELD if alive else Lease.OVERDUE if late and data.draw(st.booleans()) else Lease.OVER
            server.lease = server.lease and lease is not Lease.OVER
            cut = target in self.cut_off
            reports[target] = self.report_of(target)._replace(lease=lease, cut=cut)
        self.move(reports)

    @rule(data=st.data())
    def a_cut(self, data: st.DataObject) -> None:
        """Somebody says that this one gives no answer, or that it does again."""
        self.cut_off ^= {self.pick(data)}

    @rule(data=st.data())
    def routing_arrives(self, data: st.DataObject) -> None:
        self.tell(self.pick(data))

    def tell(self, target: int) -> None:
        server = self.servers[target]
        if server.running and not server.new:
            server.chain = self.chain
            server.lease = True

    @rule(data=st.data(), steps=st.integers(1, 3))
    def business_as_usual(self, data: st.DataObject, steps: int) -> None:
        """Everybody who can hears of the newest chain, reports and writes, so that a walk gets somewhere between its faults."""
        for _ in range(steps):
            deaf = data.draw(st.sampled_from([0, *sorted(self.servers)]), label="deaf")
            for target in self.servers:
                if target != deaf:
                    self.tell(target)
                elif len(self.on_the_way) < REPORTS_MAX and self.servers[target].running:
                    self.on_the_way.append((target, self.report_of(target)))
            self.write(data)
            self.scan(data, late=False)
            self.sync(data)

    def move(self, reports: dict[int, Report]) -> None:
        self.chain = next_chain(self.chain, reports)

    # What must always hold.

    @invariant()
    def nobody_serves_without_every_acknowledged_write(self) -> None:
        for member in self.chain.members:
            server = self.servers[member.target]
            if (
                member.state in (TARGET_STATE_SERVING, TARGET_STATE_LASTSRV)
                and server.incarnation == member.incarnation
            ):
                missing = self.acknowledged - server.held - self.lost_with_disks
                assert not missing, (member.target, missing)

    @invariant()
    def nobody_answers_reads_without_every_acknowledged_write(self) -> None:
        """Whatever entry of the chain it knows: a member that is moved for a cut has a lease, and has not heard of it yet."""
        for target, server in self.servers.items():
            if self.takes(target, server.chain) and server.state(target) == TARGET_STATE_SERVING:
                missing = self.acknowledged - server.held - self.lost_with_disks
                assert not missing, (target, missing)

    @invariant()
    def somebody_may_serve(self) -> None:
        assert any(m.state in (TARGET_STATE_SERVING, TARGET_STATE_LASTSRV) for m in self.chain.members)
        assert sum(m.state == TARGET_STATE_SYNCING for m in self.chain.members) <= 1
        assert sorted(m.target for m in self.chain.members) == sorted(self.servers)

    def teardown(self) -> None:
        """Quiet: everything runs, reports and syncs. All disks that the chain recorded serve again, with all acknowledged writes."""
        if not hasattr(self, "chain"):
            return
        for target, server in self.servers.items():
            server.running = True
            self.move({target: Report(LOCAL_STATE_ONLINE, server.incarnation, restarted=server.new)})
            server.new, server.lease = False, True
        for _ in range(6 * len(self.servers)):
            for server in self.servers.values():
                server.chain = self.chain
            for target, server in self.servers.items():
                serving = [m.target for m in self.chain.members if m.state == TARGET_STATE_SERVING]
                if server.state(target) == TARGET_STATE_SYNCING and self.takes(serving[-1], self.chain):
                    server.held, server.synced = set(self.servers[serving[-1]].held), self.chain.version
            self.move({target: self.report_of(target) for target in self.servers})
        whole = [m for m in self.chain.members if self.servers[m.target].incarnation == m.incarnation]
        serving = [m for m in self.chain.members if m.state == TARGET_STATE_SERVING]
        if serving:
            assert serving == whole
            for member in serving:
                assert self.acknowledged - self.lost_with_disks <= self.servers[member.target].held
        else:  # every member of the last SERVING set lost its disk: only a person may decide what to do
            last = [m.target for m in self.chain.members if m.state == TARGET_STATE_LASTSRV]
            assert last and all(self.servers[t].incarnation > MEMBERS_MAX for t in last)


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
