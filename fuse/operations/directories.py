"""Directories, read in pages: one page of the server's is held per open directory, never the whole of it.

    item 0 ".", item 1 "..", item n + 2 the n-th name since the listing began; an offset is the number of the item to go on with

The server's cookie is the last name of a page, so names that are removed or made while a directory is read neither repeat nor hide
others. An offset, which the kernel gives back, is a number, since no name fits into 63 bits: for a page that has gone by (seekdir), the
place is found again by the checksums of the names that stood before it (4 bytes a name), whatever has been removed there since.

Reading is open to whoever has the directory open, as everywhere: the kernel has checked that when it was opened.
"""

from __future__ import annotations

import errno
import stat as modes
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from ...client.core.attributes import TYPE_NAMES, stat_of
from ...proto.errors import Status, StatusError
from ...proto.gen.common_pb2 import Attributes
from ..entries import TYPES, entry
from ..protocol import Opcode
from ..replies import NO_ENTRY, dirent_bytes, direntplus_bytes, pack_dirent, pack_direntplus
from ..structs import OPEN_OUT, READ_IN, RELEASE_IN

if TYPE_CHECKING:
    from ..filesystem import FileSystem
    from ..session import Handler, Request

DOTS = 2  # items that the server does not list
FIRST_ENTRIES = 256  # of the first page: small directories are read whole, and of large ones something is seen soon
PAGE_ENTRIES = 4096  # names only
PAGE_ENTRIES_PLUS = 1024  # with attributes
SEEK_ENTRIES = 8192  # when a place is sought: more than a page, since names may have come in between

_DIRECTORY_KIND = modes.S_IFDIR >> 12
_KINDS = {number: TYPES[name] >> 12 for number, name in TYPE_NAMES.items()}  # d_type by the server's file type


class Page:
    """Names in a row, as of one moment."""

    __slots__ = ("attributes", "cookie", "end", "first", "inodes", "kinds", "names")

    def __init__(
        self,
        first: int,
        names: Sequence[bytes],
        inodes: Sequence[int],
        kinds: Sequence[int],
        attributes: Sequence[Attributes] | None,
        cookie: bytes | None,
    ) -> None:
        self.first = first  # the number of the first name in the listing
        self.names = names
        self.inodes = inodes
        self.kinds = kinds
        self.attributes = attributes  # None: names only
        self.cookie = cookie  # of what follows; None: nothing does
        self.end = first + len(names)


