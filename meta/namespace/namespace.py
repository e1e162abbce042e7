"""The namespace of one server: what operations share, how they are run, and the workers in the background."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import structlog
from google.protobuf.message import Message

from ...proto.errors import Status, StatusError, error
from ...proto.gen.cluster_pb2 import RenewClientReply, RenewClientRequest
from ...proto.ids import FIRST_INODE, ROOT_INODE, new_u64
from ...proto.rpc import Method
from ...proto.settings import time_scale
from .. import keys
from ..kv import retry
from ..kv.engine import Engine, Pair, Transaction
from . import events, idempotency, quota
from . import inode as inodes
from .allocate import INODES_PER_RANGE, PLACES_PER_RANGE, RangeAllocator
from .appending import Appending
from .attempt import Attempt, Detour, Task
from .clients import Clients, gone, require_wanted
from .directories import Memory, View
from .gc import Collector
from .inode import Inode
from .leases import Leases
from .locking import Locking
from .projects import Recounter
from .seams import Capabilities, Chunks, Clock, Layout, Layouts

STRIPE_DEFAULT = 16  # chains that a file is spread over, unless its directory says otherwise
DETOURS_MAX = 16  # of one request; each waits for storage, so this is about livelock
ROOT_MODE = 0o755
FAILED_SECONDS = 5.0  # before a background worker tries again what storage or the engine refused; scaled

_log = structlog.get_logger("emberfs.meta")

_Request = TypeVar("_Request", bound=Message)
_Reply = TypeVar("_Reply", bound=Message)
_Result = TypeVar("_Result")

Operation = Callable[[Attempt, _Request], Awaitable[_Reply]]


class Namespace:
    """See the module. `start` it before use."""

    def __init__(
        self,
        engine: Engine,
        chunks: Chunks,
        layouts: Layouts,
        capabilities: Capabilities,
        clock: Clock,
        *,
        random_u64: Callable[[], int] | None = None,
        trash_seconds: int = 0,
        inline_max: Callable[[], int] = lambda: 0,
    ) -> None:
        self.engine = engine
        self.chunks = chunks
        self.layouts = layouts
        self.capabilities = capabilities
        self.clock = clock
        # Of sessions: told apart by their inode too, so nobody need be unable to guess the next one.
        self.random_u64 = random_u64 or itertools.count(new_u64() >> 1).__next__
        self.time_scale = time_scale()
        self.trash_seconds = trash_seconds  # that what is removed is kept, where its directory does not say
        self.inline_max = inline_max  # bytes of files that lie beside their inodes
        self.closing = False
        self.in_charge: Callable[[], bool] = lambda: True  # of the background work: of several servers only one is
        self.memory = Memory()
        self.inode_numbers = RangeAllocator(engine, clock, b"inode", INODES_PER_RANGE, first=FIRST_INODE)
        self.places = RangeAllocator(engine, clock, b"chain", PLACES_PER_RANGE, durable=False)
        self.collector = Collector(self)
        self.locking = Locking(self)
        self.recounter = Recounter(self)
        self.events = events.Events(self)
        self.appending = Appending(self)
        self.clients = Clients(self)
        self.leases = Leases(engine, clock, self.time_scale, lambda: self.closing)

    # life

    async def start(self, owner: tuple[int, int] = (0, 0)) -> None:
        """Make the namespace, with a root directory of that user and group, or take up the one that is there. Raises BAD_FORMAT for
        one that a newer emberfs wrote."""

        async def work(txn: Transaction) -> bool:
            found, clean = await txn.get_many([keys.FORMAT, keys.CLEAN])
            if found is None:
                self._make(txn, owner)
                return True
            if (version := int.from_bytes(found, "big")) > keys.KEY_SPACE_VERSION:
                raise keys.refused("the namespace", version)
            txn.delete(keys.CLEAN)
            return clean is not None

        if not await retry.run(self.engine, work, self.clock, durable=True):
            await self.inode_numbers.reserve()  # the last server did not close: skip what it may have given out
        await self.clients.load()

    def _make(self, txn: Transaction, owner: tuple[int, int]) -> None:
        now_ns = self.clock.wall_ns()
        root = Inode(ROOT_INODE, inodes.DIRECTORY, 0, ROOT_MODE, *owner, 1, 0, now_ns, now_ns, now_ns, now_ns, 1, 0)
        root.parent = ROOT_INODE
        txn.put(keys.inode_key(root.id), root.pack())
        txn.add(keys.INODES_USED, 1)
        quota.appeared(txn, root)
        txn.put(keys.FORMAT, keys.KEY_SPACE_VERSION.to_bytes(2, "big"))

    async def take_charge(self) -> None:
        """This server does the background work from now on: which client holds what is read anew."""
        await self.clients.load()

    def run_workers(self) -> None:
        """Start the background workers. They rest while another server is in charge."""
        self.clock.spawn(self.collector.run, "garbage")
        self.clock.spawn(self.clients.run, "clients")
        self.clock.spawn(self.recounter.run, "quotas")

    async def close(self) -> None:
        """Stop the workers (each ends after the step it is in) and record the clean stop. The engine stays open."""
        self.closing = True

        async def work(txn: Transaction) -> None:
            txn.put(keys.CLEAN, b"\x01")

        await retry.run(self.engine, work, self.clock, durable=True)

    # what the manager tells and asks

    async def renewed(self, client: bytes, report: RenewClientRequest) -> RenewClientReply:
        """A client renewed its lease and said what it holds open and which replies it has; what it is told in return."""
        return await self.clients.renewed(client, report)

    def client_ended(self, client: bytes) -> None:
        """A client is gone, and storage refuses its writes: its files are settled and its records go, in the background."""
        self.clients.ended(client)

    async def session_clients(self) -> list[bytes]:
        """The clients that have sessions or open files here (after a restart each gets one lease time to renew)."""
        return await self.clients.with_records()

    async def counts(self) -> tuple[int, int]:
        """(inodes, what is still to be cleaned up: records in the garbage queues, and clients that have ended)."""
        used = keys.counter(await self.engine.begin().get(keys.INODES_USED, snapshot=True))
        return max(0, used), await self.collector.pending() + self.clients.pending

    # running operations

    async def read(self, operation: Operation[_Request, _Reply], task: Task, request: _Request) -> _Reply:
        """Run an operation that changes nothing, on one snapshot."""
        try:
            return await self._read(operation, task, request, shared=True)
        except StatusError as failure:
            if failure.status is not Status.STALE_HANDLE:
                raise
        return await self._read(operation, task, request, shared=False)  # as in `change`

    async def _read(
        self, operation: Operation[_Request, _Reply], task: Task, request: _Request, shared: bool
    ) -> _Reply:
        txn = self.engine.begin()
        version = keys.counter(await txn.get(keys.DIRECTORY_VERSION, snapshot=True))
        view = self.memory.view(version) if shared else View(version)
        return await operation(Attempt(self, txn, task, view, reading=True), request)

    async def change(
        self,
        method: Method,
        operation: Operation[_Request, _Reply],
        task: Task,
        request: _Request,
        *,
        durable: bool = False,
    ) -> tuple[_Reply, bool]:
        """Run an operation that changes something, exactly once by (client, request id). The reply, and whether it is a repeated
        one. Raises what the operation raises, SESSION_ENDED for a client that is gone, and CONFLICT or MAYBE_COMMITTED: the same
        request may be sent again."""
        self.clients.require_alive(task.client)
        request_id: int = request.request_id  # type: ignore[attr-defined]  # every request that changes something has one
        key = keys.idempotency_key(task.client, request_id)
        asked = [
            key,
            keys.DIRECTORY_VERSION,
            keys.ended_client_key(task.client),
            keys.acknowledged_key(task.client),
            keys.EVENTS_UNTIL,
        ]
        shared = True  # whether to use what others have learned about directories

        async def work(txn: Transaction) -> tuple[_Reply, bool, Attempt | None]:
            if self.leases.watching:
                self.leases.on_behalf(txn, task)
            done, version, ended, acknowledged, events_until = await txn.get_many(asked)
            if ended is not None:
                raise gone()
            if done is not None and request_id:
                return _repeat(method, await idempotency.complete(txn, key, done)), True, None
            if request_id:
                require_wanted(acknowledged, request_id)
            nonlocal shared
            view = self.memory.view(keys.counter(version)) if shared else View(keys.counter(version))
            attempt = Attempt(self, txn, task, view, reading=False)
            if events_until is not None and events.is_on(events_until, attempt.now_ns):
                attempt.events = []
            try:
                reply = await operation(attempt, request)
            except StatusError as failure:
                if failure.status is not Status.STALE_HANDLE or not shared:
                    raise
                # A directory that was made after our snapshot does not change DIRV: others remember it, and we do not find its inode.
                shared = False
                raise error(Status.CONFLICT, "a directory is younger than this transaction") from failure
            if request_id:
                done_now = idempotency.Done(method.number, attempt.now_ns, reply.SerializeToString())
                idempotency.write(txn, key, done_now)
            if attempt.events:
                events.write(txn, [events.Event(*each) for each in attempt.events])
            return reply, False, attempt

        for _ in range(DETOURS_MAX):
            try:
                reply, repeated, attempt = await retry.run(self.engine, work, self.clock, durable=durable)
            except Detour as detour:
                await detour.take(self, task)
                continue
            for step in attempt.after if attempt is not None else ():
                await step()
            if task.told:
                await self.clock.sleep(0)  # the holders of leases hear of it before the one that has done it
            return reply, repeated
        raise error(Status.CONFLICT, f"{method.name}: the file is truncated again and again meanwhile; try again")

    async def repeat(
        self, step: Callable[[], Awaitable[object]], what: str, idle: float, *, at_once: bool = False
    ) -> None:
        """Run a background worker's step again and again until the namespace closes, while this server is in charge, `idle` seconds
        apart; `at_once`: without a pause while it says that it found something. A refusal is logged, and tried again later."""
        while not self.closing:
            pause = idle
            try:
                if self.in_charge() and await step() and at_once:
                    pause = 0.0
            except StatusError as failure:
                if self.closing:
                    return
                _log.warning(f"{what} is delayed", error=str(failure))
                pause = FAILED_SECONDS * self.time_scale
            await self.clock.sleep(pause)

    async def transact(self, work: Callable[[Transaction], Awaitable[_Result]], task: Task | None = None) -> _Result:
        """A transaction of a background worker, in the retry loop. With a `task` it is part of what that request asks for: who asked holds
        his leases on, since its reply tells him what there is to know."""
        if task is None or not self.leases.watching:
            return await retry.run(self.engine, work, self.clock)
        part = Task(task.caller, task.client, session=task.session)

        async def owned(txn: Transaction) -> _Result:
            self.leases.on_behalf(txn, part)
            return await work(txn)

        result = await retry.run(self.engine, owned, self.clock)
        task.told = task.told or part.told
        return result

    async def transact_if(self, work: Callable[[Transaction], Awaitable[bool]], task: Task | None = None) -> bool:
        """The same, committed only if the work says so."""

        async def guarded(txn: Transaction) -> bool:
            if not await work(txn):
                raise _Unwanted
            return True

        try:
            return await self.transact(guarded, task)
        except _Unwanted:
            return False

    async def pages(self, begin: bytes, end: bytes, size: int) -> AsyncIterator[list[Pair]]:
        """A range in pages, each on a snapshot of its own; requests come in between."""
        while True:
            page = await self.engine.begin().scan(begin, end, size, snapshot=True)
            if page:
                yield page
            if len(page) < size:
                return
            begin = page[-1][0] + b"\0"
            await self.clock.sleep(0)

    async def new_layout(self, inode: int, chunk_size: int, stripe: int) -> Layout:
        """The layout of a new file: the next place of the newest chain table. Raises UNAVAILABLE without storage."""
        table, version, chains = self.layouts.table()
        place = await self.places.take()
        width = min(stripe or STRIPE_DEFAULT, chains)
        return Layout(0, chunk_size, table, version, place % chains, width, inode)


class _Unwanted(Exception):
    """The work of a conditional transaction decided against it."""


def _repeat(method: Method, done: idempotency.Done) -> Any:
    idempotency.check_same(done, method.number)
    return method.reply.FromString(done.reply)
