"""Namespaces as clients and administrators ask for them: over the service, over restarts of the manager, and over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from emberfs.meta.gate import NOBODY
from emberfs.meta.grpc import serve_grpc
from emberfs.proto.blocks import TABLE_OF_BLOCKS
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import (
    DropNamespaceRequest,
    KvNamespace,
    PutNamespaceReply,
    PutNamespaceRequest,
    RegisterNodeRequest,
    SetTenantQuotaRequest,
    TenantQuota,
)
from emberfs.proto.routing import RoutingTable
from emberfs.proto.rpc import CLUSTER
from emberfs.proto.transport.address import listen_tcp

from .test_manager import CLIENT, SERVER, Cluster, Peer, node, target


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    await made.start()
    yield made
    await made.clock.close()


def request(name: str = "llama", version: int = 0) -> PutNamespaceRequest:
    wanted = KvNamespace(name=name, tenant="acme", descriptor=f'{{"model":"{name}"}}', block_bytes=4096)
    return PutNamespaceRequest(namespace=wanted, routing_version=version)


async def test_who_makes_a_namespace_hears_what_he_needs_to_begin(cluster: Cluster) -> None:
    """Everything, or what he lacks; the second time nothing changes."""
    blocks = target(0, 11, table=TABLE_OF_BLOCKS)
    await cluster.service.register_node(RegisterNodeRequest(node=node(), targets=[blocks]), SERVER)
    table = RoutingTable()
    reply = await cluster.service.put_namespace(request(), CLIENT)
    table.apply(reply.routing)
    assert table.namespaces == {1: reply.namespace} and reply.namespace.uid == 1000
    assert table.table(TABLE_OF_BLOCKS, reply.namespace.table_version) == (1,)
    version = cluster.manager.book.state.version
    again = await cluster.service.put_namespace(request(version=table.version), Peer(uid=7))  # type: ignore[arg-type]
    assert again.namespace == reply.namespace and not again.HasField("routing")
    assert cluster.manager.book.state.version == version
    other = await cluster.service.put_namespace(request("qwen", table.version), CLIENT)
    assert [each.id for each in other.routing.namespaces] == [2] and not other.routing.chains


async def test_they_outlive_the_manager_and_numbers_are_not_used_again(cluster: Cluster) -> None:
    for name in ("a", "b", "c"):
        await cluster.service.put_namespace(request(name), CLIENT)
    quota = SetTenantQuotaRequest(quota=TenantQuota(tenant="acme", bytes=7, uids=[CLIENT.peer.identity.uid]))
    await cluster.service.set_tenant_quota(quota, SERVER)
    await cluster.service.drop_namespace(DropNamespaceRequest(id=3), CLIENT)
    before = cluster.manager.book
    after = (await cluster.restart()).book
    assert after.namespaces == before.namespaces and after.quotas == {"acme": quota.quota}
    assert (await cluster.service.put_namespace(request("c"), CLIENT)).namespace.id == 4
    assert sorted(after.namespaces) == [1, 2, 4]


async def test_a_new_target_and_what_follows_from_it_are_one_change(cluster: Cluster) -> None:
    """Nobody sees a table that the namespaces do not know of yet."""
    await cluster.service.put_namespace(request(), CLIENT)
    before = cluster.manager.book.state.version
    cluster.clock.time = 5000.0
    blocks = target(0, 11, table=TABLE_OF_BLOCKS)
    await cluster.service.register_node(RegisterNodeRequest(node=node(), targets=[blocks]), SERVER)
    assert cluster.manager.book.state.version == before + 1
    followed = cluster.manager.book.namespaces[1]
    assert (followed.table_version, followed.changed_s, list(followed.older_versions)) == (1, 5000, [])
    routing = cluster.manager.routing(before)
    assert routing is not None and len(routing.tables) == len(routing.namespaces) == 1


async def test_space_is_that_of_files(cluster: Cluster) -> None:
    targets = [target(0, 11), target(0, 22, table=TABLE_OF_BLOCKS)]
    targets[1].used = targets[1].capacity
    await cluster.service.register_node(RegisterNodeRequest(node=node(), targets=targets), SERVER)
    assert cluster.manager.space() == (1000, 10)
    assert cluster.manager.free_part_min() == 0.99
    assert cluster.manager.table() == (1, 1, 1), "files are laid out over the one chain that is theirs"


async def test_who_may_do_what(cluster: Cluster) -> None:
    await cluster.service.put_namespace(request(), CLIENT)
    with pytest.raises(StatusError) as refused:
        await cluster.service.drop_namespace(DropNamespaceRequest(id=1), Peer(uid=7))  # type: ignore[arg-type]
    assert refused.value.status is Status.PERMISSION_DENIED
    with pytest.raises(StatusError) as refused:
        await cluster.service.set_tenant_quota(SetTenantQuotaRequest(), CLIENT)
    assert refused.value.status is Status.UNAUTHENTICATED
    await cluster.service.drop_namespace(DropNamespaceRequest(id=1), SERVER)


async def test_over_grpc_the_same(cluster: Cluster) -> None:
    """For the administration from other languages: who proves nothing is nobody, and no administrator."""
    with listen_tcp("127.0.0.1:0", b"") as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = await serve_grpc([cluster.service], [address], b"", "c1")
    async with grpc.aio.insecure_channel(address) as channel:

        async def call(name: str, message: object) -> bytes:
            method = getattr(CLUSTER, name)
            stub = channel.unary_unary(f"/emberfs.v1.ClusterManager/{method.name}")
            return await stub(message.SerializeToString(), timeout=10)  # type: ignore[attr-defined,no-any-return]

        made = PutNamespaceReply.FromString(await call("PutNamespace", request()))
        assert (made.namespace.id, made.namespace.uid) == (1, NOBODY) and made.routing.namespaces
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call("SetTenantQuota", SetTenantQuotaRequest(quota=TenantQuota(tenant="a", bytes=1)))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await call("DropNamespace", DropNamespaceRequest(id=1)) == b""
    await server.stop(None)
    assert not cluster.manager.book.namespaces
