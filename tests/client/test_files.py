"""Files through the blocking client, compared with bytes in memory."""

from __future__ import annotations

import io
import os
import random
import threading

import numpy as np
import pytest

from emberfs.client.blocking import Client, Stat
from emberfs.proto.env import drive
from emberfs.proto.errors import Status, StatusError

from .world import World

KIB, MIB = 1 << 10, 1 << 20


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("chunk_size", [64 * KIB, MIB, 8 * MIB])
@pytest.mark.parametrize("size", [0, 1, 64 * KIB, MIB - 1, 3 * MIB + 17])
def test_what_was_written_is_read(client: Client, chunk_size: int, size: int) -> None:
    data = content(size)
    with client.open("/f", "wb", chunk_size=chunk_size) as file:
        assert file.write(data) == size
    assert client.stat("/f").size == size
    assert client.stat("/f").chunk_size == chunk_size
    assert client.read_bytes("/f") == data
    with client.open("/f") as file:
        pieces = iter(lambda: file.read(100_001), b"")
        assert b"".join(pieces) == data


def test_small_writes_gather_and_stream(world: World) -> None:
    client = world.client()
    data = content(13 * MIB)
    with client.open("/f", "wb") as file:
        for i in range(0, len(data), 10_000):
            file.write(data[i : i + 10_000])
        assert world.storage.requests.count("write") >= 3, "full chunks do not wait for the close"
    assert world.storage.requests.count("write") <= 6
    assert client.read_bytes("/f") == data


def test_a_read_sees_earlier_writes_of_every_handle(client: Client) -> None:
    with client.open("/f", "w+b") as one, client.open("/f", "r+b") as two:
        one.write(b"hello world")
        assert two.pread(5, 6) == b"world"
        two.pwrite(b"W", 6)
        assert one.pread(11, 0) == b"hello World"
        assert client.stat("/f").size == 11
        two.truncate(5)
        assert one.pread(100, 0) == b"hello"
        assert one.seek(0, 2) == 5


def test_readahead_never_shows_bytes_from_before_a_write(client: Client) -> None:
    old = bytes(4 * MIB)
    client.write_bytes("/f", old)
    with client.open("/f", "r+b") as reader, client.open("/f", "r+b") as writer:
        for i in range(4):  # in sequence: windows behind are on their way
            assert reader.read(64 * KIB) == old[: 64 * KIB], i
        writer.pwrite(b"new", 256 * KIB)
        assert reader.read(3) == b"new"
        reader.seek(0)
        for _ in range(8):
            reader.read(64 * KIB)
        writer.pwrite(b"later", 512 * KIB + 10)  # buffered, while windows over it were asked for
        assert reader.read(20) == bytes(10) + b"later" + bytes(5)


def test_modes_are_those_of_open(client: Client) -> None:
    with pytest.raises(FileNotFoundError):
        client.open("/f", "rb")
    with client.open("/f", "xb") as file:
        file.write(b"12345")
        assert not file.readable() and file.writable() and file.seekable()
        with pytest.raises(io.UnsupportedOperation):
            file.read()
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
    with pytest.raises(FileExistsError):
        client.open("/f", "xb")
    with client.open("/f", "r+b") as file:
        file.seek(1)
        file.write(b"ab")
        file.seek(-1, 2)
        assert file.read() == b"5"
        assert file.tell() == 5
        assert file.mode == "rb+"
    assert client.read_bytes("/f") == b"1ab45"
    with client.open("/f", "ab") as file:
        assert file.tell() == 5
        file.seek(0)
        file.write(b"6")
    with client.open("/f", "wb"):
        pass
    assert client.read_bytes("/f") == b""
    for bad in ("", "rw", "z", "rbt", "rr"):
        with pytest.raises(ValueError, match="mode"):
            client.open("/f", bad)


def test_arrays_are_buffers_whatever_their_shape(client: Client) -> None:
    arrays = [np.arange(6, dtype=">i4").reshape(2, 3), np.zeros((0, 3)), np.array(7.5), np.zeros((2, 0), complex)]
    with client.open("/f", "w+b") as file:
        assert [file.write(array) for array in arrays] == [array.nbytes for array in arrays]
        assert file.pwrite(arrays[1], 0) == 0
        file.seek(0)
        read = [np.ones_like(array) for array in arrays]
        assert [file.readinto(array) for array in read] == [array.nbytes for array in arrays]
        assert all(map(np.array_equal, read, arrays))
        assert file.preadv_batch([(0, 0)], np.zeros((0, 2))) == [b""]


def test_text_modes_and_lines(client: Client) -> None:
    with client.open("/t", "w", encoding="utf-8") as file:
        file.write("eins\nzwei\nd\u00fcr\n")
    with client.open("/t", "rt") as file:
        assert list(file) == ["eins\n", "zwei\n", "d\u00fcr\n"]
    with client.open("/t") as binary:
        assert binary.readline() == b"eins\n"
        assert list(binary) == [b"zwei\n", "d\u00fcr\n".encode()]
        assert binary.peek() == b""


