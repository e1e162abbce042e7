"""What breaks: queue pair, memory, limits. An error for the caller, never other bytes, and the next call finds a way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import storage_pb2
from emberfs.proto.region import Slice
from emberfs.proto.settings import time_scale
from emberfs.proto.transport.rdma import endpoint

from ..proto.pieces import (
    READ,
    SPACE,
    SYNC,
    WRITE,
    Pair,
    eventually,
    face,
    process,
    read,
    write,
)
from .wire import BROKEN, need_wire, objects

pytestmark = pytest.mark.rdma

MIB = 1 << 20
SPACE_REQUEST = storage_pb2.SpaceRequest()


# --- the queue pair ----------------------------------------------------------------------------------------------------------------


def break_queue_pairs(pair: Pair, which: str) -> None:
    """Put the queue pairs of one side into the error state, as a device does that has had enough."""
    verbs = endpoint.load()
    for found in endpoint.endpoints():
        if found._pair is None or found.serves != (which == "server"):
            continue
        attributes = verbs.QPAttr(qp_state=verbs.e.IBV_QPS_ERR)
        found._pair.modify(attributes, verbs.e.IBV_QP_STATE)


@pytest.mark.parametrize("which", ["client", "server"])
def test_a_queue_pair_in_error_ends_its_connection_and_no_more(pair: Pair, which: str) -> None:
    pool = pair.client.env.pool
    target = pool.take(8192)
    pair.client.call(pair.address, READ, read((0, 8192)), target=[target])
    late = pair.client.start(pair.address, READ, read((0, 8192), late=True), target=[target])
    assert pair.service.entered.wait(60)
    break_queue_pairs(pair, which)
    pair.service.gate.set()
    with pytest.raises(StatusError) as broken:
        pair.client.collect(late)
    assert broken.value.status in BROKEN
    target.view[:] = bytes(8192)
    pair.client.call(pair.address, READ, read((1, 8192)), target=[target])
    assert target.view == pair.service.data[1:8193]
    pool.give(target)
    assert eventually(lambda: bool(pair.client.call(pair.address, SPACE, SPACE_REQUEST)) and pool.held == 0)


def test_more_messages_than_there_are_credits(pair: Pair) -> None:
    """Messages of many SENDs each, so many at once that both sides run out of credits, in both directions."""
    filling = os.urandom(200_000)
    request = read((0, 10))
    request.capabilities.append(filling)
    calls = []
    for _ in range(24):
        target = pair.client.env.pool.take(4096)
        calls.append(Call(pair.address, READ, request, 60.0 * time_scale(), target=[target]))
        calls.append(Call(pair.address, SPACE, SPACE_REQUEST, 60.0 * time_scale()))
    results = pair.client.call_many(calls)
    assert not [result for result in results if isinstance(result, StatusError)]


def test_more_calls_at_once_than_there_are_credits(pair: Pair) -> None:
    tickets = [pair.client.start(pair.address, SYNC, storage_pb2.SyncRequest(), 60.0) for _ in range(60)]
    assert pair.service.entered.wait(60)
    pair.service.gate.set()
    for ticket in tickets:
        pair.client.collect(ticket)


# --- memory ------------------------------------------------------------------------------------------------------------------------


def test_a_region_that_is_given_up_while_the_server_moves_into_it(pair: Pair) -> None:
    """Nobody crashes, and what lies there afterwards is not touched."""
    memory = bytearray(MIB)
    region = pair.client.env.register(memory)
    late = pair.client.start(pair.address, READ, read((0, MIB), late=True), target=[Slice(region, 0, MIB)])
    assert pair.service.entered.wait(60)
    pair.client.env.unregister(region)
    pair.service.gate.set()
    with suppress(StatusError):
        pair.client.collect(late)
    memory[:] = b"\x55" * MIB
    target = pair.client.env.pool.take(4096)
    pair.client.call(pair.address, READ, read((0, 4096)), target=[target])
    assert target.view == pair.service.data[:4096]
    assert memory == b"\x55" * MIB


@pytest.mark.parametrize("method", ["read", "write"])
def test_memory_that_the_device_does_not_know_any_more_is_an_error(pair: Pair, method: str) -> None:
    """A client that takes its registration away under the server: the server's device is refused, the server goes on."""
    region = pair.client.env.register(bytearray(MIB))
    whole = [Slice(region, 0, MIB)]
    pair.client.call(pair.address, READ, read((0, MIB)), target=whole)
    for device in endpoint_devices():
        if found := device._known.get(region.id):
            for memory in found.memories:
                memory.close()
    with pytest.raises(StatusError) as refused:
        if method == "read":
            pair.client.call(pair.address, READ, read((0, MIB)), target=whole)
        else:
            pair.client.call(pair.address, WRITE, write(0), source=whole)
    assert refused.value.status in (*BROKEN, Status.REGION_DEAD)
    target = pair.client.env.pool.take(4096)
    pair.client.call(pair.address, READ, read((0, 4096)), target=[target])
    assert target.view == pair.service.data[:4096]


