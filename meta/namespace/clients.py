"""What clients leave behind: replies they have received, files they held open, sessions of those that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...proto.errors import Status, StatusError, error
from ...proto.gen.cluster_pb2 import RenewClientReply, RenewClientRequest
from .. import keys
from ..kv.engine import Transaction
from . import events, idempotency, quota, session, trim
from . import inode as inodes
from .happenings import WRITTEN
from .inode import Inode
from .readers import Readers

if TYPE_CHECKING:
    from .namespace import Namespace

IDLE_SECONDS = 0.5
SWEEP_SECONDS = 600.0  # between looks at all idempotency records
TRIMS_SECONDS = 30.0  # between looks for trims that a request, or another server, left unfinished
PAGE = 1000  # records per read
ENDED_MAX = 100_000  # clients waiting to be cleaned up after
GONE_MAX = 200_000  # clients that are remembered as gone; the oldest is forgotten


class Clients:
    """Housekeeping by client. One worker: ended clients first, then unfinished trims, then old records."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self.readers = Readers(namespace)
        self._acknowledged: dict[bytes, int] = {}
        self._renewals: dict[bytes, int] = {}  # the newest of each client
        self._renewing: set[bytes] = set()
        self._ended: dict[bytes, None] = {}  # to be cleaned up after, in order
        self._gone: dict[bytes, None] = {}  # whose requests are refused, in order
        self._swept = 0.0
        self._trimmed = -1e9  # when we last looked for unfinished trims

    async def load(self) -> None:
        """Read which client holds what (at start)."""
        await self.readers.load()
        self._swept = self._namespace.clock.now()

    async def renewed(self, client: bytes, report: RenewClientRequest) -> RenewClientReply:
        """A lease renewal: what the client holds open for reading, and up to which request it has the replies. Raises BUSY while another
        one of the same client is being written down."""
        if client in self._renewing:
            raise error(Status.BUSY, "an earlier renewal is still being written down; renew again")
        if not report.renewal or report.renewal > self._renewals.get(client, 0):
            # Else a late copy of a report, from before a pause of this server: what it does not list may be open by now.
            self._renewals[client] = report.renewal
            self._renewing.add(client)
            try:
                await self.readers.learn(client)
                await self._take(client, report)
            finally:
                self._renewing.discard(client)
        return await self.readers.answer(client)

    async def _take(self, client: bytes, report: RenewClientRequest) -> None:
        change = self.readers.change(client, report.open_inodes, report.reported)
        acknowledged, last = report.acknowledged_request, self._acknowledged.get(client, 0)
        if change is None and acknowledged <= last:
            return

        async def work(txn: Transaction) -> None:
            if change is not None:
                self.readers.write(txn, change)
            if acknowledged > last:
                txn.delete_range(*keys.idempotency_range(client, acknowledged))
                txn.put(keys.acknowledged_key(client), keys.counter_value(acknowledged))

        await self._namespace.transact(work)
        self._acknowledged[client] = max(acknowledged, last)
        if change is not None:
            self.readers.written(change)

    def ended(self, client: bytes) -> None:
        """The client's lease is over: clean up after it, in the background. Its writes must already be refused by storage."""
        if len(self._ended) < ENDED_MAX:  # beyond that a restart finds them by their records
            self._ended[client] = None
        if len(self._gone) >= GONE_MAX:
            del self._gone[next(iter(self._gone))]
        self._gone[client] = None
        self._namespace.appending.ended(client)

    def require_alive(self, client: bytes) -> None:
        """Raise SESSION_ENDED for a client that is gone, as far as this server has heard. (The transactions look into the engine.)"""
        if client in self._gone:
            raise gone()

    @property
    def pending(self) -> int:
        """Ended clients that are not cleaned up after yet."""
        return len(self._ended)

    async def with_records(self) -> list[bytes]:
        """The clients that have sessions here or may have files open for reading."""
        namespace = self._namespace
        found = await self.readers.clients() | await namespace.locking.clients() | await namespace.appending.clients()
        begin, end = keys.prefix_range(keys.SESSION)
        async for page in self._namespace.pages(begin, end, PAGE):
            found.update(session.unpack(value).client for _, value in page)
        return sorted(found)

    async def run(self) -> None:
        """Work until the namespace closes. An error is logged and tried again later."""
        namespace = self._namespace
        await namespace.repeat(self.step, "cleaning up after clients", IDLE_SECONDS * namespace.time_scale)

    async def step(self) -> None:
        """All that is to be done now. What fails does not hold up the rest: a chain that is down concerns only the files on it. Raises
        the last failure."""
        failure: StatusError | None = None
        now = self._namespace.clock.now()
        if now - self._swept >= SWEEP_SECONDS * self._namespace.time_scale:
            await self.sweep()
        if ended := set(self._ended):
            failure = await self._clean_up(ended)
        if now - self._trimmed >= TRIMS_SECONDS * self._namespace.time_scale:
            failure = await self._finish_trims() or failure
            self._trimmed = now
        if failure is not None:
            raise failure

    async def _clean_up(self, ended: set[bytes]) -> StatusError | None:
        failure: StatusError | None = None
        begin, end = keys.prefix_range(keys.SESSION)
        left: set[tuple[bytes, int]] = set()  # client and inode of sessions that could not be settled
        async for page in self._namespace.pages(begin, end, PAGE):
            for key, value in page:
                if (client := session.unpack(value).client) in ended:
                    try:
                        await settle_session(self._namespace, *keys.split_session_key(key))
                    except StatusError as refused:
                        failure = refused
                        left.add((client, keys.inode_of(key)))
        failure = await self._namespace.appending.forget(ended, left) or failure
        await self._namespace.locking.forget(ended, left)
        unsettled = {client for client, _ in left}
        for client in sorted(ended):
            await self.readers.forget(client)
            await self._forget_requests(client)
            self._acknowledged.pop(client, None)
            self._renewals.pop(client, None)
            if client not in unsettled:
                self._ended.pop(client, None)
        return failure

    async def settle_own(self, client: bytes, keep: frozenset[int]) -> int:
        """End the sessions that a process of this client left behind when it died, but not these; and free its tokens to append. How
        many there were. Raises what storage raises: asking again is harmless."""
        failure: StatusError | None = None
        left: set[tuple[bytes, int]] = set()
        settled = 0
        begin, end = keys.prefix_range(keys.SESSION)
        async for page in self._namespace.pages(begin, end, PAGE):
            for key, value in page:
                inode, number = keys.split_session_key(key)
                if number not in keep and session.unpack(value).client == client:
                    try:
                        await settle_session(self._namespace, inode, number)
                        settled += 1
                    except StatusError as refused:
                        failure = refused
                        left.add((client, inode))
        failure = await self._namespace.appending.forget({client}, left) or failure
        if failure is not None:
            raise failure
        return settled

    async def _forget_requests(self, client: bytes) -> None:
        begin, end = keys.idempotency_range(client)
        txn = self._namespace.engine.begin()
        known = await txn.get(keys.acknowledged_key(client), snapshot=True)
        if known is None and not await txn.scan(begin, end, 1, snapshot=True):
            return

        async def work(txn: Transaction) -> None:
            txn.delete_range(begin, end)
            txn.delete(keys.acknowledged_key(client))

        await self._namespace.transact(work)

    async def _finish_trims(self) -> StatusError | None:
        # A trim that is under way in a request is done twice, harmlessly; one that failed is taken up here.
        failure: StatusError | None = None
        begin, end = keys.prefix_range(keys.TRIM)
        async for page in self._namespace.pages(begin, end, PAGE):
            for key, _ in page:
                try:
                    await trim.finish(self._namespace, keys.inode_of(key))
                except StatusError as refused:
                    failure = refused
        return failure

    async def sweep(self) -> None:
        """Drop idempotency records that nobody will ask for any more, whoever's they are."""
        now_ns = self._namespace.clock.wall_ns()
        begin, end = keys.prefix_range(keys.IDEMPOTENCY)
        async for page in self._namespace.pages(begin, end, PAGE):
            old = [key for key, value in page if idempotency.expired(value, now_ns)]

            async def work(txn: Transaction, old: list[bytes] = old) -> None:
                for key in old:
                    txn.delete(key)

            if old:
                await self._namespace.transact(work)
        self._swept = self._namespace.clock.now()


