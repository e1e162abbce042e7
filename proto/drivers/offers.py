"""Which regions which server process knows: each offered on a connection of its own that lives as long as the offer."""

from __future__ import annotations

import socket
import threading

from ..errors import StatusError
from ..gen import rpc_pb2
from ..region import Region
from .calls import connect_seconds, unreachable
from .connection import Broken, Connection, open_socket, say_hello

_Known = dict[int, socket.socket]  # by region id


class Offers:
    """Of one environment. Thread-safe; `lock` is also taken around a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._known: dict[tuple[str, int, bytes], _Known] = {}  # by address, server process, and our identity

    def known_to(self, connection: Connection) -> _Known:
        """The regions that the server behind a new connection knows, kept up to date. Those of an earlier process there are forgotten."""
        mine = (connection.address, connection.process, connection.credentials.client)
        with self.lock:
            for key in [key for key in self._known if key[0] == connection.address and key != mine]:
                for sock in self._known.pop(key).values():
                    sock.close()
            return self._known.setdefault(mine, {})

    def make(self, connection: Connection, region: Region, timeout: float) -> None:
        """Make a region known to the server. Raises UNAVAILABLE, INVALID, or Broken if the server is not the same process any more."""
        address = connection.address
        with self.lock:
            if region.id in connection.offered:
                return
            offer = rpc_pb2.RegionOffer(id=region.id, size=region.size, sealed=region.sealed)
            try:
                sock = open_socket(address, connect_seconds(timeout))
                try:
                    reply = say_hello(sock, address, connection.credentials, offer, region.fd)
                except BaseException:
                    sock.close()
                    raise
            except StatusError:
                raise
            except OSError as failed:
                raise unreachable(address, failed) from failed
            if reply.process != connection.process:
                sock.close()
                raise Broken("the server was restarted", ended=True)
            connection.offered[region.id] = sock

    def withdraw(self, region: Region) -> None:
        """No server may move into this region any more."""
        with self.lock:
            for known in self._known.values():
                sock = known.pop(region.id, None)
                if sock is not None:
                    sock.close()

    def close(self) -> None:
        """Withdraw everything; without the lock, for a forked child."""
        for known in self._known.values():
            for sock in known.values():
                sock.close()
        self._known.clear()
