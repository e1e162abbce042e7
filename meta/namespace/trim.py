"""Truncation. A cut is one transaction (length, truncate version + 1, a TRIM record), then the chunks, then the record goes.

Either order alone would lose: chunks first and a crash leaves zeros where committed data lies; metadata first and a crash brings old
bytes back when the file grows again. While the record exists the length does not grow, and every server may finish the trim: the
chunks refuse older truncate versions, so doing it twice is harmless. The cut is synced before a chunk is touched; otherwise a
power failure could take back the cut and not the loss of the bytes. The chunks' loss is not synced: that would wait for everything else
that is being written there. So a power failure of all replicas may bring bytes back that nobody has synced away, behind the end; an fsync
of the file, or of anything on those chains, covers them.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ...proto.errors import Status, error
from ...proto.layout import file_bytes_max
from .. import keys
from ..kv.engine import Transaction
from . import append, extended, quota, session
from . import inode as inodes
from .access import without_set_ids
from .attempt import Attempt, Detour, Task, layout_of
from .happenings import WRITTEN
from .inode import Inode

if TYPE_CHECKING:
    from .namespace import Namespace

VERSION = 1

_RECORD = struct.Struct(">BQQI")  # version, old length, new length, truncate version


class Trim(NamedTuple):
    old_length: int
    new_length: int
    truncate_version: int

    def pack(self) -> bytes:
        return _RECORD.pack(VERSION, *self)


def unpack(data: bytes) -> Trim:
    """The trim of a record. Raises BAD_FORMAT for one of a newer version."""
    version, *fields = _RECORD.unpack(data)
    if version > VERSION:
        raise keys.refused("a trim record", version)
    return Trim(*fields)


class FinishTrim(Detour):
    """The file is to grow or to be cut again while an earlier cut is unfinished."""

    def __init__(self, inode: int) -> None:
        super().__init__(inode)
        self.inode = inode

    async def take(self, namespace: Namespace, task: Task) -> None:
        await finish(namespace, self.inode, task)


class Measure(Detour):
    """The hint of a writer is stale: the file was truncated in between. Ask the chunks where it ends."""

    def __init__(self, inode: int) -> None:
        super().__init__(inode)
        self.inode = inode

    async def take(self, namespace: Namespace, task: Task) -> None:
        task.measured[self.inode] = await measure(namespace, self.inode)


def check_length(inode: Inode, length: int) -> None:
    """Raise FILE_TOO_BIG for a length that the file's layout cannot hold."""
    largest = file_bytes_max(layout_of(inode).chunk_size)
    if length > largest:
        raise error(Status.FILE_TOO_BIG, f"inode {inode.id:x}: {length} bytes, and its layout ends at {largest}")


async def cut(attempt: Attempt, inode: Inode, length: int) -> None:
    """Set the length of a regular file, as truncate(2) and O_TRUNC do. The inode is written; the chunks are trimmed after the commit
    and before the reply. Raises FILE_TOO_BIG, and the detour while an earlier trim is unfinished."""
    check_length(inode, length)
    if inode.flags & inodes.TRIMMING:
        raise FinishTrim(inode.id)
    if length > inode.length and inode.nlink:
        await quota.require(attempt, quota.owner_of(inode), 0, length - inode.length)
    await append.require_quiet(attempt, inode.id)
    if inode.flags & inodes.INLINE:
        trims = await _cut_inlined(attempt, inode, length)
    else:
        # An open writer may have gone beyond the settled length: then even a longer file has chunks behind its new end.
        trims = length < inode.length or await session.any_writer(attempt.txn, inode.id)
    if trims:
        inode.truncate_version += 1
        inode.flags |= inodes.TRIMMING
        attempt.txn.put(keys.trim_key(inode.id), Trim(inode.length, length, inode.truncate_version).pack())
        attempt.after.append(partial(finish, attempt.namespace, inode.id, attempt.task))
    if length > inode.length:
        inode.flags |= inodes.SPARSE
    attempt.tell(WRITTEN, inode.id)
    quota.resize(attempt.txn, inode, length)
    inode.mtime_ns = attempt.now_ns
    inode.touched(attempt.now_ns)
    extended.lose_capability(attempt.txn, inode)
    if not attempt.caller.is_root:
        inode.mode = without_set_ids(inode.mode, member=attempt.caller.member_of(inode.gid))
    attempt.put(inode)


async def _cut_inlined(attempt: Attempt, inode: Inode, length: int) -> bool:
    """Whether chunks are to be trimmed: those that a growth left that failed. They must not show in what the file becomes now."""
    from . import inline  # it needs what is here, too

    if length:
        await inline.resize(attempt, inode, length)
        return False
    inline.drop(attempt.txn, inode)
    return inode.truncate_version > 0


async def finish(namespace: Namespace, number: int, task: Task | None = None) -> None:
    """Trim the chunks behind a cut and drop the record, for the `task` that cut. Nothing to do is fine. Raises what storage raises; calling
    again goes on."""
    txn = namespace.engine.begin()
    found, record = await txn.get_many([keys.inode_key(number), keys.trim_key(number)], snapshot=True)
    if found is None or record is None:
        return
    inode, trim = inodes.unpack(number, found), unpack(record)
    await namespace.engine.sync()
    await namespace.chunks.truncate(number, layout_of(inode), trim.old_length, trim.new_length, trim.truncate_version)

    async def work(txn: Transaction) -> None:
        found, record = await txn.get_many([keys.inode_key(number), keys.trim_key(number)])
        if found is None or record is None or unpack(record).truncate_version != trim.truncate_version:
            return  # somebody else finished it, and it may have been cut again
        inode = inodes.unpack(number, found)
        inode.flags &= ~inodes.TRIMMING
        txn.put(keys.inode_key(number), inode.pack())
        txn.delete(keys.trim_key(number))

    await namespace.transact(work, task)


async def measure(namespace: Namespace, number: int) -> tuple[int, int]:
    """(truncate version, end of the last chunk) of a file, from its chunks. Raises STALE_HANDLE when the inode is gone."""
    found = await namespace.engine.begin().get(keys.inode_key(number), snapshot=True)
    inode = inodes.existing(number, found)
    if inode.flags & inodes.INLINE:
        return inode.truncate_version, inode.length
    if inode.flags & inodes.TRIMMING:
        await finish(namespace, number)
    end = await namespace.chunks.query_last(number, layout_of(inode), inode.truncate_version)
    return inode.truncate_version, end
