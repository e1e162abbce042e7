"""Bytes that must not get lost, doubled or mixed up where several things happen at once to one file."""

from __future__ import annotations

from typing import Any

import pytest

from emberfs.client import process
from emberfs.client.core.columns import columns_of
from emberfs.client.core.holes import check_holes
from emberfs.client.core.reads import Fetch
from emberfs.proto.env import drive
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.rpc import META

from .world import World

MIB = 1 << 20


def test_a_full_block_that_is_written_again_is_sent_once(world: World) -> None:
    client = world.quiet()
    with client.open("/file", "wb") as file:
        file.pwrite(bytes(MIB - 4096), 4096)  # reaches the end of the block: full, but less than a request's worth
        file.pwrite(b"again", 8192)
        file.flush()
    assert len(world.storage.applied) == 1


def test_a_write_after_anothers_truncate_counts_although_the_file_was_opened_again_meanwhile(world: World) -> None:
    client, other = world.client(), world.client()
    data = bytes(range(256)) * 4096
    with client.open("/file", "wb") as file:
        file.write(b"x" * 100)
        file.flush()
        other.truncate("/file", 10)
        file.pwrite(data, 0)  # on its way, under the version from before the truncate
        with client.open("/file", "rb") as again:
            assert again.size == MIB
            assert again.read() == data
    assert other.stat("/file").size == MIB
    assert other.read_bytes("/file") == data
    with client.open("/file", "rb+") as file:
        file.truncate(0)
        assert file.size == 0


def test_an_expired_capability_is_renewed_whatever_failed_before(world: World) -> None:
    client = world.client()
    with client.open("/file", "wb") as file:
        file.write(b"kept")
        world.storage.statuses.extend([Status.UNAVAILABLE, Status.CAPABILITY_EXPIRED])
    assert client.read_bytes("/file") == b"kept"


def test_a_close_that_is_interrupted_loses_nothing_and_can_be_repeated(world: World) -> None:
    client = world.client()
    file = client.open("/file", "wb")
    file.write(b"kept")
    interrupt_next_collect(client.core.env)
    with pytest.raises(KeyboardInterrupt):
        file.close()
    assert not file.closed
    file.close()
    assert file.closed
    assert client.read_bytes("/file") == b"kept"
    assert not client.core.inodes and not client.core.write_budget.held


def test_a_close_that_is_interrupted_when_it_was_carried_out_leaves_a_file_that_works(world: World) -> None:
    client = world.client()
    file = client.open("/file", "wb")
    file.write(b"kept")
    interrupt_after_next_call(client.core.env)
    with pytest.raises(KeyboardInterrupt):
        file.close()
    file.write(b", and more")
    file.flush()
    assert client.stat("/file").size == 14
    file.close()
    assert client.read_bytes("/file") == b"kept, and more"


def test_what_was_interrupted_before_it_was_sent_does_not_arrive_after_newer_bytes(world: World) -> None:
    client = world.client()
    with client.open("/file", "wb+") as file:
        file.write(b"older")
        channels = client.core.channels
        take = channels.take

        async def interrupted(*args: Any) -> list[int]:
            channels.take = take  # type: ignore[method-assign]
            raise KeyboardInterrupt

        channels.take = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            file.flush()
        file.pwrite(b"newer", 0)
        assert file.pread(5, 0) == b"newer"
    assert client.read_bytes("/file") == b"newer"


def interrupt_after_next_call(env: Any) -> None:
    call = env.call

    async def interrupted(made: Any) -> Any:
        env.call = call
        await call(made)
        raise KeyboardInterrupt

    env.call = interrupted


def test_attributes_that_were_overtaken_say_nothing(world: World) -> None:
    client = world.client()
    with client.open("/file", "wb") as file:
        old = drive(file.handle.file.ask())
        file.write(b"newer")
        file.flush()
        file.handle.file.take(old)
        assert file.size == 5


@pytest.mark.parametrize("mode", ["rb", "rb+"])
def test_fsync_makes_durable_what_was_closed_before(world: World, mode: str) -> None:
    client = world.quiet()
    client.write_bytes("/file", b"kept")
    with client.open("/file", mode) as file:
        file.fsync()
        assert world.storage.requests.count("sync") == 1
        file.fsync()
        assert world.storage.requests.count("sync") == 1


def test_a_sync_of_everything_that_failed_leaves_each_file_to_its_fsync(world: World) -> None:
    client = world.quiet()
    with client.open("/file", "wb") as file:
        file.write(b"kept" * file.handle.file.chunk_size)
        file.flush()
        world.storage.raises.append(error(Status.IO_ERROR, "the disk is gone"))
        with pytest.raises(OSError, match="the disk is gone"):
            client.sync()
        before = world.storage.requests.count("sync")
        file.fsync()
        assert world.storage.requests.count("sync") == before + 1


