"""Inodes: the record, and how it becomes `Attributes`.

A record is a fixed head (version, type, flags, mode, owner, links, length, times, change, truncate version) and a tail by type: a
regular file's layout, a directory's parent and defaults, a symlink's target, a device's number.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from ...proto.errors import Status, error
from ...proto.gen import common_pb2
from .. import keys
from .acl import Acl
from .seams import Layout

VERSION = 2
_VERSION_BYTE = bytes([VERSION])

REGULAR = int(common_pb2.FILE_TYPE_REGULAR)
DIRECTORY = int(common_pb2.FILE_TYPE_DIRECTORY)
SYMLINK = int(common_pb2.FILE_TYPE_SYMLINK)
FIFO = int(common_pb2.FILE_TYPE_FIFO)
SOCKET = int(common_pb2.FILE_TYPE_SOCKET)
CHARACTER = int(common_pb2.FILE_TYPE_CHARACTER)
BLOCK = int(common_pb2.FILE_TYPE_BLOCK)
SPECIAL = frozenset((FIFO, SOCKET, CHARACTER, BLOCK))

LINKS_MAX = (1 << 31) - 1  # names of one inode
MODE_BITS = 0o7777


class Flag(enum.IntFlag):
    """Columns of one bit each."""

    SPARSE = 1  # a missing chunk below the length is a hole, not lost data
    TRIMMING = 2  # a TRIM record exists: chunks behind the length may still be there
    UNNAMED = 4  # never had a name yet: publish and link may give it one
    XATTRS = 8  # XATR records may exist
    ACL = 16  # an access ACL exists
    DEFAULT_ACL = 32  # of a directory: a default ACL exists
    INLINE = 64  # its bytes lie in an INLN record
    TRASH = 1024  # lies in the trash: a TRSH record exists


# Plain integers: `&` of an IntFlag costs a microsecond.
SPARSE = int(Flag.SPARSE)
TRIMMING = int(Flag.TRIMMING)
UNNAMED = int(Flag.UNNAMED)
XATTRS = int(Flag.XATTRS)
ACL = int(Flag.ACL)
DEFAULT_ACL = int(Flag.DEFAULT_ACL)
ANY_ACL = ACL | DEFAULT_ACL
EXTENDED = XATTRS | ANY_ACL  # something lies beside the record that goes with the inode
INLINE = int(Flag.INLINE)
TRASH = int(Flag.TRASH)

_HEAD_FORMAT = ">BBHHIIIQqqqqQIQ"
_HEAD = struct.Struct(_HEAD_FORMAT)
_HEAD_FIELDS = len(_HEAD.unpack(bytes(_HEAD.size)))
_HEAD_OF_VERSION_1 = _HEAD.size - 8  # it had no project
_FILE = struct.Struct(
    _HEAD_FORMAT + "BBIIIIQ"
)  # redundancy, log2 of the chunk size, table, its version, base, stripe, seed
_DIRECTORY = struct.Struct(_HEAD_FORMAT + "QIII")  # parent, default chunk size, default stripe, trash
_DEVICE = struct.Struct(_HEAD_FORMAT + "Q")  # rdev


@dataclass(slots=True)
class Inode:
    """One inode, as it is in a transaction. Times are nanoseconds since the epoch."""

    id: int
    type: int
    flags: int
    mode: int  # 07777
    uid: int
    gid: int
    nlink: int  # of a directory: unused, counted in DCNT
    length: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    change: int
    truncate_version: int
    project: int = 0  # the directory whose quota counts it; 0: none (quota.py)
    layout: Layout | None = None  # of a regular file
    parent: int = 0  # of a directory; 0: detached
    chunk_size: int = 0  # of a directory: default of its new files, 0: the cluster's
    stripe: int = 0
    trash: int = 0  # of a directory: seconds + 1 that removed entries are kept, 0: as the server says
    target: bytes = b""  # of a symlink
    rdev: int = 0  # of a special file
    acl: Acl | None = None  # these two are not in the record: `Attempt.inode` reads them where the flags say so
    default_acl: Acl | None = None

    @property
    def is_directory(self) -> bool:
        return self.type == DIRECTORY

    def touched(self, now_ns: int) -> None:
        """Attributes changed: ctime and the change counter say so."""
        self.ctime_ns = now_ns
        self.change += 1

    def pack(self) -> bytes:
        head = (
            VERSION,
            self.type,
            self.flags,
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.length,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.birth_ns,
            self.change,
            self.truncate_version,
            self.project,
        )
        if self.layout is not None:
            redundancy, chunk_size, table, version, base, stripe, seed = self.layout
            return _FILE.pack(*head, redundancy, chunk_size.bit_length() - 1, table, version, base, stripe, seed)
        if self.type == DIRECTORY:
            return _DIRECTORY.pack(*head, self.parent, self.chunk_size, self.stripe, self.trash)
        if self.type == SYMLINK:
            return _HEAD.pack(*head) + self.target
        return _DEVICE.pack(*head, self.rdev)


_made: Callable[..., Inode] = Inode  # struct's fields have no static types
_AttributesMessage = common_pb2.Attributes  # looked up with every reply


def unpack(inode: int, data: bytes) -> Inode:
    """The inode of a record. Raises BAD_FORMAT for one that is damaged or of a newer version."""
    if data[:1] > _VERSION_BYTE:
        raise keys.refused(f"inode {inode:x}", data[0])
    try:
        return _unpack(inode, data)
    except (struct.error, IndexError) as damage:
        raise error(Status.BAD_FORMAT, f"the record of inode {inode:x} is damaged: run 'emberfs fsck'") from damage


def _unpack(inode: int, data: bytes) -> Inode:
    if data[0] == 1:
        data = _of_version_1(data)
    kind = data[1]
    if kind == REGULAR:  # most are files: cutting the tuple apart would cost as much as all the rest
        (_, _, flags, mode, uid, gid, nlink, length, atime, mtime, ctime, birth, change, truncates, project,
         redundancy, bits, table, version, base, stripe, seed) = _FILE.unpack(data)  # fmt: skip
        layout = Layout(redundancy, 1 << bits, table, version, base, stripe, seed)
        return Inode(inode, kind, flags, mode, uid, gid, nlink, length, atime, mtime, ctime, birth, change, truncates,
                     project, layout)  # fmt: skip
    if kind == DIRECTORY:
        fields = _DIRECTORY.unpack(data)
        return _made(inode, *fields[1:_HEAD_FIELDS], None, *fields[_HEAD_FIELDS:])
    if kind == SYMLINK:
        return _made(inode, *_HEAD.unpack_from(data)[1:], target=data[_HEAD.size :])
    fields = _DEVICE.unpack(data)
    return _made(inode, *fields[1:_HEAD_FIELDS], rdev=fields[_HEAD_FIELDS])


def _of_version_1(data: bytes) -> bytes:
    """The record as version 2 would have written it: without a project, and with the server's trash."""
    tail = data[_HEAD_OF_VERSION_1:] + (bytes(4) if data[1] == DIRECTORY else b"")
    return data[:_HEAD_OF_VERSION_1] + bytes(8) + tail


