"""What a mount needs of the core: reads that lend their bytes, flushes that may be the last, errors told to all whom they concern."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from emberfs.client.blocking import Client, File
from emberfs.proto.env import drive
from emberfs.proto.errors import Status, error

from .world import World

KIB, MIB = 1 << 10, 1 << 20


def lent(file: File, offset: int, length: int) -> bytes:
    """A lent read, copied while it is valid."""
    taken: list[bytes] = []

    def consume(views: Sequence[memoryview | bytes]) -> None:
        taken.append(b"".join(views))

    assert drive(file.handle.pread_lent(offset, length, consume)) == len(taken[0])
    assert len(taken) == 1
    return taken[0]


def pattern(length: int) -> bytes:
    return b"".join(i.to_bytes(4, "big") for i in range(length // 4 + 1))[:length]


@pytest.mark.parametrize("size", [0, 100, 4 * KIB, MIB, 3 * MIB + 5])
def test_lent_reads_bring_what_there_is(client: Client, size: int) -> None:
    data = pattern(size)
    client.write_bytes("/file", data)
    with client.open("/file") as file:
        for offset, length in ((0, 10), (0, MIB), (50, MIB), (size - 7, 100), (size, 5), (MIB - 3, 2 * MIB)):
            if offset >= 0:
                assert lent(file, offset, length) == data[offset : offset + length]
    assert not client.core.env.pool.used  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", [4 * KIB, 100 * KIB, MIB])
def test_lent_reads_in_sequence(world: World, step: int) -> None:
    data = pattern(5 * MIB)
    client = world.quiet()
    client.write_bytes("/file", data)
    world.storage.requests.clear()
    with client.open("/file") as file:
        assert b"".join(lent(file, offset, step) for offset in range(0, len(data), step)) == data
    assert world.storage.requests.count("read") <= 16  # short ones are read ahead of


def test_lent_reads_slightly_out_of_order(client: Client) -> None:
    """As the kernel's readahead asks."""
    data = pattern(4 * MIB)
    client.write_bytes("/file", data)
    step = 64 * KIB
    order = [i ^ 1 for i in range(len(data) // step)]
    with client.open("/file") as file:
        for i in order:
            assert lent(file, i * step, step) == data[i * step : (i + 1) * step]


def test_bytes_that_have_not_been_sent_are_lent_as_they_are(world: World) -> None:
    client = world.quiet()
    client.write_bytes("/file", bytes(2 * MIB))
    with client.open("/file", "rb+") as file:
        file.pwrite(b"written", 1000)
        world.storage.requests.clear()
        assert lent(file, 1002, 4) == b"itte"
        assert not world.storage.requests
        assert lent(file, 998, 11) == b"\0\0written\0\0"  # in part only: it has to arrive


def test_a_hole_is_lent_as_zeros(client: Client) -> None:
    with client.open("/file", "wb+") as file:
        file.pwrite(b"end", 3 * MIB)
        file.flush()
        assert lent(file, MIB - 5, MIB) == bytes(MIB)
        assert lent(file, 3 * MIB - 2, 100) == b"\0\0end"


def test_damaged_bytes_are_never_lent(world: World) -> None:
    client = world.client()
    client.write_bytes("/file", pattern(100 * KIB))
    with client.open("/file") as file:
        world.storage.flips.append(1)
        assert lent(file, 0, 100 * KIB) == pattern(100 * KIB)  # read once more


def test_a_file_that_was_cut_meanwhile_is_lent_short(world: World) -> None:
    client, other = world.client(), world.client()
    client.write_bytes("/file", pattern(2 * MIB))
    with client.open("/file") as file:
        other.truncate("/file", MIB + 10)
        assert lent(file, MIB, MIB) == pattern(2 * MIB)[MIB : MIB + 10]


# --- flushes that may be the last ---------------------------------------------------------------------------------------------------


def flush(file: File) -> None:
    drive(file.handle.flush(ending=True))


def test_the_session_ends_with_the_flush_and_another_one_begins_with_the_next_write(world: World) -> None:
    client = world.quiet()
    inode = client.write_bytes("/file", b"old").inode
    file = client.open("/file", "rb+")
    file.pwrite(b"new", 0)
    flush(file)
    assert client.read_bytes("/file") == b"new"
    assert not file.handle.session
    before = client.core.cluster.requests.last
    flush(file)  # nothing is left to say
    assert client.core.cluster.requests.last == before
    file.pwrite(b", newer", 3)
    assert file.handle.session
    assert client.core.inodes[inode].sessions == [file.handle.session]
    file.close()
    assert client.read_bytes("/file") == b"new, newer"
    assert not client.core.inodes


def test_after_the_flush_the_file_is_reported_like_one_that_is_read(world: World) -> None:
    client = world.client()
    file = client.open("/file", "wb")
    file.write(b"content")
    flush(file)
    assert client.core.held.report(everything=True).inodes == [file.handle.file.id]
    file.write(b", more")
    assert client.core.held.report(everything=True).inodes == []
    file.close()


def test_an_unlinked_file_keeps_its_session(world: World) -> None:
    client = world.client()
    file = client.open("/file", "wb+")
    file.write(b"content")
    client.unlink("/file")
    flush(file)
    assert file.handle.session
    assert file.pread(100, 0) == b"content"
    file.close()


def test_a_flush_outlives_failures_of_storage(world: World) -> None:
    client = world.client()
    with client.open("/file", "wb") as file:
        file.write(b"x" * 100_000)
        world.storage.raises.extend([error(Status.UNAVAILABLE)] * 3)
        flush(file)
        assert client.read_bytes("/file") == b"x" * 100_000


# --- errors -------------------------------------------------------------------------------------------------------------------------


def test_each_that_has_the_file_open_is_told_of_a_loss_once(world: World) -> None:
    client = world.client()
    first, second = client.open("/file", "wb"), client.open("/file", "rb+")
    first.write(b"x" * MIB)
    world.storage.statuses.append(Status.NO_SPACE)
    for file in (first, second):
        with pytest.raises(OSError, match="no space"):
            file.fsync()
        file.fsync()
    later = client.open("/file", "rb+")
    for file in (first, second, later):
        file.close()


# --- fdatasync ----------------------------------------------------------------------------------------------------------------------


def test_a_data_sync_of_a_file_that_has_not_grown_asks_the_storage_only(world: World) -> None:
    client = world.quiet()
    with client.open("/file", "wb+") as file:
        file.write(b"x" * 100_000)
        drive(file.handle.fsync(data_only=True))  # the first one keeps name and length
        before = client.core.cluster.requests.last
        for offset in (0, 50_000):
            file.pwrite(b"again", offset)
            drive(file.handle.fsync(data_only=True))
        assert client.core.cluster.requests.last == before
        assert world.storage.requests.count("sync") == 3
        for change in (lambda: file.pwrite(b"more", 99_999), lambda: file.punch(0, 10), lambda: file.truncate(10)):
            change()
            before = client.core.cluster.requests.last
            drive(file.handle.fsync(data_only=True))
            assert client.core.cluster.requests.last > before
    assert client.stat("/file").size == 10


def test_a_data_sync_is_one_request_to_storage(world: World) -> None:
    client = world.quiet()
    with client.open("/file", "wb+", stripe=1) as file:
        file.write(b"x" * 100_000)
        for offset in (0, 50_000):
            drive(file.handle.fsync(data_only=True))
            file.pwrite(b"again", offset)
        drive(file.handle.fsync(data_only=True))
        assert world.storage.requests == ["write", "synced with the write"] * 3


def test_a_sync_in_place_tells_the_times_while_the_storage_syncs(world: World) -> None:
    """After the bytes have arrived: whoever sees the new version reads them."""
    client = world.quiet()
    with client.open("/file", "wb+", stripe=1) as file:
        file.write(b"x" * 100_000)
        file.fsync()
        world.storage.requests.clear()
        before = client.core.cluster.requests.last
        file.pwrite(b"again", 50_000)
        file.fsync()
        assert world.storage.requests == ["write", "sync"]
        assert client.core.cluster.requests.last == before + 1
        file.pwrite(b"more", 99_999)
        file.fsync()
        assert world.storage.requests == ["write", "sync", "write", "synced with the write"]
        file.fsync()
        assert world.storage.requests.count("sync") == 1


def test_a_data_sync_of_more_than_one_request_is_one_of_its_own(world: World) -> None:
    client = world.quiet()
    with client.open("/file", "wb+", stripe=1) as file:
        file.write(b"x" * (9 * MIB))
        drive(file.handle.fsync(data_only=True))
        assert world.storage.requests.count("write") > 1
        assert [name for name in world.storage.requests if name != "write"] == ["sync"]


def test_a_write_that_cannot_be_synced_is_sent_again_and_counts_once(world: World) -> None:
    client = world.quiet()
    with client.open("/file", "wb+", stripe=1) as file:
        file.write(b"x" * 100_000)
        world.storage.raises_after.append(error(Status.UNAVAILABLE, "gone before it was durable"))
        drive(file.handle.fsync(data_only=True))
        assert world.storage.requests == ["write", "synced with the write"] * 2
    assert len(world.storage.applied) == 1
    assert client.read_bytes("/file") == b"x" * 100_000
