"""This process's place in the cluster: registration with the manager, heartbeats that renew its lease, and what routing says of our
targets.

Rules:
1. A heartbeat goes out every quarter of a lease and waits no longer than that for its answer, so that two in a row may be lost. The
   lease is counted from the moment at which the renewal was sent (lease.py).
2. A report names each target's state together with the chain version that its machine had at that moment. The routing table may
   know a newer entry already, and good news under a version that the machine has not seen would make a member SERVING that missed
   writes.
3. What routing changes about our chains and targets is reported at once: the manager goes on only with news under the current version.
4. Without an answer everything stays as it was: chains of one never fence themselves, members of longer ones stop with the lease.
5. Reports are numbered, registrations with them: one that arrives after a newer one says nothing any more.
6. A process whose place was taken by another one (FENCED) gives up its lease and ends loudly.
7. A process that begins names the one whose place it takes, as the manager named it: what a process that was killed had sent, and
   comes late, takes no place from the one after it.

Written over `proto.env.Environment`: the same code runs in the server and in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message

from ..proto.env import Call, Environment
from ..proto.errors import Status, StatusError, error
from ..proto.gen.cluster_pb2 import (
    NODE_KIND_META,
    GetRoutingRequest,
    HeartbeatRequest,
    Node,
    RegisterNodeRequest,
    Routing,
    Target,
)
from ..proto.gen.common_pb2 import Chain
from ..proto.gen.meta_pb2 import Place, StatRequest
from ..proto.routing import Change, RoutingTable
from ..proto.rpc import CLUSTER, META, Method
from ..proto.settings import time_scale
from .lease import LEASE_SECONDS_DEFAULT, Lease

CALL_SECONDS_MAX = 5.0  # of one call to the manager that is no heartbeat; scaled
RETRY_SECONDS = 0.2  # between two tries over all managers; scaled
HEARTBEATS_PER_LEASE = 4
REPORTS_MAX = 8  # one after the other, while each answer changes what there is to report
HINTS_MAX = 4  # addresses of a primary that are followed in one try over all managers
DEAD = (Status.NOT_FOUND, Status.STALE_HANDLE)  # what the namespace says of an inode that is gone


class Reported(NamedTuple):
    """One target, and the chain entry under which its machine works, taken in one breath."""

    entry: Target
    chain: Chain | None = None
    unreached: Sequence[int] = ()  # members of that chain that give us no answer (reach.py)


class Membership:
    """`node` and what `targets()` reports are told to the manager. `changed(change)` is called after each change of the routing,
    `taken(why)` when another process has our place."""

    def __init__(
        self,
        env: Environment,
        managers: Sequence[str],
        routing: RoutingTable,
        changed: Callable[[Change], None],
        log: Any,
        *,
        lease: Lease | None = None,
        taken: Callable[[StatusError], None] | None = None,
    ) -> None:
        if not managers:
            raise error(Status.INVALID, "no metadata server named: give --meta ADDRESS")
        self.node = Node()
        self.targets: Callable[[], Sequence[Reported]] = list
        self.spare = False  # new targets for files wait for an administrator to put them into chains
        self.spare_blocks = False  # and those for KV blocks
        self.lease = lease or Lease()
        self.lease_seconds = LEASE_SECONDS_DEFAULT * time_scale()
        self._env = env
        self._managers = list(managers)
        self._routing = routing
        self._changed = changed
        self._taken = taken
        self._log = log
        self._reporting = env.lock()
        self._reachable = True
        self._ends = 0  # changes of the routing that ended clients
        self._number = 0  # of the last report
        self._replaces = 0  # the process whose place this one takes
        self._registered = False

    @property
    def manager(self) -> str:
        """The address of the manager that answered last."""
        return self._managers[0]

    @property
    def heartbeat_seconds(self) -> float:
        return self.lease_seconds / HEARTBEATS_PER_LEASE

    async def discover(self) -> str:
        """The cluster's id, from whichever manager answers; waits for one. Raises what waiting cannot cure."""
        reply = await self._insist(CLUSTER.GetRouting, GetRoutingRequest)
        return str(reply.cluster)

    async def register(self, dropped: Sequence[int] = ()) -> None:
        """Introduce this process; afterwards the node has a number and the routing is known. `dropped`: targets that exist no more.
        Raises what another try cannot cure, FENCED too."""

        def request() -> RegisterNodeRequest:
            entries = [reported.entry for reported in self.targets()]
            number = self._next_number()
            return RegisterNodeRequest(
                node=self.node,
                targets=entries,
                spare=self.spare,
                spare_blocks=self.spare_blocks,
                dropped=dropped,
                number=number,
                replaces=self._replaces,
            )

        while True:
            try:
                reply = await self._insist(CLUSTER.RegisterNode, request)
            except StatusError as late:
                if late.status is not Status.DUPLICATE:
                    raise
                continue  # a heartbeat has overtaken it: what it says goes again, under a new number
            if not reply.held_by:
                break
            self._may_replace(reply.held_by)
        self._registered = True
        self.node.id = reply.node
        self._apply(reply.routing)

    def _may_replace(self, process: int) -> None:
        """Take this process's place with the next try. Raises FENCED where this one has had the place already."""
        if self._registered:
            taken = error(Status.FENCED, f"process {process:x} has registered as node {self.node.id}; stop this one")
            self._lost(taken)
            raise taken
        self._replaces = process

    async def heartbeats(self) -> None:
        """Report for ever; a background worker. Ends when our place was taken."""
        while True:
            await self._env.sleep(self.heartbeat_seconds)
            try:
                await self.heartbeat()
            except StatusError as failed:
                if failed.status is not Status.FENCED:
                    raise
                return  # `taken` has been told

    async def heartbeat(self) -> None:
        """Report our targets and apply the answer's routing, again while that changes what there is to report. The manager's absence is
        noted, not raised. Raises FENCED when another process has taken our place, and what a registration cannot cure."""
        if not self._registered:
            return  # requests come in already, and may ask for news: until we are registered the place is another process's
        async with self._reporting:
            for _ in range(REPORTS_MAX):
                before = self._news(), self._ends
                await self._report_once()
                if (self._news(), self._ends) == before:
                    return

    async def _report_once(self) -> None:
        try:
            reply = await self._call(CLUSTER.Heartbeat, self._report, self.heartbeat_seconds)
        except StatusError as failed:
            if failed.status is Status.FENCED:
                raise
            if failed.status is Status.DUPLICATE:
                return  # a registration has overtaken it, and said the same
            if failed.status is Status.NOT_FOUND:
                self._log.warning("the manager does not know this node; registering again", node=self.node.id)
                await self.register()
            else:
                self._unreachable(failed)
            return
        self._answered()
        try:
            self._apply(reply.routing)
        except StatusError as gap:
            self._log.warning("routing cannot be applied; asking for all of it", error=gap.strerror)
            await self.register()

    def _news(self) -> list[tuple[int, int, int]]:
        """What the manager waits to hear, per target: its state, and under which version of which chain."""
        found: list[tuple[int, int, int]] = []
        for entry, chain, _ in self.targets():
            found.append((entry.state, chain.id, chain.version) if chain is not None else (entry.state, 0, 0))
        return found

    async def living(self, inodes: Sequence[int]) -> set[int]:
        """Those of the inodes that the namespace knows; all of them where it does not answer."""
        request = StatRequest(places=[Place(parent=inode) for inode in inodes])
        try:
            reply = await self._call(META.Stat, lambda: request, CALL_SECONDS_MAX * time_scale())
        except StatusError as failed:
            self._log.warning("cannot ask which inodes live", error=failed.strerror)
            return set(inodes)
        return {inode for inode, status in zip(inodes, reply.statuses, strict=True) if status not in DEAD}

    def _report(self) -> HeartbeatRequest:
        request = HeartbeatRequest(node=self.node.id, process=self.node.process, routing_version=self._routing.version)
        request.number = self._next_number()
        for entry, chain, unreached in self.targets():
            request.targets.append(entry)
            if chain is not None:
                request.chain.append(chain.id)
                request.chain_version.append(chain.version)
                request.unreached.extend(unreached)
                request.unreached_version.extend([chain.version] * len(unreached))
        return request

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _apply(self, routing: Routing) -> None:
        if not routing.version:
            return  # nothing new
        change = self._routing.apply(routing)
        self._ends += bool(change.ended_clients)  # who settles what they left behind waits to hear that we know
        if change:
            self._changed(change)

    def _renewed(self, sent: float, reply: Any) -> None:
        lease_ms = getattr(reply, "lease_ms", 0)
        if lease_ms:
            self.lease_seconds = lease_ms / 1000
            self.lease.renewed(sent, self.lease_seconds)

    def _answered(self) -> None:
        if not self._reachable:
            self._log.info("the manager is back", manager=self.manager, routing=self._routing.version)
        self._reachable = True

    def _unreachable(self, failed: StatusError) -> None:
        # Once per outage: a manager that is away for an hour would fill the log otherwise.
        if self._reachable:
            self._log.warning(
                "the manager does not answer; chains of one go on", managers=self._managers, error=failed.strerror
            )
        self._reachable = False

    async def _insist(self, method: Method, request: Callable[[], Message]) -> Any:
        """Call until it works. Raises what another try cannot cure."""
        while True:
            try:
                reply = await self._call(method, request, CALL_SECONDS_MAX * time_scale())
            except StatusError as failed:
                if not _elsewhere(failed):
                    raise
                self._unreachable(failed)
                await self._env.sleep(RETRY_SECONDS * time_scale())
            else:
                self._answered()
                return reply

    async def _call(self, method: Method, request: Callable[[], Message], seconds: float) -> Any:
        """One try over all managers, the one that answered last first, and those that are named as the primary. Raises the last
        refusal; FENCED after everybody who has to know was told."""
        last: StatusError | None = None
        hints = HINTS_MAX
        addresses = self._addresses()
        while addresses:
            address = addresses.pop(0)
            sent = self._env.now()
            try:
                reply = await self._env.call(Call(address, method, request(), seconds))
            except StatusError as failed:
                if failed.status is Status.FENCED:
                    self._lost(failed)
                if not _elsewhere(failed):
                    raise
                if failed.status is Status.NOT_PRIMARY and hints:
                    named = [a for a in failed.detail or () if a != address and self._env.reachable(a)]
                    hints -= 1
                    addresses = named + [a for a in addresses if a not in named]
                last = failed
            else:
                self._renewed(sent, reply)
                if address in self._managers:
                    self._managers.remove(address)
                self._managers.insert(0, address)
                return reply
        assert last is not None
        raise last

    def _addresses(self) -> list[str]:
        """All managers that we know of: those that we were started with, and those in the routing."""
        found = list(self._managers)
        for node in self._routing.nodes.values():
            if node.kind == NODE_KIND_META:
                same = self._routing.node_addresses(node.id, self.node.host)
                found += [a for a in same if a not in found and self._env.reachable(a)]
        return found

    def _lost(self, failed: StatusError) -> None:
        self.lease.lost()
        self._log.error(
            "another process has this node's place; this one ends", node=self.node.id, error=failed.strerror
        )
        if self._taken is not None:
            self._taken(failed)


def _elsewhere(failed: StatusError) -> bool:
    """Whether another manager, or another try, may do better."""
    return (failed.retryable and failed.status is not Status.FENCED) or failed.status is Status.DEADLINE
