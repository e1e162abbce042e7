"""The first frames of a connection: who are you, of which cluster, which version; no I/O.

    client                                server
    Hello (nonce)            ------->
                             <-------     HelloReply (challenge and the server's proof, on TCP with a secret)
    HelloProof (identity)    ------->     only after a challenge
                             <-------     an empty reply

On a Unix socket the kernel proves the client's identity (SO_PEERCRED). On TCP both sides prove that they know the cluster secret:
HMAC-SHA256 over a label, the whole Hello, the challenge, the server's cluster id and, for the client, the identity that it
claims. Whoever knows the secret may claim any user but root, who becomes nobody unless root_squash is off. Without a
secret a TCP peer is nobody.
"""

from __future__ import annotations

import hmac
import os
import struct
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from . import frame as wire
from .errors import Status, StatusError, error, status_of
from .gen import common_pb2, rpc_pb2
from .ids import boot_id, new_client_id, new_u64
from .rpc import (
    BULK_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
    REQUESTS_IN_FLIGHT_MAX,
    Identity,
)

SOFTWARE = "emberfs 0.1.0"
NONCE_BYTES = 32
HELLO_SECONDS_MAX = 10.0  # for a peer to finish its hello; scaled by EMBERFS_TIME_SCALE
HELLO_BYTES_MAX = 512 << 10  # of a message before the hello is complete
NOBODY = 65534
GROUPS_MAX = 65536

# Hello.features
FEATURE_ACTS_FOR_OTHERS = 1  # asks to be trusted: servers of the cluster, mounts of several users
FEATURE_RDMA = 2  # would go on over RDMA

PROCESS = new_u64()  # names this process in its hello, so that a peer knows when it talks to another one


@dataclass(slots=True)
class Credentials:
    """What a client says of itself. `cluster` is empty until known; `secret` is needed for TCP."""

    cluster: str = ""
    secret: bytes = b""
    client: bytes = field(default_factory=new_client_id)
    acts_for_others: bool = False


_M = TypeVar("_M", bound=Message)


@cache
def _host() -> str:
    return boot_id()


def _reply_bytes(method: int, message: Message) -> bytes:
    return wire.encode(wire.REPLY, method, 0, message.SerializeToString())


def failure_frame(method: int, request_id: int, failure: StatusError, retry_after_ms: int = 0) -> bytes:
    """The reply that carries an error; as GOODBYE, the last frame of a connection."""
    message = rpc_pb2.Failure(status=failure.status, message=failure.strerror or "", retry_after_ms=retry_after_ms)
    if isinstance(failure.detail, common_pb2.Chain):
        message.chain.CopyFrom(failure.detail)
    elif failure.status is Status.NOT_PRIMARY and failure.detail:
        message.primary.extend(failure.detail)
    return wire.encode(wire.REPLY | wire.FAILURE, method, request_id, message.SerializeToString())


def failure_error(data: bytes, peer: str) -> StatusError:
    """The error in a FAILURE frame from `peer`."""
    try:
        message = rpc_pb2.Failure.FromString(data)
    except DecodeError:
        return error(Status.PROTOCOL, f"{peer} sent an error that cannot be read")
    detail = message.chain if message.HasField("chain") else list(message.primary) or message.retry_after_ms or None
    return error(status_of(message.status), message.message, detail=detail)


def parse(kind: type[_M], data: bytes, peer: str) -> _M:
    """A message of the RPC's own. Raises PROTOCOL if it is none."""
    try:
        return kind.FromString(data)
    except DecodeError as bad:
        raise error(Status.PROTOCOL, f"{peer} sent a {kind.DESCRIPTOR.name} that cannot be read: {bad}") from bad


def _proof(secret: bytes, label: bytes, hello: bytes, challenge: bytes, cluster: str, identity: bytes = b"") -> bytes:
    # Each part is preceded by its length, so that no two different handshakes give the same input.
    parts = (label, hello, challenge, cluster.encode(), identity)
    return hmac.digest(secret, b"".join(struct.pack("<I", len(part)) + part for part in parts), "sha256")


