"""What all handlers of one mount share: the client core, what the kernel knows, open handles, options; and which handler serves what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..client.core.attributes import Stat
from ..client.core.client import Core
from ..client.core.paths import at
from ..client.core.steps import since
from ..proto.gen.meta_pb2 import Place
from .ahead import Ahead
from .bare import Bare
from .believed import Believed
from .callers import Callers
from .negotiation import Agreement
from .nodes import Nodes
from .notifier import Notifier
from .options import MountOptions
from .protocol import ROOT_NODE
from .requests import forgets
from .statistics import Statistics
from .structs import FORGET_IN

if TYPE_CHECKING:
    from .control import Control
    from .journal import Journal
    from .session import Handler, Request

ROOT_INODE = 1  # of the cluster
OVERTAKEN_MAX = 8  # questions for attributes that changes made here overtake again and again
ACCESS_BITS = 8  # of a handle's number: the access mode that it was opened with, for a daemon that is started again

logger = logging.getLogger(__name__)


class FileSystem:
    """One mount. Used on the loop's thread only."""

    def __init__(
        self, core: Core, options: MountOptions, notifier: Notifier, *, root: int = ROOT_INODE, first_handle: int = 1
    ) -> None:
        """`root` is the inode of the directory that is mounted. `first_handle`: handle numbers begin here; a daemon that takes over
        from another begins beyond those that the kernel may hold."""
        self.core = core
        self.options = options
        self.notifier = notifier
        self.root = root
        self.nodes = Nodes(inherited=first_handle > 1)
        self.callers = Callers(core)
        self.statistics = Statistics()
        self.control: Control | None = None  # the nodes that are no inodes: `.ember`, `3fs-virt`
        self.handles: dict[int, Any] = {}  # by fh: open files and directories
        self.lock_owners: dict[int, set[int]] = {}  # by fh: who took byte ranges through it and has not closed it since
        self.journal: Journal | None = None  # what a daemon after this one has to know
        self.inherited: set[int] = set()  # handles of a daemon before this one: what they hold, nobody remembers
        self.reopening: dict[int, asyncio.Future[None]] = {}  # handles of a daemon before this one, by fh
        self.reply: Callable[
            [int, Sequence[bytes | memoryview]], bool
        ]  # answers a request of this number while what is lent is valid
        self.removed: dict[int, Stat] = {}  # directories removed here that the kernel holds still, as they were left
        self.bare = Bare(options.attr_timeout)
        self.set_ids: set[int] = set()  # files that may have set-id bits, which a write may have to take away
        self.space: tuple[float, bytes] = (0.0, b"")  # the last reply to STATFS, and until when it is good
        self.agreed: Agreement | None = None  # with the kernel; None before INIT
        self.entry_timeout = _timeout(options.entry_timeout)
        self.attr_timeout = _timeout(options.attr_timeout)
        self.negative_timeout = _timeout(options.negative_timeout)
        self.shown_uid = options.uid
        self.shown_gid = options.gid
        self.believed = None if options.strict else Believed(self)  # what needs no question
        self.ahead = Ahead(self, self.believed) if self.believed is not None else None
        self._next_handle = first_handle
        self._background: set[asyncio.Task[Any]] = set()

    # --- names and numbers ----------------------------------------------------------------------------------------------------------

    def inode(self, node: int) -> int:
        """The inode that the kernel means by a node."""
        return self.root if node == ROOT_NODE else node

    def node(self, inode: int) -> int:
        """The node by which the kernel knows an inode: its number, but 1 for the mount's root."""
        return ROOT_NODE if inode == self.root else inode

    def place(self, node: int, name: bytes = b"") -> Place:
        """Where a request points: a node, or a name in that directory."""
        return at(self.inode(node), name)

    def new_handle(self, handle: Any, access: int = 0) -> int:
        """Number an open file or directory. The number says with which access mode (O_RDONLY, O_WRONLY, O_RDWR) it was opened."""
        fh = self._next_handle << ACCESS_BITS | access & 3
        self._next_handle += 1
        self.handles[fh] = handle
        return fh

    def drop(self, fh: int) -> None:
        """Close what nobody will release: its reply reached nobody."""
        handle = self.handles.pop(fh, None)
        if self.journal is not None:
            self.journal.closed(fh)
        if handle is not None:
            self.later(handle.close())

    def removed_directory(self, gone: Stat) -> None:
        """Remember a directory for those who are in it: the server knows nothing of it any more."""
        if gone.inode in self.nodes:
            self.removed[gone.inode] = gone

    def forget(self, inode: int, count: int) -> None:
        """The kernel has dropped so many references."""
        self.nodes.forget(inode, count)
        if (self.removed or self.set_ids) and inode not in self.nodes:
            self.removed.pop(inode, None)
            self.set_ids.discard(inode)

    # --- caches ---------------------------------------------------------------------------------------------------------------------

    async def revalidate(self, inode: int, change: int) -> bool:
        """Before a reply after which the caller must see an inode as of `change` or newer (OPEN, a lock that was granted): whether the
        kernel's pages may stay. Where they may not, they are gone, and so are its size and times, when this returns.

        Not to be awaited by a handler whose request may hold a page of this inode (READ, WRITE): it would wait for itself.
        """
        if self.nodes.told(inode) >= change:
            return True
        if (file := self.core.inodes.get(inode)) is not None:
            async with file.lock:  # the version may be one that a change of ours has made, whose reply is on its way
                self.nodes.followed(inode, file.since, file.change)
            if self.nodes.told(inode) >= change:
                return True
        await self.notifier.inode(self.node(inode))
        self.nodes.invalidated(inode, change)
        return False

    def has_old_pages(self, stat: Stat) -> bool:
        """Whether the kernel holds pages of an older version than these attributes. With the new size alone it would make zeros up."""
        if not self.nodes.has_pages(stat.inode) or self.nodes.told(stat.inode) >= stat.change:
            return False
        if (file := self.core.inodes.get(stat.inode)) is not None:  # what we have settled ourselves is in the pages
            self.nodes.followed(stat.inode, file.since, file.change)
        return self.nodes.told(stat.inode) < stat.change

    async def current(self, stat: Stat) -> Stat:
        """Before a reply with attributes: these, or newer ones, with the kernel's old pages dropped. Whoever sees them, and goes on reading
        what he has open, sees bytes of the same version. Attributes that were overtaken by a change made here are asked for again:
        with their length the kernel would cut the file's pages."""
        for _ in range(OVERTAKEN_MAX):
            if not self._is_overtaken(stat):
                if not self.has_old_pages(stat):
                    break
                await self.revalidate(stat.inode, stat.change)
                if not self._is_overtaken(stat):
                    break
            stat = await self.core.stat(at(stat.inode), follow=False)
        return stat

    def _is_overtaken(self, stat: Stat) -> bool:
        """Whether the kernel, or this client, knows of a newer version of a file."""
        if self.nodes.has_pages(stat.inode) and self.nodes.told(stat.inode) > stat.change:
            return True
        file = self.core.inodes.get(stat.inode)
        return file is not None and file.change > stat.change

    def advanced(self, inode: int, change: int) -> None:
        """A change of our own, which the kernel knows of, has led to this version."""
        if (file := self.core.inodes.get(inode)) is None:
            self.nodes.advanced(inode, change)
        else:  # others of ours may be on their way
            file.made(change)
            self.nodes.followed(inode, since(file.runs, change), change)

    def is_bare(self, inode: int) -> bool:
        """Whether an inode certainly has neither extended attributes nor ACLs."""
        return self.bare.known(inode, monotonic()) or (self.believed is not None and self.believed.is_bare(inode))

    # --- work that nobody waits for -------------------------------------------------------------------------------------------------

    def later(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do something in the background; its failure is logged, and close-down waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("work in the background failed", exc_info=failure)

    async def settle(self, seconds: float) -> None:
        """Wait for what `later` began, for so long."""
        if self._background:
            await asyncio.wait(self._background, timeout=seconds)


def _timeout(seconds: float) -> tuple[int, int]:
    """Seconds and nanoseconds, as replies hold a duration."""
    whole = int(seconds)
    return whole, int((seconds - whole) * 1e9)


# --- which handler serves what ------------------------------------------------------------------------------------------------------


def forget(fs: FileSystem, request: Request) -> None:
    """The kernel has dropped references to one inode."""
    fs.forget(fs.inode(request.node), FORGET_IN.unpack_from(request.body)[0])


def batch_forget(fs: FileSystem, request: Request) -> None:
    """The kernel has dropped references to many inodes."""
    for node, count in forgets(request.body):
        fs.forget(fs.inode(node), count)


def handlers() -> dict[int, Handler]:
    """Every operation that the mount serves."""
    from .operations import attributes, data, directories, files, locks, names, xattrs  # they import this module

    table: dict[int, Handler] = {}
    for module in (names, attributes, directories, xattrs, files, data, locks):
        table.update(module.OPERATIONS)
    return table
