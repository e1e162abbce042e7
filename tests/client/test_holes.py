"""fallocate, holes and SEEK_DATA / SEEK_HOLE on a real cluster, with a local file as the oracle."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import emberfs
from emberfs.client.core.allocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from emberfs.proto.env import drive
from emberfs.proto.errors import Status, StatusError

CHUNK = 64 << 10
_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with emberfs.connect(cluster.url) as made:
        yield made


@pytest.fixture
def file(client: Any) -> Iterator[Any]:
    path = f"/holes-{random.randrange(1 << 60):x}"
    with client.open(path, "w+b", chunk_size=CHUNK) as opened:
        yield opened
    client.unlink(path)


def ranges(file: Any) -> list[tuple[int, int]]:
    """The data of a file as SEEK_DATA and SEEK_HOLE tell it."""
    found, at = [], 0
    while True:
        try:
            begin = file.seek(at, os.SEEK_DATA)
        except OSError as failed:
            assert failed.errno == errno.ENXIO
            return found
        assert begin >= at
        at = file.seek(begin, os.SEEK_HOLE)
        assert at > begin
        found.append((begin, at))


def test_what_was_never_written_is_a_hole(client: Any, file: Any) -> None:
    file.pwrite(b"begin", 0)
    file.pwrite(b"end", 9 * CHUNK + 5)
    assert ranges(file) == [(0, 5), (9 * CHUNK, 9 * CHUNK + 8)]  # what is not sent yet is data, too
    file.flush()
    with client.open(file.name) as other:
        assert ranges(other) == [(0, 5), (9 * CHUNK, 9 * CHUNK + 8)]
        assert other.seek(7, os.SEEK_DATA) == 9 * CHUNK
        assert other.seek(0, os.SEEK_HOLE) == 5
        assert other.tell() == 5


def test_behind_the_end_there_is_nothing(file: Any) -> None:
    file.write(b"x" * 100)
    assert ranges(file) == [(0, 100)]
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        for offset in (100, 101, 1 << 40, -1):
            with pytest.raises(OSError) as caught:
                file.seek(offset, whence)
            assert caught.value.errno == errno.ENXIO
    file.truncate(0)
    with pytest.raises(OSError, match="nothing of it lies"):
        file.seek(0, os.SEEK_HOLE)


def test_a_hole_takes_whole_chunks_away(client: Any, file: Any) -> None:
    file.write(os.urandom(10 * CHUNK))
    file.flush()
    before = client.stat(file.name)
    assert not file.handle.file.sparse
    file.punch(2 * CHUNK, 3 * CHUNK)
    assert ranges(file) == [(0, 2 * CHUNK), (5 * CHUNK, 10 * CHUNK)]
    after = client.stat(file.name)
    assert (after.size, file.handle.file.sparse) == (10 * CHUNK, True)
    assert after.mtime_ns > before.mtime_ns
    assert file.pread(3 * CHUNK, 2 * CHUNK) == bytes(3 * CHUNK)
    file.pwrite(b"again", 3 * CHUNK)
    assert ranges(file)[1] == (3 * CHUNK, 3 * CHUNK + 5)
    with client.open(file.name) as other:
        assert other.read() == file.pread(10 * CHUNK, 0)


def test_allocated_bytes_are_zeros_and_take_no_space(client: Any, file: Any) -> None:
    file.write(b"data")
    file.allocate(0, 20 * CHUNK)
    assert file.size == client.stat(file.name).size == 20 * CHUNK
    assert ranges(file) == [(0, 4)]
    assert file.pread(100, 10 * CHUNK) == bytes(100)
    file.allocate(20 * CHUNK, CHUNK, keep_size=True)
    assert client.stat(file.name).size == 20 * CHUNK
    assert file.pread(4, 0) == b"data"


def test_an_append_handle_punches_where_it_is_told(client: Any, file: Any) -> None:
    file.write(b"x" * CHUNK)
    file.flush()
    with client.open(file.name, "ab") as other:
        other.punch(100, 200)
    assert client.read_bytes(file.name) == b"x" * 100 + bytes(200) + b"x" * (CHUNK - 300)


def test_a_writer_may_punch_and_a_reader_may_look(client: Any, file: Any) -> None:
    file.write(b"x" * 3 * CHUNK)
    file.flush()
    with client.open(file.name, "r+b") as writer, client.open(file.name) as reader:
        writer.punch(CHUNK, CHUNK)
        assert ranges(reader) == [(0, CHUNK), (2 * CHUNK, 3 * CHUNK)]
        with pytest.raises(OSError, match="not open for writing"):
            reader.punch(0, 1)


def test_what_is_refused(file: Any) -> None:
    file.write(b"x")
    handle = file.handle
    for mode in (PUNCH_HOLE, 0x08, 0x20, 0x40):  # PUNCH_HOLE alone, COLLAPSE, INSERT, UNSHARE
        with pytest.raises(OSError) as caught:
            drive(handle.allocate(mode, 0, CHUNK))
        assert caught.value.errno == errno.EOPNOTSUPP
    for offset, length in ((-1, 5), (0, 0), (0, -5)):
        with pytest.raises(StatusError) as refused:
            drive(handle.allocate(0, offset, length))
        assert refused.value.status is Status.INVALID
    with pytest.raises(OSError) as caught:
        drive(handle.allocate(0, 0, 1 << 55))
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)


def test_a_write_after_a_hole_is_kept_and_one_before_it_is_not(client: Any, file: Any) -> None:
    """The order of one client: writes that were on their way when the hole was made do not come after it."""
    for round_ in range(20):
        data = bytes([round_ + 1]) * (4 * CHUNK)
        file.pwrite(data, 0)
        file.punch(CHUNK // 2, 2 * CHUNK)
        file.pwrite(b"kept", CHUNK)
        expected = bytearray(data)
        expected[CHUNK // 2 : CHUNK // 2 + 2 * CHUNK] = bytes(2 * CHUNK)
        expected[CHUNK : CHUNK + 4] = b"kept"
        assert file.pread(4 * CHUNK, 0) == expected


@pytest.mark.parametrize("seed", range(4))
def test_random_operations_equal_a_local_file(cluster: Any, file: Any, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    oracle = os.open(tmp_path / "oracle", os.O_RDWR | os.O_CREAT)
    size_max = 12 * CHUNK
    aligned = seed % 2 == 0

    def place() -> tuple[int, int]:
        if aligned:
            first = chance.randrange(12)
            return first * CHUNK, chance.randint(1, 12 - first) * CHUNK
        offset = chance.randrange(size_max)
        return offset, chance.randint(1, size_max - offset)

    for _ in range(60):
        offset, length = place()
        what = chance.choice(["write", "write", "punch", "zero", "zero keep", "allocate", "keep", "truncate", "flush"])
        if what == "write":
            data = chance.randbytes(min(length, 3 * CHUNK))
            file.pwrite(data, offset)
            os.pwrite(oracle, data, offset)
        elif what == "punch":
            file.punch(offset, length)
            fallocate(oracle, PUNCH_HOLE | KEEP_SIZE, offset, length)
        elif what.startswith("zero"):
            keep = what.endswith("keep")
            file.zero_range(offset, length, keep_size=keep)
            _zero_range(oracle, offset, length, keep)
        elif what in ("allocate", "keep"):
            file.allocate(offset, length, keep_size=what == "keep")
            fallocate(oracle, KEEP_SIZE if what == "keep" else 0, offset, length)
        elif what == "truncate":
            file.truncate(offset)
            os.truncate(oracle, offset)
        else:
            file.flush()
        size = os.fstat(oracle).st_size
        assert file.size == size, what
        content = os.pread(oracle, size_max, 0)
        assert file.pread(size_max, 0) == content, what
        holes = bytearray(content)
        for begin, end in ranges(file):
            holes[begin:end] = bytes(end - begin)
        assert not any(holes), f"after {what}: data in a hole"
    file.flush()
    with emberfs.connect(cluster.url) as fresh:
        assert fresh.read_bytes(file.name) == os.pread(oracle, size_max, 0)
    os.close(oracle)


def _zero_range(descriptor: int, offset: int, length: int, keep: bool) -> None:
    try:
        fallocate(descriptor, ZERO_RANGE | (KEEP_SIZE if keep else 0), offset, length)
    except OSError as failed:  # tmpfs and overlay have no ZERO_RANGE
        if failed.errno != errno.EOPNOTSUPP:
            raise
        size = os.fstat(descriptor).st_size
        end = min(offset + length, size) if keep else offset + length
        if end > offset:
            os.pwrite(descriptor, bytes(end - offset), offset)
