"""Memory of every kind is a region that the device moves bytes in, from its first use until it is given up; and what a request that
nobody waits for any more may still do to it."""

from __future__ import annotations

import importlib.util
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import storage_pb2
from emberfs.proto.pool import PAGE
from emberfs.proto.region import Slice
from emberfs.proto.settings import time_scale
from emberfs.proto.transport.rdma import memory
from emberfs.proto.transport.rdma.memory import WINDOW_BYTES_MIN
from emberfs.proto.transport.rdma.sinks import RemoteRegions
from emberfs.proto.transport.shm import sealed_memory

from ..proto.pieces import (
    READ,
    SPACE,
    WRITE,
    Face,
    Pair,
    Process,
    eventually,
    face,
    pinned,
    process,
    read,
    write,
)

pytestmark = pytest.mark.rdma

SPACE_REQUEST = storage_pb2.SpaceRequest()
SIZE = 1 << 20
DATA = bytes(range(256)) * 32  # what a server process holds at 0


# --- of every kind -----------------------------------------------------------------------------------------------------------------


def of_a_descriptor(descriptor: int) -> tuple[mmap.mmap, int]:
    os.ftruncate(descriptor, SIZE)
    return mmap.mmap(descriptor, SIZE), descriptor


def sealed() -> tuple[mmap.mmap, int]:
    descriptor = sealed_memory("test", SIZE)
    return mmap.mmap(descriptor, SIZE), descriptor


def of_a_file() -> tuple[mmap.mmap, int]:
    descriptor = os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE, 0o600)
    return of_a_descriptor(descriptor)


def shared() -> tuple[memoryview, int]:
    made = SharedMemory(create=True, size=SIZE)
    made.unlink()
    view = memoryview(made.buf)
    made.close = lambda: None  # type: ignore[method-assign]  # the region outlives it
    return view, -1


