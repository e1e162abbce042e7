"""The RPC server: listeners, service objects, clean stop. What happens on a connection is in `accepted.py`.

A handler's first step runs inline, in the loop's callback that received the request; only one that has to wait becomes a task. What
one receive brought is answered with one system call.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

import structlog

from . import rpc
from .accepted import Connection, Entry
from .errors import Status, error
from .hello import ServerSettings
from .pool import Pool
from .settings import time_scale
from .subscription import Hub
from .transport import address as addresses
from .transport import choice
from .transport.buffers import Buffers
from .transport.readiness import Idleness
from .transport.shm import Regions

CONNECTIONS_MAX = 8192
ACCEPTS_MAX = 64  # per wake-up
ACCEPT_PAUSE_SECONDS = 0.2  # after the process ran out of descriptors
STOP_SECONDS_MAX = 10.0  # for requests in flight to finish

_log = structlog.get_logger("emberfs.rpc")


class Server:
    """Serves the given service objects on any number of addresses. Made and used on one running loop. `pool`: of the environment in
    which handlers pass on what they pulled."""

    def __init__(
        self,
        services: Sequence[rpc.Service],
        *,
        cluster: str,
        node: int = 0,
        secret: bytes = b"",
        root_squash: bool = True,
        hub: Hub | None = None,
        pool: Pool | None = None,
        requests_in_flight_max: int = rpc.REQUESTS_IN_FLIGHT_MAX,
        bytes_in_flight_max: int = rpc.BYTES_IN_FLIGHT_MAX,
    ) -> None:
        self.settings = ServerSettings(cluster, node, secret, root_squash, rdma=choice.offers_rdma())
        self.hub = hub or Hub()
        self.requests_in_flight_max = requests_in_flight_max
        self.bytes_in_flight_max = bytes_in_flight_max
        self.buffers = Buffers(pool)
        self.connections: set[Connection] = set()
        self.idleness = Idleness()
        self.waiting = 0  # handlers under way that had to wait
        self._closed = asyncio.Event()
        self.regions: dict[tuple[bytes, int], Regions] = {}  # by client id and uid
        self.methods: dict[int, Entry] = {}
        for service in services:
            for method, handler in rpc.served(service):
                self.methods[method.number] = (method, method.request.FromString, handler)
        self._listeners: dict[str, socket.socket] = {}
        self._paths: list[tuple[str, int]] = []  # of Unix sockets, with the inode that is ours to remove

    @property
    def addresses(self) -> list[str]:
        """What is listened on; port 0 is replaced by the port that the kernel chose."""
        return list(self._listeners)

    async def listen(self, address: str) -> str:
        """Serve "unix:/path" or "tcp:host:port"; returns the exact address. Raises INVALID, BUSY_RESOURCE, UNAUTHENTICATED, OSError."""
        kind, rest = addresses.split(address)
        if kind == "unix":
            sock = addresses.listen_unix(rest)
            self._paths.append((rest, os.stat(rest).st_ino))
        elif kind == "tcp":
            sock = addresses.listen_tcp(rest, self.settings.secret)
            address = addresses.tcp_name(sock.getsockname())
        else:
            raise error(Status.INVALID, f"{address}: a server listens on unix: or tcp: addresses")
        self._listeners[address] = sock
        self._listen_on(sock, kind)
        return address

    def _listen_on(self, sock: socket.socket, kind: str) -> None:
        if sock.fileno() >= 0:  # not stopped meanwhile
            asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock, kind)

    def _accept(self, listener: socket.socket, kind: str) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                sock, where = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as failed:  # out of descriptors: who waits in the queue waits a little longer
                _log.warning("cannot accept a connection", error=str(failed))
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener.fileno())
                loop.call_later(ACCEPT_PAUSE_SECONDS, self._listen_on, listener, kind)
                return
            if len(self.connections) >= CONNECTIONS_MAX:
                _log.warning("refused a connection: too many", limit=CONNECTIONS_MAX)
                sock.close()
                continue
            sock.setblocking(False)
            Connection(self, sock, kind, where).begin()

    async def stop(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        """Accept no more, let requests in flight finish and their replies leave, then close."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners.values():
            loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        for path, inode in self._paths:
            with suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        for connection in list(self.connections):
            connection.retire()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._calls_done(), seconds_max * time_scale())
        if self._calling():
            _log.warning("stopped with requests still running", connections=self._calling())
        for connection in list(self.connections):  # those of regions outlast the requests that use them
            connection.close()
        self.idleness.close()
        choice.forget(self.buffers.own_region, lambda _: False)
        self.buffers.close()

    def _calling(self) -> int:
        return sum(not connection.is_region for connection in self.connections)

    async def _calls_done(self) -> None:
        while self._calling():
            self._closed.clear()
            await self._closed.wait()

    def forget(self, connection: Connection) -> None:
        """A connection has closed."""
        self.connections.discard(connection)
        self._closed.set()
