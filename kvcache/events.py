"""What is stored and removed, as iterators: for routers that send requests where their blocks are.

`Events` are those of one client, as every engine publishes its own. `watched` are those of a namespace, whoever put, deleted or evicted:
the storage servers remember them while somebody asks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from .core.core import KvCore
from .core.results import BlockEvent
from .keys import key_columns
from .namespace import Namespace

WATCH_SECONDS = 0.25  # between two questions to the servers
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


def watched(namespace: Namespace, found: Sequence[BlockEvent], *, lost: bool) -> list[Event]:
    """What the servers answered, as events."""
    events = [LOST] if lost else []
    now = time.time_ns()
    for stored, group in groupby(found, lambda one: one.stored):
        blocks = list(group)
        depths = tuple(block.depth for block in blocks) if stored else ()
        events.append(Event("stored" if stored else "removed", namespace, tuple(b.key for b in blocks), depths, now))
    return events


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