def test_holes_read_as_zeros(client: Client) -> None:
    with client.open("/s", "w+b", chunk_size=64 * KIB) as file:
        file.pwrite(b"end", 300_000)
        assert file.pread(10, 100_000) == bytes(10)
        file.pwrite(b"mid", 100_000)
        assert file.pread(6, 99_999) == b"\0mid\0\0"
    data = client.read_bytes("/s")
    assert len(data) == 300_003
    assert data.strip(b"\0").startswith(b"mid") and data.endswith(b"end")
    client.truncate("/s", 400_000)
    assert client.read_bytes("/s", -5) == bytes(5)


def test_random_batches(client: Client) -> None:
    data = content(3 * MIB)
    client.write_bytes("/f", data)
    rng = random.Random(5)
    ranges = [(rng.randrange(len(data)), rng.choice((0, 1, 4096, 70_000))) for _ in range(300)]
    with client.open("/f") as file:
        views = file.preadv_batch(ranges)
        assert [bytes(v) for v in views] == [data[o : o + n] for o, n in ranges]
        buffer = bytearray(3 * 4096)
        views = file.preadv_batch([(8192, 4096), (0, 4096), (len(data) - 10, 4096)], buffer)
        assert views[2] == data[-10:]
        assert buffer[:4096] == data[8192:12288] and buffer[4096:8192] == data[:4096]
        assert file.preadv_batch([]) == [] and file.preadv_batch([(0, 0), (len(data) + 5, 9)]) == [b"", b""]
        with pytest.raises(StatusError, match="buffer"):
            file.preadv_batch([(0, 4096)], bytearray(10))


def test_ranges_of_many_files_in_one_plan(world: World) -> None:
    client = world.client()
    files = {f"/r{i}": content(200_000 + i, i) for i in range(20)}
    for path, data in files.items():
        client.write_bytes(path, data)
    client.mkdir("/dir")
    world.storage.requests.clear()
    asked = [(path, start, end) for path in files for start, end in ((0, 10), (-100, None), (1000, 150_000), (9, 3))]
    got = client.read_ranges([*asked, ("/none", 0, 1), ("/dir", None, None)])
    assert got[:-2] == [files[path][start:end] for path, start, end in asked]
    assert isinstance(got[-2], FileNotFoundError) and isinstance(got[-1], IsADirectoryError)
    assert world.storage.requests == ["read"]


def test_ranges_that_are_longer_than_the_memory(world: World) -> None:
    client = world.client(memory=16 << 20, timeout=10.0)
    data = os.urandom(1 << 20) * 24
    client.write_bytes("/f", data)
    assert client.read_ranges([("/f", 5, None), ("/f", -3, None), ("/none", 0, 1)])[:2] == [data[5:], data[-3:]]
    with client.open("/f") as file:
        views = file.preadv_batch([(7, 0), (3, 20 << 20), ((24 << 20) - 1, 10), (0, 100)])
        assert [bytes(view) for view in views] == [b"", data[3 : (20 << 20) + 3], data[-1:], data[:100]]


def test_appends_of_handles_and_clients_follow_each_other(world: World) -> None:
    one, two = world.client(), world.client()
    with one.open("/log", "ab") as first, one.open("/log", "ab") as second:
        first.write(b"1")
        second.write(b"2")
        first.write(b"3")
    with two.open("/log", "ab") as other:
        other.write(b"4")
        other.flush()
        with one.open("/log", "ab") as first:
            first.write(b"5")
        other.write(b"6")
    assert one.read_bytes("/log") == b"123456"


def test_close_to_open_between_clients(world: World) -> None:
    one, two = world.client(), world.client()
    with one.open("/f", "wb") as file:
        file.write(b"version 1")
        assert two.stat("/f").size == 0, "nothing is published before flush or close"
        file.flush()
        assert two.read_bytes("/f") == b"version 1"
        file.write(b", and 2")
    reader = two.open("/f")
    assert reader.read() == b"version 1, and 2"
    one.write_bytes("/f", b"new")
    assert two.read_bytes("/f") == b"new"
    reader.close()


def test_unnamed_files_are_published_together(client: Client) -> None:
    client.mkdir("/d")
    files = [client.open("/d", "wb", unnamed=True) for _ in range(3)]
    for i, file in enumerate(files):
        file.write(b"%d" % i * 100_000)
    dropped = client.open("/d", "wb", unnamed=True)
    dropped.write(b"x")
    dropped.discard()
    assert client.listdir("/d") == []
    client.publish(files, ["/d/a", "/d/b", "/d/c"])
    assert all(file.closed for file in files)
    assert client.listdir("/d") == ["a", "b", "c"]
    assert client.read_bytes("/d/c") == b"2" * 100_000
    late = client.open("/d", "wb", unnamed=True)
    with pytest.raises(FileExistsError):
        client.publish([late], ["/d/a"], exclusive=True)
    assert not late.closed
    late.close()


def test_copy_and_the_same_file(client: Client) -> None:
    data = content(9 * MIB)
    client.write_bytes("/a", data)
    client.write_bytes("/b", b"longer?" * 2_000_000)
    assert client.copy_file("/a", "/b").size == len(data)
    assert client.read_bytes("/b") == data
    client.symlink("a", "/link")
    with pytest.raises(StatusError, match="same file"):
        client.copy_file("/a", "/link")
    assert client.stat("/a").size == len(data)


