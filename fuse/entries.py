"""Attributes as the kernel takes them: the replies of LOOKUP, GETATTR and all that give the kernel an inode.

`entry` counts a lookup and both note the version that the kernel was told (`nodes`), so whoever packs one of these sends it, in the same
step: the order of the notes is the order of the replies.
"""

from __future__ import annotations

import stat as modes
from time import monotonic
from typing import TYPE_CHECKING

from ..client.core.attributes import Stat
from ..proto.errors import Status, error
from .structs import ATTR_OUT, ENTRY_OUT

if TYPE_CHECKING:
    from .filesystem import FileSystem

TYPES: dict[str, int] = {
    "file": modes.S_IFREG,
    "directory": modes.S_IFDIR,
    "symlink": modes.S_IFLNK,
    "fifo": modes.S_IFIFO,
    "socket": modes.S_IFSOCK,
    "character device": modes.S_IFCHR,
    "block device": modes.S_IFBLK,
}
BLOCK_BYTES = 512  # of st_blocks
# st_blksize. Without the kernel's write-back cache each write(2) is a request, and programs that buffer take this as their
# buffer's size.
IO_BYTES_PREFERRED = 64 << 10
SET_ID_BITS = 0o6000  # "run as the file's owner", "as its group"
_SECOND_NS = 1_000_000_000

Attributes = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int]


def encoded(fs: FileSystem, stat: Stat) -> Attributes:
    """The fields of `structs.ATTR`."""
    if stat.mode & SET_ID_BITS and stat.type == "file":
        fs.set_ids.add(stat.inode)
    size = stat.size
    atime, atime_ns = divmod(stat.atime_ns, _SECOND_NS)
    mtime, mtime_ns = divmod(stat.mtime_ns, _SECOND_NS)
    ctime, ctime_ns = divmod(stat.ctime_ns, _SECOND_NS)
    return (
        stat.inode,
        size,
        (size + BLOCK_BYTES - 1) // BLOCK_BYTES,
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        TYPES[stat.type] | stat.mode,
        stat.nlink,
        stat.uid if fs.shown_uid is None else fs.shown_uid,
        stat.gid if fs.shown_gid is None else fs.shown_gid,
        stat.rdev,
        IO_BYTES_PREFERRED,
        0,
    )


def entry(fs: FileSystem, stat: Stat) -> bytes:
    """A packed ENTRY_OUT: a name leads to this inode. The kernel holds one lookup more."""
    fs.nodes.looked_up(stat.inode, stat.change)
    fs.bare.told(stat.inode, monotonic(), extended=stat.extended)
    entry_seconds, entry_ns = fs.entry_timeout
    attr_seconds, attr_ns = fs.attr_timeout
    return ENTRY_OUT.pack(
        fs.node(stat.inode),
        0,
        entry_seconds,
        attr_seconds,
        entry_ns,
        attr_ns,
        *encoded(fs, stat),
    )


def attr(fs: FileSystem, stat: Stat) -> bytes:
    """A packed ATTR_OUT."""
    fs.nodes.tell(stat.inode, stat.change)
    fs.bare.told(stat.inode, monotonic(), extended=stat.extended)
    seconds, nanoseconds = fs.attr_timeout
    return ATTR_OUT.pack(seconds, nanoseconds, *encoded(fs, stat))


_NOTHING = (0,) * 16


def missing(fs: FileSystem) -> bytes:
    """LOOKUP of a name that does not exist: an entry that leads nowhere, for as long as the kernel may believe that. Raises
    NOT_FOUND where it may not believe it at all."""
    return missing_for(*fs.negative_timeout)


def missing_for(seconds: int, nanoseconds: int) -> bytes:
    """The same, for so long."""
    if not seconds and not nanoseconds:
        raise error(Status.NOT_FOUND)
    return ENTRY_OUT.pack(0, 0, seconds, 0, nanoseconds, 0, *_NOTHING)
