"""Where samples lie: number -> (file, offset, length, checksum), for a whole batch at once.

A `Table` has it all in memory. Packed records know the place of each index entry by arithmetic, so a data set whose index is too large to
be kept (`RecordIndex`) looks entries up as it needs them: one more batched read, which goes out a batch earlier.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from .memory import Bytes
from .records import COMMIT, ENTRY, HEADER_BYTES, SUFFIX, BadRecords, Entries, Shard, read_shard
from .store import Pending, Store

INDEX_BYTES = 64 << 20  # of an index that is kept in memory, in each process
READ_BYTES = 8 << 20  # of one read of a whole index
TABLE_SAMPLES_MAX = 1 << 28  # of formats whose index is kept in memory: 4 to 5 GiB

Numbers = NDArray[np.int64]
Checksum = Callable[[Any], int]

CHECKSUMS: dict[str, Checksum] = {"crc32c": crc32c, "crc32": zlib.crc32}


@dataclass(frozen=True, slots=True)
class Places:
    """Of the samples of a batch, column by column."""

    file: Numbers
    offset: Numbers
    length: Numbers
    crc: NDArray[Any] | None


class Lookup(Protocol):
    """Places on their way."""

    def finish(self) -> Places: ...

    def cancel(self) -> None: ...


class Index(Protocol):
    """Of a data set. `paths` are the store's; `checksum` names what `Places.crc` is made with (see CHECKSUMS)."""

    paths: Sequence[str]
    checksum: str
    slow: bool  # whether a look-up takes a read

    def __len__(self) -> int: ...

    def look_up(self, numbers: Numbers) -> Lookup: ...


