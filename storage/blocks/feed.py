"""What came and went, for who sends requests where their blocks are (BlockEvents).

A ring of events for the whole process, which is filled only while somebody asks. Numbers go on from the time at which the process was
started, so that who asks a new process after an event of an old one is told that events are lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple
from weakref import WeakSet

from ...proto.env import Environment
from ...proto.gen.kvcache_pb2 import BlockEventsReply
from .store import Store

EVENTS_MAX = 1 << 16  # of all namespaces; older ones are forgotten
EVENTS_PER_REPLY_MAX = 4096
IDLE_SECONDS = 60.0  # after the last question nothing is remembered any more

GONE = -1


class _Event(NamedTuple):
    namespace: int
    key: bytes
    depth: int  # GONE: it went


class _Ear:
    """Follows the directory of one target."""

    def __init__(self, feed: Feed, store: Store) -> None:
        self._feed = feed
        self._store = store

    def inserted(self, blocks: Sequence[int]) -> None:
        if self._feed.is_open and self._store.is_head:
            directory = self._store.directory
            for block in blocks:
                self._feed.note(directory.namespace[block], directory.keys[block], directory.depth[block])

    def removed(self, block: int) -> None:
        if not self._feed.is_open or not self._store.is_head:
            return
        directory = self._store.directory
        namespace, key = directory.namespace[block], directory.keys[block]
        # Otherwise it was put anew before the old one was gone.
        if directory.shelf(namespace).slots.get(key, block) == block:
            self._feed.note(namespace, key, GONE)


class Feed:
    """Of one storage process."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._events: deque[_Event] = deque(maxlen=EVENTS_MAX)
        self._last = env.wall_ns()
        self._asked = float("-inf")
        self._followed: WeakSet[Store] = WeakSet()

    @property
    def is_open(self) -> bool:
        """Whether somebody has asked lately."""
        return self._env.now() < self._asked + IDLE_SECONDS

    def note(self, namespace: int, key: bytes, depth: int) -> None:
        self._events.append(_Event(namespace, key, depth))
        self._last += 1

    def answer(self, namespace: int, after: int, stores: Iterable[Store]) -> BlockEventsReply:
        """The events of a namespace after this one."""
        if not self.is_open:
            self._events.clear()
            self._last += 1  # there may have been events: whoever asked before has lost them
        self._asked = self._env.now()
        for store in stores:
            if store not in self._followed:
                self._followed.add(store)
                store.directory.followers.append(_Ear(self, store))
        first = self._last - len(self._events)  # number of the event before the oldest
        if not after or not first <= after <= self._last:
            return BlockEventsReply(last=self._last, lost=bool(after))
        due = list(islice(self._events, after - first, after - first + EVENTS_PER_REPLY_MAX))
        mine = [event for event in due if event.namespace == namespace]
        return BlockEventsReply(
            last=after + len(due),
            keys=b"".join([event.key for event in mine]),
            stored=bytes([event.depth != GONE for event in mine]),
            depth=[max(event.depth, 0) for event in mine],
        )
