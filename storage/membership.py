"""This process's place in the cluster: registration with the manager, heartbeats, and what routing says of our targets.

A storage server that cannot reach the manager goes on: a chain of one never fences itself. It keeps trying, registers again
when the manager does not know it (any more), and applies whatever changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import Message

from ..proto.drivers.aio import AioEnvironment
from ..proto.env import Call
from ..proto.errors import Status, StatusError, error
from ..proto.gen.cluster_pb2 import (
    GetRoutingRequest,
    HeartbeatRequest,
    Node,
    RegisterNodeRequest,
    Routing,
    Target,
)
from ..proto.gen.meta_pb2 import Place, StatRequest
from ..proto.routing import Change, RoutingTable
from ..proto.rpc import CLUSTER, META, Method
from ..proto.settings import time_scale

CALL_SECONDS_MAX = 5.0  # of one call to the manager; scaled
RETRY_SECONDS = 0.2  # between two tries over all managers; scaled
HEARTBEATS_PER_LEASE = 4
LEASE_SECONDS_DEFAULT = 5.0
DEAD = (Status.NOT_FOUND, Status.STALE_HANDLE)  # what the namespace says of an inode that is gone


class Membership:
    """`node` and what `targets()` reports are told to the manager; `changed(change)` is called after each change of the routing."""

    def __init__(
        self,
        env: AioEnvironment,
        managers: Sequence[str],
        routing: RoutingTable,
        changed: Callable[[Change], None],
        log: Any,
    ) -> None:
        if not managers:
            raise error(Status.INVALID, "no metadata server named: give --meta ADDRESS")
        self.node = Node()
        self.targets: Callable[[], list[Target]] = list
        self.lease_seconds = LEASE_SECONDS_DEFAULT * time_scale()
        self._env = env
        self._managers = list(managers)
        self._routing = routing
        self._changed = changed
        self._log = log
        self._reachable = True

    async def discover(self) -> str:
        """The cluster's id, from whichever manager answers; waits for one. Raises what waiting cannot cure."""
        reply = await self._insist(CLUSTER.GetRouting, GetRoutingRequest())
        return str(reply.cluster)

    async def register(self) -> None:
        """Introduce this process; afterwards the node has a number and the routing is known."""
        reply = await self._insist(CLUSTER.RegisterNode, RegisterNodeRequest(node=self.node, targets=self.targets()))
        self.node.id = reply.node
        self._lease(reply.lease_ms)
        self._apply(reply.routing)

    async def heartbeats(self) -> None:
        """Report for ever; a background worker."""
        while True:
            await self._env.sleep(self.lease_seconds / HEARTBEATS_PER_LEASE)
            await self.heartbeat()

    async def watch(self) -> None:
        """Fetch routing changes as soon as the manager speaks of them, not at the next heartbeat; a background worker."""
        while True:
            try:
                subscriber = await self._env.subscribe(self._managers[0], "routing", self._routing.version)
                while True:
                    await subscriber.next()
                    await self.heartbeat()
            except StatusError as failed:
                if failed.status is Status.FENCED:
                    raise
            await self._env.sleep(self.lease_seconds / HEARTBEATS_PER_LEASE)

    async def heartbeat(self) -> None:
        """One report of our targets, and the answer's routing. The manager's absence is noted, not raised; raises FENCED when another
        process has taken our place."""
        try:
            reply = await self._call(CLUSTER.Heartbeat, self._report())
        except StatusError as failed:
            if failed.status is Status.FENCED:
                raise
            if failed.status is Status.NOT_FOUND:
                self._log.warning("the manager does not know this node; registering again", node=self.node.id)
                await self.register()
            else:
                self._unreachable(failed)
            return
        self._lease(reply.lease_ms)
        try:
            self._apply(reply.routing)
        except StatusError as gap:
            self._log.warning("routing cannot be applied; asking for all of it", error=gap.strerror)
            await self.register()
        if not self._reachable:
            self._log.info("the manager is back", routing=self._routing.version)
        self._reachable = True

    async def living(self, inodes: Sequence[int]) -> set[int]:
        """Those of the inodes that the namespace knows; all of them where it does not answer."""
        request = StatRequest(places=[Place(parent=inode) for inode in inodes])
        try:
            reply = await self._call(META.Stat, request)
        except StatusError as failed:
            self._log.warning("cannot ask which inodes live", error=failed.strerror)
            return set(inodes)
        return {inode for inode, status in zip(inodes, reply.statuses, strict=True) if status not in DEAD}

    def _report(self) -> HeartbeatRequest:
        request = HeartbeatRequest(
            node=self.node.id,
            process=self.node.process,
            routing_version=self._routing.version,
            targets=self.targets(),
        )
        mine = {target.id for target in request.targets}
        for chain in self._routing.chains.values():
            if any(member.target in mine for member in chain.members):
                request.chain.append(chain.id)
                request.chain_version.append(chain.version)
        return request

    def _apply(self, routing: Routing) -> None:
        if not routing.version:
            return  # nothing new
        change = self._routing.apply(routing)
        if change:
            self._changed(change)

    def _lease(self, lease_ms: int) -> None:
        if lease_ms:
            self.lease_seconds = lease_ms / 1000

    def _unreachable(self, failed: StatusError) -> None:
        # Once per outage: a manager that is away for an hour would fill the log otherwise.
        if self._reachable:
            self._log.warning(
                "the manager does not answer; chains of one go on", managers=self._managers, error=failed.strerror
            )
        self._reachable = False

    async def _insist(self, method: Method, request: Message) -> Any:
        """Call until it works. Raises what another try cannot cure."""
        while True:
            try:
                reply = await self._call(method, request)
            except StatusError as failed:
                if not failed.retryable and failed.status is not Status.DEADLINE:
                    raise
                self._unreachable(failed)
                await self._env.sleep(RETRY_SECONDS * time_scale())
            else:
                self._reachable = True
                return reply

    async def _call(self, method: Method, request: Message) -> Any:
        """One try over all managers, the one that answered last first. Raises the last refusal."""
        last: StatusError | None = None
        for address in list(self._managers):
            try:
                reply = await self._env.call(Call(address, method, request, CALL_SECONDS_MAX * time_scale()))
            except StatusError as failed:
                if not failed.retryable and failed.status is not Status.DEADLINE:
                    raise
                last = failed
            else:
                self._managers.remove(address)
                self._managers.insert(0, address)
                return reply
        assert last is not None
        raise last
