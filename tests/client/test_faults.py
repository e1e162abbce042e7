"""What goes wrong between client and storage, and what the client makes of it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from emberfs.client.blocking import Client
from emberfs.client.core import client as core_client
from emberfs.proto.env import drive
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.rpc import META, Identity, PeerInfo

from .test_data_path import interrupt_after_next_call
from .world import World

MIB = 1 << 20


def broken() -> StatusError:
    return error(Status.MAYBE_COMMITTED, "the connection broke")


def test_a_repeated_write_counts_once(world: World) -> None:
    client = world.quiet()
    world.storage.raises_after.extend([broken(), broken()])
    with client.open("/f", "wb") as file:
        file.write(b"a" * 100)
        file.flush()
        file.write(b"b" * 100)
    assert client.read_bytes("/f") == b"a" * 100 + b"b" * 100
    assert len(world.storage.applied) == 2
    assert world.storage.requests.count("write") == 4


def lose_power(world: World) -> None:
    """Of the storage server, with all that was not synced: for the test all that was written to it."""
    world.storage.chunks.clear()
    world.run(world.restart_storage(power_losses=1))


def test_a_sync_after_a_loss_of_power_tells_what_it_does_not_cover(world: World) -> None:
    client = world.quiet()
    file, synced, idle = client.open("/f", "wb"), client.open("/synced", "wb"), client.open("/idle", "wb")
    closed = client.open("/closed", "wb")
    for written in (file, synced, closed):
        written.write(b"x" * 100_000)
        written.flush()
    synced.fsync()
    closed.close()
    lose_power(world)
    with pytest.raises(StatusError, match="lost power") as lost:
        file.fsync()
    assert lost.value.status is Status.LOST_DATA
    synced.fsync()
    with pytest.raises(StatusError, match="lost power"):
        client.sync()  # what was closed, as syncfs(2) tells it
    client.sync()
    for written in (file, synced, idle):
        written.pwrite(b"y" * 100_000, 0)
        written.fsync()
        written.close()
    assert client.read_bytes("/f") == client.read_bytes("/idle") == b"y" * 100_000


@pytest.mark.parametrize("fate", ["used", "unused", "closed", "closed later"])
def test_a_loss_of_power_is_told_to_whoever_has_lost_the_lease_meanwhile(world: World, fate: str) -> None:
    """As after an hour without any power: the client is silent for longer than its lease, too."""
    client = world.quiet()
    file, other = client.open("/f", "wb"), client.open("/f", "r+b")
    file.write(b"x" * 100_000)
    file.flush()
    if fate == "closed":
        file.close()
        other.close()
    lose_power(world)
    drive(client.core.lose_lease(client.core.lease))
    if fate == "closed later":
        file.close()
        other.close()
    with pytest.raises(StatusError, match="lost power") as lost:
        file.fsync() if fate == "used" else client.sync()
    assert lost.value.status is Status.LOST_DATA
    if fate == "used":
        file.fsync()
        other.fsync()
    elif fate == "unused":
        for each in (file, other):
            with pytest.raises(StatusError, match="lost power"):
                each.close()
    client.sync()


def test_an_fsync_covers_what_was_written_before_the_file_was_opened_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fsync(2) does: who writes files and who makes them durable may be two."""
    monkeypatch.setattr(core_client, "UNSYNCED_FILES_MAX", 2)
    client = world.quiet()
    for name in ("/first", "/f", "/last"):
        client.write_bytes(name, b"x" * 100_000)
    assert client.read_bytes("/f") == b"x" * 100_000
    lose_power(world)
    with client.open("/f", "r+b") as file:
        with pytest.raises(StatusError, match="lost power"):
            file.fsync()
        file.fsync()
    with pytest.raises(StatusError, match="lost power"):
        client.sync()
    client.sync()
    assert not client.core.unsynced and not client.core.unsynced_files


