"""Shared memory between client and server: the pool, regions that lie about themselves, and moves that come too late."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberfs.proto import frame as wire
from emberfs.proto import hello as hellos
from emberfs.proto.drivers.connection import open_socket, say_hello
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import rpc_pb2, storage_pb2
from emberfs.proto.hello import Credentials
from emberfs.proto.pool import PAGE, Pool
from emberfs.proto.region import Region, Slice, joined
from emberfs.proto.transport.buffers import POOLED_BYTES_MIN, Buffers
from emberfs.proto.transport.shm import F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_WRITE, is_sealed, sealed_memory

from .pieces import (
    READ,
    SPACE,
    WRITE,
    Face,
    Pair,
    Process,
    eventually,
    face,
    paired,
    process,
    read,
    unix_address,
    write,
)

SPACE_REQUEST = storage_pb2.SpaceRequest()
DATA = bytes(range(256)) * 32  # what a server process holds at 0


@pytest.fixture
def pair(kind: str, tmp_path: Path) -> Iterator[Pair]:
    with paired("shm", kind, tmp_path) as made:
        yield made


def memory(size: int, seal: bool = False) -> tuple[int, memoryview]:
    """A memfd of the user's own, as inference engines make them, and its mapping."""
    descriptor = sealed_memory("test", size) if seal else os.memfd_create("test", os.MFD_ALLOW_SEALING)
    if not seal:
        os.ftruncate(descriptor, size)
    return descriptor, memoryview(mmap.mmap(descriptor, size))


# --- the pool ----------------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_slices_never_overlap_and_all_of_the_pool_comes_back(data: st.DataObject) -> None:
    pool = Pool(64 * PAGE)
    taken: list[Slice] = []
    for _ in range(data.draw(st.integers(1, 60))):
        if taken and data.draw(st.booleans()):
            pool.give(taken.pop(data.draw(st.integers(0, len(taken) - 1))))
            continue
        try:
            taken.append(pool.take(data.draw(st.integers(1, 20 * PAGE))))
        except StatusError as full:
            assert full.status is Status.BUSY
        spans = sorted((s.offset, s.offset + s.length) for s in taken)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert not spans or spans[-1][1] <= pool.size
    for slice_ in taken:
        pool.give(slice_)
    assert pool.used == 0
    pool.give(pool.take(pool.size))  # in one piece again
    pool.close()


def test_held_blocks_come_back_only_after_the_last_hold() -> None:
    pool = Pool(4 * PAGE)
    whole = pool.take(4 * PAGE)
    part = Slice(whole.region, whole.offset + PAGE, 100)
    first, second = pool.hold([part]), pool.hold([whole])
    pool.give(whole)
    for hold in (first, second):
        with pytest.raises(StatusError):
            pool.take(1)
        pool.release(hold)
    assert pool.take(4 * PAGE).offset == whole.offset
    pool.close()


def test_views_of_the_pool_are_found_and_others_are_not() -> None:
    pool = Pool(8 * PAGE)
    assert pool.find(memoryview(bytearray(10))) is None  # there is no memory yet
    slice_ = pool.take(3 * PAGE)
    view = slice_.view
    pieces = [found for cut in (view[:100], view[100:PAGE], view[2 * PAGE :]) if (found := pool.find(cut)) is not None]
    assert pieces == [(slice_.region, slice_.offset + at, size) for at, size in ((0, 100), (100, 3996), (8192, PAGE))]
    assert joined(pieces) == [(slice_.region, slice_.offset, PAGE), (slice_.region, slice_.offset + 2 * PAGE, PAGE)]
    for other in (memoryview(bytearray(10)), memoryview(b"constant"), view[:0]):
        assert pool.find(other) is None
    pool.close()


