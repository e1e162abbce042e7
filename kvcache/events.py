"""What a client stores and deletes, as an iterator: for routers that send requests where their blocks are.

These are the events of one client, as every engine publishes its own. Blocks that servers evict, or that other clients delete, are in no
event: whoever routes by events learns from the miss, as with every cache of another level.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .core.core import KvCore
from .keys import key_columns
from .namespace import Namespace

EVENTS_MAX = 4096  # batches that nobody has taken yet; then they are forgotten, and one event says so


@dataclass(frozen=True, slots=True)
class Event:
    """Blocks of one namespace, in the order of their prefix. "lost": events were forgotten, because nobody took them."""

    kind: Literal["stored", "removed", "lost"]
    namespace: Namespace | None
    keys: tuple[bytes, ...]
    depths: tuple[int, ...]  # of what was stored: how many blocks stand before each in its prefix
    time_ns: int  # since the epoch


LOST = Event("lost", None, (), (), 0)


class Events:
    """From now on. Iterating waits for the next event, and ends when it is closed. Threads may share one."""

    def __init__(self, core: KvCore) -> None:
        self._core = core
        self._queue: deque[Event] = deque()
        self._arrived = threading.Condition()
        self._closed = False
        core.listeners.append(self)

    def stored(self, namespace: Namespace, keys: bytes, rows: Sequence[int], depths: Sequence[int]) -> None:
        """Called by the core: these rows were not there before."""
        if rows:
            of_rows = tuple(depths[row] for row in rows)
            self._offer(Event("stored", namespace, tuple(key_columns(keys, rows)), of_rows, time.time_ns()))

    def removed(self, namespace: Namespace, keys: bytes, rows: Sequence[int]) -> None:
        """Called by the core: these rows were deleted."""
        if rows:
            self._offer(Event("removed", namespace, tuple(key_columns(keys, rows)), (), time.time_ns()))

    def _offer(self, event: Event) -> None:
        with self._arrived:
            if len(self._queue) >= EVENTS_MAX:
                self._queue.clear()
                self._queue.append(LOST)
            self._queue.append(event)
            self._arrived.notify()

    def next(self, seconds: float | None = None) -> Event | None:
        """The next event; None if there is none within so many seconds, or ever."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._queue or self._closed, seconds)
            return self._queue.popleft() if self._queue else None

    def __iter__(self) -> Iterator[Event]:
        while (event := self.next()) is not None:
            yield event

    def close(self) -> None:
        """No more events; whoever waits goes on."""
        if self in self._core.listeners:
            self._core.listeners.remove(self)
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
