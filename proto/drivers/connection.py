"""A blocking connection to one server, used by one thread at a time.

Nothing waits in send(2) or recv(2): `Readiness` knows how to wait for a reply. Several requests may be under way; replies come in any
order.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

from .. import frame as wire
from ..env import Call
from ..errors import Status, StatusError, error
from ..frame import Decoder, Frame
from ..gen import rpc_pb2
from ..hello import FEATURE_RDMA, ClientHello, Credentials, failure_error
from ..region import Region
from ..transport import address as addresses
from ..transport.choice import Choices
from ..transport.readiness import Readiness
from .calls import Pending, encode_call, unreachable

if TYPE_CHECKING:
    from ..transport.rdma.link import Link
    from ..transport.rdma.socket import RdmaSocket

PIECES_MAX = 512  # per sendmsg
_DONTWAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Broken(Exception):
    """The connection is of no more use. `ended`: the server closed it, so that nothing of it moves any more."""

    def __init__(self, reason: str, ended: bool = False, failure: StatusError | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.ended = ended
        self.failure = failure  # what every request on it gets, instead of "broke"


def open_socket(address: str, seconds: float) -> socket.socket:
    """A connected socket that times out after `seconds`. Raises OSError."""
    kind, rest = addresses.split(address)
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(seconds)
            addresses.connect_unix(sock, rest)
        except BaseException:
            sock.close()
            raise
        return sock
    if kind == "tcp":
        sock = socket.create_connection(addresses.host_port(rest), timeout=seconds)
        addresses.tune_tcp(sock)
        return sock
    raise error(Status.INVALID, f"{address}: needs a LocalNetwork given to the environment")


def say_hello(
    sock: socket.socket,
    address: str,
    credentials: Credentials,
    offer: rpc_pb2.RegionOffer | None = None,
    descriptor: int = -1,
) -> rpc_pb2.HelloReply:
    """The hello under the socket's time-out; a region's descriptor goes beside it. Raises StatusError, OSError."""
    hello = ClientHello(credentials, address, offer)
    if descriptor >= 0:
        socket.send_fds(sock, [hello.first], [descriptor])
    else:
        sock.sendall(hello.first)
    decoder = Decoder()
    while hello.reply is None:
        count = sock.recv_into(decoder.buffer())
        if not count:
            raise error(Status.UNAVAILABLE, f"{address} closed the connection during the hello")
        for frame in decoder.received(count):
            if answer := hello.received(frame):
                sock.sendall(answer)
    return hello.reply


class Connection:
    """After its hello. Raises Broken from every method that touches the socket; the owner then drops it."""

    def __init__(self, sock: socket.socket, address: str, credentials: Credentials, hello: rpc_pb2.HelloReply) -> None:
        sock.settimeout(None)
        self.sock: socket.socket | RdmaSocket = sock
        self.link: Link | None = None  # over RDMA
        self.address = address
        self.unix = address.startswith("unix:")
        self.process = hello.process
        self.credentials = credentials
        self.cluster = hello.cluster
        self.offered: dict[
            int, socket.socket
        ] = {}  # regions that this server process knows; shared between connections
        self.used = time.monotonic()
        self.pendings: dict[int, Pending] = {}
        self.notices: deque[rpc_pb2.Notice] = deque()
        self._decoder = Decoder(self._place)
        self._out: deque[memoryview] = deque()
        self._posted = 0  # bytes ever queued
        self._sent = 0  # bytes ever taken by the socket
        self._number = 0
        self._readiness = Readiness(sock)

    @classmethod
    def open(cls, address: str, credentials: Credentials, seconds: float, choices: Choices | None = None) -> Connection:
        """Connect and say hello; go on over RDMA if the `choices` say so. Raises UNAVAILABLE, WRONG_CLUSTER, UNAUTHENTICATED, PROTOCOL."""
        try:
            sock = open_socket(address, seconds)
        except StatusError:
            raise
        except OSError as failed:
            raise unreachable(address, failed) from failed
        try:
            hello = say_hello(sock, address, credentials)
            if choices is not None and choices.tries(address, bool(hello.features & FEATURE_RDMA), time.monotonic()):
                from .rdma import go_on

                return go_on(cls, sock, address, credentials, hello, choices)
            return cls(sock, address, credentials, hello)
        except StatusError:
            sock.close()
            raise
        except OSError as failed:
            sock.close()
            raise unreachable(address, failed) from failed
        except BaseException:
            sock.close()
            raise

    def is_stale(self) -> bool:
        """Whether the server has hung up, or said that it will, while nobody used the connection."""
        try:
            self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return True
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def moves_in(self, region: Region) -> bool:
        """Whether a request that is not answered may move bytes there."""
        pendings = list(self.pendings.values())
        return any(slice_.region is region for pending in pendings if pending.shared for slice_ in pending.slices)

    # Sending.

    def post(self, call: Call, deadline: float, shared: bool) -> Pending:
        """Send a request as far as the socket takes it at once; the rest leaves while somebody waits."""
        self._number += 1
        number = self._number
        pending = Pending(call, deadline, shared)
        head, bulk = encode_call(call, number, shared, deadline - time.monotonic())
        self.pendings[number] = pending
        pending.end = self._posted + len(head) + sum(map(len, bulk))
        self._queue(head, bulk)
        return pending

    def post_own(self, method: int, message: bytes) -> int:
        """A request of the RPC's own service; returns its number."""
        self._number += 1
        self._queue(wire.encode(0, method, self._number, message), ())
        return self._number

    def _queue(self, head: bytes, bulk: Sequence[memoryview]) -> None:
        size = len(head)
        if not bulk and not self._out:
            self._posted += size
            try:
                count = self.sock.send(head, _DONTWAIT)
            except (BlockingIOError, InterruptedError):
                count = 0
            except OSError as failed:
                raise _broken(failed) from failed
            self._sent += count
            if count < size:
                self._out.append(memoryview(head)[count:])
            return
        self._out.append(memoryview(head))
        self._out.extend(bulk)
        self._posted += size + sum(map(len, bulk))
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes without waiting."""
        out = self._out
        while out:
            try:
                pieces = list(out) if len(out) <= PIECES_MAX else [out[i] for i in range(PIECES_MAX)]
                count = self.sock.sendmsg(pieces, (), _DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as failed:
                raise _broken(failed) from failed
            self._sent += count
            while count:
                first = out[0]
                if count < len(first):
                    out[0] = first[count:]
                    break
                count -= len(first)
                out.popleft()

    def has_left(self, pending: Pending) -> bool:
        """Whether all of this request was taken by the socket."""
        return self._sent >= pending.end

    @property
    def unsent(self) -> bool:
        return bool(self._out)

    # Receiving.

    def wait(self, pending: Pending, until: float = inf) -> None:
        """Until this request is answered. Raises TimeoutError at its deadline, or at `until`."""
        deadline = min(pending.deadline, until)
        while pending.frame is None:
            if self._out:
                exchange((self,), deadline)
            else:
                self._receive(deadline, patient=pending.call.patient)

    def _receive(self, deadline: float, *, patient: bool) -> None:
        if not self._readiness.wait(deadline - time.monotonic(), patient=patient):
            raise TimeoutError
        try:
            count = self.sock.recv_into(self._decoder.buffer(), 0, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as failed:
            raise _broken(failed) from failed
        self._received(count)

    def pump(self) -> None:
        """Take in what has arrived, without waiting."""
        while True:
            buffer = self._decoder.buffer()
            try:
                count = self.sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as failed:
                raise _broken(failed) from failed
            self._received(count)
            if count < len(buffer):
                return

    def _received(self, count: int) -> None:
        if not count:
            raise Broken("the server closed the connection", ended=True)
        try:
            for frame in self._decoder.received(count):
                self._dispatch(frame)
        except StatusError as bad:
            if bad.status is Status.PROTOCOL:
                self._say_goodbye(bad)
            raise Broken(bad.strerror or "", failure=bad) from bad

    def _dispatch(self, frame: Frame) -> None:
        if frame.method == wire.NOTICE:
            self.notices.append(rpc_pb2.Notice.FromString(frame.message))
            return
        if frame.method == wire.GOODBYE:
            raise failure_error(frame.message, self.address)
        if frame.method < 256:  # an answer to the RPC's own requests: only a refusal says anything
            if frame.flags & wire.FAILURE:
                raise failure_error(frame.message, self.address)
            return
        pending = self.pendings.pop(frame.request_id, None)
        if pending is None or not frame.flags & wire.REPLY:
            raise error(Status.PROTOCOL, f"{self.address} answered request {frame.request_id}, which is not open")
        pending.frame = frame

    def _place(self, frame: Frame) -> list[memoryview] | None:
        pending = self.pendings.get(frame.request_id)
        if pending is None:
            raise error(Status.PROTOCOL, f"{self.address} sent bulk for request {frame.request_id}, which is not open")
        return pending.place(frame)

    def _say_goodbye(self, reason: StatusError) -> None:
        message = rpc_pb2.Failure(status=reason.status, message=reason.strerror or "")
        with suppress(OSError):
            self.sock.send(wire.encode(0, wire.GOODBYE, 0, message.SerializeToString()), _DONTWAIT)

    def close(self) -> None:
        self.sock.close()


def _broken(failed: OSError) -> Broken:
    # A reset or a broken pipe means that the server closed its end, and it does so only when nothing moves any more.
    ended = isinstance(failed, (ConnectionResetError, BrokenPipeError))
    return Broken((failed.strerror or str(failed)).lower(), ended=ended)


def exchange(connections: Iterable[Connection], deadline: float) -> list[tuple[Connection, Broken]]:
    """Wait until something can be sent or received on one of these, and do it. Returns those that broke, unless it is the only
    one: then it raises Broken. Raises TimeoutError at the deadline."""
    by_number = {connection.sock.fileno(): connection for connection in connections}
    poll = select.poll()
    for number, connection in by_number.items():
        poll.register(number, select.POLLIN | (select.POLLOUT if connection.unsent else 0))
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    broken = []
    for number, event in poll.poll(remaining * 1000 + 1):
        connection = by_number[number]
        try:
            if event & select.POLLOUT:
                connection.flush()
            if event & ~select.POLLOUT:
                connection.pump()
        except Broken as reason:
            if len(by_number) == 1:
                raise
            broken.append((connection, reason))
    return broken
