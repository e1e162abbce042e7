"""Subscriptions, the server's side: services publish, whoever subscribed is told in one-way frames.

A queue is bounded. Who falls behind loses what is queued and gets one notice with `resync` instead: it asks for the whole state, as
does a subscriber whose `since` is older than what the hub knows. So a notice is a hint that something newer exists, never
the only copy of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import Status, error
from .gen import rpc_pb2

NOTICES_MAX = 64  # queued for one subscription
NOTICE_BYTES_MAX = 1 << 20  # of one body; a larger one becomes a resync
SUBSCRIPTIONS_MAX = 64  # of one connection


@dataclass(eq=False, slots=True)
class Subscription:
    """One subscriber's queue. `wake` is called when there is something to take."""

    number: int
    topic: str
    wake: Callable[[], None]
    version: int = 0  # of the newest notice offered
    _queue: deque[rpc_pb2.Notice] = field(default_factory=deque)

    def offer(self, version: int, body: bytes) -> None:
        """Queue a notice, or replace all by a resync where they are too many."""
        self.version = version
        if len(self._queue) >= NOTICES_MAX or len(body) > NOTICE_BYTES_MAX:
            self.resync()
            return
        if not (self._queue and self._queue[-1].resync):
            self._queue.append(rpc_pb2.Notice(subscription=self.number, version=version, body=body))
        else:  # it will ask for everything anyway
            self._queue[-1].version = version
        self.wake()

    def resync(self) -> None:
        self._queue.clear()
        self._queue.append(rpc_pb2.Notice(subscription=self.number, version=self.version, resync=True))
        self.wake()

    def take(self) -> rpc_pb2.Notice | None:
        """The next notice to send."""
        return self._queue.popleft() if self._queue else None


class Hub:
    """The topics of one server. Not thread-safe: publish on the server's loop."""

    def __init__(self, topics: tuple[str, ...] = ("routing", "invalidate")) -> None:
        self._topics: dict[str, dict[Subscription, None]] = {topic: {} for topic in topics}
        self._versions = dict.fromkeys(topics, 0)

    def publish(self, topic: str, version: int, body: bytes = b"") -> None:
        """Tell every subscriber of `topic` that `version` exists; `body` is a serialized message of the topic's kind."""
        self._versions[topic] = version
        for subscription in self._topics[topic]:
            subscription.offer(version, body)

    def subscribe(self, subscription: Subscription, since: int) -> None:
        """From now on; if `since` is already old, with a resync first. Raises INVALID for an unknown topic."""
        members = self._topics.get(subscription.topic)
        if members is None:
            raise error(Status.INVALID, f"there is no topic {subscription.topic!r} here")
        members[subscription] = None
        subscription.version = self._versions[subscription.topic]
        if since < subscription.version:
            subscription.resync()

    def unsubscribe(self, subscription: Subscription) -> None:
        self._topics[subscription.topic].pop(subscription, None)