def test_a_servers_buffers_from_a_pool_can_be_passed_on() -> None:
    pool = Pool(4 * POOLED_BYTES_MIN)
    buffers = Buffers(pool)
    assert buffers.take_shared(POOLED_BYTES_MIN - 1) is None  # better copied
    lent = buffers.take_shared(2 * POOLED_BYTES_MIN)
    assert lent is not None and pool.find(lent.view) == lent
    hold = pool.hold([lent])  # somebody is about to fetch it
    buffers.give_shared(lent)
    assert buffers.take_shared(4 * POOLED_BYTES_MIN) is None  # the pool is in use
    pool.release(hold)
    assert buffers.take_shared(4 * POOLED_BYTES_MIN) is not None
    assert Buffers().take_shared(POOLED_BYTES_MIN) is None
    pool.close()


def test_the_pools_limits() -> None:
    pool = Pool(4 * PAGE)
    with pytest.raises(StatusError) as never:
        pool.take(4 * PAGE + 1)
    assert never.value.status is Status.TOO_LARGE
    slice_ = pool.take(100)
    pool.give(slice_)
    with pytest.raises(StatusError, match="twice"):
        pool.give(slice_)
    pool.give(Slice(Region(memoryview(bytearray(10))), 0, 10))  # not ours: ignored
    pool.close()


# --- regions of the user's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seal", [True, False])
def test_a_memfd_of_the_users_is_moved_to_by_the_server_itself(pair: Pair, seal: bool) -> None:
    descriptor, view = memory(1 << 20, seal)
    region = pair.client.env.register(view, descriptor)
    assert region.sealed is seal
    pair.client.call(pair.address, READ, read((9, 700_000)), target=[Slice(region, 100, 700_000)])
    assert view[100:700_100] == pair.service.data[9:700_009]
    pair.client.call(pair.address, WRITE, write(0), source=[Slice(region, 0, 1 << 20)])
    assert pair.service.data[: 1 << 20] == view
    pair.client.env.unregister(region)
    assert _server_regions(pair) == 0
    os.close(descriptor)


def _server_regions(pair: Pair) -> int:
    """How many regions the server knows of this client, once it is settled."""
    assert pair.running is not None
    server, thread = pair.running.server, pair.running.thread

    def count() -> int:
        return int(thread.do(lambda: sum(len(found.by_id) for found in server.regions.values())))

    eventually(lambda: count() == 0)
    return count()


def test_a_file_on_tmpfs_is_a_region_too(pair: Pair, tmp_path: Path) -> None:
    with open("/dev/shm/emberfs-test-region", "w+b") as file:
        os.unlink(file.name)
        os.ftruncate(file.fileno(), 65536)
        view = memoryview(mmap.mmap(file.fileno(), 65536))
        region = pair.client.env.register(view, file.fileno())
        pair.client.call(pair.address, READ, read((0, 65536)), target=[Slice(region, 0, 65536)])
        assert view == pair.service.data[:65536]


@pytest.mark.parametrize("late", [False, True])
def test_a_region_that_shrinks_is_an_error_and_not_the_end_of_the_server(pair: Pair, late: bool) -> None:
    descriptor, view = memory(1 << 20)
    region = pair.client.env.register(view, descriptor)
    whole = [Slice(region, 0, 1 << 20)]
    pair.client.call(pair.address, READ, read((0, 1 << 20)), target=whole)
    if late:  # the server has resolved the region and waits
        ticket = pair.client.start(pair.address, READ, read((0, 1 << 20), late=True), target=whole)
        assert pair.service.entered.wait(60)
    os.ftruncate(descriptor, 4096)
    if not late:
        ticket = pair.client.start(pair.address, READ, read((0, 1 << 20)), target=whole)
    pair.service.gate.set()
    with pytest.raises(StatusError) as raised:
        pair.client.collect(ticket)
    assert raised.value.status is Status.REGION_DEAD
    assert pair.failure(WRITE, write(0), source=whole).status is Status.REGION_DEAD
    assert pair.client.call(pair.address, SPACE, SPACE_REQUEST)
    os.close(descriptor)


def test_a_slice_beyond_its_region_is_refused(pair: Pair) -> None:
    descriptor, view = memory(8192)
    region = pair.client.env.register(view, descriptor)
    assert pair.failure(READ, read((0, 4096)), target=[Slice(region, 4097, 4096)]).status is Status.REGION_DEAD
    os.close(descriptor)


# --- offers that lie ---------------------------------------------------------------------------------------------------------------


