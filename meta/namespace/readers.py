"""Who may have files open for reading, so that an unlinked file stays until its last reader is gone.

An open for reading leaves no record of its own: a loader opens a million files. Instead each client says with its lease renewals what
it holds, and an unlinked file waits until every reading client has said so. "Every" and "since then" are durable, so that neither a
restart nor a slow server makes the wait shorter, or longer than it has to be; no clock is compared with another, and no time is counted:

- Before a client's first open for reading is answered it has a READ record. It names the client's mark: of what was unlinked before
  it, the client holds what its HOLD records say and nothing else. At first that is the end of the queue of unlinked files (keys rise
  in the order of commits, so what lies before it has no name any more that this client could open).
- The reply to a renewal tells the client where the queue ends. A list that the client drew up after it learned that, and in which no
  open is missing that was under way then, covers the queue up to there; with such a list it sends the mark back. HOLD records and mark
  are written in one transaction.
- The collector looks at a file when the marks of all readers lie behind it, and frees it unless a HOLD or SESS record names it.

A client reports what was open at two renewals in a row, so what is opened and closed quickly costs no record, and a file is free
after the third renewal (20 to 30 s). When space is short the clients are asked for everything, soon again. A client that is silent keeps
files until its lease has run out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ...proto.errors import Status, error
from ...proto.gen.cluster_pb2 import RenewClientReply
from .. import keys
from ..kv.engine import Transaction
from . import inode as inodes

if TYPE_CHECKING:
    from .namespace import Namespace

PAGE = 1000  # records per read
HOLDS_PER_CLIENT_MAX = 100_000  # inodes recorded of one client; while it has more open, nothing that is unlinked goes
REPORTS_PER_SECOND_MAX = 1000  # of all clients together, when space is short
REPORT_SECONDS_MIN = 1.0  # scaled, as is the next
REPORT_SECONDS_MAX = 10.0
RECORD_VERSION = 1


class Change(NamedTuple):
    """What a report changes in the records."""

    client: bytes
    added: frozenset[int]
    dropped: frozenset[int]
    mark: bytes | None  # None: stays as it was


def pack(mark: bytes) -> bytes:
    return bytes([RECORD_VERSION]) + mark


def unpack(data: bytes) -> bytes:
    """The mark of a READ record; an empty record, as loads of dumps once wrote them, has none. Raises BAD_FORMAT for one of a newer
    version."""
    if data[:1] > bytes([RECORD_VERSION]):
        raise keys.refused("the record of a reading client", data[0])
    return data[1:]


class Readers:
    """The READ and HOLD records of one namespace, also in memory."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._marks: dict[bytes, bytes] = {}
        self._holds: dict[bytes, frozenset[int]] = {}
        self._learned: dict[bytes, list[bytes]] = {}  # HELD keys that are in `_holds` by now

    async def load(self) -> None:
        """Read the records (at start)."""
        found: dict[bytes, set[int]] = {}
        async for page in self._namespace.pages(*keys.prefix_range(keys.HOLD), PAGE):
            for key, _ in page:
                inode, client = keys.split_hold_key(key)
                found.setdefault(client, set()).add(inode)
        self._holds = {client: frozenset(numbers) for client, numbers in found.items()}
        async for page in self._namespace.pages(*keys.prefix_range(keys.READER), PAGE):
            self._marks.update((keys.reader_of(key), unpack(value)) for key, value in page)

    async def clients(self) -> set[bytes]:
        """Those with records, also those that other servers have admitted and that never reported."""
        async for page in self._namespace.pages(*keys.prefix_range(keys.READER), PAGE):
            for key, value in page:
                self._marks.setdefault(keys.reader_of(key), unpack(value))
        return {*self._marks, *self._holds}

    async def covered(self) -> bytes:
        """Up to where in the queue of unlinked files every reader has reported, other servers' too; all of it without readers."""
        mark = (
            await self._namespace.collector.last()
        )  # first: who is admitted after this cannot open what lies before it
        if not mark:
            return mark
        async for page in self._namespace.pages(*keys.prefix_range(keys.READER), PAGE):
            mark = min(mark, *(unpack(value) for _, value in page))
        return mark

    async def admit(self, client: bytes) -> bool:
        """Before an open for reading: from now on what is unlinked waits for this client's reports. False if it did before. Raises
        SESSION_ENDED for a client that is gone."""
        if client in self._marks:
            return False
        self._namespace.clients.require_alive(client)
        mark = await self._namespace.collector.last()

        async def work(txn: Transaction) -> bytes:
            key = keys.reader_key(client)
            found, ended = await txn.get_many([key, keys.ended_client_key(client)])
            if ended is not None:
                raise error(Status.SESSION_ENDED, "this client's lease ran out; connect again under a new client id")
            if found is not None:
                # Another request of it was faster: what that one has opened may be unlinked by now.
                return unpack(found)
            txn.put(key, pack(mark))
            return mark

        self._marks.setdefault(client, await self._namespace.transact(work))
        return True

    async def hold(self, client: bytes, inode: int) -> None:
        """A client has opened an inode without a name by its number: that needs a record at once. Raises STALE_HANDLE if the inode is
        gone."""

        # Whatever is in memory: another server may have taken a report since that took the record away.
        async def work(txn: Transaction) -> None:
            record, ended = await txn.get_many([keys.inode_key(inode), keys.ended_client_key(client)])
            if ended is not None:
                raise error(Status.SESSION_ENDED, "this client's lease ran out; connect again under a new client id")
            inodes.existing(inode, record)
            txn.put(keys.hold_key(inode, client), b"")
            txn.put(keys.held_key(client, inode), b"")  # another server may take the client's reports

        await self._namespace.transact(work)
        self._holds[client] = self._holds.get(client, frozenset()) | {inode}

    # reports

    def change(self, client: bytes, open_inodes: Iterable[int], mark: bytes) -> Change | None:
        """What a client's report changes; None if nothing."""
        reported = list(open_inodes)
        held = frozenset(reported[:HOLDS_PER_CLIENT_MAX])
        before = self._holds.get(client, frozenset())
        is_news = len(reported) <= HOLDS_PER_CLIENT_MAX and mark > self._marks.get(client, mark)
        if held == before and not is_news and client not in self._learned:
            return None
        return Change(client, held - before, before - held, mark if is_news else None)

    def write(self, txn: Transaction, change: Change) -> None:
        for inode in change.added:
            txn.put(keys.hold_key(inode, change.client), b"")
        for inode in change.dropped:
            txn.delete(keys.hold_key(inode, change.client))
        for key in self._learned.get(change.client, ()):
            txn.delete(key)
        if change.mark is not None:
            txn.put(keys.reader_key(change.client), pack(change.mark))

    def written(self, change: Change) -> None:
        """The transaction was committed."""
        self._learned.pop(change.client, None)
        # Not what was reported, but what it changed: `hold` may have been there meanwhile.
        held = (self._holds.get(change.client, frozenset()) | change.added) - change.dropped
        self._holds.pop(change.client, None)
        if held:
            self._holds[change.client] = held
        if change.mark is not None:
            self._marks[change.client] = change.mark

    async def learn(self, client: bytes) -> None:
        """Before a client's report: what other servers have recorded of it meanwhile."""
        txn = self._namespace.engine.begin()
        if client not in self._marks and (found := await txn.get(keys.reader_key(client), snapshot=True)) is not None:
            self._marks.setdefault(client, unpack(found))
        held = await txn.scan(*keys.held_range(client), HOLDS_PER_CLIENT_MAX, snapshot=True)
        if held:
            self._learned[client] = [key for key, _ in held]
            self._holds[client] = self._holds.get(client, frozenset()) | {keys.dead_inode(key) for key, _ in held}

    def gone(self, client: bytes) -> None:
        """Another server cleans up after it."""
        self._holds.pop(client, None)
        self._marks.pop(client, None)
        self._learned.pop(client, None)

    async def answer(self, client: bytes) -> RenewClientReply:
        """What to tell a client whose report has been taken."""
        collector = self._namespace.collector
        if client not in self._marks:
            return RenewClientReply()
        last = await collector.last()
        if last <= self._marks.get(client, last):
            return RenewClientReply()
        if not collector.space_is_short:
            return RenewClientReply(mark=last)
        seconds = min(max(REPORT_SECONDS_MIN, len(self._marks) / REPORTS_PER_SECOND_MAX), REPORT_SECONDS_MAX)
        return RenewClientReply(mark=last, report_ms=int(1000 * seconds * self._namespace.time_scale))

    # the end

    async def forget(self, client: bytes) -> None:
        """A client is gone: its records go."""
        await self.learn(client)
        if client not in self._marks and client not in self._holds:
            return
        held = self._holds.get(client, frozenset())

        async def work(txn: Transaction) -> None:
            txn.delete(keys.reader_key(client))
            txn.delete_range(*keys.held_range(client))
            for inode in held:
                txn.delete(keys.hold_key(inode, client))

        await self._namespace.transact(work)
        self._holds.pop(client, None)
        self._marks.pop(client, None)