class DirectoryHandle:
    """One open directory: where its listing stands."""

    __slots__ = ("inode", "marks", "page", "parent", "starts", "trouble")

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.parent = inode  # for "..", until the first page says more
        self.page: Page | None = None
        self.marks = array("I")  # checksum of each name that was listed
        self.starts: list[tuple[int, bytes]] = [(0, b"")]  # number and cookie of the pages that were read

    async def close(self) -> None:
        """Nothing is held that would have to be given back."""

    async def find(self, fs: FileSystem, number: int, *, plus: bool) -> Page:
        """A page that holds the name of this number, or is the last one."""
        if not number:
            self.page = None  # rewinddir(3), or a beginning: as it is now
        page = self.page
        if page is None or not page.first <= number <= page.end:
            page = await self._seek(fs, number, plus=plus)
        while number >= page.end and page.cookie is not None:
            page = await self._read(fs, page.end, page.cookie, PAGE_ENTRIES_PLUS if plus else PAGE_ENTRIES, plus=plus)
        if plus and page.attributes is None and page.first < number < page.end:
            page = await self._read(fs, number, page.names[number - page.first - 1], PAGE_ENTRIES_PLUS, plus=True)
        return page

    async def _seek(self, fs: FileSystem, number: int, *, plus: bool) -> Page:
        """A page that begins at or before a number: behind the last name still there of those that stood before it."""
        if number > len(self.marks):  # not listed to this handle: a daemon that was started again, an NFS client
            if self.page is not None:
                return self.page
            number = len(self.marks)
        if not number:
            return await self._read(fs, 0, b"", FIRST_ENTRIES, plus=plus)
        first, cookie = self.starts[bisect_right(self.starts, (number - 1, b"\xff" * 256)) - 1]
        before = list(self.marks[first:number])
        page = await self._read(fs, first, cookie, SEEK_ENTRIES, plus=plus)
        places = {crc32(name): index for index, name in enumerate(page.names)}
        gone_by = next((places[mark] + 1 for mark in reversed(before) if mark in places), 0)
        del self.marks[first:]
        self.marks.extend(before)
        self._list(number, page, gone_by)
        return page

    def _list(self, number: int, page: Page, gone_by: int) -> None:
        """Let a page begin with a later one of its names, under this number."""
        page.names = page.names[gone_by:]
        page.inodes = page.inodes[gone_by:]
        page.kinds = page.kinds[gone_by:]
        page.attributes = page.attributes[gone_by:] if page.attributes is not None else None
        page.first, page.end = number, number + len(page.names)
        self.marks.extend(map(crc32, page.names))

    async def _read(self, fs: FileSystem, first: int, cookie: bytes, entries_max: int, *, plus: bool) -> Page:
        """The page behind a cookie, whose names are listed from the number `first` on."""
        try:
            reply = await fs.core.read_directory(fs.place(self.inode), cookie, entries_max, attributes=plus)
        except StatusError as failure:
            if failure.status is Status.STALE_HANDLE:
                raise OSError(errno.ENOENT, "the directory was removed") from None
            if failure.status is not Status.PERMISSION_DENIED or not plus:
                raise
            # It may be listed but not searched, and this mount is not root's: names alone.
            reply = await fs.core.read_directory(fs.place(self.inode), cookie, entries_max)
            plus = False
        if not cookie:
            self.parent = reply.directory.parent or self.inode
        page = Page(
            first,
            reply.names,
            reply.inodes,
            reply.types,
            reply.attributes if plus else None,
            None if reply.end else reply.cookie,
        )
        while self.starts and self.starts[-1][0] >= first:
            self.starts.pop()
        self.starts.append((first, cookie))
        del self.marks[first:]
        self.marks.extend(map(crc32, page.names))
        self.page = page
        return page


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
    page = await handle.find(fs, max(0, offset - DOTS), plus=False)
    parts: list[bytes] = []
    room = size - _pack_dots(parts, handle, offset, plus=False)
    offset = max(offset, DOTS)
    for index in range(offset - DOTS - page.first, len(page.names)):
        name = page.names[index]
        room -= dirent_bytes(name)
        if room < 0:
            break
        offset += 1
        parts.append(pack_dirent(page.inodes[index], offset, _KINDS.get(page.kinds[index], 0), name))
    return b"".join(parts)


async def readdirplus(fs: FileSystem, request: Request) -> bytes:
    """As READDIR, with attributes: each name counts as a lookup."""
    fh, offset, size, *_ = READ_IN.unpack_from(request.body)
    handle = handle_of(fs, fh, request.node)
    page = await handle.find(fs, max(0, offset - DOTS), plus=True)
    parts: list[bytes] = []
    room = size - _pack_dots(parts, handle, offset, plus=True)
    offset = max(offset, DOTS)
    seen = fs.core.seen
    for index in range(offset - DOTS - page.first, len(page.names)):
        name = page.names[index]
        room -= direntplus_bytes(name)
        if room < 0:
            break
        offset += 1
        found = NO_ENTRY if page.attributes is None else entry(fs, seen(stat_of(page.attributes[index])))
        parts.append(pack_direntplus(found, page.inodes[index], offset, _KINDS.get(page.kinds[index], 0), name))
    return b"".join(parts)


def handle_of(fs: FileSystem, fh: int, node: int) -> DirectoryHandle:
    """An open directory. One that this process has not opened was opened by the one before it: it is read anew, up to the offset."""
    handle = fs.handles.get(fh)
    if not isinstance(handle, DirectoryHandle):
        handle = fs.handles[fh] = DirectoryHandle(fs.inode(node))
    return handle


def _pack_dots(parts: list[bytes], handle: DirectoryHandle, offset: int, *, plus: bool) -> int:
    """The dots, where a listing begins; their bytes."""
    for number, name, inode in ((0, b".", handle.inode), (1, b"..", handle.parent)):
        if offset <= number:
            if plus:
                parts.append(pack_direntplus(NO_ENTRY, inode, number + 1, _DIRECTORY_KIND, name))
            else:
                parts.append(pack_dirent(inode, number + 1, _DIRECTORY_KIND, name))
    return sum(map(len, parts))


OPERATIONS: dict[int, Handler] = {
    Opcode.OPENDIR: opendir,
    Opcode.RELEASEDIR: releasedir,
    Opcode.FSYNCDIR: fsyncdir,
    Opcode.READDIR: readdir,
    Opcode.READDIRPLUS: readdirplus,
}
