"""What happens in the namespace, for those who watch: a log in the key space, in the order of the commits.

Every transaction that changes names or files puts its events into the log, as long as somebody watches: the time until which is one
key (keys.py, META "events") that every change reads, so from the moment that it is set nothing is missed. Who watches pushes that time
ahead. The log is cut after an hour, and it ends when nobody has watched for ten minutes.

A file that is written is known by its inode alone: it may have many names, or have lost its own.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from ...proto.errors import Status, StatusError, error
from ...proto.gen import meta_pb2
from ...proto.rpc import Context
from .. import keys
from ..kv.engine import Pair, Transaction
from . import path
from .attempt import Attempt, Task
from .ways import Ways

if TYPE_CHECKING:
    from .namespace import Namespace

VERSION = 1
WATCHED_SECONDS = 600  # that a watcher keeps the log going
KEPT_SECONDS = 3600
PAGE = 1024
WAIT_SECONDS_MAX = 30.0
LOOK_SECONDS = 0.1  # between looks for what a watcher waits for; scaled

_RECORD = struct.Struct(">BBqQQQHH")  # version, kind, time_ns, inode, parent, target's parent, lengths of both names
_PLACE = struct.Struct(">H")  # of an event in its transaction


class Event(NamedTuple):
    """One event. A parent of 0: the name is not known."""

    kind: int
    inode: int
    time_ns: int
    parent: int = 0
    name: bytes = b""
    target_parent: int = 0  # of a rename
    target_name: bytes = b""

    def pack(self) -> bytes:
        head = (VERSION, self.kind, self.time_ns, self.inode, self.parent, self.target_parent)
        return _RECORD.pack(*head, len(self.name), len(self.target_name)) + self.name + self.target_name


def unpack(data: bytes) -> Event:
    """Raises BAD_FORMAT for a record of a newer version."""
    version, kind, time_ns, inode, parent, target_parent, length, _ = _RECORD.unpack_from(data)
    if version > VERSION:
        raise keys.refused("an event", version)
    names = data[_RECORD.size :]
    return Event(kind, inode, time_ns, parent, names[:length], target_parent, names[length:])


def is_on(value: bytes | None, now_ns: int) -> bool:
    """Whether events are to be logged, by the key that says until when."""
    return value is not None and keys.counter(value) * 10**9 > now_ns


def write(txn: Transaction, events: list[Event]) -> None:
    """Put the events of one transaction into the log."""
    for place, event in enumerate(events[: 1 << 16]):
        txn.put_versionstamped(keys.EVENT, _PLACE.pack(place), event.pack())


class Events:
    """What watchers are answered, and the end of the log."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    async def read(self, request: meta_pb2.ReadEventsRequest, task: Task, context: Context) -> meta_pb2.ReadEventsReply:
        """The events behind a cookie, waiting for the first one. Raises what is wrong with the place."""
        namespace = self._namespace
        await namespace.transact(self._keep_on)
        root = await self._place(request, task)
        log, position = await self._log(), request.cookie[4:]
        known = request.cookie[:4] == log and position.startswith(keys.EVENT)
        if not known or position < await self._floor():
            return meta_pb2.ReadEventsReply(lost=bool(request.cookie), cookie=log + await self._newest())
        reply = meta_pb2.ReadEventsReply(cookie=position)
        seconds = min(request.wait_ms / 1000, WAIT_SECONDS_MAX, context.remaining() / 2)
        until = namespace.clock.now() + seconds
        while True:
            await self._page(request, task, root, reply)
            if reply.events or namespace.clock.now() >= until or context.cancelled or namespace.closing:
                reply.cookie = log + reply.cookie
                return reply
            await namespace.clock.sleep(LOOK_SECONDS * namespace.time_scale)

    async def _keep_on(self, txn: Transaction) -> None:
        now = self._namespace.clock.wall_ns() // 10**9
        until = keys.counter(await txn.get(keys.EVENTS_UNTIL))
        if until < now:
            txn.add(keys.EVENT_LOG, 1)  # what is left of an older log is not all that happened since
        if until < now + WATCHED_SECONDS / 2:
            txn.put(keys.EVENTS_UNTIL, keys.counter_value(now + WATCHED_SECONDS))

    async def _place(self, request: meta_pb2.ReadEventsRequest, task: Task) -> int:
        async def look(attempt: Attempt, asked: meta_pb2.ReadEventsRequest) -> meta_pb2.Event:
            inode = await path.lookup(attempt, asked.place, follow=True)
            if not inode.is_directory:
                raise error(Status.NOT_DIRECTORY, "events are those of a directory")
            return meta_pb2.Event(inode=inode.id)

        return (await self._namespace.read(look, task, request)).inode

    async def _newest(self) -> bytes:
        return max(await self._last(self._namespace.engine.begin()), await self._floor(), keys.EVENT)

    async def _log(self) -> bytes:
        """Which log it is: the first four bytes of cookies."""
        value = await self._namespace.engine.begin().get(keys.EVENT_LOG, snapshot=True)
        return keys.counter(value).to_bytes(4, "big")

    @staticmethod
    async def _last(txn: Transaction) -> bytes:
        page = await txn.scan(*keys.prefix_range(keys.EVENT), 1, reverse=True, snapshot=True)
        return page[0][0] if page else b""

    async def _floor(self) -> bytes:
        return await self._namespace.engine.begin().get(keys.EVENTS_FLOOR, snapshot=True) or b""

    async def _page(
        self, request: meta_pb2.ReadEventsRequest, task: Task, root: int, reply: meta_pb2.ReadEventsReply
    ) -> None:
        async def select(attempt: Attempt, asked: meta_pb2.ReadEventsRequest) -> meta_pb2.ReadEventsReply:
            limit = min(asked.entries_max or PAGE, PAGE)
            end = keys.prefix_range(keys.EVENT)[1]
            page = await attempt.txn.scan(reply.cookie + b"\0", end, limit, snapshot=True)
            messages = _Messages(attempt, root)
            found = meta_pb2.ReadEventsReply(cookie=page[-1][0] if page else reply.cookie)
            for _, value in page:
                event = await messages.message(unpack(value))
                if event is not None:
                    found.events.append(event)
            return found

        found = await self._namespace.read(select, task, request)
        reply.cookie = found.cookie
        reply.events.extend(found.events)

    async def cut(self) -> bool:
        """Some of what is too old, or of all when nobody watches any more. Whether there was any."""
        namespace = self._namespace
        now_ns = namespace.clock.wall_ns()
        begin, end = keys.prefix_range(keys.EVENT)

        async def work(txn: Transaction) -> list[Pair]:
            until = await txn.get(keys.EVENTS_UNTIL)
            page = await txn.scan(begin, end, PAGE, snapshot=True)
            oldest_ns = now_ns - KEPT_SECONDS * 10**9 if is_on(until, now_ns) else now_ns
            old = [(key, value) for key, value in page if unpack(value).time_ns < oldest_ns]
            for key, _ in old:
                txn.delete(key)
            if old:
                txn.put(keys.EVENTS_FLOOR, old[-1][0])
            return old

        return bool(await namespace.transact(work))


