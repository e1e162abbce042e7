"""The ClusterManager service: requests in, the manager's answers out; who may ask what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ...proto.errors import Status, error
from ...proto.gen.cluster_pb2 import (
    EndClientReply,
    EndClientRequest,
    GetRoutingRequest,
    HeartbeatReply,
    HeartbeatRequest,
    RegisterNodeReply,
    RegisterNodeRequest,
    RenewClientReply,
    RenewClientRequest,
    Routing,
    SetNodeReply,
    SetNodeRequest,
    StatusReply,
    StatusRequest,
)
from ...proto.rpc import CLUSTER, Context
from .manager import Manager
from .registration import TEXT_BYTES_MAX

OPEN_INODES_MAX = 1_000_000  # in one renewal
CLIENT_ID_BYTES = 16


class ClusterService:
    """Handlers of proto.rpc.CLUSTER."""

    spec = CLUSTER

    def __init__(
        self, manager: Manager, counts: Callable[[], Awaitable[tuple[int, int]]], primary: str, started_ns: int
    ) -> None:
        self._manager = manager
        self._counts = counts  # (inodes, GC pending)
        self._primary = primary
        self._started_ns = started_ns

    async def get_routing(self, request: GetRoutingRequest, context: Context) -> Routing:
        return self._manager.routing(request.since) or self._nothing_new()

    def _nothing_new(self) -> Routing:
        state = self._manager.book.state
        return Routing(
            version=state.version, since=state.version, cluster=state.cluster, capability_epoch=state.capability_epoch
        )

    async def register_node(self, request: RegisterNodeRequest, context: Context) -> RegisterNodeReply:
        _need_trust(context, "register a server")
        node = await self._manager.register(request.node, request.targets)
        routing = self._manager.routing(server=True)
        return RegisterNodeReply(node=node, routing=routing, lease_ms=self._node_lease_ms)

    async def heartbeat(self, request: HeartbeatRequest, context: Context) -> HeartbeatReply:
        _need_trust(context, "send a server's heartbeat")
        await self._manager.heartbeat(request)
        routing = self._manager.routing(request.routing_version, server=True)
        return HeartbeatReply(routing=routing, lease_ms=self._node_lease_ms)

    @property
    def _node_lease_ms(self) -> int:
        return int(self._manager.node_lease_seconds * 1000)

    async def renew_client(self, request: RenewClientRequest, context: Context) -> RenewClientReply:
        if len(request.open_inodes) > OPEN_INODES_MAX or len(request.name.encode()) > TEXT_BYTES_MAX:
            raise error(Status.TOO_LARGE, f"a renewal names at most {OPEN_INODES_MAX} open inodes")
        manager = self._manager
        epoch = await manager.renew_client(
            _client(context), request.name, request.open_inodes, request.acknowledged_request
        )
        return RenewClientReply(
            lease_ms=int(manager.leases.seconds * 1000),
            epoch=epoch,
            routing=manager.routing(request.routing_version),
        )

    async def end_client(self, request: EndClientRequest, context: Context) -> EndClientReply:
        await self._manager.end_client(_client(context))
        return EndClientReply()

    async def status(self, request: StatusRequest, context: Context) -> StatusReply:
        inodes, pending = await self._counts()
        return StatusReply(
            routing=self._manager.status(),
            clients=len(self._manager.leases),
            inodes=inodes,
            gc_pending=pending,
            primary=self._primary,
            started_ns=self._started_ns,
        )

    async def create_chains(self, request: Any, context: Context) -> Any:
        raise error(Status.UNSUPPORTED, "CreateChains is not served yet")

    async def change_chain(self, request: Any, context: Context) -> Any:
        raise error(Status.UNSUPPORTED, "ChangeChain is not served yet")

    async def set_target(self, request: Any, context: Context) -> Any:
        raise error(Status.UNSUPPORTED, "SetTarget is not served yet")

    async def remove_node(self, request: Any, context: Context) -> Any:
        raise error(Status.UNSUPPORTED, "RemoveNode is not served yet")

    async def set_node(self, request: SetNodeRequest, context: Context) -> SetNodeReply:
        _need_trust(context, "drain a node")
        return SetNodeReply(node=await self._manager.set_node(request.node, draining=request.draining))


def _need_trust(context: Context, what: str) -> None:
    if not context.peer.identity.trusted:
        raise error(
            Status.UNAUTHENTICATED,
            f"{context.peer.name} may not {what}: run it as the user of this server, or give it the cluster secret",
        )


def _client(context: Context) -> bytes:
    client = context.peer.client
    if len(client) != CLIENT_ID_BYTES:
        raise error(Status.INVALID, f"a client id has {CLIENT_ID_BYTES} bytes, not {len(client)}")
    return client