def offer(address: str, descriptor: int, size: int, sealed: bool, client: bytes = b"c" * 16) -> socket.socket:
    sock = open_socket(address, 60.0)
    region = rpc_pb2.RegionOffer(id=77, size=size, sealed=sealed)
    try:
        say_hello(sock, address, Credentials(client=client), region, descriptor)
    except BaseException:
        sock.close()
        raise
    return sock


def test_what_the_kernel_says_of_a_region_counts(pair: Pair) -> None:
    """A client that claims a seal that is not there, shrinks the memory and has the server move into it."""
    descriptor, _ = memory(1 << 20)
    assert not is_sealed(descriptor)
    holder = offer(pair.address, descriptor, 1 << 20, sealed=True)
    assert pair.running is not None
    (region,) = [found for r in pair.running.server.regions.values() for found in r.by_id.values()]
    assert region.view is None  # never mapped
    os.ftruncate(descriptor, 0)
    sock = open_socket(pair.address, 60.0)
    say_hello(sock, pair.address, Credentials(client=b"c" * 16))
    table = wire.SLICE.pack(77, 0, 1 << 20)
    message = read((0, 1 << 20)).SerializeToString()
    sock.sendall(wire.encode(0, READ.number, 1, message, deadline_ms=60_000, table=table))
    decoder = wire.Decoder()
    (frame,) = decoder.received(sock.recv_into(decoder.buffer()))
    assert hellos.failure_error(frame.message, "").status is Status.REGION_DEAD
    sock.close()
    holder.close()
    os.close(descriptor)


@pytest.mark.parametrize("what", ["directory", "pipe", "read-only", "too large", "none"])
def test_what_cannot_be_a_region_is_refused(pair: Pair, what: str, tmp_path: Path) -> None:
    size = 4096
    descriptor = -1
    if what == "directory":
        descriptor = os.open(tmp_path, os.O_RDONLY)
    elif what == "pipe":
        descriptor, other = os.pipe()
        os.close(other)
    elif what == "read-only":
        (tmp_path / "f").write_bytes(bytes(4096))
        descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    elif what == "too large":
        descriptor, size = memory(4096)[0], 8192
    with pytest.raises(StatusError) as raised:
        offer(pair.address, descriptor, size, sealed=True)
    assert raised.value.status is Status.INVALID
    assert pair.client.call(pair.address, SPACE, SPACE_REQUEST)
    if descriptor >= 0:
        os.close(descriptor)


def test_memory_sealed_against_writing_is_no_destination() -> None:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE)
    assert not is_sealed(descriptor)
    os.close(descriptor)


def test_another_clients_region_cannot_be_named(pair: Pair) -> None:
    descriptor, view = memory(4096, seal=True)
    holder = offer(pair.address, descriptor, 4096, sealed=True, client=b"v" * 16)
    sock = open_socket(pair.address, 60.0)
    say_hello(sock, pair.address, Credentials(client=b"w" * 16))
    message = read((0, 4096)).SerializeToString()
    sock.sendall(wire.encode(0, READ.number, 1, message, deadline_ms=60_000, table=wire.SLICE.pack(77, 0, 4096)))
    decoder = wire.Decoder()
    (frame,) = decoder.received(sock.recv_into(decoder.buffer()))
    assert hellos.failure_error(frame.message, "").status is Status.REGION_DEAD
    sock.close()
    assert view == bytes(4096)
    holder.close()
    os.close(descriptor)


def test_a_client_that_dies_while_the_server_moves_into_its_memory(pair: Pair) -> None:
    """The mapping outlives the client until the last move is done."""
    descriptor, view = memory(1 << 20, seal=True)
    client = b"d" * 16
    holder = offer(pair.address, descriptor, 1 << 20, sealed=True, client=client)
    sock = open_socket(pair.address, 60.0)
    say_hello(sock, pair.address, Credentials(client=client))
    message = read((0, 1 << 20), late=True).SerializeToString()
    sock.sendall(wire.encode(0, READ.number, 1, message, deadline_ms=60_000, table=wire.SLICE.pack(77, 0, 1 << 20)))
    assert pair.service.entered.wait(60)
    sock.close()
    holder.close()
    assert eventually(lambda: pair.service.contexts[0].cancelled)
    pair.service.gate.set()
    assert eventually(lambda: bytes(view[-10:]) == bytes(pair.service.data[(1 << 20) - 10 : 1 << 20]))
    assert _server_regions(pair) == 0
    assert pair.client.call(pair.address, SPACE, SPACE_REQUEST)
    os.close(descriptor)


