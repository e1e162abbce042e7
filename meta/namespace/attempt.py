"""One attempt of one operation: its transaction, for whom, at what time, and what the outside world told it.

An operation is `async def operation(attempt, request) -> reply`. It reads and writes through `attempt.txn` and is deterministic
given the engine: time, new inode ids and random numbers come from here. When the transaction conflicts it runs again, with a new
attempt. When it first needs something that no transaction can wait for (chunks to be trimmed or measured), it raises a
`Detour`: the namespace takes it and then starts the operation anew.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...proto.capability import Grant
from ...proto.errors import Status, error
from ...proto.gen import common_pb2
from .. import keys
from ..kv.engine import Transaction
from . import extended
from . import inode as inodes
from .access import Credentials
from .directories import View
from .inode import Inode
from .seams import Layout

if TYPE_CHECKING:
    from .leases import Session as LeaseSession
    from .namespace import Namespace


DEAD_RECORD = b"\x01"  # the value of a record in the queues of files and trees: a version, and nothing else
UNNAMED_RECORD = b"\x01u"  # of a file that never had a name: void once it got one


class Detour(Exception):
    """Something to be done outside the transaction before the operation can be tried again."""

    async def take(self, namespace: Namespace, task: Task) -> None:
        raise NotImplementedError


@dataclass(slots=True)
class Task:
    """What stays the same over all attempts of one request."""

    caller: Credentials
    client: bytes = b"\0" * 16
    granted: Grant | None = None  # what the client has open already
    measured: dict[int, tuple[int, int]] = field(
        default_factory=dict
    )  # inode -> (truncate version, end of its last chunk)
    unheard: set[int] = field(default_factory=set)  # inodes whose append token was not given back when it was asked for
    session: LeaseSession | None = None  # that holds leases, and came by the same connection
    committed: int = 0  # number of the commit, as `Leases.commits` counts
    told: bool = False  # it has ended leases of others

    def has_open(self, inode: int, rights: int) -> bool:
        """Whether these rights (`proto.capability.Rights`) on an inode were granted before."""
        return self.granted is not None and self.granted.inode == inode and self.granted.rights & rights == rights


class Attempt:
    """See the module. `reading` attempts never commit, so their reads are kept out of conflict sets."""

    __slots__ = (
        "_private",
        "after",
        "caller",
        "client",
        "events",
        "forever",
        "namespace",
        "now_ns",
        "reading",
        "task",
        "txn",
        "view",
    )

    def __init__(self, namespace: Namespace, txn: Transaction, task: Task, view: View, *, reading: bool) -> None:
        self.namespace = namespace
        self.txn = txn
        self.task = task
        self.caller = task.caller
        self.client = task.client
        self.view = view
        self.reading = reading
        self.now_ns = namespace.clock.wall_ns()
        self.after: list[Callable[[], Coroutine[Any, Any, None]]] = []  # to be awaited once committed, before the reply
        self.events: list[tuple[Any, ...]] | None = None  # what watchers are to be told; None: nobody watches
        self.forever = False  # what is removed does not go into the trash
        self._private = False

    def tell(self, kind: int, inode: int, *where: int | bytes) -> None:
        """Watchers hear of this when it is committed; `where` as the columns of `events.Event`: parent, name, and of a rename the new
        ones."""
        if self.events is not None:
            self.events.append((kind, inode, self.now_ns, *where))

    # directories

    def directory_added(self) -> None:
        """This transaction wrote a directory: what it learns from now on may never come true, so it is not shared."""
        if not self._private:
            self.view = View(self.view.version)
            self._private = True

    def directory_changed(self) -> None:
        """A directory moved, went, or changed its permissions or defaults: everybody forgets what he knew about directories, and
        whoever has read the old value conflicts."""
        self.view = View(self.view.version)
        self._private = True
        self.txn.add(keys.DIRECTORY_VERSION, 1)

    # inodes

    async def inode(self, number: int) -> Inode:
        """The inode, with its ACLs if it has any. Raises STALE_HANDLE when it is gone."""
        data = await self.txn.get(keys.inode_key(number), snapshot=self.reading)
        inode = inodes.existing(number, data)
        if inode.flags & inodes.ANY_ACL:
            await extended.load_acls(self.txn, inode, snapshot=self.reading)
        return inode

    async def regular(self, number: int) -> tuple[Inode, Layout]:
        """The inode of a regular file and its layout. Raises STALE_HANDLE, IS_DIRECTORY, INVALID."""
        inode = await self.inode(number)
        return inode, layout_of(inode)

    async def visible(self, inode: Inode) -> Inode:
        """The inode as its reader sees it: a directory with its counters."""
        if inode.type != inodes.DIRECTORY:
            return inode
        links, changed = await self.txn.get_many(
            [keys.subdirectories_key(inode.id), keys.changed_key(inode.id)], snapshot=True
        )
        return inodes.with_counters(inode, keys.counter(links), keys.counter(changed))

    async def visible_many(self, found: list[Inode]) -> list[Inode]:
        """`visible` for several, in one round trip."""
        wanted = [inode.id for inode in found if inode.is_directory]
        if not wanted:
            return found
        asked = [key for number in wanted for key in (keys.subdirectories_key(number), keys.changed_key(number))]
        values = iter(await self.txn.get_many(asked, snapshot=True))
        return [
            inodes.with_counters(inode, keys.counter(next(values)), keys.counter(next(values)))
            if inode.is_directory
            else inode
            for inode in found
        ]

    def queue(self, letters: bytes, inode: int, record: bytes = DEAD_RECORD) -> None:
        """Into a garbage queue (DEADf, DEADt), behind everything that was committed before."""
        self.txn.put_versionstamped(letters, keys.dead_suffix(inode), record)

    def put(self, inode: Inode) -> None:
        self.txn.put(keys.inode_key(inode.id), inode.pack())

    async def visible_attributes(self, inode: Inode) -> common_pb2.Attributes:
        return inodes.attributes(await self.visible(inode))


def layout_of(inode: Inode) -> Layout:
    """The layout of a regular file. Raises IS_DIRECTORY, or INVALID for what has no bytes."""
    if inode.layout is not None:
        return inode.layout
    if inode.is_directory:
        raise error(Status.IS_DIRECTORY, f"inode {inode.id:x} is a directory")
    raise error(Status.INVALID, f"inode {inode.id:x} is not a regular file")
