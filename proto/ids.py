"""Identifiers: widths, reserved values, and how a chunk id is packed.

A chunk id is 16 bytes, big-endian, so that the chunks of a file are one contiguous range of keys:
tenant u16 | inode u64 | reserved u16 (0) | index u32.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

ROOT_INODE = 1
FIRST_INODE = 1 << 10  # lower numbers are reserved
CHUNK_INDEX_MAX = (1 << 32) - 1
SYSTEM_TENANT = 0xFFFF  # chunks that no file has: copies of the metadata (meta/backup.py)
CHANNELS = 1024  # a client's writes to one chunk always use one channel

_CHUNK = struct.Struct(">HQHI")
CHUNK_ID_BYTES = _CHUNK.size


class ChunkId(NamedTuple):
    tenant: int
    inode: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here

    def pack(self) -> bytes:
        return _CHUNK.pack(self.tenant, self.inode, 0, self.index)

    @classmethod
    def unpack(cls, data: bytes) -> ChunkId:
        tenant, inode, _, index = _CHUNK.unpack(data)
        return cls(tenant, inode, index)

    def __str__(self) -> str:
        return f"{self.inode:x}.{self.index}" if not self.tenant else f"{self.tenant}:{self.inode:x}.{self.index}"


def chunk_key(inode: int, index: int, tenant: int = 0) -> bytes:
    """The packed chunk id, without building a ChunkId (hot paths)."""
    return _CHUNK.pack(tenant, inode, 0, index)


def chunk_keys(inodes: Iterable[int], indexes: Iterable[int], tenant: int = 0) -> list[bytes]:
    """The packed ids of many chunks. Raises ValueError for columns of different lengths."""
    pack = _CHUNK.pack
    return [pack(tenant, inode, 0, index) for inode, index in zip(inodes, indexes, strict=True)]


_MIX = 0x9E3779B97F4A7C15


def channel_of(inode: int, index: int) -> int:
    """The channel on which a client's writes to this chunk are numbered: a multiplicative hash modulo CHANNELS."""
    return (((inode ^ (index << 20)) * _MIX) >> 48) % CHANNELS


def new_client_id() -> bytes:
    """16 random bytes: the identity of one client in one process (a forked child takes a new one)."""
    return os.urandom(16)


def new_u64() -> int:
    """A random number that is never 0: incarnations, sessions, request id bases."""
    return int.from_bytes(os.urandom(8), "big") | 1


def boot_id() -> str:
    """The kernel's boot id: tells whether two processes share a machine, and whether a machine was reset."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
