"""Directories, read in pages: one page of the server's is held per open directory, never the whole of it.

    item 0 ".", item 1 "..", item n + 2 the n-th name since the listing began; an offset is the number of the item to go on with

The server's cookie is the last name of a page, so names that are removed or made while a directory is read neither repeat nor hide
others. The kernel gives back a number, since no name fits into 63 bits. A name keeps its number until the listing begins anew (offset 0:
rewinddir): who goes back to a page that has gone by (seekdir) gets it as it was, without the names that were removed since, which are
told by a hash (8 bytes a name) and leave holes. Of the first names of a very long listing the hashes are forgotten (`MARKS_MAX`): who goes
back there gets what the page has now.

Reading is open to whoever has the directory open, as everywhere: the kernel has checked that when it was opened.
"""

from __future__ import annotations

import errno
import stat as modes
from array import array
from bisect import bisect_right, insort
from collections.abc import Sequence
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from ...client.core.attributes import TYPE_NAMES, stat_of
from ...proto.errors import Status, StatusError
from ...proto.gen.common_pb2 import Attributes
from ..entries import TYPES, entry
from ..protocol import Opcode
from ..replies import NO_ENTRY, dirent_bytes, direntplus_bytes, pack_dirent, pack_direntplus
from ..structs import OPEN_OUT, READ_IN, RELEASE_IN

if TYPE_CHECKING:
    from ...proto.gen.meta_pb2 import ReadDirectoryReply
    from ..filesystem import FileSystem
    from ..session import Handler, Request

DOTS = 2  # items that the server does not list
FIRST_ENTRIES = 256  # of the first page: small directories are read whole, and of large ones something is seen soon
PAGE_ENTRIES = 4096  # names only
PAGE_ENTRIES_PLUS = 1024  # with attributes
AGAIN_ENTRIES_MORE = 64  # of a page that is read again: names may have come in between
MARKS_MAX = 1 << 20  # hashes of names, of one open directory; at the limit the older half is forgotten

_DIRECTORY_KIND = modes.S_IFDIR >> 12
_KINDS = {number: TYPES[name] >> 12 for number, name in TYPE_NAMES.items()}  # d_type by the server's file type


class Page(NamedTuple):
    """Names in a row, in columns."""

    first: int  # the number of the first one
    names: Sequence[bytes | None]  # None: gone by now
    inodes: Sequence[int]
    kinds: Sequence[int]
    attributes: Sequence[Attributes | None] | None  # None: names only
    leased: int = 0  # when all this was asked for, if it may be believed (Leases.learn)
    asked_at: float = 0.0  # seconds, monotonic
    quiet: int = -1  # `RequestIds.quiet_since` when it was asked for

    @property
    def end(self) -> int:
        return self.first + len(self.names)

    def is_of_now(self, fs: FileSystem) -> bool:
        """Whether a page that has waited for its reader still says what the server would, as far as the kernel may believe anything
        that long: this mount has changed nothing since. What it has, must not come back: a name that was removed, an old size."""
        if self.leased:
            return False  # the leases know better (`Believed.listed`)
        quiet = fs.core.cluster.requests.quiet_since
        return 0 <= self.quiet == quiet and monotonic() - self.asked_at <= fs.options.attr_timeout


