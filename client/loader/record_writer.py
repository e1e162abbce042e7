"""Writing packed records (see records.py): one shard, or as many as the samples fill."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import numpy as np
from crc32c import crc32c

from ...proto.copying import bytes_of
from ...proto.errors import Status, error
from .records import (
    COMMIT,
    COMMITS_MAX,
    ENTRY,
    FOOTER_BYTES,
    LARGE_CHUNK,
    LARGE_FROM,
    SAMPLE_BYTES_MAX,
    SUFFIX,
    BadRecords,
    begins_at,
    footer_of,
    header_of,
    read_shard,
    rounded,
)
from .store import Store

COMMIT_BYTES = 64 << 20  # payload after which a commit is made unasked
COMMIT_SAMPLES = 1 << 20
SHARD_BYTES = 1 << 30
WRITE_BYTES = 4 << 20  # gathered before they are written


class _Writer(ABC):
    """In a `with` block: left by an exception, what is not committed is not there."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def discard(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class RecordWriter(_Writer):
    """Appends to one shard. What was committed stays, whatever happens to the writer; `close` commits. `durable`: a commit survives a loss
    of power, too. `chunk_size`: of a new shard in a cluster (0: as its directory says). One writer a shard at a time. One that has failed
    to write stays failed, as nobody knows what arrived: whoever opens the shard again goes on behind the last commit."""

    def __init__(
        self, store: Store, path: str, *, append: bool = False, durable: bool = False, chunk_size: int = 0
    ) -> None:
        self._store = store
        self._path = path
        self._durable = durable
        self._buffer = bytearray()
        self._entries: list[tuple[int, int, int]] = []  # not committed
        self._commits = np.empty(0, COMMIT)
        self._samples = 0  # committed
        self._bytes = 0  # of payload that is not committed
        self._failure: BaseException | None = None
        self._file = store.open(path, "rb+") if append else store.open(path, "wb", chunk_size)
        try:
            self._position = self._resume() if append else self._begin()
        except BaseException:
            self._file.close()
            raise

    def _begin(self) -> int:
        self._id = os.urandom(16)
        self._buffer += header_of(self._id)
        return len(self._buffer)

    def _resume(self) -> int:
        """Behind what was committed: the rest is somebody's who died."""
        size = self._file.seek(0, os.SEEK_END)
        shard = read_shard(self._read_at, size, self._path)
        if not shard.id:
            self._file.seek(0)
            return self._begin()
        self._id, self._commits, self._samples = shard.id, shard.commits, shard.samples
        self._file.truncate(shard.end)
        self._file.seek(shard.end)
        return shard.end

    def _read_at(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        data: bytes = self._file.read(length)
        return data

    @property
    def samples(self) -> int:
        """How many there are, the uncommitted ones included."""
        return self._samples + len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of the shard so far."""
        return self._position

    def write(self, payload: Any) -> int:
        """Add a sample: any buffer. Its number in the shard. Raises ValueError for one that is too large."""
        self._require_whole()
        view = bytes_of(payload)
        if len(view) > SAMPLE_BYTES_MAX:
            raise ValueError(f"a sample of {len(view)} bytes: at most {SAMPLE_BYTES_MAX}")
        self._pad(begins_at(self._position, len(view), first=not self._entries))
        self._entries.append((self._position, len(view), crc32c(view)))
        self._put(view)
        self._bytes += len(view)
        if self._bytes >= COMMIT_BYTES or len(self._entries) >= COMMIT_SAMPLES:
            self.commit()
        return self.samples - 1

    def commit(self) -> None:
        """What was written so far is there, for readers and after a crash. Raises BadRecords when a shard has had too many of them."""
        self._require_whole()
        if not self._entries:
            return
        if len(self._commits) >= COMMITS_MAX:
            raise BadRecords(f"{COMMITS_MAX} commits in one shard: begin another one, or commit less often")
        self._pad(rounded(self._position, ENTRY.itemsize))
        index = np.array(self._entries, ENTRY).tobytes()
        made = np.array([(self._position, self._samples, len(self._entries), crc32c(index))], COMMIT)
        commits = np.concatenate([self._commits, made])
        self._put(index)
        directory = self._position
        self._put(commits.tobytes())
        self._pad(rounded(self._position, FOOTER_BYTES))
        self._arrive()
        self._put(footer_of(self._id, self._position, self.samples, directory, commits))
        self._arrive()
        self._commits, self._samples, self._entries, self._bytes = commits, self.samples, [], 0

    def close(self) -> None:
        """Commit, and close the file."""
        try:
            self.commit()
            self._arrive()
        finally:
            self._file.close()

    def discard(self) -> None:
        """Close without what was not committed."""
        self._file.close()

    def _pad(self, position: int) -> None:
        self._put(bytes(position - self._position))

    def _put(self, data: Any) -> None:
        self._buffer += data
        self._position += len(data)
        if len(self._buffer) >= WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        buffer, self._buffer = self._buffer, bytearray()
        if buffer:
            self._tried(self._file.write, buffer)

    def _arrive(self) -> None:
        self._flush()
        if self._durable:
            self._tried(self._store.sync, self._file)
        else:
            self._tried(self._file.flush)

    def _tried(self, step: Callable[..., object], *arguments: Any) -> None:
        try:
            step(*arguments)
        except BaseException as failure:
            self._failure = failure
            raise

    def _require_whole(self) -> None:
        if self._failure is not None:
            raise error(
                Status.IO_ERROR,
                f"{self._path} could not be written before ({self._failure}): open it again with append=True, which goes on behind the "
                "last commit",
            ) from self._failure


class ShardedWriter(_Writer):
    """Samples into shards `NAME-00000.records`, `NAME-00001.records`… of about `shard_bytes`, as many as it takes."""

    def __init__(
        self, store: Store, name: str = "part", *, shard_bytes: int = SHARD_BYTES, durable: bool = False
    ) -> None:
        self._store = store
        self._name = name
        self._shard_bytes = shard_bytes
        self._durable = durable
        self._writer: RecordWriter | None = None
        self.paths: list[str] = []
        self.samples = 0

    def write(self, payload: Any) -> int:
        """Add a sample; its number among all."""
        if self._writer is not None and self._writer.size + memoryview(payload).nbytes > self._shard_bytes:
            self.close()
        if self._writer is None:
            self.paths.append(f"{self._name}-{len(self.paths):05d}{SUFFIX}")
            chunk_size = LARGE_CHUNK if memoryview(payload).nbytes >= LARGE_FROM else 0
            self._writer = RecordWriter(self._store, self.paths[-1], durable=self._durable, chunk_size=chunk_size)
        self._writer.write(payload)
        self.samples += 1
        return self.samples - 1

    def write_all(self, payloads: Iterable[Any]) -> None:
        """Add many."""
        for payload in payloads:
            self.write(payload)

    def close(self) -> None:
        """Commit what is open."""
        if self._writer is not None:
            self._writer.close()  # one that has failed stays: the samples of a shard are not left out
            self._writer = None

    def discard(self) -> None:
        """Close without what was not committed; shards that were full before stay."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.discard()
