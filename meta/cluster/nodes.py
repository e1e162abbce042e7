"""What the manager knows about nodes and targets at this moment: leases, and the last report of each target. Pure; time is handed in.

All of it lives in memory and is gathered anew by whoever takes over. Until then nothing is concluded from silence: a target that nobody
has reported yet keeps its place, and no lease is over before a whole one, and a second to find the new manager, have passed.

Members that say that they get no answer from the one behind them are believed as long as they hold their lease, and under the version
of the chain that they said it under. A link has two ends: cut off is the one that has more such links, else the one behind.

    HELD      a renewal has come in time
    OVERDUE   one should have come since; the node may still serve
    OVER      a whole lease has passed since the last renewal that arrived here. The node counted from when it sent that, on a clock that
              counts while machines sleep, and kept a tenth back: it has stopped.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from ...proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE, LOCAL_STATE_ONLINE, LocalState, Node, Target
from ...proto.gen.common_pb2 import TARGET_STATE_SERVING, TARGET_STATE_SYNCING, Chain, ChainMember
from .chain import Lease, Report
from .links import Links
from .routing import Book, Draft, Kind

OVERDUE_PART = 0.35  # of a lease: storage servers renew every quarter of it
TAKE_OVER_SECONDS = 1.0  # beyond a lease, for nodes to find a new manager; scaled
FULL_PART = 0.95  # of a target's capacity: no new files are laid out over it
ROOMY_PART = 0.90  # it has room again below this
PAST_PROCESSES_MAX = 16  # of one node, that are remembered as replaced


class Usage(NamedTuple):
    capacity: int  # bytes
    used: int  # bytes


@dataclass(slots=True)
class _Known:
    """One node."""

    heard: float  # when its last renewal arrived
    targets: dict[int, Target] = field(default_factory=dict)  # as last reported
    chains: dict[int, int] = field(default_factory=dict)  # chain -> version that its member here had when it reported
    usual: dict[int, Report] = field(
        default_factory=dict
    )  # target -> its report while the lease is held, if nothing is odd
    unreached: dict[int, int] = field(default_factory=dict)  # target that it gets no answer from -> chain version
    number: int = 0  # of its last report
    routing: int = 0  # version of the routing that it has
    seen: Lease = Lease.HELD  # at the last look
    past: deque[int] = field(default_factory=lambda: deque(maxlen=PAST_PROCESSES_MAX))  # processes that were replaced


class Nodes:
    """Storage nodes by their leases and reports. `now` is when this manager took over."""

    def __init__(self, nodes: Iterable[int], now: float, lease_seconds: float, scale: float = 1.0) -> None:
        self.lease_seconds = lease_seconds
        self._take_over_seconds = TAKE_OVER_SECONDS * scale
        self._quiet_until = now + lease_seconds + self._take_over_seconds  # nobody is demoted for silence before
        self._known = {number: _Known(now) for number in nodes}
        self._reported: dict[int, Target] = {}  # target -> its entry, in whichever node
        self._links = Links(lease_seconds)

    # What nodes say.

    def registered(self, node: int, replaced: int, targets: Sequence[Target], now: float, *, number: int = 0) -> None:
        """A process has registered with these targets (numbered), in the place of the process `replaced` (0: nobody's)."""
        known = self._known.setdefault(node, _Known(now))
        if replaced and replaced not in known.past:
            known.past.append(replaced)
        for gone in known.targets:
            self._reported.pop(gone, None)
        known.heard, known.seen, known.chains, known.routing = now, Lease.HELD, {}, 0
        known.targets, known.usual, known.unreached, known.number = {}, {}, {}, number
        for target in targets:
            self._keep(known, target)

    def was_replaced(self, node: int, process: int) -> bool:
        """Whether this process of the node has already been followed by another one: its registration arrives late."""
        known = self._known.get(node)
        return known is not None and process in known.past

    def is_late(self, node: int, number: int) -> bool:
        """Whether a newer report of this process has arrived before this one. 0: not counted."""
        known = self._known.get(node)
        return known is not None and 0 < number < known.number

    def reported(
        self,
        node: int,
        targets: Sequence[Target],
        chains: Mapping[int, int],
        now: float,
        *,
        unreached: Mapping[int, int] | None = None,
        number: int = 0,
    ) -> bool:
        """A heartbeat. Returns whether it says anything that the node's chains depend on, other than the last one. If so it must not be
        answered before they have followed: a change that was planned when the lease was over may be on its way to the disk."""
        known = self._known.setdefault(node, _Known(now))
        unreached = dict(unreached or {})
        news = known.seen is not Lease.HELD or known.chains != chains or known.unreached != unreached
        known.heard, known.seen, known.chains = now, Lease.HELD, dict(chains)
        known.unreached, known.number = unreached, number
        for target in targets:
            last = known.targets.get(target.id)
            if last is None or _said(last) != _said(target):
                news = True
            self._keep(known, target)
        return news

    def _keep(self, known: _Known, target: Target) -> None:
        kept = known.targets[target.id] = self._reported[target.id] = Target()
        kept.CopyFrom(target)
        usual = known.usual.get(target.id)
        if target.damaged or not target.incarnation:
            known.usual.pop(target.id, None)
            return
        made = Report(state_of(target), target.incarnation, power_losses=target.power_losses)
        if usual is None or usual._replace(chain_version=0) != made:
            known.usual[target.id] = made

    def unreached(self, book: Book, node: int, targets: Mapping[int, int], now: float) -> dict[int, int]:
        """What a node says of targets that do not answer it (target -> chain version), without what is of another version of the chain,
        or not its business: then it says so again when it has heard. The rest is noted."""
        believed = {}
        for target, version in targets.items():
            chain = book.chain_of(target)
            if chain is None or chain.version != version:
                continue
            member = next(m for m in chain.members if m.target == target)
            if member.node == node or not any(
                m.node == node and m.state == TARGET_STATE_SERVING for m in chain.members
            ):
                continue
            believed[target] = version
            self._links.failed(node, target, member.node, now, probed=not _sends(chain, node, target))
        return believed

    def excuse(self, now: float) -> None:
        """This manager was stopped for a while: what nobody could tell it meanwhile is nobody's silence."""
        self._quiet_until = now + self.lease_seconds + self._take_over_seconds

    def has_stopped(self, node: int, chain: Chain, now: float) -> bool:
        """Whether the member in this node cannot serve under an older version of the chain any more."""
        known = self._known.get(node)
        confirmed = known is not None and known.chains.get(chain.id, 0) >= chain.version
        return confirmed or self.lease(node, now) is Lease.OVER

    def has_routing(self, node: int, version: int) -> None:
        """A node says which routing it works with."""
        if known := self._known.get(node):
            known.routing = version

    def knows(self, node: int, version: int) -> bool:
        """Whether a node works with this version of the routing, or will before it serves again: without a lease it has to ask first."""
        known = self._known.get(node)
        return known is None or known.seen is Lease.OVER or known.routing >= version

    def forget(self, node: int) -> None:
        known = self._known.pop(node, None)
        for target in known.targets if known else ():
            self._reported.pop(target, None)

    # What follows from it.

    def lease(self, node: int, now: float) -> Lease:
        """OVER only if the last look found it so: from then on the node's next renewal waits for the change that this may have caused,
        and is answered with it (`reported`)."""
        known = self._known.get(node)
        if known is None:
            return Lease.OVER  # nobody can serve there who has not registered
        if known.seen is Lease.OVER:
            return Lease.OVER
        late = now - known.heard > OVERDUE_PART * self.lease_seconds
        return Lease.OVERDUE if late else Lease.HELD

    def look(self, now: float) -> set[int]:
        """Look at the clock. Returns the nodes whose lease is not what it was at the last look, and those that may be tried again."""
        changed = set()
        for number, known in self._known.items():
            lease = self.lease(number, now)
            if now - known.heard > self.lease_seconds and now > self._quiet_until:
                lease = Lease.OVER
            if lease is not known.seen:
                known.seen = lease
                changed.add(number)
        return changed.union(self._links.over(now))

    def silent(self, nodes: Iterable[Node], now: float) -> list[int]:
        """Those of the nodes whose lease is over."""
        return [node.id for node in nodes if self.lease(node.id, now) is Lease.OVER]

    def count(self, nodes: Iterable[int], now: float) -> dict[str, int]:
        """How many of the nodes hold their lease, and so on, for the log."""
        return dict(Counter(self.lease(node, now).value for node in nodes))

    def describe(self, target: Target) -> None:
        """Put what was last said into a copy of a target's record."""
        said = self._reported.get(target.id)
        if said is None:
            return
        target.capacity, target.used, target.chunks = said.capacity, said.used, said.chunks
        target.sync_done, target.sync_total, target.damaged = said.sync_done, said.sync_total, said.damaged

    def entry(self, target: int) -> Target | None:
        """What was last said about a target."""
        return self._reported.get(target)

    def usage(self, target: Target) -> Usage:
        """How full it is, as last said."""
        last = self._reported.get(target.id, target)
        return Usage(last.capacity, last.used)

    def reports(self, book: Book, chains: Iterable[Chain], now: float) -> dict[int, Report]:
        """What is known about the members of these chains, by target."""
        found: dict[int, Report] = {}
        leases = {number: self.lease(number, now) for number in self._known}
        held = {number: known for number, known in self._known.items() if leases[number] is Lease.HELD}
        partners = self._links.partners(now) if self._links else None
        for chain in chains:
            number, members = chain.id, chain.members
            for member in members:
                # The usual case is kept ready: a scan of 30,000 members makes no object for each.
                target = member.target
                known = held.get(member.node)
                report = known.usual.get(target) if known is not None else None
                if known is None or report is None or target in book.disabled:
                    lease = leases.get(member.node, Lease.OVER)
                    report = self._report(chain, member, book.targets.get(target), lease, len(members) > 1)
                    if report is not None:
                        found[target] = report
                    continue
                version = known.chains.get(number, 0)
                if report.chain_version != version:
                    report = known.usual[target] = report._replace(chain_version=version)
                found[target] = report
            if partners:
                for target in self._cut_off(chain, held, partners, now) & found.keys():
                    found[target] = found[target]._replace(cut=True)
        return found

    def _cut_off(
        self, chain: Chain, held: Mapping[int, _Known], partners: Mapping[int, set[int]], now: float
    ) -> set[int]:
        """Targets of this chain that are cut off. Who does not serve is so while the last one that does has no link to it."""
        serving = [m for m in chain.members if m.state == TARGET_STATE_SERVING]
        found = set()
        for before, member in pairwise(serving):
            known = held.get(before.node)
            if known is None or known.unreached.get(member.target) != chain.version:
                continue
            counts = [len(partners.get(end.node, ())) for end in (before, member)]
            found.add(before.target if counts[0] > counts[1] else member.target)
        last = serving[-1] if serving else None
        if last is not None:
            rest = (m for m in chain.members if m.state != TARGET_STATE_SERVING)
            found.update(m.target for m in rest if self._links.cut(last.node, last.target, m.node, m.target, now))
        return found

    def _report(
        self, chain: Chain, member: ChainMember, record: Target | None, lease: Lease, replicated: bool
    ) -> Report | None:
        entry = self._reported.get(member.target)
        node = self._known.get(member.node)
        if entry is None and node is not None and node.targets and lease is Lease.HELD:
            # Its node names all that it has, and this is not among it: the disk is another one, or lies in no server any more.
            return Report(LOCAL_STATE_OFFLINE, member.incarnation, lease=lease)
        if entry is None:
            # Not heard of since this manager took over: only its silence counts, and that only where somebody else could serve.
            late = replicated and lease is not Lease.HELD
            return Report(LOCAL_STATE_ONLINE, member.incarnation, lease=lease) if late else None
        known = self._known.get(member.node)
        version = known.chains.get(chain.id, 0) if known is not None else 0
        # What an index lost before it was opened matters for the place that its process comes back to. Who serves under this process
        # has been copied to since, or an administrator has said that it shall serve with what it has.
        opened_clean = not entry.damaged or member.state == TARGET_STATE_SERVING
        state = state_of(entry)
        if record is not None and record.disabled and member.state != TARGET_STATE_SERVING:
            state = LOCAL_STATE_OFFLINE  # one that serves must say itself that it has stopped
        incarnation = entry.incarnation or member.incarnation
        return Report(state, incarnation, False, version, lease, opened_clean, entry.power_losses)

    def put_target(self, book: Book, draft: Draft, target: int) -> None:
        """Make durable what routing says of a target, where its last report says something else."""
        known, entry = book.targets.get(target), self._reported.get(target)
        if known is None or entry is None:
            return
        state, full = state_of(entry), is_full(entry, known.full)
        if (known.state, known.full, known.damaged) == (state, full, entry.damaged):
            return
        record = Target()
        record.CopyFrom(known)
        record.state, record.full, record.damaged = state, full, entry.damaged
        record.capacity, record.used, record.chunks = entry.capacity, entry.used, entry.chunks
        draft.put(Kind.TARGET, record, target)


def _sends(chain: Chain, node: int, target: int) -> bool:
    """Whether it is this node that sends to the target."""
    line = [m for m in chain.members if m.state in (TARGET_STATE_SERVING, TARGET_STATE_SYNCING)]
    return any(before.node == node and after.target == target for before, after in pairwise(line))


def state_of(entry: Target) -> LocalState:
    return entry.state or LOCAL_STATE_ONLINE


def is_full(entry: Target, before: bool) -> bool:
    """Whether a target takes no new files; it says so itself, or is nearly full. One that was full stays so until it has some room."""
    limit = ROOMY_PART if before else FULL_PART
    return entry.full or (entry.capacity > 0 and entry.used >= limit * entry.capacity)


def _said(entry: Target) -> tuple[int, int, bool, bool, bool]:
    # Whichever limit applies to it, crossing it is news.
    return entry.state, entry.incarnation, entry.damaged, is_full(entry, False), is_full(entry, True)