class DirectoryHandle:
    """One open directory: where its listing stands."""

    __slots__ = ("asked", "ended", "forgotten", "inode", "last", "marks", "page", "parent", "starts")

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.parent = inode  # for "..", until the first page says more
        self.page: Page | None = None
        self.asked = 0  # `Page.leased` of the last question
        self._begin()

    def _begin(self) -> None:
        self.marks = array("q")  # a hash of each name that was listed, by its number,
        self.forgotten = 0  # but for so many of the first ones
        self.starts: list[
            tuple[int, bytes]
        ] = []  # of the pages that were read: the number of the first name, and the cookie
        self.last = b""  # the cookie behind all that was listed
        self.ended = False  # nothing follows it

    @property
    def listed(self) -> int:
        """Names so far."""
        return self.forgotten + len(self.marks)

    async def close(self) -> None:
        """Nothing is held that would have to be given back."""

    async def find(self, fs: FileSystem, offset: int, *, plus: bool) -> Page:
        """The page with the name that an offset stands for; an empty one behind the last."""
        if not offset:
            self.page = None
            self._begin()
        number = max(0, offset - DOTS)
        page = self.page
        if number >= self.listed:
            page = await self._go_on(fs, number, plus=plus)
        elif page is None or not page.first <= number < page.end:
            page = await self._again(fs, number, plus=plus)
        elif plus and page.attributes is None:
            self._split(page, number)
            page = await self._again(fs, number, plus=True)
        self.page = page
        return page

    async def _go_on(self, fs: FileSystem, number: int, *, plus: bool) -> Page:
        """Read what follows, up to a number: usually the next page. Further it is for an offset that another process gave, which served
        this mount before, and for clients of an NFS server, who open a directory anew each time."""
        page = Page(number, (), (), (), None)
        while number >= self.listed and not self.ended:
            first, cookie = self.listed, self.last
            entries_max = FIRST_ENTRIES if not first else PAGE_ENTRIES_PLUS if plus else PAGE_ENTRIES
            asked_at, quiet = monotonic(), fs.core.cluster.requests.quiet_since
            reply = await self._ask(fs, cookie, entries_max, plus=plus)
            if not first:
                self.parent = reply.directory.parent or self.inode
            said = (reply.names, reply.inodes, reply.types, reply.attributes or None)
            page = Page(first, *said, self.asked, asked_at, quiet)
            self.starts.append((first, cookie))
            self.marks.extend(map(hash, page.names))
            if len(self.marks) > MARKS_MAX:
                self.forgotten += MARKS_MAX // 2
                del self.marks[: MARKS_MAX // 2]
            self.last, self.ended = reply.cookie, reply.end
        return page

    async def _again(self, fs: FileSystem, number: int, *, plus: bool) -> Page:
        """A page that has gone by, as it was but for what is gone."""
        index = bisect_right(self.starts, number, key=itemgetter(0)) - 1
        first, cookie = self.starts[index]
        end, stop = self.starts[index + 1] if index + 1 < len(self.starts) else (self.listed, self.last)
        begin = first - self.forgotten
        marks = self.marks[begin : end - self.forgotten] if begin >= 0 else ()
        places = {mark: place for place, mark in enumerate(marks)}
        names: list[bytes | None] = [None] * (end - first)
        inodes, kinds = [0] * (end - first), [0] * (end - first)
        attributes: list[Attributes | None] = [None] * (end - first)
        passed = 0
        while cookie < stop:
            reply = await self._ask(fs, cookie, end - first + AGAIN_ENTRIES_MORE, plus=plus)
            for at, name in enumerate(reply.names):
                place = places.get(hash(name)) if marks else passed
                passed += 1
                if place is not None and place < end - first and name <= stop:
                    names[place], inodes[place], kinds[place] = name, reply.inodes[at], reply.types[at]
                    attributes[place] = reply.attributes[at] if reply.attributes else None
            if reply.end:
                break
            cookie = reply.cookie
        return Page(first, names, inodes, kinds, attributes if plus else None)

    def _split(self, page: Page, number: int) -> None:
        """Make a page of names only begin at this one and be no longer than one with attributes, so that it can be read as such."""
        for begin in (number, number + PAGE_ENTRIES_PLUS):
            before = page.names[begin - page.first - 1] if page.first < begin < page.end else None
            if before is not None:
                insort(self.starts, (begin, before))

    async def _ask(self, fs: FileSystem, cookie: bytes, entries_max: int, *, plus: bool) -> ReadDirectoryReply:
        began = fs.believed.asked() if plus and fs.believed is not None else 0
        self.asked = 0
        try:
            place = fs.place(self.inode)
            reply = await fs.core.read_directory(place, cookie, entries_max, attributes=plus, lease=began > 0)
            self.asked = began if reply.leased else 0
            return reply
        except StatusError as failure:
            if failure.status is Status.STALE_HANDLE:
                raise OSError(errno.ENOENT, "the directory was removed") from None
            if failure.status is not Status.PERMISSION_DENIED or not plus:
                raise
        # It may be listed but not searched, and this mount is not root's: names alone.
        return await fs.core.read_directory(fs.place(self.inode), cookie, entries_max)


# --- handlers ---------------------------------------------------------------------------------------------------------------------


def opendir(fs: FileSystem, request: Request) -> bytes:
    """Nothing is asked before the first page."""
    return OPEN_OUT.pack(fs.new_handle(DirectoryHandle(fs.inode(request.node))), 0, 0)


def releasedir(fs: FileSystem, request: Request) -> bytes:
    """The last descriptor is closed."""
    fs.handles.pop(RELEASE_IN.unpack_from(request.body)[0], None)
    return b""


async def fsyncdir(fs: FileSystem, request: Request) -> bytes:
    """All changes of names so far survive a power loss."""
    await fs.core.sync_names()
    return b""


async def readdir(fs: FileSystem, request: Request) -> bytes:
    """Names and types, from an offset on; nothing where there are no more. A reply ends where a page does."""
    fh, offset, size, *_ = READ_IN.unpack_from(request.body)
    handle = handle_of(fs, fh, request.node)
    page = await handle.find(fs, offset, plus=False)
    parts = _dots(handle, offset, plus=False)
    room = size - sum(map(len, parts))
    offset = max(offset, DOTS)
    while True:
        for index in range(offset - DOTS - page.first, len(page.names)):
            offset += 1
            if (name := page.names[index]) is None:
                continue
            room -= dirent_bytes(name)
            if room < 0:
                return b"".join(parts)
            parts.append(pack_dirent(page.inodes[index], offset, _KINDS.get(page.kinds[index], 0), name))
        if parts or not page.names:
            return b"".join(parts)
        page = await handle.find(fs, offset, plus=False)  # all that was left of this one is gone


async def readdirplus(fs: FileSystem, request: Request) -> bytes:
    """As READDIR, with attributes: each name counts as a lookup."""
    fh, offset, size, *_ = READ_IN.unpack_from(request.body)
    handle = handle_of(fs, fh, request.node)
    kept = handle.page
    page = await handle.find(fs, offset, plus=True)
    of_now = page is not kept or page.is_of_now(fs)
    parts = _dots(handle, offset, plus=True)
    room = size - sum(map(len, parts))
    offset = max(offset, DOTS)
    seen, believed = fs.core.seen, fs.believed
    while True:
        for index in range(offset - DOTS - page.first, len(page.names)):
            offset += 1
            if (name := page.names[index]) is None:
                continue
            room -= direntplus_bytes(name)
            if room < 0:
                return b"".join(parts)
            known = page.attributes[index] if page.attributes is not None else None
            stat = None if known is None else stat_of(known)
            found = None
            if stat is not None and page.leased and believed is not None:
                found = believed.listed(page.leased, handle.inode, name, stat)
            if found is None:
                stat = None if stat is None or not of_now else seen(stat)
                # Where the kernel has older pages, it looks the name up when it needs it: a listing is no time to wait for invalidations.
                found = NO_ENTRY if stat is None or fs.has_old_pages(stat) else entry(fs, stat)
            parts.append(pack_direntplus(found, page.inodes[index], offset, _KINDS.get(page.kinds[index], 0), name))
        if parts or not page.names:
            return b"".join(parts)
        page, of_now = await handle.find(fs, offset, plus=True), True


def handle_of(fs: FileSystem, fh: int, node: int) -> DirectoryHandle:
    """An open directory. One that this process has not opened was opened by the one before it: it is read anew, up to the offset."""
    handle = fs.handles.get(fh)
    if not isinstance(handle, DirectoryHandle):
        handle = fs.handles[fh] = DirectoryHandle(fs.inode(node))
    return handle


def _dots(handle: DirectoryHandle, offset: int, *, plus: bool) -> list[bytes]:
    """The dots, where a listing begins."""
    parts: list[bytes] = []
    for number, name, inode in ((0, b".", handle.inode), (1, b"..", handle.parent)):
        if offset <= number and plus:
            parts.append(pack_direntplus(NO_ENTRY, inode, number + 1, _DIRECTORY_KIND, name))
        elif offset <= number:
            parts.append(pack_dirent(inode, number + 1, _DIRECTORY_KIND, name))
    return parts


OPERATIONS: dict[int, Handler] = {
    Opcode.OPENDIR: opendir,
    Opcode.RELEASEDIR: releasedir,
    Opcode.FSYNCDIR: fsyncdir,
    Opcode.READDIR: readdir,
    Opcode.READDIRPLUS: readdirplus,
}