def tensor() -> tuple[Any, int]:
    import torch

    return torch.zeros(SIZE // 2, dtype=torch.bfloat16).view(torch.uint8).numpy(), -1


KINDS: dict[str, Callable[[], tuple[Any, int]]] = {
    "bytearray": lambda: (bytearray(SIZE), -1),
    "a private mapping": lambda: (mmap.mmap(-1, SIZE), -1),
    "numpy": lambda: (np.zeros((SIZE // 8, 2), dtype=np.float32), -1),
    "part of a buffer": lambda: (memoryview(bytearray(SIZE + 1000))[777 : 777 + SIZE], -1),
    "memfd": lambda: of_a_descriptor(os.memfd_create("test")),
    "sealed memfd": sealed,
    "a file on tmpfs": of_a_file,
    "shared memory": shared,
}
SLOW_KINDS = (
    {"torch": tensor} if importlib.util.find_spec("torch") else {}
)  # its import takes a minute in a machine that is emulated


@pytest.mark.parametrize("of", [*KINDS, *(pytest.param(name, marks=pytest.mark.soak) for name in SLOW_KINDS)])
def test_memory_of_every_kind_is_a_region(pair: Pair, of: str) -> None:
    buffer, descriptor = {**KINDS, **SLOW_KINDS}[of]()
    env = pair.client.env
    region = env.register(buffer, descriptor)
    view = memoryview(buffer).cast("B")
    before = registered()
    pair.client.call(pair.address, READ, read((9, 700_000)), target=[Slice(region, 101, 700_000)])
    assert view[101:700_101] == pair.service.data[9:700_009]
    assert view[:101] == bytes(101) and view[700_101:] == bytes(SIZE - 700_101)
    pair.client.call(pair.address, WRITE, write(3), source=[Slice(region, 1, SIZE - 1)])
    assert pair.service.data[3 : 3 + SIZE - 1] == view[1:]
    assert registered() > before, "it took the fast way"
    env.unregister(region)
    pair.client.call(pair.address, WRITE, write(3), source=[pool_slice(pair, 10_000)])
    assert of_the_client(pair) == 1, "the server has forgotten it, and knows the pool"
    if descriptor >= 0:
        os.close(descriptor)


def registered() -> int:
    return sum(device.registered for device in memory.opened())


def pool_slice(pair: Pair, length: int) -> Slice:
    return pair.client.env.pool.take(length)  # type: ignore[no-any-return]


def of_the_client(pair: Pair) -> int:
    """How many regions the server knows, over all connections."""
    assert pair.running is not None
    server, thread = pair.running.server, pair.running.thread

    def count() -> int:
        known = [connection._memory for connection in server.connections]
        return sum(len(found.by_id) for found in known if isinstance(found, RemoteRegions))

    return int(thread.do(count))


def test_slices_on_both_sides_of_what_is_registered_at_once(pair: Pair) -> None:
    """A large region is registered window by window: a slice that lies in two, and one in a window that was not used before."""
    size = 2 * WINDOW_BYTES_MIN + 5
    region = pair.client.env.register(mmap.mmap(-1, size))
    for at in (WINDOW_BYTES_MIN - 1000, 2 * WINDOW_BYTES_MIN - 50_000, size - 50_000):
        length = min(70_000, size - at)
        pair.client.call(pair.address, READ, read((5, length)), target=[Slice(region, at, length)])
        assert region.view[at : at + length] == pair.service.data[5 : 5 + length]
        pair.client.call(pair.address, WRITE, write(9), source=[Slice(region, at + 1, length - 1)])
        assert pair.service.data[9 : 8 + length] == region.view[at + 1 : at + length]


@pytest.mark.parametrize("size", [8192, WINDOW_BYTES_MIN])
def test_a_slice_beyond_its_region_is_refused(pair: Pair, size: int) -> None:
    region = pair.client.env.register(mmap.mmap(-1, size))
    beyond = [Slice(region, size - 4095, 4096)]
    assert pair.failure(READ, read((0, 4096)), target=beyond).status is Status.REGION_DEAD
    pair.client.call(pair.address, READ, read((0, 4095)), target=[Slice(region, size - 4095, 4095)])
    assert region.view[-4095:] == pair.service.data[:4095]


def test_a_region_that_shrinks_harms_nobody(pair: Pair) -> None:
    """The device holds the pages that it was told of, whatever becomes of the file."""
    descriptor = os.memfd_create("test")
    view, _ = of_a_descriptor(descriptor)
    whole = [Slice(pair.client.env.register(view, descriptor), 0, SIZE)]
    pair.client.call(pair.address, READ, read((0, SIZE)), target=whole)
    os.ftruncate(descriptor, 4096)
    with suppress(StatusError):
        pair.client.call(pair.address, READ, read((0, SIZE)), target=whole)
    with suppress(StatusError):
        pair.client.call(pair.address, WRITE, write(0), source=whole)
    assert pair.client.call(pair.address, SPACE, SPACE_REQUEST)
    os.close(descriptor)


# --- late moves --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(kind: str) -> Iterator[tuple[Process, Face]]:
    """A server process that will be stopped, and a client with a small pool."""
    with pinned("rdma"), process("tcp:127.0.0.1:0") as server, face(kind, pool_bytes=4 * PAGE) as client:
        yield server, client


def test_memory_of_an_unanswered_request_is_nobodys_until_the_server_cannot_move_any_more(
    stopped: tuple[Process, Face],
) -> None:
    """A blocking client ends the queue pair, and has its memory back at once; one with a loop keeps it aside until the server answers.
    Either way a late move finds nothing of anybody's."""
    server, client = stopped
    address, pool = server.addresses[0], client.env.pool
    target = pool.take(4 * PAGE)
    client.call(address, READ, read((0, 2 * PAGE)), target=[Slice(target.region, target.offset, 2 * PAGE)])
    target.view[:] = bytes(4 * PAGE)
    server.signal(signal.SIGSTOP)
    with pytest.raises(StatusError) as raised:
        client.call(address, READ, read((0, 2 * PAGE)), timeout=0.5, target=[target])
    assert raised.value.status is Status.DEADLINE
    pool.give(target)
    revoked = client.kind == "blocking"
    assert pool.held == (0 if revoked else 4 * PAGE)
    if revoked:
        pool.take(4 * PAGE).view[:] = b"\xaa" * (4 * PAGE)
    else:
        with pytest.raises(StatusError) as full:
            pool.take(1)
        assert full.value.status is Status.BUSY
    server.signal(signal.SIGCONT)
    assert eventually(lambda: answers(client, address) and pool.held == 0, 60.0)
    assert target.view == (b"\xaa" * (4 * PAGE) if revoked else DATA[: 2 * PAGE] + bytes(2 * PAGE))


def answers(client: Face, address: str) -> bool:
    with suppress(StatusError):
        return bool(client.call(address, SPACE, SPACE_REQUEST, timeout=2.0))
    return False


def test_memory_is_free_again_when_the_server_that_might_write_has_died(stopped: tuple[Process, Face]) -> None:
    server, client = stopped
    address, pool = server.addresses[0], client.env.pool
    target = pool.take(4 * PAGE)
    client.call(address, READ, read((0, PAGE)), target=[target])
    server.signal(signal.SIGSTOP)
    ticket = client.start(address, READ, read((0, 4 * PAGE)), target=[target])
    client.abandon(ticket)
    pool.give(target)
    server.signal(signal.SIGKILL)

    def free() -> bool:
        with suppress(StatusError):
            pool.give(pool.take(4 * PAGE))
            return True
        return False

    assert eventually(free, 60.0)


def test_a_registered_region_is_given_back_or_dead(
    stopped: tuple[Process, Face], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a request that was not answered: a blocking client's is safe, as the queue pair is gone; the other's is waited for, then
    dead: register new memory."""
    server, client = stopped
    address = server.addresses[0]
    region = client.env.register(bytearray(8192))
    whole = [Slice(region, 0, 8192)]
    client.call(address, READ, read((0, 8192)), target=whole)
    region.view[:] = bytes(8192)
    server.signal(signal.SIGSTOP)
    monkeypatch.setenv("EMBERFS_TIME_SCALE", str(time_scale() / 10))  # of the wait
    with pytest.raises(StatusError) as raised:
        client.call(address, READ, read((0, 8192)), timeout=0.5, target=whole)
    monkeypatch.undo()
    assert raised.value.status is Status.DEADLINE
    assert region.dead is (client.kind == "aio")
    server.signal(signal.SIGCONT)
    assert eventually(lambda: answers(client, address), 60.0)
    if region.dead:
        with pytest.raises(StatusError) as dead:
            client.call(address, READ, read((0, 8192)), target=whole)
        assert dead.value.status is Status.REGION_DEAD
    else:
        assert region.view == bytes(8192), "what was late found no way in"
        client.call(address, READ, read((1, 8192)), target=whole)


def test_a_registered_region_lives_on_when_the_server_answers_within_the_wait(pair: Pair) -> None:
    region = pair.client.env.register(bytearray(8192))
    whole = [Slice(region, 0, 8192)]
    pair.client.call(pair.address, READ, read((0, 8192)), target=whole)
    threading.Timer(0.3 * time_scale(), pair.service.gate.set).start()
    failure = pair.failure(READ, read((0, 8192), late=True), timeout=0.2, target=whole)
    assert failure.status is Status.DEADLINE and not region.dead
    pair.service.gate.set()
    pair.client.call(pair.address, READ, read((1, 8192)), target=whole)
    assert region.view == pair.service.data[1:8193]
