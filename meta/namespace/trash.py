"""The trash: what lost its last name is kept for a while, whole, and can be given a name again.

An entry is one record (keys.py, TRSH), named by when it expires and its inode, so the next one to go is the first of them. What is in
it has no name: an inode without links, or the top of a tree that is detached like any removed one. So removing into the trash costs
what removing costs, nothing below is touched, and emptying it is putting the same inode into the garbage queue after all.

How long it is kept is said by the directory that it was removed from (new directories take over what theirs says), else by the
server. Where space is short, the trash gives way first, the oldest entries before the others.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from .. import keys
from ..kv.engine import Pair, Transaction
from . import inode as inodes
from .attempt import DEAD_RECORD, Attempt
from .directories import Directory
from .inode import Inode

if TYPE_CHECKING:
    from .namespace import Namespace

VERSION = 1
SECONDS_DEFAULT = 86400  # what a server of a cluster keeps, unless it is told otherwise
SECONDS_MAX = (1 << 32) - 2
NONE = 1  # in the column of a directory: nothing is kept; seconds + 1 otherwise, 0: what the server says
EXPIRED_PER_STEP = 128

_RECORD = struct.Struct(">BQqI")  # version, parent, removed_ns, remover; then the name


class Removed(NamedTuple):
    """How something came into the trash."""

    parent: int
    removed_ns: int
    remover: int  # uid
    name: bytes

    def pack(self) -> bytes:
        return _RECORD.pack(VERSION, *self[:3]) + self.name


def unpack(data: bytes) -> Removed:
    """Raises BAD_FORMAT for a record of a newer version."""
    version, parent, removed_ns, remover = _RECORD.unpack_from(data)
    if version > VERSION:
        raise keys.refused("a record of the trash", version)
    return Removed(parent, removed_ns, remover, data[_RECORD.size :])


def seconds(attempt: Attempt, parent: Directory) -> int:
    """How long what is removed from a directory is kept; 0: not at all."""
    if attempt.forever:
        return 0
    return parent.trash - 1 if parent.trash else attempt.namespace.trash_seconds


def put(attempt: Attempt, inode: Inode, parent: Directory, name: bytes) -> bool:
    """Put an inode that has lost its last name into the trash, if that is wanted. The caller writes the inode."""
    kept = seconds(attempt, parent)
    if not kept:
        return False
    expires = attempt.now_ns // 10**9 + kept
    removed = Removed(parent.id, attempt.now_ns, attempt.caller.uid, name)
    attempt.txn.put(keys.trash_key(expires, inode.id), removed.pack())
    inode.flags |= inodes.TRASH
    return True


def take_out(txn: Transaction, key: bytes, inode: Inode) -> None:
    """The record goes; what becomes of the inode is the caller's business."""
    txn.delete(key)
    inode.flags &= ~inodes.TRASH


def discard(txn: Transaction, key: bytes, inode: Inode) -> None:
    """An entry goes for good: into the garbage queue that it would have come to without a trash."""
    take_out(txn, key, inode)
    txn.put(keys.inode_key(inode.id), inode.pack())
    letters = keys.DEAD_TREE if inode.is_directory else keys.DEAD_FILE
    txn.put_versionstamped(letters, keys.dead_suffix(inode.id), DEAD_RECORD)


class Emptier:
    """Lets entries go when their time has come, or when space is short."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._begin, self._end = keys.prefix_range(
            keys.TRASH
        )  # an expired scan would cross the tombstones of all before

    async def step(self, *, short: bool) -> bool:
        """Some of what has expired; or, where space is `short`, of what comes next. Whether there was any."""
        end = self._end
        if not short:
            end = keys.trash_key(self._namespace.clock.wall_ns() // 10**9 + 1, 0)
        begin = self._begin
        if begin >= end:
            return False

        async def work(txn: Transaction) -> list[Pair]:
            page = await txn.scan(begin, end, EXPIRED_PER_STEP)
            records = await txn.get_many([keys.inode_key(keys.dead_inode(key)) for key, _ in page])
            for (key, _), record in zip(page, records, strict=True):
                if record is None:
                    txn.delete(key)
                else:
                    discard(txn, key, inodes.unpack(keys.dead_inode(key), record))
            return page

        page = await self._namespace.transact(work)
        if page and not short:
            self._begin = page[-1][0]  # a directory that keeps things for less time may still put entries before it:
        elif not page:
            self._begin = keys.prefix_range(keys.TRASH)[0]  # they are found when the rest is through
        return bool(page)
