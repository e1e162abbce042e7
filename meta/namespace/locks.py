"""The locks of one inode: a pure table, and the record that it is kept in.

Two kinds, which never meet. A POSIX lock (fcntl) covers a byte range and belongs to an owner: setting one replaces what the same owner
has in that range, splits what reaches beyond it and merges what touches it. A flock covers the whole file and belongs to an open file
description. An owner is a number that its client chose, so everywhere in this module "owner" is (client, number).

Nothing here waits, and nothing changes a table: `acquire` and `release` return a new one.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ...proto.errors import Status, error
from ...proto.gen.meta_pb2 import LOCK_KIND_FLOCK, LOCK_KIND_POSIX, LOCK_TYPE_EXCLUSIVE, LOCK_TYPE_SHARED
from ...proto.ranges import OFFSET_END, Piece, overlaid
from .. import keys

VERSION = 1
LOCKS_PER_INODE_MAX = 2000  # so that a table with as many clients fits a value of the engine

FLOCK = int(LOCK_KIND_FLOCK)
POSIX = int(LOCK_KIND_POSIX)
SHARED = int(LOCK_TYPE_SHARED)
EXCLUSIVE = int(LOCK_TYPE_EXCLUSIVE)

_HEAD = struct.Struct(">BHH")  # version, clients, locks
_LOCK = struct.Struct(">BBHQQQI")  # kind, type, client (its place in the list before), owner, start, end, pid
CLIENT_BYTES = 16

Owner = tuple[bytes, int]  # client, number


class Lock(NamedTuple):
    """A lock that is held or wanted, on bytes [start, end)."""

    kind: int
    client: bytes
    owner: int
    type: int
    start: int
    end: int
    pid: int = 0

    @property
    def whose(self) -> Owner:
        return self.client, self.owner

    def conflicts(self, other: Lock) -> bool:
        """Whether two owners cannot have both."""
        return (
            self.kind == other.kind
            and EXCLUSIVE in (self.type, other.type)
            and self.start < other.end
            and other.start < self.end
            and self.whose != other.whose
        )


Table = tuple[Lock, ...]


def blockers(table: Table, wanted: Lock) -> Iterator[Lock]:
    """The locks that are in the way."""
    return (held for held in table if held.conflicts(wanted))


def conflict(table: Table, wanted: Lock) -> Lock | None:
    """The lock in the way that begins first, which is what F_GETLK answers; None: `wanted` would be granted."""
    return min(blockers(table, wanted), key=lambda held: held.start, default=None)


def acquire(table: Table, wanted: Lock) -> Table | Lock:
    """The table with the lock granted, or the lock that is in the way. Raises NO_LOCKS when the table is full."""
    obstacle = conflict(table, wanted)
    if obstacle is not None:
        return obstacle
    made = _replaced(table, wanted, (wanted.type, wanted.pid))
    if len(made) > LOCKS_PER_INODE_MAX:
        raise error(Status.NO_LOCKS, f"the file has {len(table)} locks: at most {LOCKS_PER_INODE_MAX}")
    return made


def release(table: Table, unwanted: Lock) -> Table:
    """The table without what this owner has of this kind in this range. Raises NO_LOCKS when a lock would have to be split and the
    table is full."""
    made = _replaced(table, unwanted, None)
    if len(made) > LOCKS_PER_INODE_MAX:
        raise error(Status.NO_LOCKS, f"the file has {len(table)} locks: at most {LOCKS_PER_INODE_MAX}")
    return made


def without_clients(table: Table, clients: Collection[bytes]) -> Table:
    """The table without what belongs to these clients."""
    return tuple(held for held in table if held.client not in clients)


def of_owner(table: Table, kind: int, owner: Owner) -> Table:
    """What an owner has of one kind."""
    return tuple(held for held in table if held.kind == kind and held.whose == owner)


def _replaced(table: Table, span: Lock, value: tuple[int, int] | None) -> Table:
    own: list[Piece[tuple[int, int]]] = []
    others: list[Lock] = []
    for held in table:
        if held.kind == span.kind and held.whose == span.whose:
            own.append((held.start, held.end, (held.type, held.pid)))
        else:
            others.append(held)
    pieces = overlaid(own, span.start, span.end, value)
    mine = (Lock(span.kind, *span.whose, kind, start, end, pid) for start, end, (kind, pid) in pieces)
    return (*others, *mine)


def span(start: int, length: int) -> tuple[int, int]:
    """[start, end) of a range as requests name it. Raises INVALID for one that reaches over the largest offset."""
    end = start + length if length else OFFSET_END
    if start >= OFFSET_END or end > OFFSET_END:
        raise error(Status.INVALID, f"a lock of {length} bytes at {start} reaches beyond the largest offset of a file")
    return start, end


def length_of(held: Lock) -> int:
    """Its length as replies name it: 0 if it has no end."""
    return 0 if held.end == OFFSET_END else held.end - held.start


def faults(table: Table) -> str:
    """What is wrong with a table, for the checker; empty if nothing is."""
    for place, held in enumerate(table):
        if not 0 <= held.start < held.end <= OFFSET_END or held.type not in (SHARED, EXCLUSIVE):
            return f"{held} is no lock"
        for other in table[place + 1 :]:
            if held.conflicts(other):
                return f"{held} and {other} exclude each other"
            if (
                held.kind == other.kind
                and held.whose == other.whose
                and held.start < other.end
                and other.start < held.end
            ):
                return f"{held} and {other} of one owner overlap"
    return ""


# the record


def pack(table: Table) -> bytes:
    clients = list(dict.fromkeys(held.client for held in table))
    places = {client: place for place, client in enumerate(clients)}
    rows = (
        _LOCK.pack(held.kind, held.type, places[held.client], held.owner, held.start, held.end, held.pid)
        for held in table
    )
    return b"".join((_HEAD.pack(VERSION, len(clients), len(table)), *clients, *rows))


def unpack(data: bytes | None) -> Table:
    """The table of a record; an absent one is empty. Raises BAD_FORMAT for one that is damaged or of a newer version."""
    if data is None:
        return ()
    version, clients, count = _HEAD.unpack_from(data)
    if version > VERSION:
        raise keys.refused("a table of locks", version)
    at = _HEAD.size + CLIENT_BYTES * clients
    if len(data) != at + _LOCK.size * count:
        raise error(Status.BAD_FORMAT, "a table of locks is damaged: run 'emberfs fsck'")
    names = [data[i : i + CLIENT_BYTES] for i in range(_HEAD.size, at, CLIENT_BYTES)]
    return tuple(
        Lock(kind, names[place], owner, type_, start, end, pid)
        for kind, type_, place, owner, start, end, pid in _LOCK.iter_unpack(data[at:])
    )
