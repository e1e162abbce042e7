"""The loads of `bench kv`: batches of blocks in and out of the KV cache, and the same bytes in and out of local files."""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...proto.blocks import KEY_BYTES
from ...proto.errors import Status, error, status_of
from .measure import peer

POOL_BYTES = 128 << 20  # of the memory that batches pass through, if one batch is not more
SETTLE_SECONDS = 2.0  # in which a storage server takes the next checkpoint
AGAIN_SECONDS = 0.01  # between tries of a put that is told to come back
AGAIN_SECONDS_MAX = 60.0
_SPAN = struct.Struct("<QQQ")  # place in the region, offset in the file, length


class Blocks:
    """Blocks of one size, in a namespace of their own. Batches of them pass through one registered buffer, which is larger than the caches
    of processors, as engines' pools are: a place that was used just now is still in the caches of whoever used it."""

    def __init__(self, kv: Any, size: int, batch: int, name: str = "") -> None:
        from ...kvcache import NamespaceSpec

        self.kv = kv
        self.size = size
        self.batch = batch
        spec = NamespaceSpec("bench", "bench", "1", "u1", 64, name or f"{size}x{batch}", object_bytes=size)
        self.namespace = kv.namespace(spec)
        self.rows = max(1, POOL_BYTES // (size * batch))
        self.buffer = kv.allocate(size * batch * self.rows)
        self._row = 0
        self.again = 0  # puts that were told to come back
        fill(self.buffer.view)

    def close(self) -> None:
        self.kv.drop(self.namespace)
        self.kv.unregister(self.buffer)

    def keys(self, batches: int) -> list[bytes]:
        """New ones, packed."""
        return [os.urandom(KEY_BYTES * self.batch) for _ in range(batches)]

    def put(self, keys: bytes, depth: int = 0) -> None:
        """One batch, until all of it is there. Raises the status of a block that failed."""
        memory = self._memory(len(keys) // KEY_BYTES)
        deadline = time.monotonic() + AGAIN_SECONDS_MAX
        while True:
            codes = self.kv.put_from(self.namespace, keys, memory, depth=depth)
            failed = {code for code in codes if code < 0}
            if not failed:
                return
            if failed != {-errno.EAGAIN} or time.monotonic() > deadline:
                raise error(status_of(int(min(failed))), "a block was not stored")
            self.again += 1
            time.sleep(AGAIN_SECONDS)

    def get(self, keys: bytes) -> int:
        """How many blocks of a batch arrived, each verified."""
        codes = self.kv.get_into(self.namespace, keys, self._memory(len(keys) // KEY_BYTES))
        return sum(1 for code in codes if code == self.size)

    def _memory(self, count: int) -> tuple[Any, list[int], int]:
        begin = self.next_row() * self.batch * self.size
        return self.buffer, list(range(begin, begin + count * self.size, self.size)), self.size

    def next_row(self) -> int:
        """Where in the buffer the next batch goes."""
        row = self._row
        self._row = (row + 1) % self.rows
        return row

    def views(self) -> list[list[memoryview]]:
        """The places of the blocks of each row."""
        view, size, bytes_row = self.buffer.view, self.size, self.size * self.batch
        return [
            [view[at : at + size] for at in range(begin, begin + bytes_row, size)]
            for begin in range(0, self.rows * bytes_row, bytes_row)
        ]

    def get_all(self, batches: list[bytes]) -> None:
        """Raises LOST_DATA where one does not arrive."""
        for keys in batches:
            if self.get(keys) != len(keys) // KEY_BYTES:
                raise error(Status.LOST_DATA, "a block is not there")

    def put_all(self, batches: list[bytes]) -> None:
        for keys in batches:
            self.put(keys)

    def delete(self, batches: list[bytes]) -> None:
        """Delete what a round has put, and wait until its space is there again, as it is for files that are unlinked: in a cache that
        is full, new blocks go where evicted ones were."""
        for keys in batches:
            self.kv.delete(self.namespace, keys)
        time.sleep(SETTLE_SECONDS)


class Files:
    """The same bytes in local files, through the same memory: a file for each block when they are written, one file when they are read."""

    def __init__(self, folder: Path, blocks: Blocks, batches: int) -> None:
        self.folder = folder / f"files-{blocks.size}-{blocks.batch}"
        self.folder.mkdir()
        self.size = blocks.size
        self.batch = blocks.batch
        self.batches = batches
        self._views = blocks.views()
        self._next_row = blocks.next_row
        self._written = 0

    def _row(self) -> list[memoryview]:
        return self._views[self._next_row()]

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def make(self) -> None:
        """The file that `read` reads, in the page cache afterwards."""
        with open(self.folder / "blocks", "wb", buffering=0) as file:
            for _ in range(self.batches):
                for view in self._row():
                    file.write(view)

    def read(self) -> None:
        with open(self.folder / "blocks", "rb", buffering=0) as file:
            offset = 0
            for _ in range(self.batches):
                for view in self._row():
                    os.preadv(file.fileno(), [view], offset)
                    offset += self.size

    def write(self) -> None:
        """New files, no fsync."""
        for _ in range(self.batches):
            for view in self._row():
                self._written += 1
                self._write(self.folder / f"block-{self._written}", view)

    @staticmethod
    def _write(path: Path, view: memoryview) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        try:
            os.pwrite(descriptor, view, 0)
        finally:
            os.close(descriptor)

    def paths(self) -> list[Path]:
        """Of the blocks that `write` wrote and nobody removed, oldest first."""
        return sorted(self.folder.glob("block-*"), key=lambda path: int(path.name[6:]))

    def read_files(self) -> None:
        """Each file that was written."""
        row = self._row()
        for number, path in enumerate(self.paths()):
            if number % self.batch == 0:
                row = self._row()
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.preadv(descriptor, [row[number % self.batch]], 0)
            finally:
                os.close(descriptor)

    def remove(self) -> None:
        for path in self.paths():
            path.unlink()


def fill(view: memoryview) -> None:
    """Bytes that do not compress, and pages that are there."""
    block = os.urandom(1 << 20)
    for at in range(0, len(view), len(block)):
        part = view[at : at + len(block)]
        part[:] = block[: len(part)]


def drop_cache(folder: Path) -> None:
    """Take the files of a folder out of the page cache, written to disk before."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def cpu_seconds(process: int) -> float:
    """Of all threads of a process, those that ended excepted."""
    total = 0
    for thread in Path(f"/proc/{process}/task").iterdir():
        try:
            total += int((thread / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue
    return total / 1e9


def cpu_of(processes: list[int], work: Callable[[], object]) -> float:
    """Seconds of processor time that these processes take while `work` is done."""
    before = sum(map(cpu_seconds, processes))
    work()
    return sum(map(cpu_seconds, processes)) - before


@contextmanager
def bare_copier(path: Path, region: int, size: int) -> Iterator[tuple[socket.socket, int]]:
    """A process that moves spans of a file into shared memory with `preadv`, and does nothing else: (connection, process)."""

    def serve(end: socket.socket) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        view = memoryview(mmap.mmap(region, size))
        end.send(os.getpid().to_bytes(8, "little"))
        while True:
            head = end.recv(8, socket.MSG_WAITALL)
            if len(head) < 8:
                return
            spans = end.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL)
            for place, offset, length in _SPAN.iter_unpack(spans):
                os.preadv(descriptor, [view[place : place + length]], offset)
            end.send(b"k")

    with peer(serve) as end:
        yield end, int.from_bytes(end.recv(8, socket.MSG_WAITALL), "little")


def copy_bare(end: socket.socket, size: int, batch: int, batches: int) -> None:
    """Batches of blocks from the bare copier, one after the other."""
    for number in range(batches):
        spans = b"".join([_SPAN.pack(i * size, (number * batch + i) * size, size) for i in range(batch)])
        end.sendall(len(spans).to_bytes(8, "little") + spans)
        end.recv(1)


def shuffled(batches: list[bytes], seed: int) -> list[bytes]:
    """The same keys in other batches: as many, of keys that were not put together."""
    keys = [batch[at : at + KEY_BYTES] for batch in batches for at in range(0, len(batch), KEY_BYTES)]
    random.Random(seed).shuffle(keys)  # noqa: S311 -- no secret
    count = len(keys) // len(batches)
    return [b"".join(keys[at : at + count]) for at in range(0, len(keys), count)]
