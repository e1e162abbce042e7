"""Random operations on one file, each checked against a model in memory, after the idea of Apple's fsx.

A failure names its seed and what happened before it: EMBERFS_FSX_SEED=… runs exactly that again. `--soak` makes it 100,000 operations.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .processes import mounted

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

OPERATIONS = 1200
OPERATIONS_SOAK = 100_000
LENGTH_SMALL, LENGTH_LARGE = 500_000, 3_500_000  # bytes that a file may have: many small chunks, or a few of 1 MiB
CHUNK_SMALL = 64 << 10
OPERATION_BYTES_MAX = 200_000
STORY = 30  # operations that a failure tells
PUNCH_HOLE, KEEP_SIZE, ZERO_RANGE = 0x02, 0x01, 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


class Exerciser:
    """One file, by the same path on one or more mounts, and what it must hold."""

    def __init__(self, paths: list[Path], seed: int, length_max: int) -> None:
        self.paths = paths
        self.chance = random.Random(seed)
        self.length_max = length_max
        self.model = bytearray()
        self.story: deque[str] = deque(maxlen=STORY)
        self.path = paths[0]
        self.fd = os.open(self.path, os.O_CREAT | os.O_RDWR)

    def run(self, operations: int) -> None:
        choices = [self.write] * 4 + [self.read] * 3 + [self.map_read, self.map_write] * 2
        choices += [self.truncate, self.punch, self.zero, self.copy, self.reopen, self.sync, self.forget, self.allocate]
        for number in range(operations):
            step = self.chance.choice(choices)
            try:
                step()
            except (AssertionError, OSError) as failure:
                told = "\n".join(self.story)
                raise AssertionError(f"operation {number}: {failure}\n{told}") from failure
        self.reopen()
        self.check(0, len(self.model) + 1)
        os.close(self.fd)

    # --- what happens -----------------------------------------------------------------------------------------------------------------

    def range(self, limit: int) -> tuple[int, int]:
        """An offset below `limit`, and a length that does not go beyond it; often at edges."""
        start = self.chance.randrange(max(1, limit))
        if self.chance.random() < 0.3:
            start -= start % self.chance.choice((4096, CHUNK_SMALL, 1 << 20))
        length = int(OPERATION_BYTES_MAX ** self.chance.random())
        if self.chance.random() < 0.2:
            length = (length + 4095) & ~4095
        return start, min(length, limit - start)

    def fill(self, start: int, data: bytes) -> None:
        if not data:
            return
        if start > len(self.model):
            self.model += bytes(start - len(self.model))
        self.model[start : start + len(data)] = data

    def tell(self, text: str) -> None:
        self.story.append(f"{text} (of {len(self.model)}) on {self.paths.index(self.path)}")

    def write(self) -> None:
        start, length = self.range(self.length_max)
        data = self.chance.randbytes(length)
        self.tell(f"write {start} +{length}")
        assert os.pwrite(self.fd, data, start) == length
        self.fill(start, data)

    def read(self) -> None:
        start, length = self.range(len(self.model) + 1)
        self.tell(f"read {start} +{length}")
        self.check(start, length)

    def check(self, start: int, length: int) -> None:
        assert os.fstat(self.fd).st_size == len(self.model)
        self.compare(start, os.pread(self.fd, length, start), bytes(self.model[start : start + length]))

    @staticmethod
    def compare(start: int, found: bytes, wanted: bytes) -> None:
        if found != wanted:
            at = next(
                (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
            )
            wrong = f"{found[at : at + 8].hex()} instead of {wanted[at : at + 8].hex()}"
            raise AssertionError(f"byte {start + at}: {wrong}; {len(found)} bytes of {len(wanted)}")

    def map_read(self) -> None:
        start, length = self.range(len(self.model))
        if not length:
            return
        self.tell(f"mapread {start} +{length}")
        base = start - start % mmap.ALLOCATIONGRANULARITY
        with mmap.mmap(self.fd, start - base + length, offset=base, prot=mmap.PROT_READ) as memory:
            self.compare(start, memory[start - base :], bytes(self.model[start : start + length]))

    def map_write(self) -> None:
        start, length = self.range(len(self.model))
        if not length:
            return
        data = self.chance.randbytes(length)
        self.tell(f"mapwrite {start} +{length}")
        base = start - start % mmap.ALLOCATIONGRANULARITY
        with mmap.mmap(self.fd, start - base + length, offset=base) as memory:
            memory[start - base :] = data
            if self.chance.random() < 0.5:
                memory.flush()
        self.fill(start, data)

    def truncate(self) -> None:
        length = self.chance.randrange(self.length_max)
        if self.chance.random() < 0.3:
            length = min(length, int(self.length_max ** self.chance.random()))  # also quite small
        self.tell(f"truncate to {length}")
        if self.chance.random() < 0.5:
            os.ftruncate(self.fd, length)
        else:
            os.truncate(self.path, length)
        self.model[length:] = bytes(max(0, length - len(self.model)))

    def punch(self) -> None:
        start, length = self.range(self.length_max)
        if length:
            self.tell(f"punch {start} +{length}")
            self.fallocate(PUNCH_HOLE | KEEP_SIZE, start, length)
            end = min(start + length, len(self.model))
            self.model[start:end] = bytes(max(0, end - start))

    def zero(self) -> None:
        start, length = self.range(self.length_max)
        if length:
            keep = self.chance.random() < 0.5
            self.tell(f"zero {start} +{length}{' keeping the size' if keep else ''}")
            self.fallocate(ZERO_RANGE | (KEEP_SIZE if keep else 0), start, length)
            end = min(start + length, len(self.model)) if keep else start + length
            if end > start:
                self.fill(start, bytes(end - start))

    def allocate(self) -> None:
        start, length = self.range(self.length_max)
        if length:
            self.tell(f"allocate {start} +{length}")
            self.fallocate(0, start, length)
            self.model += bytes(max(0, start + length - len(self.model)))

    def fallocate(self, mode: int, start: int, length: int) -> None:
        if _libc.fallocate(self.fd, mode, start, length):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def copy(self) -> None:
        start, length = self.range(len(self.model))
        to, _ = self.range(self.length_max)
        length = min(length, self.length_max - to)
        if not length or (start < to + length and to < start + length):
            return
        self.tell(f"copy {start} +{length} to {to}")
        os.fstat(self.fd)  # as cp does: the kernel believes the size that it knows, after an open perhaps an old one
        done = 0
        while done < length:
            count = os.copy_file_range(self.fd, self.fd, length - done, start + done, to + done)
            assert count
            done += count
        self.fill(to, bytes(self.model[start : start + length]))

    def reopen(self) -> None:
        """Close it, and open it on any of the mounts."""
        os.close(self.fd)
        self.path = self.chance.choice(self.paths)
        self.tell("open")
        self.fd = os.open(self.path, os.O_RDWR)

    def sync(self) -> None:
        self.tell("fsync")
        os.fsync(self.fd)

    def forget(self) -> None:
        """Have the kernel drop its pages."""
        self.tell("forget")
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture(scope="module")
def two(cluster: LocalCluster) -> Iterator[tuple[Path, Path]]:
    """The same directory of one cluster, on two mounts; files in `small` have small chunks."""
    import emberfs

    if os.geteuid():
        pytest.skip("only root mounts")
    with emberfs.connect(cluster.url) as client:
        name = f"fsx-{time.monotonic_ns()}"  # a worker that takes over tests of others makes this once more, in the same cluster
        client.mkdir(f"/{name}/small", parents=True)
        client.mkdir(f"/{name}/large")
        client.set_layout(f"/{name}/small", chunk_size=CHUNK_SMALL, stripe=2)
    with mounted(cluster.url) as first, mounted(cluster.url) as second:
        yield first / name, second / name


def seed() -> int:
    return int(os.environ.get("EMBERFS_FSX_SEED", "0")) or random.randrange(1 << 32)


def exercise(directories: list[Path], kind: str, number: int, operations: int) -> None:
    name = f"file-{time.monotonic_ns()}"
    length_max = LENGTH_SMALL if kind == "small" else LENGTH_LARGE
    try:
        Exerciser([directory / kind / name for directory in directories], number, length_max).run(operations)
    except AssertionError as failure:
        raise AssertionError(f"EMBERFS_FSX_SEED={number}: {failure}") from None


@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("mounts", [1, 2])
def test_random_operations(two: tuple[Path, Path], mounts: int, kind: str) -> None:
    exercise(list(two[:mounts]), kind, seed(), OPERATIONS)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("mounts", [1, 2])
def test_random_operations_for_long(two: tuple[Path, Path], mounts: int, kind: str) -> None:
    exercise(list(two[:mounts]), kind, seed(), OPERATIONS_SOAK)


def test_the_exerciser_on_the_local_file_system(tmp_path: Path) -> None:
    """It expects what Linux does."""
    number = seed()
    path = tmp_path / "small"
    path.mkdir()
    exercise([tmp_path], "small", number, OPERATIONS)