def test_bad_offsets_and_lengths(client: Client) -> None:
    with client.open("/f", "w+b", chunk_size=64 * KIB) as file:
        for action in (
            lambda: file.seek(-1),
            lambda: file.pread(1, -1),
            lambda: file.pwrite(b"x", -1),
            lambda: file.truncate(-1),
        ):
            with pytest.raises(OSError, match=r"negative|cannot") as bad:
                action()
            assert bad.value.errno == 22  # type: ignore[attr-defined]
        with pytest.raises(StatusError) as large:
            file.pwrite(b"x", 1 << 62)
        assert large.value.status is Status.FILE_TOO_BIG
        assert file.pread(1 << 40, 0) == b""
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with pytest.raises(IsADirectoryError):
        client.open("/")


@pytest.mark.parametrize("options", [{}, {"readahead": 0, "write_back": 0}])
def test_random_operations_against_a_local_file(world: World, tmp_path, options: dict[str, int]) -> None:
    client = world.client(**options)
    rng = random.Random(7)
    with open(tmp_path / "oracle", "w+b", buffering=0) as local, client.open("/f", "w+b", chunk_size=64 * KIB) as file:
        for step in range(400):
            what = rng.choice(("pwrite", "pwrite", "write", "pread", "pread", "read", "seek", "truncate", "flush"))
            offset = rng.randrange(300_000)
            size = rng.choice((1, 100, 5_000, 70_000, 200_000))
            data = rng.randbytes(size)
            if what == "pwrite":
                here = local.tell()
                local.seek(offset)
                local.write(data)
                local.seek(here)
                file.pwrite(data, offset)
            elif what == "write":
                assert file.write(data) == local.write(data)
            elif what == "pread":
                here = local.tell()
                local.seek(offset)
                assert file.pread(size, offset) == local.read(size), step
                local.seek(here)
            elif what == "read":
                assert file.read(size) == local.read(size), step
            elif what == "seek":
                assert file.seek(offset) == local.seek(offset)
            elif what == "truncate":
                assert file.truncate(offset) == local.truncate(offset)
            else:
                file.flush()
            assert file.tell() == local.tell()
    assert client.read_bytes("/f") == (tmp_path / "oracle").read_bytes()


def test_a_forgotten_file_is_closed_by_the_keeper(world: World) -> None:
    client, other = world.client(), world.client()
    client.open("/f", "wb").write(b"never closed")
    assert client.read_bytes("/f") == b"never closed"
    pause = threading.Event()
    while client.core.inodes:  # the keeper's own worker may have been faster, and be at it
        drive(client.core.keeper._close_orphans())
        pause.wait(0.01)
    assert other.read_bytes("/f") == b"never closed"


def test_the_keeper_and_the_end_of_a_client_may_close_forgotten_files_at_once(world: World) -> None:
    client = world.client()
    drive(client.core.close_orphan())  # who comes second finds nothing left
    client.close()


def test_a_client_that_ends_writes_out_what_its_keeper_has_only_begun_to_close(world: World) -> None:
    client, other = world.client(), world.client()
    client.open("/f", "wb").write(b"never closed")
    client.core.orphans.popleft().closed = True  # as far as the keeper has come
    client.close()
    assert other.read_bytes("/f") == b"never closed"


def test_a_long_write_stays_within_its_limits(world: World) -> None:
    client = world.client(write_back=0, memory=32 << 20)
    data = content(40 * MIB)
    with client.open("/f", "wb") as file:
        file.write(data)
        assert not client.core.write_budget.held
    assert client.read_bytes("/f") == data


def test_many_files_share_the_memory(world: World) -> None:
    client = world.client(memory=16 << 20)
    files = [client.open(f"/f{i}", "wb") for i in range(30)]
    for part in range(3):
        for i, file in enumerate(files):
            file.write(bytes([i]) * 700_000)
    for file in files:
        file.close()
    for i in range(30):
        assert client.read_bytes(f"/f{i}") == bytes([i]) * 2_100_000


def test_reading_moves_the_access_time_as_relatime_does(client: Client) -> None:
    client.write_bytes("/f", b"abc")
    made = client.stat("/f")

    def told() -> Stat:
        drive(client.core.read_times.tell())
        return client.stat("/f")

    with client.open("/f") as file:
        assert told().atime_ns == made.atime_ns  # nobody has read it yet
        file.read()
    read = told()
    assert read.atime_ns > made.atime_ns
    assert (read.mtime_ns, read.ctime_ns, read.change) == (made.mtime_ns, made.ctime_ns, made.change)
    assert client.read_bytes("/f") == b"abc"
    assert told().atime_ns == read.atime_ns  # it was read since its last change
    client.chmod("/f", 0o600)
    client.read_bytes("/f")
    assert told().atime_ns > read.atime_ns
    client.utime("/f", atime_ns=client.stat("/f").ctime_ns + 3600 * 10**9, mtime_ns=4)
    before = client.stat("/f")
    client.read_bytes("/f")
    assert told().atime_ns == before.atime_ns