def test_a_sync_of_everything_goes_on_behind_a_file_that_fails(world: World) -> None:
    client, other = world.quiet(), world.client()
    with client.open("/one", "wb") as one, client.open("/two", "wb") as two:
        one.write(b"1" * one.handle.file.chunk_size)
        two.write(b"2" * two.handle.file.chunk_size)
        refuse_next_settlement(client.core.env)
        with pytest.raises(StatusError) as told:
            client.sync()
        assert told.value.status is Status.NO_SPACE
        assert sorted([other.stat("/one").size, other.stat("/two").size]) == [0, two.size]
        assert "sync" in world.storage.requests
        client.sync()
        assert other.stat("/one").size == other.stat("/two").size == two.size


def refuse_next_settlement(env: Any) -> None:
    call = env.call

    async def refused(made: Any) -> Any:
        if made.method is META.SyncFile:
            env.call = call
            raise error(Status.NO_SPACE, "no room for one record more")
        return await call(made)

    env.call = refused


@pytest.mark.parametrize("how", ["cut", "cut by name", "hole"])
def test_fsync_makes_durable_that_chunks_were_cut_or_taken_away(world: World, how: str) -> None:
    """Else the old bytes come back with the power, where the file grows again."""
    client = world.quiet()
    with client.open("/file", "wb+") as file:
        file.write(bytes(range(256)) * (file.handle.file.chunk_size // 128))
        file.fsync()
        before = world.storage.requests.count("sync")
        if how == "cut":
            file.truncate(1)
        elif how == "cut by name":
            client.truncate("/file", 1)
        else:
            file.punch(0, file.handle.file.chunk_size)
        file.fsync()
        assert world.storage.requests.count("sync") == before + 1
        file.fsync()
        assert world.storage.requests.count("sync") == before + 1


def test_at_the_end_of_the_process_one_clients_failure_is_not_another_ones_loss(world: World) -> None:
    clients = [world.client() for _ in range(4)]
    files = [client.open(f"/file-{i}", "wb") for i, client in enumerate(clients)]
    for file in files:
        file.write(b"kept")
    world.storage.statuses.append(Status.NO_SPACE)
    with pytest.raises(OSError, match="no space"):
        process._close_all()
    reader = world.client()
    assert sum(reader.read_bytes(f"/file-{i}") == b"kept" for i in range(4)) == 3


def interrupt_next_collect(env: Any) -> None:
    """As a signal at the keyboard does."""
    collect = env.collect

    async def interrupted(ticket: Any) -> Any:
        env.collect = collect
        env.abandon(ticket)
        raise KeyboardInterrupt

    env.collect = interrupted


@pytest.mark.parametrize("in_sequence_before", [True, False])
def test_who_reads_in_sequence_beside_a_writer_asks_storage_for_nothing_that_is_not_there_yet(
    world: World, in_sequence_before: bool
) -> None:
    """As sqlite's readers do with a WAL: they were told of lost data, while a writer's bytes were on their way."""
    client = world.quiet()
    old, new = bytes(range(256)) * 256, b"new" * 1000
    client.write_bytes("/log", old)
    with client.open("/log", "rb+") as writer, client.open("/log", "rb") as reader:
        if in_sequence_before:
            assert reader.read(4096) == old[:4096]
        writer.pwrite(new, len(old))
        while reader.tell() < len(old):
            reader.read(4096)
        assert world.storage.requests.count("write") == 1  # the old bytes; reading them has sent no others
        assert reader.read(4096) == new
    assert client.read_bytes("/log") == old + new


def test_a_file_that_was_cut_here_and_written_anew_while_it_was_read_has_lost_nothing(world: World) -> None:
    client = world.client()
    client.write_bytes("/file", b"o" * MIB)
    with client.open("/file", "rb+") as file:
        file.truncate(0)
        file.write(b"n" * MIB)  # here, and not at the storage
        fetch = Fetch(client.core.cluster, columns_of(file.handle.file, 0, MIB)).start()  # as if sent before all that
        drive(fetch.finish())
        drive(check_holes(fetch))
        assert b"".join(fetch.views) == b"n" * MIB
        fetch.release()


def test_many_files_read_in_turns_share_the_memory(world: World) -> None:
    client = world.client(memory=16 << 20, timeout=30.0)
    data = bytes(range(256)) * (8 << 12)
    count = 24
    for i in range(count):
        client.write_bytes(f"/file-{i}", data)
    files = [client.open(f"/file-{i}", "rb") for i in range(count)]
    step = 192 << 10
    for offset in range(0, 6 * step, step):
        for file in files:
            assert file.read(step) == data[offset : offset + step]
    for file in files:
        file.close()
    assert client.core.env.pool.used == 0
