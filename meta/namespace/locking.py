"""Locks of one server: requests that wait for them, and what is left of clients that are gone.

The truth is in the engine: any server may grant or release any lock, in a transaction (`ops/lock.py`). This is what happens around
those. A request that finds the lock taken gets in line (`waiters.py`), says in the engine what it waits for unless that would be a
deadlock (`deadlock.py`), and tries again when somebody let go. After a few seconds it is answered all the same, and the client asks again:
so a wait outlives servers, and a client that is gone waits nowhere.

**Kept locks.** A client that holds metadata leases may keep what its processes have given back (client/core/kept.py). Here such a lock is
one like any other, so nothing that is lost can give a lock to two. But whoever is in the way is asked first whether he needs it,
and answers when he has given back what he does not need; for a while he keeps nothing of this inode then, and is not asked again.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from ...proto.errors import Status, StatusError, error
from ...proto.gen import meta_pb2
from ...proto.rpc import META, Context
from .. import keys
from ..kv.engine import Transaction
from . import deadlock, locks
from .attempt import Attempt, Task
from .locks import Lock, Table
from .ops import lock as ops
from .waiters import Waiters

if TYPE_CHECKING:
    from .namespace import Namespace

PAGE = 1000  # records per read
WITHDRAWN_MAX = 20_000  # requests that are remembered as given up; the oldest is forgotten
EXACT_SECONDS = (
    8.0  # that a client which has answered is not asked again; it keeps nothing for longer than this; scaled
)
MUTE_SECONDS = 1.0  # the same of one that has not answered; scaled
EXACT_MAX = 10_000  # (inode, client) of which that is known


class Locking:
    """See the module."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self.waiters = Waiters(namespace.clock, namespace.time_scale, lambda: namespace.closing)
        self._withdrawn: dict[tuple[bytes, int, int], None] = {}  # (client, owner, number), in order
        self._recalls = Waiters(namespace.clock, namespace.time_scale, lambda: namespace.closing)
        self._exact: dict[
            tuple[int, bytes], float
        ] = {}  # (inode, client) -> until when it keeps nothing that it does not need

    async def lock(self, task: Task, request: meta_pb2.LockRequest, context: Context) -> meta_pb2.LockReply:
        """Grant or release a lock; `waiting` in the reply says that it is still taken. Raises WOULD_BLOCK when it is taken and the
        request does not wait, DEADLOCK, NO_LOCKS, CANCELLED for one that was withdrawn."""
        if request.recalled:
            self._answered(request.inode, task.client)
            return meta_pb2.LockReply()
        if request.withdraw:
            self._withdraw(task.client, request)
        if request.wait:
            return await self._wait(task, request, context)
        try:
            try:
                return await self._try(task, request)
            except ops.Blocked as blocked:
                if not await self._recalled(blocked.table, ops.wanted(task.client, request), request.inode, context):
                    raise
            return await self._try(task, request)
        except ops.Blocked as blocked:
            await self._lose(task, request, blocked)
            held = blocked.obstacle
            raise error(
                Status.WOULD_BLOCK, f"inode {request.inode:x} is locked by pid {held.pid} of another owner"
            ) from None

    async def test(self, task: Task, request: meta_pb2.TestLockRequest, context: Context) -> meta_pb2.TestLockReply:
        """Who would be in the way of a lock."""
        reply: meta_pb2.TestLockReply = await self._namespace.read(ops.test_lock, task, request)
        if not reply.type:
            return reply
        record = await self._namespace.engine.begin().get(keys.lock_key(request.inode), snapshot=True)
        wanted = ops.wanted(task.client, request)
        if await self._recalled(locks.unpack(record), wanted, request.inode, context):
            reply = await self._namespace.read(ops.test_lock, task, request)
        return reply

    async def _recalled(self, table: Table, wanted: Lock, inode: int, context: Context) -> bool:
        """Ask the clients that are in the way whether they need what they have. Whether any was asked, and has answered or had its time."""
        if wanted.kind != locks.POSIX:
            return False  # these are not kept
        now, scale = self._namespace.clock.now(), self._namespace.time_scale
        asked = [
            client
            for client in {held.client for held in locks.blockers(table, wanted)} - {wanted.client}
            if self._exact.get((inode, client), 0.0) <= now and self._namespace.leases.recall_locks(client, inode)
        ]
        if not asked:
            return False
        waiter = self._recalls.join(inode, asked, context)
        try:
            await self._recalls.wait(waiter)
        finally:
            self._recalls.leave(waiter)
        now = self._namespace.clock.now()
        for client in asked:
            if self._exact.get((inode, client), 0.0) <= now:
                self._note_exact(inode, client, MUTE_SECONDS * scale)
        return True

    def _answered(self, inode: int, client: bytes) -> None:
        self._note_exact(inode, client, EXACT_SECONDS * self._namespace.time_scale)
        now = self._namespace.clock.now()
        for waiter in self._recalls.line(inode):
            if all(self._exact.get((inode, each), 0.0) > now for each in waiter.what):
                self._recalls.wake(waiter)

    def _note_exact(self, inode: int, client: bytes, seconds: float) -> None:
        if len(self._exact) >= EXACT_MAX:
            self._exact.clear()  # they are asked once more
        self._exact[inode, client] = self._namespace.clock.now() + seconds

    async def _try(self, task: Task, request: meta_pb2.LockRequest) -> meta_pb2.LockReply:
        asked = (task.client, request.owner, request.number)

        async def operation(attempt: Attempt, request: meta_pb2.LockRequest) -> meta_pb2.LockReply:
            # Looked at in each attempt: the withdrawal may overtake the request, or come while it commits.
            if asked in self._withdrawn:
                raise error(Status.CANCELLED, "the client gave this request up")
            return await ops.lock(attempt, request)

        reply, _ = await self._namespace.change(META.Lock, operation, task, request)
        return reply

    def _withdraw(self, client: bytes, request: meta_pb2.LockRequest) -> None:
        """From now on this request is granted nothing: what its client does next must not be undone by it."""
        if len(self._withdrawn) >= WITHDRAWN_MAX:
            del self._withdrawn[next(iter(self._withdrawn))]
        self._withdrawn[client, request.owner, request.withdraw] = None
        for waiter in self.waiters.line(request.inode):
            if waiter.what.whose == (client, request.owner):
                self.waiters.wake(waiter)

    async def _wait(self, task: Task, request: meta_pb2.LockRequest, context: Context) -> meta_pb2.LockReply:
        wanted = ops.wanted(task.client, request)
        waiter = self.waiters.join(request.inode, wanted, context)  # first, so that nobody lets go unheard
        recorded = granted = False
        try:
            while True:
                try:
                    reply = await self._try(task, request)
                    granted = True
                    return reply
                except ops.Blocked as blocked:
                    await self._lose(task, request, blocked)
                    if await self._recalled(blocked.table, wanted, request.inode, context):
                        continue
                if request.kind == locks.POSIX and not recorded:
                    recorded = await self._record(request, wanted)
                    if not recorded:
                        continue  # it has become free
                if not await self.waiters.wait(waiter):
                    return meta_pb2.LockReply(waiting=True)
        finally:
            self.waiters.leave(waiter)
            if not granted:
                with suppress(StatusError):  # a record that stays is withdrawn by the client, or goes with it
                    await self._gave_up(request, wanted, recorded=recorded)

    async def _lose(self, task: Task, request: meta_pb2.LockRequest, blocked: ops.Blocked) -> None:
        """As flock(2): a lock that cannot be converted at once is lost. Two that wait to convert theirs would wait for ever."""
        owner = (task.client, request.owner)
        if request.kind == locks.FLOCK and locks.of_owner(blocked.table, locks.FLOCK, owner):
            await self._let_go(request.inode, ops.wanted(task.client, request))

    async def _record(self, request: meta_pb2.LockRequest, wanted: Lock) -> bool:
        """Say in the engine what is waited for; False if nothing is in the way any more. Raises DEADLOCK."""
        key = keys.lock_wait_key(wanted.client, wanted.owner, request.number)

        async def work(txn: Transaction) -> bool:
            table = locks.unpack(await txn.get(keys.lock_key(request.inode)))
            if locks.conflict(table, wanted) is None:
                return False
            if await deadlock.would_close(txn, table, wanted):
                text = f"inode {request.inode:x}: whoever holds this lock waits, directly or not, for one that this owner holds"
                raise error(Status.DEADLOCK, text)
            txn.put(key, deadlock.pack(request.inode, wanted))
            return True

        return await self._namespace.transact(work)

    async def _gave_up(self, request: meta_pb2.LockRequest, wanted: Lock, *, recorded: bool) -> None:
        key = keys.lock_wait_key(wanted.client, wanted.owner, request.number)

        async def work(txn: Transaction) -> None:
            txn.delete(key)

        if recorded:
            await self._namespace.transact(work)
        if self.waiters.line(request.inode):  # perhaps it was this one's turn
            await self.look(request.inode)

    async def _let_go(self, inode: int, unwanted: Lock) -> None:
        async def work(txn: Transaction) -> Table:
            table = locks.release(locks.unpack(await txn.get(keys.lock_key(inode))), unwanted)
            ops.put(txn, inode, table)
            return table

        await self.changed(inode, await self._namespace.transact(work))

    # waking

    async def changed(self, inode: int, table: Table) -> None:
        """The locks of an inode are these now: wake those who may get theirs, each as if those before it had got theirs."""
        for waiter in list(self.waiters.line(inode)):
            wanted: Lock = waiter.what
            if locks.conflict(table, wanted) is None:
                table = (*table, wanted)
                self.waiters.wake(waiter)

    async def look(self, inode: int) -> None:
        """`changed`, by what the engine says."""
        record = await self._namespace.engine.begin().get(keys.lock_key(inode), snapshot=True)
        await self.changed(inode, locks.unpack(record))

    # clients that are gone

    async def clients(self) -> set[bytes]:
        """Those who hold locks."""
        found: set[bytes] = set()
        async for page in self._namespace.pages(*keys.prefix_range(keys.LOCK), PAGE):
            found.update(held.client for _, value in page for held in locks.unpack(value))
        return found

    async def forget(self, ended: Collection[bytes], unsettled: Collection[tuple[bytes, int]]) -> None:
        """Drop the locks and waits of clients that are gone, but not where a client's writes to the inode are `unsettled` yet (client,
        inode): the next one to get the lock must find the true length."""
        async for page in self._namespace.pages(*keys.prefix_range(keys.LOCK), PAGE):
            for key, value in page:
                inode = keys.inode_of(key)
                gone = {client for client in ended if (client, inode) not in unsettled}
                if any(held.client in gone for held in locks.unpack(value)):
                    await self._drop(inode, gone)
        for client in ended:
            await self._drop_waits(client)

    async def _drop(self, inode: int, gone: Collection[bytes]) -> None:
        async def work(txn: Transaction) -> Table:
            table = locks.without_clients(locks.unpack(await txn.get(keys.lock_key(inode))), gone)
            ops.put(txn, inode, table)
            return table

        await self.changed(inode, await self._namespace.transact(work))

    async def _drop_waits(self, client: bytes) -> None:
        begin, end = keys.lock_waits_of(client)
        if not await self._namespace.engine.begin().scan(begin, end, 1, snapshot=True):
            return

        async def work(txn: Transaction) -> None:
            txn.delete_range(begin, end)

        await self._namespace.transact(work)
