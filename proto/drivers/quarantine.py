"""Memory that a server may still move into although nobody waits for it any more.

The connection of such a request is half closed, which tells the server to stop, and kept until the server closes its end. A server
does that only when no request of the connection runs any more, and the kernel does it when the process has died: so the end of the
connection releases the memory. A region of the caller's own is dead for as long.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from ..pool import Hold, Pool
from ..region import Region


class Quarantine:
    """Half-closed connections and the pool blocks that wait for their end. Any thread may call any method."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: dict[socket.socket, tuple[str, Hold]] = {}
        self._lock = threading.Lock()  # of what follows
        self._condemned: dict[socket.socket, set[Region]] = {}
        self._doubts: Counter[Region] = Counter()  # connections that may still move bytes into a region

    def __len__(self) -> int:
        return len(self._waiting)

    def count(self, address: str) -> int:
        """Connections to this server that have not ended."""
        return sum(where == address for where, _ in list(self._waiting.values()))

    def add(self, address: str, sock: socket.socket, hold: Hold) -> None:
        """Take over a connection with requests that were given up."""
        self._waiting[sock] = (address, hold)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    def reap(self) -> None:
        """Release what no server moves into any more."""
        for sock in list(self._waiting):
            self._look(sock, 0.0)

    def resolved(self, sock: socket.socket, seconds: float) -> bool:
        """Wait so long for the end of this connection; whether it came."""
        end = time.monotonic() + seconds
        while sock in self._waiting:
            remaining = end - time.monotonic()
            self._look(sock, max(remaining, 0.0))
            if remaining <= 0:
                return sock not in self._waiting
        return True

    def condemn(self, sock: socket.socket, regions: Iterable[Region]) -> None:
        """These regions are dead until this connection has ended."""
        with self._lock:
            if sock in self._waiting:
                self._condemned[sock] = set(regions)
                for region in self._condemned[sock]:
                    self._doubts[region] += 1
                    region.dead = True

    def _acquit(self, sock: socket.socket) -> None:
        for region in self._condemned.pop(sock, ()):
            self._doubts[region] -= 1
            if not self._doubts[region]:
                del self._doubts[region]
                region.dead = False

    def _look(self, sock: socket.socket, seconds: float) -> None:
        try:
            sock.settimeout(seconds)
            while sock.recv(65536):
                pass  # late replies, to nobody
        except (BlockingIOError, InterruptedError, TimeoutError):
            return
        except OSError:
            pass  # reset: the server has closed its end, too
        with self._lock:
            found = self._waiting.pop(sock, None)
            self._acquit(sock)
        if found is not None:
            self._pool.release(found[1])
            sock.close()

    def close(self) -> None:
        """Forget everything; the memory is never used again, what is dead stays dead."""
        for sock in list(self._waiting):
            sock.close()
        self._waiting.clear()
