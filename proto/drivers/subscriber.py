"""Notices for blocking callers, on a connection of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from .. import frame as wire
from ..errors import StatusError
from ..gen import rpc_pb2
from .calls import unreachable
from .connection import Broken, Connection, exchange

FOREVER_SECONDS = 86400.0  # a subscriber that waits without a limit looks around that often


class Subscriber:
    """Iterate, or ask with a time-out. Used by one thread."""

    def __init__(self, connection: Connection, topic: str, since: int, forget: Callable[[Connection], None]) -> None:
        self._connection = connection
        self._forget = forget
        connection.post_own(
            wire.SUBSCRIBE, rpc_pb2.Subscribe(subscription=1, topic=topic, since=since).SerializeToString()
        )

    def next(self, seconds: float | None = None) -> rpc_pb2.Notice | None:
        """The next notice; None if there is none within this time. Raises UNAVAILABLE when the connection is gone:
        subscribe again, with the last version seen as `since`."""
        deadline = time.monotonic() + (FOREVER_SECONDS if seconds is None else seconds)
        connection = self._connection
        try:
            while not connection.notices:
                exchange((connection,), deadline)
        except TimeoutError as late:
            if isinstance(late, StatusError):
                raise
            return None
        except Broken as reason:
            self.close()
            raise (reason.failure or unreachable(connection.address, reason.reason)) from reason
        return connection.notices.popleft()

    def __iter__(self) -> Iterator[rpc_pb2.Notice]:
        while True:
            notice = self.next()
            if notice is not None:
                yield notice

    def close(self) -> None:
        self._forget(self._connection)