def _pack_identity(caller: common_pb2.Caller) -> bytes:
    return struct.pack(f"<{2 + len(caller.groups)}I", caller.uid, caller.gid, *caller.groups)


class ClientHello:
    """The client's half. Send `first`; feed each frame that arrives to `received` and send what it returns, until `reply` is set."""

    def __init__(self, credentials: Credentials, address: str, region: rpc_pb2.RegionOffer | None = None) -> None:
        self.reply: rpc_pb2.HelloReply | None = None  # set when the hello is complete
        self._credentials = credentials
        self._address = address
        self._proves = not address.startswith("unix:")
        self._offered: rpc_pb2.HelloReply | None = None
        self._nonce = os.urandom(NONCE_BYTES)
        hello = rpc_pb2.Hello(
            protocol=PROTOCOL_VERSION,
            cluster=credentials.cluster,
            features=FEATURE_ACTS_FOR_OTHERS if credentials.acts_for_others else 0,
            client=credentials.client,
            host=_host(),
            nonce=self._nonce,
            software=SOFTWARE,
        )
        if region is not None:
            hello.purpose = rpc_pb2.PURPOSE_REGION
            hello.region.CopyFrom(region)
        self._hello = hello.SerializeToString()
        self.first = wire.encode(0, wire.HELLO, 0, self._hello)

    def received(self, frame: wire.Frame) -> bytes:
        """What to send next, if anything. Raises WRONG_CLUSTER, UNAUTHENTICATED, PROTOCOL, or what the server says."""
        if frame.flags & wire.FAILURE:
            raise failure_error(frame.message, self._address)
        if not frame.flags & wire.REPLY or frame.method not in (wire.HELLO, wire.PROOF):
            raise error(Status.PROTOCOL, f"{self._address} did not answer the hello; is it an emberfs server?")
        if frame.method == wire.PROOF:
            if self._offered is None:
                raise error(Status.PROTOCOL, f"{self._address} answered a proof that was never sent")
            self.reply = self._offered
            return b""
        reply = parse(rpc_pb2.HelloReply, frame.message, self._address)
        self._check(reply)
        if not reply.challenge:
            self.reply = reply
            return b""
        self._offered = reply
        return self._prove(reply)

    def _check(self, reply: rpc_pb2.HelloReply) -> None:
        if not PROTOCOL_VERSION_MIN <= reply.protocol <= PROTOCOL_VERSION:
            raise error(
                Status.PROTOCOL,
                f"{self._address} chose protocol {reply.protocol}, this software speaks {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}",
            )
        wanted = self._credentials.cluster
        if wanted and reply.cluster != wanted:
            raise error(Status.WRONG_CLUSTER, f"{self._address} belongs to cluster {reply.cluster}, not to {wanted}")
        if not self._proves:
            return
        secret = self._credentials.secret
        if secret and not reply.challenge:
            raise error(
                Status.UNAUTHENTICATED,
                f"{self._address} does not prove that it knows the cluster secret; start it with one",
            )
        if reply.challenge and not secret:
            raise error(
                Status.UNAUTHENTICATED,
                f"{self._address} asks for the cluster secret: name its file in EMBERFS_SECRET_FILE",
            )
        if reply.challenge:
            expected = _proof(secret, b"server", self._hello, reply.challenge, reply.cluster)
            if not hmac.compare_digest(expected, reply.proof):
                raise error(Status.UNAUTHENTICATED, f"{self._address} has another cluster secret than this client")

    def _prove(self, reply: rpc_pb2.HelloReply) -> bytes:
        caller = common_pb2.Caller(uid=os.geteuid(), gid=os.getegid(), groups=os.getgroups())
        secret = self._credentials.secret
        proof = _proof(secret, b"client", self._hello, reply.challenge, reply.cluster, _pack_identity(caller))
        message = rpc_pb2.HelloProof(proof=proof, identity=caller)
        return wire.encode(0, wire.PROOF, 0, message.SerializeToString())


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server says of itself in every hello, and whom it trusts."""

    cluster: str
    node: int = 0
    secret: bytes = b""
    root_squash: bool = True
    rdma: bool = False  # would go on over RDMA after a hello over TCP


class ServerHello:
    """The server's half for one connection. `kernel` is the identity that a Unix socket proves, None on TCP."""

    def __init__(self, settings: ServerSettings, peer: str, kernel: Identity | None) -> None:
        self.identity: Identity | None = None  # set when the hello is complete
        self.hello = rpc_pb2.Hello()
        self._settings = settings
        self._peer = peer
        self._kernel = kernel
        self._raw = b""
        self._challenge = b""

    def received(self, frame: wire.Frame) -> bytes:
        """The answer to send. Raises PROTOCOL, WRONG_CLUSTER, UNAUTHENTICATED: tell the peer and close."""
        if frame.flags & ~wire.FAILURE:
            raise error(Status.PROTOCOL, f"{self._peer} did not begin with a hello")
        if frame.method == wire.HELLO and not self._raw:
            return self._hello_received(frame.message)
        if frame.method == wire.PROOF and self._challenge:
            return self._proof_received(frame.message)
        raise error(Status.PROTOCOL, f"{self._peer} sent method {frame.method} before its hello was complete")

    def _hello_received(self, data: bytes) -> bytes:
        hello = self.hello = parse(rpc_pb2.Hello, data, self._peer)
        self._raw = data
        if hello.protocol < PROTOCOL_VERSION_MIN:
            raise error(
                Status.PROTOCOL,
                f"the client speaks protocol {hello.protocol}, this server {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}: upgrade it",
            )
        cluster = self._settings.cluster
        if hello.cluster and hello.cluster != cluster:
            raise error(
                Status.WRONG_CLUSTER, f"this server belongs to cluster {cluster}, the client asks for {hello.cluster}"
            )
        if len(hello.client) != 16 or len(hello.nonce) != NONCE_BYTES:
            raise error(Status.PROTOCOL, f"{self._peer} sent a hello without a client id and a nonce")
        reply = rpc_pb2.HelloReply(
            protocol=min(hello.protocol, PROTOCOL_VERSION),
            cluster=cluster,
            host=_host(),
            node=self._settings.node,
            software=SOFTWARE,
            message_bytes_max=MESSAGE_BYTES_MAX,
            bulk_bytes_max=BULK_BYTES_MAX,
            requests_in_flight_max=REQUESTS_IN_FLIGHT_MAX,
            process=PROCESS,
            features=FEATURE_RDMA if self._kernel is None and self._settings.rdma else 0,
        )
        if self._kernel is not None:
            self.identity = self._kernel
        elif self._settings.secret:
            self._challenge = reply.challenge = os.urandom(NONCE_BYTES)
            reply.proof = _proof(self._settings.secret, b"server", data, self._challenge, cluster)
        else:
            self.identity = Identity(NOBODY, NOBODY)
        return _reply_bytes(wire.HELLO, reply)

    def _proof_received(self, data: bytes) -> bytes:
        message = parse(rpc_pb2.HelloProof, data, self._peer)
        caller = message.identity
        secret, cluster = self._settings.secret, self._settings.cluster
        expected = _proof(secret, b"client", self._raw, self._challenge, cluster, _pack_identity(caller))
        if not hmac.compare_digest(expected, message.proof):
            raise error(Status.UNAUTHENTICATED, f"{self._peer} has another cluster secret than this server")
        if len(caller.groups) > GROUPS_MAX:
            raise error(Status.PROTOCOL, f"{self._peer} claims {len(caller.groups)} groups: at most {GROUPS_MAX}")
        self._challenge = b""
        trusted = bool(self.hello.features & FEATURE_ACTS_FOR_OTHERS)
        if caller.uid == 0 and self._settings.root_squash and not trusted:
            self.identity = Identity(NOBODY, NOBODY)
        else:
            self.identity = Identity(caller.uid, caller.gid, tuple(caller.groups), trusted)
        return _reply_bytes(wire.PROOF, rpc_pb2.SubscribeReply())