class _Messages:
    """Paths of directories, each looked for once a page."""

    def __init__(self, attempt: Attempt, root: int) -> None:
        self._attempt = attempt
        self._root = root
        self._inside = {0: False, path.ROOT: False, root: True}
        self._ways = Ways(attempt)

    async def message(self, event: Event) -> meta_pb2.Event | None:
        """The event as its watcher is told it; None where it is not below his directory."""
        made = meta_pb2.Event(kind=event.kind, inode=event.inode, time_ns=event.time_ns)  # type: ignore[arg-type]
        if not event.parent:
            return made  # nobody knows where it is
        here = await self._is_inside(event.parent)
        there = bool(event.target_parent) and await self._is_inside(event.target_parent)
        if not here and not there:
            return None
        made.path = await self._path(event.parent, event.name)
        if event.target_parent:
            made.target = await self._path(event.target_parent, event.target_name)
        return made

    async def _is_inside(self, number: int) -> bool:
        if self._root == path.ROOT:
            return True
        way: list[int] = []
        while (inside := self._inside.get(number)) is None:  # a loop: trees may be deeper than the interpreter's stack
            way.append(number)
            number = await self._above(number)
        self._inside.update(dict.fromkeys(way, inside))
        return inside

    async def _above(self, number: int) -> int:
        try:
            return (await path.directory(self._attempt, number)).parent
        except StatusError:
            return 0  # it is gone

    async def _path(self, directory: int, name: bytes) -> bytes:
        return (await self._ways.to(directory)).rstrip(b"/") + b"/" + name
