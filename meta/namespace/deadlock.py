"""Deadlocks among waits for POSIX locks, over all inodes and clients.

Who waits has a LKWT record, written by the same transaction that looked whether the wait would close a circle. It follows the records
and tables of those it waits for, and has read them: of two waits that close a circle together at the same moment, one conflicts,
runs again and finds the other. Whom somebody waits for is worked out from the tables of the moment, so no edge is ever stale.
As in Linux, an owner of which one thread waits counts as waiting, and flocks are not looked at.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .. import keys
from ..kv.engine import Transaction
from . import locks
from .locks import Lock, Owner, Table

VERSION = 1
OWNERS_MAX = 1000  # looked at for one wait; a circle beyond is not found, and ends when somebody gives up
WAITS_PER_OWNER_MAX = 100  # looked at

_RECORD = struct.Struct(">BBQQQ")  # version, type, inode, start, end


class Wait(NamedTuple):
    inode: int
    wanted: Lock


def pack(inode: int, wanted: Lock) -> bytes:
    return _RECORD.pack(VERSION, wanted.type, inode, wanted.start, wanted.end)


def unpack(key: bytes, data: bytes) -> Wait:
    """A wait from its record. Raises BAD_FORMAT for one of a newer version."""
    version, type_, inode, start, end = _RECORD.unpack(data)
    if version > VERSION:
        raise keys.refused("the record of a wait for a lock", version)
    return Wait(inode, Lock(locks.POSIX, *keys.split_lock_wait_key(key), type_, start, end))


async def would_close(txn: Transaction, table: Table, wanted: Lock) -> bool:
    """Whether somebody who is in the way of `wanted` waits, directly or through others, for the one who wants it."""
    tables: dict[int, Table] = {}
    seen: set[Owner] = set()
    ahead: list[Owner] = [held.whose for held in locks.blockers(table, wanted)]
    while ahead and len(seen) < OWNERS_MAX:
        owner = ahead.pop()
        if owner == wanted.whose:
            return True
        if owner in seen:
            continue
        seen.add(owner)
        for key, value in await txn.scan(*keys.lock_wait_range(*owner), WAITS_PER_OWNER_MAX):
            wait = unpack(key, value)
            if wait.inode not in tables:
                tables[wait.inode] = locks.unpack(await txn.get(keys.lock_key(wait.inode)))
            ahead += [held.whose for held in locks.blockers(tables[wait.inode], wait.wanted)]
    return False