def test_a_region_offered_to_who_is_gone_at_that_moment_is_unreachable(pair: Pair, tmp_path: Path) -> None:
    """It took the connection, and hung up before it was sent anything."""
    pair.client.call(pair.address, SPACE, SPACE_REQUEST)
    path = pair.address.removeprefix("unix:")
    os.unlink(path)  # who is connected stays so
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            for _ in range(100):
                descriptor, view = memory(4096, seal=True)
                region = pair.client.env.register(view, descriptor)
                failure = pair.failure(READ, read((0, 4096)), target=[Slice(region, 0, 4096)])
                assert failure.status is Status.UNAVAILABLE
                os.close(descriptor)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# --- late moves --------------------------------------------------------------------------------------------------------------------


def test_memory_of_an_unanswered_request_is_not_used_again_until_a_stopped_server_has_moved(
    kind: str, tmp_path: Path
) -> None:
    """The scenario that loses data without quarantine: time out, retry elsewhere, hand the buffer on, and the old server wakes up."""
    with process(unix_address(tmp_path)) as server, face(kind, pool_bytes=4 * PAGE) as client:
        address, pool = server.addresses[0], client.env.pool
        target = pool.take(2 * PAGE)
        client.call(address, READ, read((0, 2 * PAGE)), target=[target])
        target.view[:] = bytes(2 * PAGE)
        server.signal(signal.SIGSTOP)
        with pytest.raises(StatusError) as raised:
            client.call(address, READ, read((0, 2 * PAGE)), timeout=0.3, target=[target])
        assert raised.value.status is Status.DEADLINE
        pool.give(target)
        assert pool.held == 2 * PAGE
        other = pool.take(2 * PAGE)
        assert other.offset != target.offset
        with pytest.raises(StatusError) as full:
            pool.take(1)
        assert full.value.status is Status.BUSY
        other.view[:] = b"\xaa" * (2 * PAGE)
        server.signal(signal.SIGCONT)
        assert eventually(lambda: _call_and_count(client, address) == 0)
        assert target.view == DATA[: 2 * PAGE]  # the late move did happen, into memory that nobody had been given
        assert other.view == b"\xaa" * (2 * PAGE)
        assert pool.take(2 * PAGE).offset == target.offset


def _call_and_count(client: Face, address: str) -> int:
    with suppress(StatusError):
        client.call(address, SPACE, SPACE_REQUEST, timeout=1.0)
    return int(client.env.pool.held)


def test_memory_is_free_again_when_the_server_that_might_write_has_died(kind: str, tmp_path: Path) -> None:
    with process(unix_address(tmp_path)) as server, face(kind, pool_bytes=4 * PAGE) as client:
        address, pool = server.addresses[0], client.env.pool
        target = pool.take(4 * PAGE)
        client.call(address, READ, read((0, PAGE)), target=[target])
        server.signal(signal.SIGSTOP)
        ticket = client.start(address, READ, read((0, 4 * PAGE)), target=[target])
        client.abandon(ticket)
        pool.give(target)
        with pytest.raises(StatusError):
            pool.take(1)
        server.signal(signal.SIGKILL)
        assert eventually(lambda: _taken(pool))


def _taken(pool: Pool) -> bool:
    try:
        pool.take(4 * PAGE)
    except StatusError:
        return False
    return True


def used(server: Process, client: Face, view: memoryview, descriptor: int) -> tuple[str, Region, list[Slice]]:
    """Memory that was registered and read into once: with whom it is spoken, what it is, and all of it."""
    address = server.addresses[0]
    region = client.env.register(view, descriptor)
    whole = [Slice(region, 0, len(view))]
    client.call(address, READ, read((0, len(view))), target=whole)
    return address, region, whole


