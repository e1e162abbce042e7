"""The blocking driver's connections over RDMA: loaded with the first of them."""

from __future__ import annotations

import socket
import time

from ..errors import Status, StatusError, error
from ..frame import Decoder
from ..gen import rpc_pb2
from ..hello import Credentials
from ..settings import time_scale
from ..transport.choice import PROBE_SECONDS, Choices
from ..transport.rdma.link import Link
from ..transport.rdma.socket import RdmaSocket
from ..transport.rdma.upgrade import Upgrade, peer_address
from ..transport.readiness import Readiness
from .calls import CONNECT_SECONDS_MAX
from .connection import Connection


class RdmaConnection(Connection):
    """Frames over a queue pair. When it is closed, nobody moves anything into this process' memory any more."""

    def go_on_over(self, rdma: RdmaSocket) -> None:
        self.sock = rdma
        self.link = Link(rdma.endpoint, self._tell)
        self._readiness = Readiness(rdma)

    def _tell(self, frame: bytes) -> None:
        self._queue(frame, ())

    def pump(self) -> None:
        super().pump()
        if self.unsent:  # credits came, perhaps: nothing else tells of them
            self.flush()


def go_on(
    kind: type[Connection],
    sock: socket.socket,
    address: str,
    credentials: Credentials,
    hello: rpc_pb2.HelloReply,
    choices: Choices,
) -> Connection:
    """After the hello, under the socket's time-out: over RDMA if that can be, over the socket otherwise. Raises StatusError, OSError."""
    seconds = sock.gettimeout() or CONNECT_SECONDS_MAX
    upgrade = Upgrade(address, peer_address(sock))
    try:
        _agree(upgrade, sock, address)
    except StatusError as failed:
        upgrade.drop()
        if failed.status is not Status.UNSUPPORTED:
            raise
        sock.close()
        choices.failed(address, failed.strerror or "", time.monotonic())
        return kind.open(address, credentials, seconds, choices)
    except BaseException:
        upgrade.drop()
        raise
    if upgrade.endpoint is None:
        choices.failed(address, upgrade.refused, time.monotonic())
        return kind(sock, address, credentials, hello)
    patience = min(PROBE_SECONDS * time_scale(), seconds)
    try:
        rdma = RdmaSocket(upgrade.endpoint, sock)
    except BaseException:
        upgrade.drop()
        raise
    try:
        upgrade.endpoint.probe()
        if rdma.settled(patience):
            connection = RdmaConnection(sock, address, credentials, hello)
            connection.go_on_over(rdma)
            choices.upgraded(address, upgrade.endpoint.port.name)
            return connection
        reason = upgrade.endpoint.failed or f"nothing came through within {patience:g} s"
    except BaseException:
        rdma.close()
        raise
    # The server has gone on over it: on TCP the connection begins anew.
    rdma.close()
    choices.failed(address, reason, time.monotonic())
    return kind.open(address, credentials, seconds, choices)


def _agree(upgrade: Upgrade, sock: socket.socket, address: str) -> None:
    decoder = Decoder()
    frame = upgrade.next()
    while frame:
        sock.sendall(frame)
        frame = b""
        while not upgrade.is_over and not frame:
            count = sock.recv_into(decoder.buffer())
            if not count:
                raise error(Status.UNAVAILABLE, f"{address} closed the connection while RDMA was agreed on")
            for received in decoder.received(count):
                frame = upgrade.received(received)
