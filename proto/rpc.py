"""Services as both sides see them: methods with numbers, what a handler is, and what it is given.

A handler is written once, `async def method(self, request, context) -> reply`, and served by every binding: the framed wire, the
local transport and gRPC. It raises `StatusError` to fail. Bulk bytes never sit in messages. A method whose bulk is `TO_SERVER` gets
it as one private copy from `context.pull()`; one whose bulk is `TO_CLIENT` writes it into the buffers of `context.sink()`. Whether these
are the client's own memory (shm), or travel behind the frame (tcp), the handler never knows.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.message import Message

from .gen import cluster_pb2, kvcache_pb2, meta_pb2, rpc_pb2, storage_pb2

PROTOCOL_VERSION = 1
PROTOCOL_VERSION_MIN = 1  # one older is accepted, so that a cluster can be upgraded in steps

MESSAGE_BYTES_MAX = 16 << 20  # of a protobuf message
BULK_BYTES_MAX = 128 << 20  # of one request's or reply's bulk
REQUESTS_IN_FLIGHT_MAX = 1024  # per connection
BYTES_IN_FLIGHT_MAX = 512 << 20  # per connection: bulk that the server holds for it
DEADLINE_MS_MAX = 3_600_000


class Bulk(enum.Enum):
    """Which way a method's bulk bytes go."""

    NONE = 0
    TO_CLIENT = 1
    TO_SERVER = 2


@dataclass(frozen=True, slots=True)
class Method:
    number: int  # on the wire: service number * 256 + method
    service: str
    name: str
    request: type[Message]
    reply: type[Message]
    bulk: Bulk = Bulk.NONE
    handler: str = ""  # the attribute of the service object: snake_case of the name


@dataclass(frozen=True)
class ServiceSpec:
    """A service's methods, as a tuple and each as an attribute of its own name: `STORAGE.Read`."""

    name: str
    number: int
    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        for method in self.methods:  # plain attributes: they are looked up with every call
            object.__setattr__(self, method.name, method)

    def __getattr__(self, name: str) -> Method:
        raise AttributeError(f"{self.name} has no method {name}")


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


def _spec(module: Any, name: str, number: int, bulk: dict[str, Bulk] | None = None) -> ServiceSpec:
    # The .proto file is the source of truth: numbers follow the order of the rpc lines, which only ever grow at the end.
    methods = []
    for i, descriptor in enumerate(module.DESCRIPTOR.services_by_name[name].methods):
        request = getattr(_module_of(descriptor.input_type), descriptor.input_type.name)
        reply = getattr(_module_of(descriptor.output_type), descriptor.output_type.name)
        way = (bulk or {}).get(descriptor.name, Bulk.NONE)
        methods.append(
            Method(number * 256 + i + 1, name, descriptor.name, request, reply, way, _snake(descriptor.name))
        )
    return ServiceSpec(name, number, tuple(methods))


def _module_of(descriptor: Any) -> Any:
    modules = (cluster_pb2, meta_pb2, rpc_pb2, storage_pb2, kvcache_pb2)
    return next(m for m in modules if m.DESCRIPTOR.name == descriptor.file.name)


def served(service: Service) -> list[tuple[Method, Callable[..., Any]]]:
    """The methods that a service object has handlers for. What it has none for is answered with UNSUPPORTED, as what an older
    server does not know is."""
    handlers = ((method, getattr(service, method.handler, None)) for method in service.spec.methods)
    return [(method, handler) for method, handler in handlers if handler is not None]


# Service number 0 is the RPC's own: hello, cancel, subscriptions (proto/frame.py).
CLUSTER = _spec(cluster_pb2, "ClusterManager", 1)
META = _spec(meta_pb2, "Meta", 2)
STORAGE = _spec(storage_pb2, "Storage", 3, {"Read": Bulk.TO_CLIENT, "Write": Bulk.TO_SERVER, "Forward": Bulk.TO_SERVER})
KVCACHE = _spec(kvcache_pb2, "KvCache", 4, {"Get": Bulk.TO_CLIENT, "Put": Bulk.TO_SERVER})


@dataclass(frozen=True, slots=True)
class Identity:
    """A user as a peer proved it: by SO_PEERCRED, by the cluster secret, or by being this very process."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    trusted: bool = False  # root, the server's own user, or a server of the cluster: may act for others


@dataclass(slots=True)
class PeerInfo:
    """The other end of a connection, as the server knows it."""

    client: bytes  # 16 bytes
    identity: Identity
    transport: str  # "shm", "tcp", "local", "rdma", "grpc"
    name: str = ""  # for logs: "pid 71" or "10.0.0.2:4711"
    attachments: dict[str, Any] = field(
        default_factory=dict
    )  # what a service remembers per connection (checked capabilities)


class Sink(Protocol):
    """Where the bulk of a reply goes: a span of `length` bytes, in the client's memory or on its way there."""

    length: int
    lends: bool  # whether bytes may be sent straight from a file

    def buffers(self, position: int, length: int) -> Sequence[memoryview]:
        """Writable buffers for that part of the span, in order (several where the client's pieces are scattered)."""

    def filled(self, position: int, length: int) -> None:
        """Those bytes are valid. What is never filled is not sent, and is left untouched at the client."""

    def lend(self, position: int, descriptor: int, offset: int, length: int) -> None:
        """Instead of filling buffers, where `lends`: that part is in this file, in the page cache. It must stay there as it is until
        `when_returned`, and is marked as `filled` like any other."""

    def when_returned(self, release: Callable[[], None]) -> None:
        """What to call when nothing that was lent is needed any more; called in any case."""


class Context(Protocol):
    """What a handler knows about the request in hand."""

    peer: PeerInfo
    cancelled: bool  # the client gave up, or is gone: no further piece may be moved
    stopping: bool  # the server is about to end: a request that waits for others should be answered soon
    listening: bool  # set by a handler before it first waits, for what others may do: the server is idle meanwhile

    def remaining(self) -> float:
        """Seconds to the deadline; negative when it has passed."""

    def sink(self, length: int) -> Sink:
        """The destination for `length` bytes of bulk. Raises INVALID when the client offered less, BUSY over a limit."""

    async def pull(self) -> memoryview:
        """The request's bulk as one private copy that nobody else can change (DECISIONS 24). Raises REGION_DEAD."""

    def lent(self) -> Sequence[memoryview] | None:
        """The request's bulk as it lies in the client's memory, piece by piece, where that is mapped here; None: `pull` it. The client may
        change it at any time, so it is for system calls only, and what they have copied is verified."""

    def subscribe(self, subscription: int, topic: str) -> Any:
        """See proto/transport for subscriptions; only the RPC's own methods use it."""


class Service(Protocol):
    """An object with one coroutine per method of its spec, named in snake_case."""

    spec: ServiceSpec
