"""How a connection goes on over RDMA after its hello; no I/O on the TCP socket here.

    client                                server
    RDMA_CONNECT (its queue pair)  ---->  makes one of its own, ready to receive and to send
                                   <----  its queue pair, or why there is none
    the client's becomes ready; from now on both send frames over it

A refusal concerns one port of the client: it offers the next one, and stays on TCP when there is none left.
"""

from __future__ import annotations

import itertools
import socket

from ... import frame as wire
from ...errors import Status, StatusError, error
from ...gen import rpc_pb2
from ...hello import failure_error, parse
from . import devices
from .devices import Port
from .endpoint import Endpoint
from .socket import RdmaSocket

_turns = itertools.count()  # ports that are equally near are used one after the other


class Upgrade:
    """The client's half. `endpoint` is set when frames may travel over it, `refused` when the connection stays on TCP."""

    def __init__(self, peer: str, address: bytes) -> None:
        self.endpoint: Endpoint | None = None
        self.refused = ""  # why
        self._peer = peer
        self._made: Endpoint | None = None
        self._ports: list[Port] = []
        try:
            own = devices.ports()
            if not own:
                raise error(
                    Status.UNSUPPORTED, "no port of this machine's RDMA devices can be used: 'emberfs doctor' says why"
                )
            self._ports = devices.in_order(own, address, next(_turns))
        except StatusError as failed:
            self.refused = failed.strerror or ""

    @property
    def is_over(self) -> bool:
        return self.endpoint is not None or bool(self.refused)

    def next(self) -> bytes:
        """The frame to send; b"" when there is nothing left to try, and `refused` says why."""
        reason = self.refused
        while self._ports:
            try:
                made = self._made = Endpoint(self._ports.pop(0), serves=False)
                message = rpc_pb2.RdmaConnect(queue=made.queue())
            except StatusError as failed:
                reason = failed.strerror or ""
                self.drop()
                continue
            self.refused = ""
            return wire.encode(0, wire.RDMA_CONNECT, 0, message.SerializeToString())
        self.refused = reason or "no port is left to try"
        return b""

    def received(self, frame: wire.Frame) -> bytes:
        """What to send next, if anything. Raises PROTOCOL."""
        if frame.method != wire.RDMA_CONNECT or not frame.flags & wire.REPLY or self._made is None:
            raise error(Status.PROTOCOL, f"{self._peer} sent method {frame.method} where a queue pair was awaited")
        if frame.flags & wire.FAILURE:
            self.refused = f"the server refuses: {failure_error(frame.message, self._peer).strerror}"
            self.drop()
            return self.next()
        reply = parse(rpc_pb2.RdmaConnectReply, frame.message, self._peer)
        # The server's is ready: nothing may go wrong any more but a lost connection.
        self._made.connect(reply.queue)
        self.endpoint, self._made = self._made, None
        return b""

    def drop(self) -> None:
        """The queue pair is not used, offered or agreed on."""
        for made in (self._made, self.endpoint):
            if made is not None:
                made.close()
        self._made = None


def accept(queue: rpc_pb2.RdmaQueue, tcp: socket.socket) -> tuple[RdmaSocket, bytes]:
    """The server's half, ready: it takes the TCP socket over once the frame that is given with it has left on that. Raises UNSUPPORTED,
    PROTOCOL."""
    own = devices.ports()
    port = devices.partner(own, queue.gid, queue.infiniband, next(_turns)) if len(queue.gid) == 16 else None
    if port is None:
        kind = "InfiniBand in its subnet" if queue.infiniband else "RoCE v2"
        names = ", ".join(port.name for port in own) or "none"
        raise error(Status.UNSUPPORTED, f"no port here speaks {kind} as the client's does (usable here: {names})")
    endpoint = Endpoint(port, serves=True)
    try:
        if endpoint.device.unfit:
            raise error(Status.UNSUPPORTED, endpoint.device.unfit)
        endpoint.connect(queue)
        reply = rpc_pb2.RdmaConnectReply(queue=endpoint.queue())
        return RdmaSocket(endpoint, tcp), wire.encode(wire.REPLY, wire.RDMA_CONNECT, 0, reply.SerializeToString())
    except BaseException as failed:
        endpoint.close()
        if isinstance(failed, OSError) and not isinstance(failed, StatusError):
            raise error(Status.UNSUPPORTED, f"no descriptor is left for RDMA ({failed.strerror})") from failed
        raise


def peer_address(sock: socket.socket) -> bytes:
    """The IP address at the other end of a TCP socket as a GID would be: 16 bytes, IPv4 mapped. b"" if it has none."""
    try:
        host = sock.getpeername()[0].partition("%")[0]
    except (OSError, IndexError):
        return b""
    if ":" in host:
        return socket.inet_pton(socket.AF_INET6, host)
    return bytes(10) + b"\xff\xff" + socket.inet_aton(host)
