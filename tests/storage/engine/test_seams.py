"""Disks and indexes, real and simulated: what passes here may stand under the engine."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberfs.storage.engine.disk import Disk, FileDisk, page_memory, read_exactly
from emberfs.storage.engine.index import Index, RocksIndex
from emberfs.storage.engine.simulated import SimulatedDisk, SimulatedIndex

SLACK = 32 << 20  # bytes


@pytest.fixture(params=["files", "direct", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "simulated":
        made: Disk = SimulatedDisk()
    else:
        made = FileDisk(str(tmp_path / "blocks"), direct=request.param == "direct")
    yield made
    made.close()


@pytest.fixture(params=["rocksdb", "simulated"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    made: Index = RocksIndex(str(tmp_path / "index")) if request.param == "rocksdb" else SimulatedIndex()
    yield made
    made.close()


def test_a_file_is_made_once_and_has_one_handle(disk: Disk) -> None:
    handle = disk.open("00001000.000000")
    assert disk.open("00001000.000000") == handle
    assert disk.names() == ["00001000.000000"]
    assert disk.size(handle) == 0
    disk.sync_names()


@pytest.mark.parametrize(("offset", "sizes"), [(0, [4096]), (4096, [4096, 8192]), (100, [1, 5000, 3]), (4096, [100])])
def test_bytes_come_back_as_they_were_written(disk: Disk, offset: int, sizes: list[int]) -> None:
    """Aligned or not, through the page cache or around it."""
    handle = disk.open("00001000.000000")
    disk.allocate(handle, 0, 32768)
    assert disk.size(handle) == 32768
    parts = [random.Random(size).randbytes(size) for size in sizes]
    disk.pwritev(handle, parts, offset)
    disk.fdatasync(handle)
    total = sum(sizes)
    data = bytearray(total)
    read_exactly(disk, handle, (memoryview(data)[:1], memoryview(data)[1:]), offset, total, True)
    assert data == b"".join(parts)


def test_many_pieces_of_one_length_are_filled_up_to_the_first_that_is_not_there(disk: Disk) -> None:
    handle = disk.open("00001000.000000")
    data = random.Random(1).randbytes(8 * 4096)
    disk.pwritev(handle, [data], 0)
    places = [(handle, 4096 * unit) for unit in (3, 1, 7, 0)]
    wanted = b"".join(data[offset : offset + 4096] for _, offset in places)
    buffer = bytearray(6 * 4096)
    if not disk.buffered:
        assert disk.fill(places, memoryview(buffer), 4096) == 0
        return
    assert disk.fill(places, memoryview(buffer), 4096, wait=True) == 4
    assert buffer[: 4 * 4096] == wanted
    beyond = [*places[:2], (handle, 8 * 4096), *places[2:]]
    assert disk.fill(beyond, memoryview(buffer), 4096, wait=True) == 2
    assert disk.fill([(10_000, 0)], memoryview(buffer), 4096, wait=True) == 0 if isinstance(disk, FileDisk) else True
    if isinstance(disk, SimulatedDisk):
        disk.cold = True
        assert disk.fill(places, memoryview(buffer), 4096) == 0
        assert disk.fill(places, memoryview(buffer), 4096, wait=True) == 4


@pytest.mark.parametrize(
    ("offset", "sizes"), [(0, [512 << 10]), (4096, [300_001]), (100, [512 << 10]), (0, [262_144, 7, 99])]
)
def test_cold_bytes_come_back_as_they_were_written(disk: Disk, offset: int, sizes: list[int]) -> None:
    """Whole blocks or not, and also where warm ones lie before and behind."""
    handle = disk.open("00001000.000000")
    total = sum(sizes)
    end = offset + total
    disk.pwritev(handle, [b"w" * (end + 4096)], 0)
    parts = [random.Random(size).randbytes(size) for size in sizes]
    disk.pwritev(handle, parts, offset, True)
    warm, cold = bytearray(end + 4096), bytearray(total)
    read_exactly(disk, handle, (warm,), 0, len(warm), True)
    read_exactly(disk, handle, (cold,), offset, total, True, True)
    assert cold == b"".join(parts)
    assert warm == b"w" * offset + cold + b"w" * 4096


def test_cold_bytes_do_not_stay_in_memory(tmp_path: Path) -> None:
    """A copy of all chunks leaves the page cache to those who read some of them again."""
    disk = FileDisk(str(tmp_path / "blocks"))
    handle = disk.open("00001000.000000")
    if not can_go_around(tmp_path):
        pytest.skip("this file system has no direct I/O")
    content = mmap.mmap(-1, 1 << 20)  # aligned, as memory of a pool is
    disk.pwritev(handle, [content], 0)
    if not disk.is_cached(handle, 0, 1 << 20):
        pytest.skip("this kernel does not tell what the page cache holds")
    disk.pwritev(handle, [content], 1 << 20, True)
    assert not disk.is_cached(handle, 1 << 20, 4096)
    assert disk.preadv(handle, [page_memory(1 << 20)], 1 << 20, True, True) == 1 << 20
    assert not disk.is_cached(handle, 1 << 20, 4096)
    # Memory that lies anywhere is never left to a driver that has not said how it has to lie.
    askew = page_memory((1 << 20) + 16)[16:]
    assert disk.preadv(handle, [askew], 1 << 20, True, True) == 1 << 20
    assert disk.is_cached(handle, 1 << 20, 4096)
    disk.close()


def can_go_around(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_free_space_is_told(disk: Disk) -> None:
    for number in range(20):  # others free and take what they like meanwhile
        before = disk.free()
        disk.allocate(disk.open(f"00001000.{number:06x}"), 0, 64 << 20)
        assert before > 64 << 20
        if before - (64 << 20) - SLACK <= disk.free() <= before - (64 << 20) + SLACK:
            return
    raise AssertionError("what is allocated is not told")


def test_a_hole_reads_as_zeros_and_the_file_keeps_its_length(disk: Disk) -> None:
    handle = disk.open("00001000.000000")
    disk.pwritev(handle, [b"x" * 16384], 0)
    disk.punch(handle, 4096, 8192)
    data = bytearray(16384)
    read_exactly(disk, handle, (data,), 0, 16384, True)
    assert data == b"x" * 4096 + bytes(8192) + b"x" * 4096


def test_the_end_of_a_file_is_an_error_for_who_needs_all(disk: Disk) -> None:
    handle = disk.open("00001000.000000")
    disk.pwritev(handle, [b"x" * 4096], 0)
    assert disk.preadv(handle, (bytearray(8192),), 4096, True) == 0
    with pytest.raises(OSError, match="too early"):
        read_exactly(disk, handle, (bytearray(8192),), 0, 8192, True)


def test_a_write_of_more_buffers_than_one_call_takes(disk: Disk) -> None:
    handle = disk.open("00001000.000000")
    parts = [bytes([i % 251]) * 7 for i in range(900)]
    disk.pwritev(handle, parts, 3)
    data = bytearray(6300)
    read_exactly(disk, handle, (data,), 3, 6300, True)
    assert data == b"".join(parts)


def test_an_index_is_an_ordered_map(index: Index) -> None:
    index.write([(b"b", b"2"), (b"a", b"1"), (b"c", b"3"), (b"a", None), (b"d", b"")])
    assert index.get(b"a") is None
    assert index.get(b"d") == b""
    assert index.get_many([b"c", b"x", b"b"]) == [b"3", None, b"2"]
    assert list(index.scan(b"b", b"d")) == [(b"b", b"2"), (b"c", b"3")]
    assert list(index.scan(b"b", b"d", reverse=True)) == [(b"c", b"3"), (b"b", b"2")]
    assert list(index.scan(b"x", b"z")) == []
    index.write([(b"b", None)], sync=True)
    assert index.get(b"b") is None


def test_the_last_change_of_a_key_in_a_write_wins(index: Index) -> None:
    index.write([(b"k", b"1"), (b"k", None), (b"k", b"2")])
    assert index.get(b"k") == b"2"


def test_power_loss_leaves_a_beginning_of_the_index_and_any_part_of_the_files() -> None:
    """What the simulated ones do that real ones may do."""
    outcomes, tails = set(), set()
    for seed in range(60):
        disk, index = SimulatedDisk(), SimulatedIndex()
        handle = disk.open("00001000.000000")
        disk.sync_names()
        disk.pwritev(handle, [b"a" * 1024], 0)
        disk.fdatasync(handle)
        disk.pwritev(handle, [b"b" * 1024], 0)
        index.write([(b"0", b"")], sync=True)
        for i in range(1, 4):
            index.write([(b"%d" % i, b"")])
        choice = random.Random(seed)
        disk.power_loss(choice)
        index.power_loss(choice)
        data = bytearray(1024)
        disk.preadv(disk.open("00001000.000000"), (data,), 0, True)
        outcomes.add((chr(data[0]), chr(data[512])))
        tails.add(tuple(key for key, _ in index.scan(b"0", b"9")))
    assert outcomes == {("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")}
    assert tails == {(b"0",), (b"0", b"1"), (b"0", b"1", b"2"), (b"0", b"1", b"2", b"3")}