def existing(inode: int, data: bytes | None) -> Inode:
    """The inode of a record that was read. Raises STALE_HANDLE when there is none."""
    if data is None:
        raise error(Status.STALE_HANDLE, f"inode {inode:x} is gone; open the path again")
    return unpack(inode, data)


def with_counters(inode: Inode, subdirectories: int, changed_ns: int) -> Inode:
    """A directory as the caller sees it: links and times from its blind counters (keys.py, DCNT)."""
    return replace(
        inode,
        nlink=2 + subdirectories if inode.parent else 0,
        mtime_ns=changed_ns if changed_ns > inode.ctime_ns else inode.mtime_ns,
        ctime_ns=max(changed_ns, inode.ctime_ns),
        change=max(changed_ns, inode.ctime_ns),
    )


def attributes(inode: Inode) -> common_pb2.Attributes:
    """The message. A directory must have passed through `with_counters`."""
    made = _AttributesMessage()
    fill(made, inode)
    return made


def fill(made: common_pb2.Attributes, inode: Inode) -> None:
    """Set the fields of an empty message, which may lie in a reply: building one and copying it there costs twice as much."""
    made.inode = inode.id
    made.type = inode.type  # type: ignore[assignment]  # open enum: the number as it was stored
    made.mode = inode.mode
    made.uid = inode.uid
    made.gid = inode.gid
    made.nlink = inode.nlink
    made.length = inode.length
    made.atime_ns = inode.atime_ns
    made.mtime_ns = inode.mtime_ns
    made.ctime_ns = inode.ctime_ns
    made.birth_ns = inode.birth_ns
    made.change = inode.change
    made.truncate_version = inode.truncate_version
    if flags := inode.flags:  # most inodes have none, and every field costs
        made.sparse = bool(flags & SPARSE)
        made.extended = bool(flags & EXTENDED)
        made.inlined = bool(flags & INLINE)
    if inode.layout is not None:
        _fill_layout(made.layout, inode.layout)
    elif inode.type == DIRECTORY:
        made.parent = inode.parent
        if inode.chunk_size or inode.stripe:
            made.layout.chunk_size = inode.chunk_size
            made.layout.stripe = inode.stripe
    elif inode.type == SYMLINK:
        made.target = inode.target
        made.length = len(inode.target)
    else:
        made.rdev = inode.rdev


def _fill_layout(made: common_pb2.Layout, layout: Layout) -> None:
    redundancy, chunk_size, table, version, base, stripe, seed = layout
    made.redundancy = redundancy  # type: ignore[assignment]
    made.chunk_size = chunk_size
    made.table = table
    made.table_version = version
    made.base = base
    made.stripe = stripe
    made.seed = seed
