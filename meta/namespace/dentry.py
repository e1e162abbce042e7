"""Directory entries: the record, and the counters of a directory that go with every change of its names."""

from __future__ import annotations

import struct
from typing import NamedTuple

from .. import keys
from ..kv.engine import Transaction
from .inode import DIRECTORY

VERSION = 1

_RECORD = struct.Struct(">BBQ")  # version, type, inode


class Dentry(NamedTuple):
    type: int
    inode: int

    @property
    def is_directory(self) -> bool:
        return self.type == DIRECTORY


def unpack(data: bytes) -> Dentry:
    """The entry of a record. Raises BAD_FORMAT for one of a newer version."""
    version, kind, inode = _RECORD.unpack(data)
    if version > VERSION:
        raise keys.refused("a directory entry", version)
    return Dentry(kind, inode)


def pack(entry: Dentry) -> bytes:
    """The record of an entry."""
    return _RECORD.pack(VERSION, *entry)


def insert(txn: Transaction, directory: int, name: bytes, entry: Dentry, now_ns: int) -> None:
    """A new name. The caller has read that it is free."""
    txn.put(keys.dentry_key(directory, name), pack(entry))
    txn.add(keys.entries_key(directory), 1)
    if entry.type == DIRECTORY:
        txn.add(keys.subdirectories_key(directory), 1)
    txn.max(keys.changed_key(directory), now_ns)


def remove(txn: Transaction, directory: int, name: bytes, entry: Dentry, now_ns: int) -> None:
    """The name goes; what it named is the caller's business."""
    txn.delete(keys.dentry_key(directory, name))
    txn.add(keys.entries_key(directory), -1)
    if entry.type == DIRECTORY:
        txn.add(keys.subdirectories_key(directory), -1)
    txn.max(keys.changed_key(directory), now_ns)


def substitute(txn: Transaction, directory: int, name: bytes, old: Dentry, new: Dentry, now_ns: int) -> None:
    """The name stays and names something else."""
    txn.put(keys.dentry_key(directory, name), pack(new))
    if old.is_directory != new.is_directory:
        txn.add(keys.subdirectories_key(directory), 1 if new.is_directory else -1)
    txn.max(keys.changed_key(directory), now_ns)