def test_a_registered_region_is_waited_for_and_then_dead(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor, view = memory(8192, seal=True)
    with process(unix_address(tmp_path)) as server, face(kind) as client:
        address, region, whole = used(server, client, view, descriptor)
        monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.1")  # of the wait
        server.signal(signal.SIGSTOP)
        with pytest.raises(StatusError) as raised:
            client.call(address, READ, read((0, 8192)), timeout=0.2, target=whole)
        assert raised.value.status is Status.DEADLINE and region.dead
        with pytest.raises(StatusError) as dead:
            client.call(address, READ, read((0, 8192)), target=whole)
        assert dead.value.status is Status.REGION_DEAD
        server.signal(signal.SIGCONT)
    os.close(descriptor)


def test_a_registered_region_lives_again_when_the_server_has_ended_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that a server only reads does no harm to whoever uses it: it is never dead."""
    descriptor, view = memory(8192, seal=True)
    with process(unix_address(tmp_path)) as server, face("blocking") as client:
        address, region, whole = used(server, client, view, descriptor)
        monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.1")  # of the wait
        server.signal(signal.SIGSTOP)
        with pytest.raises(StatusError) as raised:
            client.call(address, WRITE, write(0), timeout=0.2, source=whole)
        assert raised.value.status is Status.DEADLINE and not region.dead
        server.signal(signal.SIGCONT)
        monkeypatch.undo()
        client.call(address, READ, read((0, 8192)), timeout=60, target=whole)
        monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.1")
        server.signal(signal.SIGSTOP)
        with pytest.raises(StatusError):
            client.call(address, READ, read((0, 8192)), timeout=0.2, target=whole)
        assert region.dead
        server.signal(signal.SIGCONT)

        def alive() -> bool:
            client.env.pool.reclaim()
            return not region.dead

        assert eventually(alive)
        monkeypatch.undo()
        client.call(address, READ, read((0, 8192)), timeout=60, target=whole)
    os.close(descriptor)


def test_a_registered_region_is_the_callers_again_only_when_its_server_has_stopped(tmp_path: Path) -> None:
    """Also where the environment is closed by another thread meanwhile."""
    descriptor, view = memory(8192, seal=True)
    with paired("shm", "blocking", tmp_path) as pair:
        region, contexts = pair.client.env.register(view, descriptor), pair.service.contexts
        pair.client.call(pair.address, READ, read((0, 8192)), target=[Slice(region, 0, 8192)])
        failures: list[StatusError] = []
        target = [Slice(region, 0, 8192)]
        thread = threading.Thread(
            target=lambda: failures.append(pair.failure(READ, read((0, 8192), late=True), timeout=60, target=target))
        )
        thread.start()
        assert eventually(lambda: bool(contexts))
        pair.client.env.close()
        assert eventually(lambda: contexts[0].cancelled), "the server is told"
        assert thread.is_alive() and not failures, "it has not stopped yet"
        pair.service.gate.set()
        thread.join()
        assert len(failures) == 1
    os.close(descriptor)


def test_a_registered_region_lives_on_when_the_server_answers_within_the_wait(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor, view = memory(8192, seal=True)
    region = pair.client.env.register(view, descriptor)
    pair.client.call(pair.address, READ, read((0, 8192)), target=[Slice(region, 0, 8192)])
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "20")  # so long a wait that no machine is too slow
    contexts = pair.service.contexts

    def answer() -> None:
        """Once the client has given up."""
        eventually(lambda: bool(contexts) and contexts[0].cancelled, 3.0)
        pair.service.gate.set()

    thread = threading.Thread(target=answer)
    thread.start()
    failure = pair.failure(READ, read((0, 8192), late=True), timeout=0.02, target=[Slice(region, 0, 8192)])
    thread.join()
    assert failure.status is Status.DEADLINE and not region.dead
    assert pair.service.gate.is_set()  # the call came back only after the move was over
    pair.client.call(pair.address, READ, read((1, 8192)), target=[Slice(region, 0, 8192)])
    assert view == pair.service.data[1:8193]
    os.close(descriptor)