def _may_have_a_name(inode: Inode) -> bool:
    """Now, or when it comes back from the trash."""
    return inode.nlink > 0 or bool(inode.flags & inodes.TRASH)


def gone() -> StatusError:
    """A late request of a client that is gone must not be carried out: it may have been before, and the record of that is gone too."""
    return error(Status.SESSION_ENDED, "this client's lease ran out; connect again under a new client id")


def require_wanted(acknowledged: bytes | None, request_id: int) -> None:
    """Raise DUPLICATE for a request whose reply the client has: a late copy, that waited in the buffer of an old connection, perhaps to
    another server. There is no record of it any more, and carrying it out again would undo what came after it."""
    if request_id <= keys.counter(acknowledged):
        raise error(Status.DUPLICATE, f"request {request_id} was answered before, and its client has the answer")


async def settle_session(namespace: Namespace, number: int, session_number: int) -> None:
    """End the session of a writer that is gone: the file is as long as its chunks say, under the current truncate version. Raises what
    storage raises; the session then stays, and the chunks with it."""
    record = await namespace.engine.begin().get(keys.inode_key(number), snapshot=True)
    version, end = -1, 0
    if record is not None and _may_have_a_name(inodes.unpack(number, record)):
        try:
            version, end = await trim.measure(namespace, number)
        except StatusError as failure:
            if failure.status is not Status.STALE_HANDLE:
                raise

    async def work(txn: Transaction) -> bool:
        key = keys.session_key(number, session_number)
        record, opened = await txn.get_many([keys.inode_key(number), key])
        txn.delete(key)
        if record is None or opened is None:
            return True
        inode = inodes.unpack(number, record)
        if not _may_have_a_name(inode) or inode.flags & inodes.INLINE:
            # Nobody will open it by name again; or what it wrote was settled, or never came. Still there may be chunks (gc.py).
            if not inode.truncate_version and not inode.flags & inodes.INLINE:
                inode.truncate_version = 1
                txn.put(keys.inode_key(number), inode.pack())
            return True
        if inode.truncate_version != version or inode.flags & inodes.TRIMMING:
            return False
        mode = inode.mode
        session.lose_privileges(txn, inode, session.unpack(opened))  # what it wrote below the length, nobody knows
        if end > inode.length:
            quota.resize(txn, inode, end)
            inode.flags |= inodes.SPARSE  # what the writer left out between is not lost, it was never written
            inode.mtime_ns = namespace.clock.wall_ns()
            inode.touched(inode.mtime_ns)
            txn.put(keys.inode_key(number), inode.pack())
            if events.is_on(await txn.get(keys.EVENTS_UNTIL), inode.mtime_ns):
                events.write(txn, [events.Event(WRITTEN, number, inode.mtime_ns)])
        elif inode.mode != mode:
            inode.touched(namespace.clock.wall_ns())
            txn.put(keys.inode_key(number), inode.pack())
        return True

    if not await namespace.transact_if(work):
        await settle_session(namespace, number, session_number)  # it was truncated meanwhile: measure again
