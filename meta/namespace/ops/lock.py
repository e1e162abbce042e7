"""Locks: one attempt to take, change or give back one, and the question who is in the way."""

from __future__ import annotations

import os
from functools import partial

from ....proto.errors import Status, error
from ....proto.gen import meta_pb2
from ... import keys
from ...kv.engine import Transaction
from .. import extended, locks
from .. import inode as inodes
from ..access import READ, WRITE, require
from ..attempt import Attempt, layout_of
from ..locks import Lock, Table
from .open import GRANTED

_KINDS = (locks.FLOCK, locks.POSIX)
_TYPES = (meta_pb2.LOCK_TYPE_SHARED, meta_pb2.LOCK_TYPE_EXCLUSIVE, meta_pb2.LOCK_TYPE_UNLOCK)


class Blocked(Exception):
    """The lock is not free. Nothing was changed."""

    def __init__(self, table: Table, obstacle: Lock) -> None:
        super().__init__()
        self.table = table
        self.obstacle = obstacle


def wanted(client: bytes, request: meta_pb2.LockRequest | meta_pb2.TestLockRequest) -> Lock:
    """What a request is about. Raises INVALID."""
    if request.kind not in _KINDS or request.type not in _TYPES:
        raise error(Status.INVALID, f"lock kind {request.kind}, type {request.type}: not known here")
    if request.kind == locks.FLOCK and (request.start or request.length):
        raise error(Status.INVALID, "flock(2) locks whole files, not ranges")
    start, end = locks.span(request.start, request.length)
    pid = request.pid if isinstance(request, meta_pb2.LockRequest) else 0
    return Lock(request.kind, client, request.owner, request.type, start, end, pid)


async def lock(attempt: Attempt, request: meta_pb2.LockRequest) -> meta_pb2.LockReply:
    """Grant the lock, with the attributes of the moment, or give it back. Raises Blocked, NO_LOCKS, and STALE_HANDLE for an inode that
    is gone."""
    what = wanted(attempt.client, request)
    key = keys.lock_key(request.inode)
    if request.withdraw:
        # Whoever was given up may be about to commit, and not know it yet: it has read this key, and conflicts.
        attempt.txn.conflict_write(key)
    table = locks.unpack(await attempt.txn.get(key))
    reply = meta_pb2.LockReply()
    if request.type == meta_pb2.LOCK_TYPE_UNLOCK:
        made = locks.release(table, what)
    else:
        await _check(attempt, request, reply)
        outcome = locks.acquire(table, what)
        if isinstance(outcome, Lock):
            raise Blocked(table, outcome)
        made = outcome
    if made != table:
        put(attempt.txn, request.inode, made)
        attempt.after.append(partial(attempt.namespace.locking.changed, request.inode, made))
    if (number := request.number if request.wait else request.withdraw) and request.kind == locks.POSIX:
        attempt.txn.delete(keys.lock_wait_key(attempt.client, request.owner, number))
    return reply


def put(txn: Transaction, inode: int, table: Table) -> None:
    """Put a table in its place."""
    if table:
        txn.put(keys.lock_key(inode), locks.pack(table))
    else:
        txn.delete(keys.lock_key(inode))


async def test_lock(attempt: Attempt, request: meta_pb2.TestLockRequest) -> meta_pb2.TestLockReply:
    """The lock that is in the way, if any."""
    what = wanted(attempt.client, request)
    table = locks.unpack(await attempt.txn.get(keys.lock_key(request.inode), snapshot=True))
    held = locks.conflict(table, what)
    if held is None:
        return meta_pb2.TestLockReply()
    return meta_pb2.TestLockReply(
        type=held.type,  # type: ignore[arg-type]  # open enum: the number as it was stored
        start=held.start,
        length=locks.length_of(held),
        pid=held.pid,
        owner=held.owner,
    )


async def _check(attempt: Attempt, request: meta_pb2.LockRequest, reply: meta_pb2.LockReply) -> None:
    # The inode is not in the read set: its writers must not conflict with those who lock. Whoever held the lock before settled the
    # length before it let go, so this snapshot, in which the lock is free, has that.
    record = await attempt.txn.get(keys.inode_key(request.inode), snapshot=True)
    inode = inodes.existing(request.inode, record)
    layout_of(inode)
    # As in fcntl(2) an exclusive lock of a range takes the right to write; flock(2) asks for none beyond having it open.
    writing = request.kind == locks.POSIX and request.type == locks.EXCLUSIVE
    if not _has_open(attempt, request, os.O_WRONLY if writing else os.O_RDONLY):
        if inode.flags & inodes.ANY_ACL:
            await extended.load_acls(attempt.txn, inode, snapshot=True)
        require(inode, attempt.caller, WRITE if writing else READ)
    reply.attributes.CopyFrom(inodes.attributes(inode))


def _has_open(attempt: Attempt, request: meta_pb2.LockRequest, access: int) -> bool:
    if attempt.task.has_open(request.inode, GRANTED[access]):
        return True
    # flock, and shared locks of files that are open for writing only, which fcntl refuses at the client
    return access == os.O_RDONLY and attempt.task.has_open(request.inode, GRANTED[os.O_WRONLY])
