"""The ClusterManager service: requests in, the manager's answers out; who may ask what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from ...proto.blocks import TABLE_OF_FILES
from ...proto.errors import Status, error
from ...proto.gen.cluster_pb2 import (
    BackUpMetadataReply,
    BackUpMetadataRequest,
    ChangeChainReply,
    ChangeChainRequest,
    CreateChainsReply,
    CreateChainsRequest,
    DropNamespaceReply,
    DropNamespaceRequest,
    EndClientReply,
    EndClientRequest,
    FreezeMetadataReply,
    FreezeMetadataRequest,
    GetRoutingRequest,
    HeartbeatReply,
    HeartbeatRequest,
    PutNamespaceReply,
    PutNamespaceRequest,
    RegisterNodeReply,
    RegisterNodeRequest,
    RemoveNodeReply,
    RemoveNodeRequest,
    RenewClientReply,
    RenewClientRequest,
    Routing,
    SetNodeReply,
    SetNodeRequest,
    SetTargetReply,
    SetTargetRequest,
    SetTenantQuotaReply,
    SetTenantQuotaRequest,
    StatusReply,
    StatusRequest,
)
from ...proto.rpc import CLUSTER, Context
from ..backup import Backups
from .manager import Manager, Occupied
from .registration import TEXT_BYTES_MAX
from .routing import Book

OPEN_INODES_MAX = 1_000_000  # in one renewal
CLIENT_ID_BYTES = 16
CHANGE_SECONDS_MAX = 30.0  # that one change of a chain waits for a member to stop
ANSWER_SECONDS = 0.5  # kept of a request's time for the answer


class Office(Protocol):
    """A manager, or the place in which an elected one sits."""

    @property
    def leading(self) -> Manager:
        """The manager that may act. Raises NOT_PRIMARY, with the addresses of the one that may."""

    def routing(self, since: int = 0, *, server: bool = False) -> Routing | None:
        """What changed after a version, None if nothing did."""

    @property
    def book(self) -> Book:
        """The records that `routing` goes by."""


class ClusterService:
    """Handlers of proto.rpc.CLUSTER. `backups` makes copies of the metadata, where the engine is ours to copy."""

    spec = CLUSTER

    def __init__(
        self,
        manager: Office,
        counts: Callable[[], Awaitable[tuple[int, int]]],
        primary: str,
        started_ns: int,
        backups: Backups | None = None,
    ) -> None:
        self._backups = backups
        self._office = manager
        self._counts = counts  # (inodes, GC pending)
        self.primary = primary
        self._started_ns = started_ns

    @property
    def _manager(self) -> Manager:
        return self._office.leading

    async def get_routing(self, request: GetRoutingRequest, context: Context) -> Routing:
        return self._office.routing(request.since) or self._nothing_new()

    def _nothing_new(self) -> Routing:
        state = self._office.book.state
        return Routing(
            version=state.version, since=state.version, cluster=state.cluster, capability_epoch=state.capability_epoch
        )

    async def register_node(self, request: RegisterNodeRequest, context: Context) -> RegisterNodeReply:
        _need_trust(context, "register a server")
        try:
            node = await self._manager.register(
                request.node,
                request.targets,
                spare=request.spare,
                spare_blocks=request.spare_blocks,
                dropped=request.dropped,
                number=request.number,
                replaces=request.replaces if request.HasField("replaces") else None,
            )
        except Occupied as occupied:
            return RegisterNodeReply(held_by=occupied.process)
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

    def _own_client(self, context: Context) -> bytes:
        client = _client(context)
        self._manager.owners.require(client, context.peer.identity)
        return client

    async def renew_client(self, request: RenewClientRequest, context: Context) -> RenewClientReply:
        if len(request.open_inodes) > OPEN_INODES_MAX or len(request.name.encode()) > TEXT_BYTES_MAX:
            raise error(Status.TOO_LARGE, f"a renewal names at most {OPEN_INODES_MAX} open inodes")
        reply = await self._manager.renew_client(self._own_client(context), request, context.peer.identity.uid)
        if (routing := self._manager.routing(request.routing_version)) is not None:
            reply.routing.CopyFrom(routing)
        return reply

    async def end_client(self, request: EndClientRequest, context: Context) -> EndClientReply:
        await self._manager.end_client(self._own_client(context))
        return EndClientReply()

    async def status(self, request: StatusRequest, context: Context) -> StatusReply:
        inodes, pending = await self._counts()
        return StatusReply(
            routing=self._manager.status(),
            clients=len(self._manager.leases),
            inodes=inodes,
            gc_pending=pending,
            silent_nodes=self._manager.silent(),
            primary=self.primary,
            started_ns=self._started_ns,
        )

    async def create_chains(self, request: CreateChainsRequest, context: Context) -> CreateChainsReply:
        _need_trust(context, "make chains")
        chains, version = await self._manager.create_chains(request.chains, request.table or TABLE_OF_FILES)
        return CreateChainsReply(chains=chains, table_version=version)

    async def change_chain(self, request: ChangeChainRequest, context: Context) -> ChangeChainReply:
        _need_trust(context, "change a chain")
        seconds = max(0.0, min(context.remaining() - ANSWER_SECONDS, CHANGE_SECONDS_MAX))
        return ChangeChainReply(chain=await self._manager.change_chain(request, seconds))

    async def set_target(self, request: SetTargetRequest, context: Context) -> SetTargetReply:
        _need_trust(context, "take a target out of service")
        return SetTargetReply(target=await self._manager.set_target(request.target, disabled=request.disabled))

    async def remove_node(self, request: RemoveNodeRequest, context: Context) -> RemoveNodeReply:
        _need_trust(context, "remove a node")
        await self._manager.remove_node(request.node)
        return RemoveNodeReply()

    async def back_up_metadata(self, request: BackUpMetadataRequest, context: Context) -> BackUpMetadataReply:
        _need_trust(context, "back up the metadata")
        made = await self._copies.make()
        return BackUpMetadataReply(number=made.number, bytes=made.length, chain=made.chain)

    async def freeze_metadata(self, request: FreezeMetadataRequest, context: Context) -> FreezeMetadataReply:
        _need_trust(context, "copy the metadata")
        return FreezeMetadataReply(path=await self._copies.freeze())

    @property
    def _copies(self) -> Backups:
        if self._backups is None:
            raise error(Status.UNSUPPORTED, "the metadata lies in a database of its own: use that one's backups")
        return self._backups

    async def set_node(self, request: SetNodeRequest, context: Context) -> SetNodeReply:
        _need_trust(context, "drain a node")
        return SetNodeReply(node=await self._manager.set_node(request.node, draining=request.draining))

    async def put_namespace(self, request: PutNamespaceRequest, context: Context) -> PutNamespaceReply:
        reply = PutNamespaceReply(namespace=await self._manager.put_namespace(request.namespace, context.peer.identity))
        if (routing := self._manager.routing(request.routing_version)) is not None:
            reply.routing.CopyFrom(routing)
        return reply

    async def drop_namespace(self, request: DropNamespaceRequest, context: Context) -> DropNamespaceReply:
        await self._manager.drop_namespace(request.id, context.peer.identity)
        return DropNamespaceReply()

    async def set_tenant_quota(self, request: SetTenantQuotaRequest, context: Context) -> SetTenantQuotaReply:
        _need_trust(context, "limit a tenant")
        await self._manager.set_tenant_quota(request.quota, context.peer.identity)
        return SetTenantQuotaReply()


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
