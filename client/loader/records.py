"""Packed records: many samples in few files, which only ever grow.

A shard (`*.records`) is a header, and then one *commit* after the other. A commit is the payloads of some samples, an index of theirs (16
bytes a sample), a directory of all indexes so far, and a footer of 64 bytes, which comes last. So whoever has the end of a shard finds
every sample with one more read, and the place of an index entry follows from the sample's number: no index has to be kept in memory.

    header     4096 bytes: magic, version, the shard's random id, CRC
    payloads   as they are; the first of a commit, and each of 32 KiB or more, begins at a multiple of 4 KiB, each of 128 KiB or more
               at one of 16 KiB: the units of the file system's checksums
    index      per sample: offset u64, length u32, CRC32C of the payload u32
    directory  per commit: position of its index u64, number of its first sample u64, samples u32, CRC32C of the index u32
    footer     at a multiple of 64: magic, its own position, samples, position of the directory, commits, CRCs, the shard's id

All numbers are little-endian. What was being written when a writer died lies behind the last whole footer: readers look for that from
the end backwards (bytes that only look like one, as in a shard within a shard, have another id or another position), writers cut off
what follows. A footer is written when what it speaks of has arrived.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

SUFFIX = ".records"
VERSION = 1
HEADER_BYTES = 4096
FOOTER_BYTES = 64
COMMITS_MAX = 4096  # of one shard
SAMPLE_BYTES_MAX = (1 << 32) - 1
ALIGN = 4096
ALIGN_FROM = 32 << 10  # bytes of a sample from which on it begins at a multiple of ALIGN
ALIGN_LARGE = 16 << 10  # the unit in large chunks
LARGE_FROM = 128 << 10  # bytes of a sample from which on it begins at a multiple of that
LARGE_CHUNK = (
    4 << 20
)  # of shards that begin with such a sample: a quarter of the checksums, and of the samples that lie in two chunks
TAIL_BYTES = 64 << 10  # read at once from the end of a shard
SEARCH_BYTES = 4 << 20  # of one step backwards

_HEADER = struct.Struct("<8sI4x16s28xI")
_FOOTER = struct.Struct("<8sQQQII16s4xI")
_MAGIC, _END = b"EMBERREC", b"EMBEREND"

ENTRY = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc", "<u4")])
COMMIT = np.dtype([("position", "<u8"), ("first", "<u8"), ("count", "<u4"), ("crc", "<u4")])

Entries = NDArray[np.void]
ReadAt = Callable[[int, int], Any]  # (offset, length) -> bytes


class BadRecords(ValueError):
    """A file that is no shard of records, or a damaged one."""


@dataclass(frozen=True)
class Shard:
    """What the last footer says. `end` is where it ends; `size` is more where somebody died while writing (or 0, and `id` empty)."""

    id: bytes
    samples: int
    commits: Entries  # of COMMIT
    end: int
    size: int

    @property
    def is_whole(self) -> bool:
        return self.end == self.size


def header_of(id_: bytes) -> bytes:
    """The first bytes of a shard."""
    head = _HEADER.pack(_MAGIC, VERSION, id_, 0)[:-4]
    return (head + crc32c(head).to_bytes(4, "little")).ljust(HEADER_BYTES, b"\0")


def footer_of(id_: bytes, position: int, samples: int, directory: int, commits: Entries) -> bytes:
    """A footer that is to lie at `position`."""
    body = _FOOTER.pack(_END, position, samples, directory, len(commits), crc32c(commits.tobytes()), id_, 0)[:-4]
    return body + crc32c(body).to_bytes(4, "little")


def read_shard(read: ReadAt, size: int, name: str) -> Shard:
    """Find the last whole footer of a shard of `size` bytes. Raises BadRecords. An empty file is a shard whose writer did not get further
    than making it."""
    if not size:
        return Shard(b"", 0, np.empty(0, COMMIT), HEADER_BYTES, 0)
    id_ = _read_header(bytes(read(0, min(size, _HEADER.size))), name)
    end, step = size, TAIL_BYTES
    while end > HEADER_BYTES:
        begin = max(HEADER_BYTES, end - step)
        shard = _footer_in(bytes(read(begin, end - begin)), begin, id_, read, size, name)
        if shard is not None:
            return shard
        # The next piece overlaps this one, as a footer may lie across.
        end, step = begin + FOOTER_BYTES - 1 if begin > HEADER_BYTES else HEADER_BYTES, SEARCH_BYTES
    return Shard(id_, 0, np.empty(0, COMMIT), HEADER_BYTES, size)


def _read_header(head: bytes, name: str) -> bytes:
    if len(head) < _HEADER.size or head[:8] != _MAGIC:
        raise BadRecords(f"{name} is no shard of records: it begins with {head[:8]!r}")
    _, version, id_, crc = _HEADER.unpack(head)
    if crc != crc32c(head[:-4]):
        raise BadRecords(f"{name}: the header is damaged")
    if version != VERSION:
        raise BadRecords(f"{name} has version {version} of the format; this program reads version {VERSION}")
    return bytes(id_)


def _footer_in(data: bytes, start: int, id_: bytes, read: ReadAt, size: int, name: str) -> Shard | None:
    """What the last whole footer in `data` says, which lies at `start`. Raises BadRecords."""
    at = data.rfind(_END)
    while at >= 0:
        shard = _parse_footer(data[at : at + FOOTER_BYTES], start + at, id_, read, size, name)
        if shard is not None:
            return shard
        at = data.rfind(_END, 0, at + len(_END) - 1)
    return None


def _parse_footer(raw: bytes, position: int, id_: bytes, read: ReadAt, size: int, name: str) -> Shard | None:
    """What a footer at `position` says; None where that is none. Raises BadRecords: the directory had arrived before it was written."""
    if len(raw) < FOOTER_BYTES or crc32c(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        return None
    _, own, samples, directory, count, crc, its_id, _ = _FOOTER.unpack(raw)
    if own != position or its_id != id_:
        return None
    length = count * COMMIT.itemsize
    if HEADER_BYTES <= directory <= position - length:
        table = bytes(read(directory, length))
        commits = np.frombuffer(table, COMMIT) if len(table) == length else np.empty(0, COMMIT)
        if crc32c(table) == crc and _follow(commits, samples, directory):
            return Shard(id_, samples, commits, position + FOOTER_BYTES, size)
    raise BadRecords(
        f"{name}: the directory of its last commit is damaged (or power was lost, and its writer not `durable`): restore it from a copy"
    )


def _follow(commits: Entries, samples: int, directory: int) -> bool:
    """Whether these commits lie one behind the other, before `directory`, and have so many samples together: or readers would look
    anywhere, and ask for any amount of memory."""
    end, total = HEADER_BYTES, 0
    for position, first, count, _ in commits.tolist():
        if position < end or first != total or not count:
            return False
        end, total = position + count * ENTRY.itemsize, total + count
    return end <= directory and total == samples


def begins_at(position: int, length: int, *, first: bool) -> int:
    """Where a sample of so many bytes lies that comes at `position` or behind it; `first` of its commit, or not."""
    if length >= LARGE_FROM:
        return rounded(position, ALIGN_LARGE)
    return rounded(position, ALIGN) if first or length >= ALIGN_FROM else position


def rounded(position: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-position // unit) * unit
