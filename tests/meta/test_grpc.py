"""gRPC: the same handlers over a real channel, and nobody gets more rights there than over TCP."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from emberfs.meta.gate import CHALLENGES_MAX, NOBODY, Gate, prove
from emberfs.meta.grpc import serve_grpc
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen import cluster_pb2, meta_pb2
from emberfs.proto.rpc import CLUSTER, META, Method, PeerInfo
from emberfs.proto.transport.address import listen_tcp

SECRET = b"0123456789abcdef"
CLUSTER_ID = "c1"
ME = b"m" * 16


class MetaService:
    """Two real handlers and none behind the rest."""

    spec = META

    def __init__(self) -> None:
        self.peers: list[PeerInfo] = []

    def __getattr__(self, name: str) -> Any:
        async def missing(request: Any, context: Any) -> Any:
            raise KeyError(name)

        return missing

    async def stat(self, request: meta_pb2.StatRequest, context: Any) -> meta_pb2.StatReply:
        self.peers.append(context.peer)
        assert context.remaining() > 0
        if not request.places:
            raise error(Status.NOT_FOUND, "nothing was asked")
        return meta_pb2.StatReply(statuses=[0] * len(request.places))

    async def stat_fs(self, request: meta_pb2.StatFsRequest, context: Any) -> meta_pb2.StatFsReply:
        context.sink(1)
        raise AssertionError


class Served:
    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.service = MetaService()

    async def start(self) -> Served:
        with capture_logs() as logs:
            self.server = await serve_grpc([self.service], ["127.0.0.1:0"], self.secret, CLUSTER_ID)  # type: ignore[list-item]
        [self.address] = [line["address"].removeprefix("tcp:") for line in logs if line["event"] == "grpc"]
        self.channel = grpc.aio.insecure_channel(self.address)
        return self

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop(None)

    async def call(self, method: Method, request: Any, **metadata: Any) -> Any:
        named = tuple((k.replace("_", "-"), v) for k, v in metadata.items())
        stub = self.channel.unary_unary(
            f"/emberfs.v1.{method.service}/{method.name}", lambda m: m.SerializeToString(), method.reply.FromString
        )
        return await stub(request, timeout=60, metadata=named)

    async def stat(self, **metadata: Any) -> meta_pb2.StatReply:
        reply: meta_pb2.StatReply = await self.call(
            META.Stat, meta_pb2.StatRequest(places=[meta_pb2.Place()]), **metadata
        )
        return reply


@pytest.fixture
async def open_server() -> AsyncIterator[Served]:
    served = await Served(b"").start()
    yield served
    await served.stop()


@pytest.fixture
async def guarded() -> AsyncIterator[Served]:
    served = await Served(SECRET).start()
    yield served
    await served.stop()


async def test_a_call_without_a_secret_is_nobodys(open_server: Served) -> None:
    assert list((await open_server.stat(emberfs_user="0:0")).statuses) == [0]
    [peer] = open_server.service.peers
    assert (peer.identity.uid, peer.identity.trusted, peer.transport) == (NOBODY, False, "grpc")
    assert len(peer.client) == 16


async def test_failures_keep_their_status_and_sentence(open_server: Served) -> None:
    for method, request, code, status in (
        (META.Stat, meta_pb2.StatRequest(), grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
        (META.StatFs, meta_pb2.StatFsRequest(), grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED"),
        (META.Close, meta_pb2.CloseRequest(), grpc.StatusCode.INTERNAL, None),
        (CLUSTER.Status, cluster_pb2.StatusRequest(), grpc.StatusCode.UNIMPLEMENTED, None),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await open_server.call(method, request)
        assert failed.value.code() is code
        assert dict(failed.value.trailing_metadata() or ()).get("emberfs-status") == status
        assert failed.value.details()


async def refused(served: Served, **metadata: Any) -> dict[str, Any]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await served.stat(**metadata)
    assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return dict(failed.value.trailing_metadata() or ())


async def test_the_secret_is_proved_over_a_challenge_and_never_sent(guarded: Served) -> None:
    nonce = os.urandom(32)
    answer = await refused(guarded, emberfs_nonce_bin=nonce)
    challenge = answer["emberfs-challenge-bin"]
    assert answer["emberfs-server-proof-bin"] == prove(SECRET, b"grpc-server", nonce, challenge, CLUSTER_ID.encode())

    def proof(user: str, secret: bytes = SECRET, over: bytes = challenge) -> bytes:
        return prove(secret, b"grpc-client", over, CLUSTER_ID.encode(), ME, user.encode())

    good = {"emberfs_client_bin": ME, "emberfs_user": "1000:100", "emberfs_proof_bin": proof("1000:100")}
    await guarded.stat(**good)
    await guarded.stat(**good)  # for as long as the connection lives
    [peer, _] = guarded.service.peers
    assert (peer.client, peer.identity.uid, peer.identity.gid, peer.identity.trusted) == (ME, 1000, 100, False)
    await refused(guarded, **{**good, "emberfs_user": "1001:100"})
    await refused(guarded, **{**good, "emberfs_client_bin": b"n" * 16})
    await refused(guarded, **{**good, "emberfs_proof_bin": proof("1000:100", b"another secret..")})
    await refused(guarded, **{**good, "emberfs_proof_bin": proof("1000:100", SECRET, b"another challenge")})
    await guarded.stat(emberfs_client_bin=ME, emberfs_user="0:0", emberfs_proof_bin=proof("0:0"))
    assert guarded.service.peers[-1].identity.uid == NOBODY  # root is squashed
    async with grpc.aio.insecure_channel(guarded.address, options=[("grpc.use_local_subchannel_pool", 1)]) as other:
        guarded.channel, mine = other, guarded.channel
        assert (await refused(guarded, **good))[
            "emberfs-challenge-bin"
        ] != challenge  # a proof is good for one connection
        guarded.channel = mine


async def test_listening_is_as_strict_as_tcp() -> None:
    with pytest.raises(StatusError) as refused:
        await serve_grpc([MetaService()], ["0.0.0.0:0"], b"", CLUSTER_ID)  # type: ignore[list-item]
    assert refused.value.status is Status.UNAUTHENTICATED
    with listen_tcp("127.0.0.1:0", b"") as taken, pytest.raises(StatusError) as refused:
        await serve_grpc([MetaService()], [f"127.0.0.1:{taken.getsockname()[1]}"], b"", CLUSTER_ID)  # type: ignore[list-item]
    assert refused.value.status is Status.BUSY_RESOURCE


async def test_health_and_reflection(open_server: Served) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    health = health_pb2_grpc.HealthStub(open_server.channel)
    for name in ("", "emberfs.v1.Meta"):
        reply = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(open_server.channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([question])):
        assert "emberfs.v1.Meta" in {s.name for s in answer.list_services_response.service}


def test_challenges_are_bounded() -> None:
    gate = Gate(SECRET, CLUSTER_ID)
    for number in range(CHALLENGES_MAX + 10):
        assert isinstance(gate.admit(f"ipv4:{number}", {}), dict)
    assert len(gate._challenges) == CHALLENGES_MAX


def test_a_client_id_of_another_length_is_refused() -> None:
    with pytest.raises(StatusError):
        Gate(b"", CLUSTER_ID).admit("ipv4:1", {"emberfs-client-bin": b"x"})


def test_the_server_imports_grpc_only_when_asked() -> None:
    program = "import sys, emberfs.meta.server; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


async def test_many_calls_at_once(open_server: Served) -> None:
    replies = await asyncio.gather(*(open_server.stat() for _ in range(200)))
    assert len(replies) == len(open_server.service.peers) == 200