def endpoint_devices() -> list[Any]:
    from emberfs.proto.transport.rdma import memory

    return memory.opened()


REFUSED = """
import logging, sys
from emberfs.tests.proto.pieces import READ, face, read
logging.basicConfig(stream=sys.stdout)
kind, address = sys.argv[1:]
with face(kind) as client:
    target = client.env.pool.take(1 << 20)
    for _ in range(3):
        client.call(address, READ, read((5, 1 << 20)), target=[target])
        assert target.view == (bytes(range(256)) * 4097)[5 : 5 + (1 << 20)]
    print("spoken", client.env.spoken()[address].transport)
"""


@pytest.mark.parametrize(
    ("kib", "spoken", "said"),
    [(64, "tcp", "spoken to over tcp"), (2048, "rdma", "takes the slow way|take the slow way")],
)
def test_a_limit_on_locked_memory(kind: str, kib: int, spoken: str, said: str) -> None:
    """Too little for a queue pair: TCP. Enough for that and not for the memory: RDMA for messages, bulk in the stream. Said once."""
    need_wire()  # and its root, who may take capabilities away
    with process("tcp:127.0.0.1:0") as server:
        limits = ["prlimit", f"--memlock={kib << 10}", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
        command = [*limits, sys.executable, "-c", REFUSED, kind, server.addresses[0]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"spoken {spoken}" in done.stdout
    warnings = [line for line in done.stdout.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1, warnings
    assert any(part in warnings[0] for part in said.split("|"))


# --- leaks -------------------------------------------------------------------------------------------------------------------------


def in_use() -> dict[str, int]:
    """Descriptors of this process, and what the kernel has of both devices."""
    counts = {"descriptors": len(os.listdir("/proc/self/fd"))}
    for device in os.listdir("/sys/class/infiniband"):
        counts |= {f"{device} {name}": count for name, count in objects(device).items()}
    return counts


def connect_over_and_over(pair: Pair, times: int) -> None:
    def once() -> None:
        with face(pair.client.kind, secret=pair.client.env.credentials.secret) as client:
            target = client.env.pool.take(4096)
            client.call(pair.address, READ, read((3, 4096)), target=[target])
            assert target.view == pair.service.data[3:4099]

    for _ in range(3):
        once()
    assert eventually(lambda: settled(in_use), 20.0)
    before = in_use()
    for _ in range(times):
        once()

    def grown() -> dict[str, tuple[int, int]]:
        return {name: (before[name], count) for name, count in in_use().items() if count > before[name]}

    assert eventually(lambda: not grown(), 20.0), grown()


def settled(look: Callable[[], Any]) -> bool:
    """Whether it is the same for a moment."""
    first = look()
    return not eventually(lambda: look() != first, 0.5)


def test_connections_leave_nothing_behind(pair: Pair) -> None:
    connect_over_and_over(pair, 10)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_thousand_connections_leave_nothing_behind(pair: Pair) -> None:
    connect_over_and_over(pair, 1000)
