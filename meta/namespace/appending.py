"""Append tokens at one server: who waits for them, and how their holders hear of it.

Who asks for a token that another client has gets in line. The holder hears of it from a request of its own that is held open here, at
once if both ask at the same server; else the one who waits marks the record, and the holder's request looks there each second.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ...proto.errors import StatusError
from ...proto.gen import meta_pb2
from ...proto.rpc import META, Context
from .. import keys
from ..kv.engine import Transaction
from .append import Held, Token, unpack
from .attempt import Task
from .clients import settle_session
from .ops.append import append
from .seams import Clock
from .waiters import Waiters

if TYPE_CHECKING:
    from .namespace import Namespace

RECALL_SECONDS_MAX = 2.0  # scaled: that cutting a file waits for a client that appends to it
PAGE = 1000  # records per read
WATCHED_MAX = 1000  # inodes whose marks one request looks at; a holder of more is slow to hear from other servers


class Recalling:
    """In place of a request's context: a server that waits for itself."""

    cancelled = False
    stopping = False

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._end = clock.now() + seconds

    def remaining(self) -> float:
        return self._end - self._clock.now()


class Appending:
    """Who waits at this server for tokens, and who listens for being asked to give one back."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self.waiters = Waiters(namespace.clock, namespace.time_scale, lambda: namespace.closing)  # by inode
        self.watchers = Waiters(namespace.clock, namespace.time_scale, lambda: namespace.closing)  # by client
        self._wanted: dict[bytes, set[int]] = {}  # holder -> what others wait for, until it has been told

    async def append(self, task: Task, request: meta_pb2.AppendRequest, context: Context) -> meta_pb2.AppendReply:
        """Take the token, in the order of those who ask, or give it back; `waiting` in the reply says that another one still has it. Raises
        SESSION_ENDED, BAD_HANDLE."""
        if request.action != meta_pb2.TOKEN_ACTION_TAKE:
            return await self._try(task, request)
        waiter = self.waiters.join(request.inode, task.client, context)
        line = self.waiters.line(request.inode)
        granted, looks = False, 0
        try:
            while True:
                if line[0] is waiter:
                    try:
                        reply = await self._try(task, request)
                        granted = True
                        return reply
                    except Held as held:
                        await self._recall(request.inode, held.token, marking=looks > 0)
                looks += 1
                if not await self.waiters.wait(waiter):
                    return meta_pb2.AppendReply(waiting=True)
        finally:
            self.waiters.leave(waiter)
            if line and granted:
                self._tell(task.client, request.inode)
            elif line:
                self.waiters.wake(line[0])

    async def recalled(self, inode: int, token: Token) -> bool:
        """Have a token given back, and wait for that; False if that takes longer than the holder may need."""
        request = Recalling(self._namespace.clock, RECALL_SECONDS_MAX * self._namespace.time_scale)
        waiter = self.waiters.join(inode, None, request)
        line = self.waiters.line(inode)
        try:
            await self._recall(inode, token, marking=True)
            key = keys.append_key(inode)
            while await self.waiters.wait(waiter):
                found = await self._namespace.engine.begin().get(key, snapshot=True)
                if found is None or unpack(found)._replace(wanted=False) != token._replace(wanted=False):
                    return True
            return False
        finally:
            self.waiters.leave(waiter)
            if line:
                self.waiters.wake(line[0])

    async def _try(self, task: Task, request: meta_pb2.AppendRequest) -> meta_pb2.AppendReply:
        reply, _ = await self._namespace.change(META.Append, append, task, request)
        return reply

    async def _recall(self, inode: int, token: Token, *, marking: bool) -> None:
        """Ask the holder to give it back; `marking` also in the record, for a holder that listens at another server."""
        self._tell(token.client, inode)
        if not marking or token.wanted:
            return
        key = keys.append_key(inode)

        async def work(txn: Transaction) -> None:
            found = await txn.get(key)
            if found is not None and unpack(found) == token:
                txn.put(key, token._replace(wanted=True).pack())

        await self._namespace.transact(work)

    def _tell(self, holder: bytes, inode: int) -> None:
        self._wanted.setdefault(holder, set()).add(inode)
        for watcher in self.watchers.line(holder):
            self.watchers.wake(watcher)

    async def freed(self, inode: int, holder: bytes) -> None:
        """A token was given back: the first in line may take it."""
        if wanted := self._wanted.get(holder):
            wanted.discard(inode)
            if not wanted:
                del self._wanted[holder]
        if line := self.waiters.line(inode):
            self.waiters.wake(line[0])

    async def watch(
        self, client: bytes, request: meta_pb2.WatchTokensRequest, context: Context
    ) -> meta_pb2.WatchTokensReply:
        """Which of its tokens a client is to give back, as soon as there are any; none when the request's time is up. Raises
        SESSION_ENDED when the client's lease is over."""
        watcher = self.watchers.join(client, None, context)
        try:
            while True:
                self._namespace.clients.require_alive(client)
                wanted = self._wanted.pop(client, set()) | await self._marked(client, request.inodes[:WATCHED_MAX])
                if wanted or not await self.watchers.wait(watcher):
                    return meta_pb2.WatchTokensReply(wanted=sorted(wanted))
        finally:
            self.watchers.leave(watcher)

    async def _marked(self, client: bytes, inodes: Collection[int]) -> set[int]:
        numbers = list(inodes)
        if not numbers:
            return set()
        txn = self._namespace.engine.begin()
        records = await txn.get_many([keys.append_key(number) for number in numbers], snapshot=True)
        tokens = [
            (number, unpack(record)) for number, record in zip(numbers, records, strict=True) if record is not None
        ]
        return {number for number, token in tokens if token.wanted and token.client == client}

    # clients that are gone

    async def clients(self) -> set[bytes]:
        """Those who have tokens."""
        found: set[bytes] = set()
        async for page in self._namespace.pages(*keys.prefix_range(keys.APPEND_TOKEN), PAGE):
            found.update(unpack(value).client for _, value in page)
        return found

    def ended(self, client: bytes) -> None:
        """A client's lease is over: it has nothing to watch any more."""
        for watcher in self.watchers.line(client):
            self.watchers.wake(watcher)

    async def forget(self, ended: Collection[bytes], unsettled: Collection[tuple[bytes, int]]) -> StatusError | None:
        """Free the tokens of clients that are gone, each when the chunks have told the length. The last failure, if storage refused."""
        failure: StatusError | None = None
        for client in ended:
            self._wanted.pop(client, None)
        async for page in self._namespace.pages(*keys.prefix_range(keys.APPEND_TOKEN), PAGE):
            for key, value in page:
                inode, token = keys.inode_of(key), unpack(value)
                if token.client in ended and (token.client, inode) not in unsettled:
                    try:
                        await self._settle(inode, token)
                    except StatusError as refused:
                        failure = refused
        return failure

    async def _settle(self, inode: int, token: Token) -> None:
        await settle_session(self._namespace, inode, token.session)
        key = keys.append_key(inode)

        async def work(txn: Transaction) -> None:
            found = await txn.get(key)
            if found is not None and unpack(found).client == token.client:
                txn.delete(key)

        await self._namespace.transact(work)
        await self.freed(inode, token.client)
