"""FFRecord files, the format of High-Flyer's data sets, from its public description.

    CRC32 of what follows up to the samples u32 · number of samples i64 · CRC32 of each sample u32 · offset of each sample i64 · samples

Little-endian, without padding; a sample ends where the next one begins, the last one with the file. The index is kept in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...proto.copying import bytes_of
from .index import Table
from .store import Store

HEADER_BYTES = 12


class BadFFRecord(ValueError):
    """A file that is none, or a damaged one."""


def open_ffrecord(store: Store, paths: Sequence[str]) -> Table:
    """The samples of these files. Raises BadFFRecord."""
    columns: list[list[Any]] = [[], [], [], []]
    for number, path in enumerate(paths):
        checksums, offsets, size = _read_header(store, path)
        lengths = np.diff(np.append(offsets, size))
        if offsets.size and (lengths.min() < 0 or offsets.min() < HEADER_BYTES + 12 * offsets.size):
            raise BadFFRecord(f"{path}: samples overlap, or lie outside the file")
        for column, values in zip(columns, (np.full(offsets.size, number), offsets, lengths, checksums), strict=True):
            column.append(values)
    file, offset, length, crc = (np.concatenate(column) for column in columns)
    return Table(paths, file, offset, length, crc, "crc32")


def _read_header(store: Store, path: str) -> tuple[Any, Any, int]:
    with store.open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(HEADER_BYTES)
        count = int.from_bytes(head[4:], "little", signed=True)
        if len(head) < HEADER_BYTES or not 0 <= count <= (size - HEADER_BYTES) // 12:
            raise BadFFRecord(f"{path} is no FFRecord file: {count} samples in {size} bytes")
        table = file.read(12 * count)
    if zlib.crc32(table, zlib.crc32(head[4:])) != int.from_bytes(head[:4], "little"):
        raise BadFFRecord(f"{path}: the checksum of its header is wrong")
    return np.frombuffer(table, "<u4", count), np.frombuffer(table, "<i8", count, 4 * count), size


def write_ffrecord(store: Store, path: str, payloads: Sequence[Any] | Iterable[Any]) -> int:
    """Write such a file, for programs that read nothing else; how many samples. All of them are held in memory."""
    samples = [bytes_of(payload) for payload in payloads]
    count = len(samples)
    checksums = np.array([zlib.crc32(sample) for sample in samples], "<u4")
    lengths = np.array([0, *(len(sample) for sample in samples[:-1])][:count], "<i8")
    offsets = np.cumsum(lengths, dtype="<i8") + HEADER_BYTES + 12 * count
    table = count.to_bytes(8, "little") + checksums.tobytes() + offsets.astype("<i8").tobytes()
    with store.open(path, "wb") as file:
        file.write(zlib.crc32(table).to_bytes(4, "little") + table)
        for sample in samples:
            file.write(sample)
    return count