class Known:
    """A look-up that is over."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def finish(self) -> Places:
        return self._places

    def cancel(self) -> None:
        pass


class Table:
    """All places in memory: 16 bytes a sample, 20 with checksums, and not more than TABLE_SAMPLES_MAX of them. Raises ValueError."""

    slow = False

    def __init__(
        self, paths: Sequence[str], file: Any, offset: Any, length: Any, crc: Any = None, checksum: str = "crc32c"
    ) -> None:
        if len(offset) > TABLE_SAMPLES_MAX:
            raise ValueError(
                f"{len(offset)} samples, at most {TABLE_SAMPLES_MAX} of this format: take the shards in parts (`paths`), or convert "
                "them to packed records, which need no index in memory"
            )
        lengths = np.asarray(length, np.int64)
        if lengths.size and not 0 <= int(lengths.min()) <= int(lengths.max()) < 1 << 32:
            raise ValueError(f"samples of {lengths.min()} to {lengths.max()} bytes: 0 to {(1 << 32) - 1}")
        self.paths = paths
        self.checksum = checksum
        self._file = np.asarray(file, np.uint32)
        self._offset = np.asarray(offset, np.int64)
        self._length = lengths.astype(np.uint32)
        self._crc = None if crc is None else np.asarray(crc, np.uint32)

    def __len__(self) -> int:
        return len(self._offset)

    def look_up(self, numbers: Numbers) -> Lookup:
        crc = None if self._crc is None else self._crc[numbers]
        file, length = self._file[numbers].astype(np.int64), self._length[numbers].astype(np.int64)
        return Known(Places(file, self._offset[numbers], length, crc))


def find_records(store: Store) -> list[str]:
    """The shards of a data set, in the order of their samples: by name."""
    return [path for path, _ in store.find(SUFFIX)]


def open_shard(store: Store, path: str) -> Shard:
    """What a shard holds. Raises BadRecords."""
    with store.open(path, "rb") as file:
        size = file.seek(0, 2)
        return read_shard(partial(_read_at, file), size, path)


def _read_at(file: Any, offset: int, length: int) -> bytes:
    file.seek(offset)
    data: bytes = file.read(length)
    return data


class RecordIndex:
    """Of shards of packed records. Kept in memory are some numbers a commit, and the entries if they take less than `memory` bytes."""

    checksum = "crc32c"

    def __init__(self, store: Store, paths: Sequence[str], *, memory: int = INDEX_BYTES) -> None:
        self.paths = paths
        self._store = store
        opened: dict[str, Shard] = {}
        shards = [opened.get(path) or opened.setdefault(path, open_shard(store, path)) for path in paths]
        starts = np.concatenate([[0], np.cumsum([shard.samples for shard in shards], dtype=np.int64)])
        self._count = int(starts[-1])
        commits = [shard.commits for shard in shards]
        self._commits = np.concatenate(commits) if commits else np.empty(0, COMMIT)
        self._file = np.repeat(np.arange(len(shards)), [len(one) for one in commits])
        self._first = self._commits["first"].astype(np.int64) + starts[self._file]  # samples of the data set
        self._position = self._commits["position"].astype(np.int64)  # of its index, which its payloads lie before
        self._entries: Entries | None = None
        self.slow = self._count * ENTRY.itemsize > memory
        if not self.slow:
            self._entries = self._load()

    def __len__(self) -> int:
        return self._count

    def look_up(self, numbers: Numbers) -> Lookup:
        commit = np.searchsorted(self._first, numbers, "right") - 1
        file = self._file[commit]
        if self._entries is not None:
            return Known(_places(file, self._entries[numbers]))
        ends = self._position[commit]
        offsets = ends + ENTRY.itemsize * (numbers - self._first[commit])
        lengths = [ENTRY.itemsize] * len(numbers)
        return _Asked(self.paths, file, ends, self._store.read(self.paths, file.tolist(), offsets.tolist(), lengths))

    def _load(self) -> Entries:
        """All entries, verified. Raises BadRecords."""
        entries = np.empty(self._count, ENTRY)
        for rows in self._portions():
            sizes = [int(self._commits["count"][row]) * ENTRY.itemsize for row in rows]
            files, offsets = self._file[rows].tolist(), self._position[rows].tolist()
            data = self._store.read(self.paths, files, offsets, sizes).finish()
            position = 0
            for row, size in zip(rows, sizes, strict=True):
                piece = data[position : position + size]
                if crc32c(piece.data) != self._commits["crc"][row]:
                    raise BadRecords(f"{self.paths[self._file[row]]}: the index of commit {row} is damaged")
                first = self._first[row]
                entries[first : first + size // ENTRY.itemsize] = found = piece.view(ENTRY)
                file = np.full(len(found), self._file[row])
                _check_places(_places(file, found), np.full(len(found), self._position[row]), self.paths)
                position += size
        return entries

    def _portions(self) -> list[list[int]]:
        """Commits whose indexes are read together."""
        portions: list[list[int]] = []
        room = 0
        for row, count in enumerate(self._commits["count"].tolist()):
            size = count * ENTRY.itemsize
            if size > room:
                portions.append([])
                room = READ_BYTES
            portions[-1].append(row)
            room -= size
        return portions


class _Asked:
    """Entries that are being read. A few of an index do not tell whether its checksum is right, so that each lies within its shard."""

    def __init__(self, paths: Sequence[str], file: Numbers, ends: Numbers, pending: Pending) -> None:
        self._paths = paths
        self._file = file
        self._ends = ends
        self._pending = pending

    def finish(self) -> Places:
        data: Bytes = self._pending.finish()
        places = _places(self._file, data.view(ENTRY))
        _check_places(places, self._ends, self._paths)
        return places

    def cancel(self) -> None:
        self._pending.cancel()


def _check_places(places: Places, ends: Numbers, paths: Sequence[str]) -> None:
    """Raise BadRecords for a sample that does not lie between the header of its shard and its own index."""
    wrong = (places.offset < HEADER_BYTES) | (places.length > ends - places.offset)
    if wrong.any():
        row = int(wrong.argmax())
        raise BadRecords(
            f"{paths[int(places.file[row])]}: an index entry is damaged: {places.length[row]} bytes at {places.offset[row]}, "
            f"before {ends[row]}"
        )


def _places(file: Numbers, entries: Entries) -> Places:
    return Places(file, entries["offset"].astype(np.int64), entries["length"].astype(np.int64), entries["crc"])