def test_what_is_closed_during_a_sync_that_fails_is_still_to_be_synced(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.quiet()
    file = client.open("/f", "wb")
    file.write(b"x" * 100_000)
    file.flush()

    async def close_and_fail() -> None:
        await file.handle.close()
        raise error(Status.DEADLINE, "nobody answers")

    with monkeypatch.context() as patched, pytest.raises(TimeoutError):
        patched.setattr(client.core, "sync_names", close_and_fail)
        client.sync()
    lose_power(world)
    with pytest.raises(StatusError, match="lost power"):
        client.sync()


def test_an_fsync_beside_a_sync_tells_of_a_loss_of_power(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = world.quiet()
    file = client.open("/f", "wb")
    file.write(b"x" * 100_000)
    file.flush()
    sync_names = client.core.sync_names

    async def fsync_first() -> None:
        lose_power(world)
        with pytest.raises(StatusError, match="lost power"):
            await file.handle.fsync()
        await sync_names()

    monkeypatch.setattr(client.core, "sync_names", fsync_first)
    client.sync()
    file.fsync()


def test_what_was_on_its_way_when_power_was_lost_is_not_called_durable(world: World) -> None:
    """A server that remembers the number of a write may have lost what it wrote."""
    client = world.quiet()
    with client.open("/f", "wb") as file:
        file.write(b"x" * 100_000)
        world.storage.raises_after.append(broken())
        apply = world.storage._write

        def written(*arguments: Any) -> int:
            status = apply(*arguments)
            world.storage._write = apply  # type: ignore[method-assign]
            world.loop.create_task(world.restart_storage(power_losses=1))
            return status

        world.storage._write = written  # type: ignore[method-assign]
        with pytest.raises(StatusError, match="lost power"):
            file.fsync()


@pytest.mark.parametrize("refusal", ["unreachable", "refused"])
def test_what_was_taken_only_after_a_loss_of_power_is_durable(
    world: World, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    """Whoever writes on while there is no power has lost nothing, and is not to be told so."""
    client = world.quiet()
    enter = world.storage._enter

    async def without_power(method: str) -> None:
        await enter(method)
        if method == "write":
            monkeypatch.undo()
            await world.restart_storage(power_losses=1)
            if refusal == "unreachable":
                raise error(Status.UNAVAILABLE, "nobody listens there")
            world.storage.statuses.append(Status.TARGET_OFFLINE)

    with client.open("/f", "wb") as file:
        file.write(b"x" * 100_000)
        monkeypatch.setattr(world.storage, "_enter", without_power)
        file.fsync()
    client.sync()


def test_reads_and_writes_outlive_unavailable_servers(world: World) -> None:
    client = world.client()
    world.storage.raises.extend(error(Status.UNAVAILABLE) for _ in range(3))
    client.write_bytes("/f", b"x" * (3 * MIB))
    world.storage.raises.extend(error(s) for s in (Status.UNAVAILABLE, Status.BUSY, Status.MAYBE_COMMITTED))
    assert client.read_bytes("/f") == b"x" * (3 * MIB)


def test_single_operations_that_are_refused_are_sent_again(world: World) -> None:
    client = world.client()
    data = bytes(range(256)) * (MIB // 64)
    world.storage.statuses.extend([Status.OK, Status.TARGET_OFFLINE, Status.BUSY])
    client.write_bytes("/f", data)
    world.storage.statuses.extend([Status.NOT_COMMITTED, Status.OK, Status.TARGET_OFFLINE])
    assert client.read_bytes("/f") == data


def test_a_stale_chain_version_is_learned_from_the_refusal(world: World) -> None:
    client = world.client()
    client.write_bytes("/f", b"1" * 10)
    for chain in world.storage.chains.values():
        chain.version += 1
    assert client.read_bytes("/f") == b"1" * 10
    for chain in world.storage.chains.values():
        chain.version += 1
    client.write_bytes("/f", b"2" * 10)
    assert client.read_bytes("/f") == b"2" * 10


def test_a_byte_flipped_on_its_way_is_read_again(world: World) -> None:
    client = world.client()
    client.write_bytes("/f", b"x" * 5000)
    world.storage.flips.append(1)
    assert client.read_bytes("/f") == b"x" * 5000
    assert world.storage.reports == []


@pytest.mark.parametrize("size", [5000, MIB])
def test_damaged_bytes_are_an_error_that_names_chunk_and_target(world: World, size: int) -> None:
    client = world.client()
    client.write_bytes("/f", b"x" * size)
    world.storage.flips.extend([1, 1])
    with pytest.raises(StatusError) as damaged:
        client.read_bytes("/f")
    inode = client.stat("/f").inode
    assert damaged.value.status is Status.CHECKSUM
    assert f"chunk {inode:x}.0 on target" in str(damaged.value)
    assert [report[1:] for report in world.storage.reports] == [(inode, 0)]
    assert client.read_bytes("/f") == b"x" * size


def test_a_missing_chunk_is_lost_data_and_not_a_hole(world: World) -> None:
    client = world.client()
    client.write_bytes("/f", b"x" * (3 * MIB))
    inode = client.stat("/f").inode
    del world.storage.chunks[inode, 1]
    with pytest.raises(StatusError) as lost:
        client.read_bytes("/f")
    assert lost.value.status is Status.LOST_DATA
    assert f"{inode:x}.1" in str(lost.value)
    assert client.read_bytes("/f", 0, MIB) == b"x" * MIB
    results = client.read_ranges([("/f", 0, 10), ("/f", MIB, MIB + 10)])
    assert results[0] == b"x" * 10
    assert isinstance(results[1], StatusError) and results[1].status is Status.LOST_DATA


def test_a_cut_chunk_is_lost_data(world: World) -> None:
    client = world.client()
    client.write_bytes("/f", b"x" * 1000)
    inode = client.stat("/f").inode
    del world.storage.chunks[inode, 0].data[600:]
    assert client.read_bytes("/f", 0, 600) == b"x" * 600
    with pytest.raises(StatusError, match="from byte 600 on"):
        client.read_bytes("/f")


def test_an_error_of_write_back_is_reported_once(world: World) -> None:
    client = world.client()
    file = client.open("/f", "wb")
    file.write(b"a" * 10)
    file.flush()
    world.storage.statuses.append(Status.NO_SPACE)
    file.write(b"b" * 10)
    with pytest.raises(StatusError) as full:
        file.flush()
    assert full.value.status is Status.NO_SPACE
    file.flush()
    file.close()
    assert client.read_bytes("/f") == b"a" * 10, "the length says what arrived"


@pytest.mark.parametrize("name_it", ["publish", "link"])
def test_a_file_that_has_lost_data_gets_no_name_at_a_second_try_either(world: World, name_it: str) -> None:
    client = world.quiet()
    file = client.open("/", "wb", unnamed=True)
    file.write(b"lost" * 2000)
    world.storage.statuses.append(Status.NO_SPACE)
    for _ in range(2):
        with pytest.raises(OSError, match="no space"):
            client.publish([file], ["/f"]) if name_it == "publish" else client.link(file, "/f")
        assert not client.exists("/f")
    file.write(b"and more")
    with pytest.raises(OSError, match="no space"):
        client.publish([file], ["/f"])
    file.discard()
    assert client.listdir("/") == []


def test_a_hole_that_cannot_be_made_is_told_once_and_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.quiet()
    file = client.open("/f", "w+b")
    file.write(b"x" * (3 * MIB))
    with monkeypatch.context() as patched:
        patched.setattr(world.storage, "_clone", lambda *_: Status.NO_SPACE)
        with pytest.raises(OSError, match="no space"):
            file.punch(MIB, MIB)
    file.pwrite(b"y" * 100, 3 * MIB)
    file.close()
    assert client.read_bytes("/f") == b"x" * (3 * MIB) + b"y" * 100


def test_where_storage_knows_no_clones_a_file_is_copied(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = world.quiet()
    client.write_bytes("/f", b"x" * (3 * MIB))
    monkeypatch.setattr(world.storage, "_clone", lambda *_: Status.UNSUPPORTED)
    client.clone("/f", "/g")
    client.copy_file("/f", "/h")
    assert client.read_bytes("/g") == client.read_bytes("/h") == b"x" * (3 * MIB)


def test_what_was_lost_in_the_background_is_not_read_as_it_was_before(world: World) -> None:
    """Until somebody was told: whoever reads it would take the old bytes for those that were written."""
    client = world.quiet()
    client.write_bytes("/f", b"o" * 9000)
    file = client.open("/f", "r+b")
    file.pwrite(b"n" * 5000, 2000)
    world.storage.statuses.append(Status.NO_SPACE)
    drive(client.core.keeper._flush_old(client.core.env.now()))
    assert not file.handle.file.unsettled
    with client.open("/f") as other:
        for read in (file, other):
            with pytest.raises(OSError, match="no space"):
                read.pread(10, 1995)
            assert read.pread(2000, 0) == b"o" * 2000
            assert read.preadv_batch([(7000, 10)]) == [b"o" * 10]
    lost, fine = client.read_ranges([("/f", 6000, 8000), ("/f", 7000, 8000)])
    assert isinstance(lost, StatusError) and lost.status is Status.NO_SPACE
    assert fine == b"o" * 1000
    with pytest.raises(OSError, match="no space"):
        file.close()
    assert client.read_bytes("/f") == b"o" * 9000


def test_a_long_write_ends_with_the_first_error_of_what_it_wrote_before(world: World) -> None:
    client = world.quiet(write_back=2 * MIB)
    world.storage.statuses.extend([Status.NO_SPACE] * 1000)
    file = client.open("/f", "wb")
    with pytest.raises(OSError) as told:
        for _ in range(1000):
            file.write(b"x" * MIB)
    sent = world.storage.requests.count("write")
    assert told.value.errno == 28 and sent < 20
    with pytest.raises(OSError, match="no space"):
        file.write(b"y")  # until somebody has asked for it
    assert world.storage.requests.count("write") == sent
    with pytest.raises(OSError, match="no space"):
        file.flush()
    world.storage.statuses.clear()
    file.write(b"z")
    file.close()


def test_close_reports_what_went_wrong_and_closes(world: World) -> None:
    client = world.client()
    file = client.open("/f", "wb")
    world.storage.statuses.append(Status.NO_SPACE)
    file.write(b"x")
    with pytest.raises(StatusError):
        file.close()
    assert file.closed
    file.close()


def test_a_truncate_by_another_client_comes_before_a_late_write(world: World) -> None:
    one, two = world.client(), world.client()
    with one.open("/f", "wb") as file:
        file.write(b"1" * 1000)
        file.flush()
        file.write(b"2" * 1000)  # buffered under the old truncate version
        two.truncate("/f", 100)
    data = one.read_bytes("/f")
    assert len(data) == 2000
    assert data[:100] == b"1" * 100 and data[100:1000] == bytes(900) and data[1000:] == b"2" * 1000


@pytest.mark.parametrize("by", ["handle", "path"])
def test_a_truncate_that_was_given_up_cuts_nothing_that_is_written_later(
    world: World, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    client, other = world.quiet(timeout=1.0), world.client()
    change, go_on, late = world.namespace.change, threading.Event(), threading.Event()

    async def first_is_late(method: Any, *args: Any) -> Any:
        if method is not META.Truncate or late.is_set():
            return await change(method, *args)
        late.set()
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        late.clear()
        try:
            return await change(method, *args)
        finally:
            go_on.clear()

    with client.open("/f", "w+b") as file:
        file.write(b"a" * 10000)
        file.flush()
        monkeypatch.setattr(world.namespace, "change", first_is_late)
        with pytest.raises(TimeoutError):
            file.truncate(100) if by == "handle" else client.truncate("/f", 100)
        file.pwrite(b"b" * 10000, 5000)
        file.fsync()
        synced = other.read_bytes("/f")
        assert synced[5000:] == b"b" * 10000
        go_on.set()
        while go_on.is_set():
            threading.Event().wait(0.001)
        assert other.read_bytes("/f") == synced


def test_a_truncate_that_reached_nobody_is_not_carried_out_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = world.quiet(timeout=1.0)
    env, call = client.core.env, client.core.env.call

    async def nobody_cuts(request: Any) -> Any:
        if request.method is META.Truncate:
            raise error(Status.UNAVAILABLE, "nobody listens there")
        return await call(request)

    with client.open("/f", "w+b") as file:
        file.write(b"a" * 10000)
        with monkeypatch.context() as patched, pytest.raises(TimeoutError):
            patched.setattr(env, "call", nobody_cuts)
            file.truncate(100)
        file.pwrite(b"b", 9999)
    assert client.read_bytes("/f") == b"a" * 9999 + b"b"


def test_deadline(world: World) -> None:
    usual = world.client()
    usual.write_bytes("/f", b"x")
    world.storage.raises.extend(error(Status.UNAVAILABLE, "it is down") for _ in range(100_000))
    for seconds in (0.3, 3.0, 15.0):  # until storage has been asked in that time
        with pytest.raises(TimeoutError, match=rf"gave up after {seconds:g} s") as late:
            world.client(timeout=seconds).read_bytes("/f")
        if "it is down" in str(late.value):
            break
    else:
        raise AssertionError(f"the reason is not told: {late.value}")
    world.storage.raises.clear()
    assert usual.read_bytes("/f") == b"x"


def test_metadata_changes_are_done_once(world: World) -> None:
    """The answer is lost after the work was done: the repetition gets the first answer."""
    client = world.client()
    handlers = world.network._servers["meta"]
    number = next(n for n, h in handlers.items() if h.__name__ == "create")
    plain, lost = handlers[number], [broken(), broken()]

    async def losing(request, context):
        reply = await plain(request, context)
        if lost:
            raise lost.pop()
        return reply

    handlers[number] = losing
    client.mkdir("/once")
    assert not lost
    assert client.stat("/once").nlink == 2


def test_threads_share_a_client_and_a_file(client: Client) -> None:
    size, count = 100_000, 8
    with client.open("/f", "w+b", chunk_size=65536) as file:
        failures = []

        def work(i: int) -> None:
            try:
                for _ in range(5):
                    file.pwrite(bytes([i]) * size, i * size)
                    assert file.pread(size, i * size) == bytes([i]) * size
                    client.write_bytes(f"/own{i}", bytes([i]) * size)
                    assert client.read_bytes(f"/own{i}") == bytes([i]) * size
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
    assert client.read_bytes("/f") == b"".join(bytes([i]) * size for i in range(count))


def user(world: World, uid: int) -> Client:
    """A client of somebody who is not root."""
    client = world.client()
    number = client.core.env.client
    world.network._peers[number] = PeerInfo(number, Identity(uid, uid), "local", "this process")
    return client


def test_an_expired_capability_is_renewed_whatever_the_mode_says(world: World) -> None:
    """What was open stays open: a file that its maker made read-only, one whose mode was changed since."""
    root, client = world.client(), user(world, 1001)
    root.mkdir("/d")
    root.chmod("/d", 0o777)
    with client.open("/d/f", "wb", permissions=0o444) as file:
        file.write(b"written by its maker")
        world.storage.statuses.append(Status.CAPABILITY_EXPIRED)
        file.flush()
    with client.open("/d/f") as file:
        root.chmod("/d/f", 0)
        world.storage.statuses.append(Status.CAPABILITY_EXPIRED)
        assert file.read() == b"written by its maker"
    with pytest.raises(PermissionError):
        client.open("/d/f")


def test_a_read_only_file_whose_close_was_interrupted(world: World) -> None:
    root, client = world.client(), user(world, 1001)
    root.mkdir("/d")
    root.chmod("/d", 0o777)
    file = client.open("/d/f", "wb", permissions=0o444)
    file.write(b"sooner or ")
    interrupt_after_next_call(client.core.env)
    with pytest.raises(KeyboardInterrupt):
        file.close()
    file.write(b"later")
    file.close()
    assert client.read_bytes("/d/f") == b"sooner or later"


def test_an_expired_capability_is_renewed(world: World) -> None:
    client = world.client()
    file = client.open("/f", "w+b")
    file.write(b"x" * 100)
    world.storage.statuses.append(Status.CAPABILITY_EXPIRED)
    file.flush()
    world.storage.statuses.append(Status.CAPABILITY_EXPIRED)
    assert file.pread(100, 0) == b"x" * 100
    file.close()
    assert client.stat("/f").size == 100
