"""gRPC for the tools of other languages: the same handlers, without bulk data; who calls is decided by gate.py.

Imported only when it is asked for: grpc costs 60 ms and does not survive a fork.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn

import grpc
import structlog

from ..proto.errors import TABLE, Blame, Status, StatusError, error
from ..proto.rpc import (
    DEADLINE_MS_MAX,
    MESSAGE_BYTES_MAX,
    REQUESTS_IN_FLIGHT_MAX,
    Bulk,
    Method,
    PeerInfo,
    Service,
    served,
)
from ..proto.transport.address import resolve_listener, tcp_name
from .gate import Gate

PACKAGE = "emberfs.v1"

CODES = {
    Status.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Status.EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Status.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Status.NOT_PERMITTED: grpc.StatusCode.PERMISSION_DENIED,
    Status.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Status.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Status.NO_SPACE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Status.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Status.CONFLICT: grpc.StatusCode.ABORTED,
    Status.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Status.CANCELLED: grpc.StatusCode.CANCELLED,
    Status.INTERNAL: grpc.StatusCode.INTERNAL,
}
BLAMES = {
    Blame.CALLER: grpc.StatusCode.INVALID_ARGUMENT,
    Blame.STATE: grpc.StatusCode.FAILED_PRECONDITION,
    Blame.PEER: grpc.StatusCode.UNAVAILABLE,
    Blame.DISK: grpc.StatusCode.DATA_LOSS,
}

_log = structlog.get_logger("emberfs.grpc")


class GrpcContext:
    """What a handler is given (proto/rpc.py); there is no bulk over gRPC."""

    cancelled = False
    stopping = False
    listening = False

    def __init__(self, peer: PeerInfo, seconds: float | None) -> None:
        self.peer = peer
        self._end = time.monotonic() + (DEADLINE_MS_MAX / 1000 if seconds is None else seconds)

    def remaining(self) -> float:
        return self._end - time.monotonic()

    def sink(self, length: int) -> NoReturn:
        raise error(Status.UNSUPPORTED, "gRPC carries no file data; use the emberfs client")

    async def pull(self) -> NoReturn:
        self.sink(0)

    def subscribe(self, subscription: int, topic: str) -> NoReturn:
        raise error(Status.UNSUPPORTED, "gRPC has no subscriptions here; use the emberfs client")


def bound(method: Method, handler: Callable[[Any, Any], Awaitable[Any]], gate: Gate) -> Any:
    """The gRPC handler of one method."""

    async def call(request: Any, context: Any) -> Any:
        try:
            peer = gate.admit(context.peer(), dict(context.invocation_metadata() or ()))
            if isinstance(peer, dict):
                return await context.abort(grpc.StatusCode.UNAUTHENTICATED, "prove the secret", tuple(peer.items()))
            return await handler(request, GrpcContext(peer, context.time_remaining()))
        except StatusError as failed:
            code = CODES.get(failed.status) or BLAMES[TABLE[failed.status].blame]
            await context.abort(code, failed.strerror or "", (("emberfs-status", failed.status.name),))
        except grpc.aio.AbortError:
            raise
        except Exception as bug:
            _log.error("a handler failed", method=method.name, exc_info=bug)
            await context.abort(
                grpc.StatusCode.INTERNAL, f"{type(bug).__name__} in the server; its log has the details"
            )

    return grpc.unary_unary_rpc_method_handler(call, method.request.FromString, lambda reply: reply.SerializeToString())


async def serve_grpc(services: Sequence[Service], addresses: Sequence[str], secret: bytes, cluster: str) -> Any:
    """Serve on "host:port" addresses; returns the running `grpc.aio.Server`. Raises INVALID, UNAUTHENTICATED for an address beyond loopback
    without a secret, BUSY_RESOURCE for one that is taken."""
    limits = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=limits, maximum_concurrent_rpcs=REQUESTS_IN_FLIGHT_MAX)
    gate, names = Gate(secret, cluster), []
    for service in services:
        handlers = {m.name: bound(m, handler, gate) for m, handler in served(service) if m.bulk is Bulk.NONE}
        names.append(f"{PACKAGE}.{service.spec.name}")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(names[-1], handlers),))
    await _add_extras(server, names)
    for address in addresses:
        _, where = resolve_listener(address.removeprefix("tcp:"), secret)
        try:
            port = server.add_insecure_port(tcp_name(where).removeprefix("tcp:"))
        except RuntimeError as taken:
            raise error(Status.BUSY_RESOURCE, f"gRPC cannot listen on {address}; choose another port") from taken
        _log.info("grpc", address=tcp_name((where[0], port)))
    await server.start()
    return server


async def _add_extras(server: Any, names: Sequence[str]) -> None:
    """Health and reflection, where the extra `grpc` is installed. They tell nothing that is secret."""
    try:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection
    except ImportError:
        return
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in names:
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
