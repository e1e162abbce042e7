"""One conformance suite: every transport, under both client drivers, keeps the same promises to callers and handlers."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberfs.proto import rpc
from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import meta_pb2, storage_pb2
from emberfs.proto.region import Slice
from emberfs.proto.settings import time_scale

from .pieces import (
    RDMA,
    READ,
    REMOVE,
    SIZE,
    SPACE,
    SYNC,
    TRUNCATE,
    WRITE,
    Loop,
    Pair,
    eventually,
    face,
    listening_on,
    paired,
    pinned,
    read,
    running,
    unix_address,
    write,
)

MIB = 1 << 20


@pytest.fixture(params=["local", "tcp", "shm", RDMA])
def pair(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Pair]:
    with paired(request.param, kind, tmp_path) as made:
        yield made


@pytest.fixture(params=["tcp", "shm", RDMA])
def remote(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Pair]:
    """A pair between which calls can be under way (in the same process a blocking call is over before it returns)."""
    with paired(request.param, kind, tmp_path) as made:
        yield made


# --- bulk ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4096, 100_001, MIB, 3 * MIB + 5])
def test_bulk_to_the_client_arrives_where_it_belongs(pair: Pair, length: int) -> None:
    target = pair.client.env.pool.take(length)
    pair.client.call(pair.address, READ, read((11, length)), target=[target])
    assert target.view == pair.service.data[11 : 11 + length]
    pair.client.env.pool.give(target)


def test_bulk_to_any_buffer_of_the_callers(pair: Pair) -> None:
    buffer = bytearray(300_000)
    region = pair.client.env.register(buffer)
    pair.client.call(pair.address, READ, read((5, 300_000)), target=[Slice(region, 0, 300_000)])
    assert buffer == pair.service.data[5:300_005]


def test_bulk_to_scattered_places(pair: Pair) -> None:
    pool = pair.client.env.pool
    one, two = pool.take(100_000), pool.take(100_000)
    target = [
        Slice(one.region, one.offset + 7, 50_000),
        Slice(two.region, two.offset, 1),
        Slice(two.region, two.offset + 9, 70_000),
    ]
    pair.client.call(pair.address, READ, read((3, 20_000), (500_000, 100_001)), target=target)
    data = pair.service.data
    assert b"".join(part.view for part in target) == data[3:20_003] + data[500_000:600_001]


def test_what_was_not_filled_is_left_untouched(pair: Pair) -> None:
    target = pair.client.env.pool.take(30_000)
    target.view[:] = b"\xee" * 30_000
    request = read((0, 10_000), (10_000, 10_000), (20_000, 10_000), holes=[0, 1, 0])
    reply = pair.client.call(pair.address, READ, request, target=[target])
    data = pair.service.data
    assert list(reply.status) == [0, Status.CHUNK_NOT_FOUND, 0]
    assert target.view == data[:10_000] + b"\xee" * 10_000 + data[20_000:30_000]


@pytest.mark.parametrize("length", [1, 4096, 100_001, MIB, 3 * MIB + 5])
def test_bulk_to_the_server_arrives_whole(pair: Pair, length: int) -> None:
    source = pair.client.env.pool.take(length)
    source.view[:] = os.urandom(length)
    reply = pair.client.call(pair.address, WRITE, write(17), source=[source])
    assert list(reply.chunk_length) == [length]
    assert pair.service.data[17 : 17 + length] == source.view


def test_bulk_to_the_server_from_scattered_places(pair: Pair) -> None:
    region = pair.client.env.register(bytearray(os.urandom(100_000)))
    source = [Slice(region, 50_000, 50_000), Slice(region, 1, 10), Slice(region, 100, 0), Slice(region, 0, 1)]
    pair.client.call(pair.address, WRITE, write(0), source=source)
    view = region.view
    assert pair.service.data[:50_011] == bytes(view[50_000:]) + bytes(view[1:11]) + bytes(view[:1])


def test_a_write_without_bytes(pair: Pair) -> None:
    assert list(pair.client.call(pair.address, WRITE, write(0)).chunk_length) == [0]


def test_more_bulk_than_was_offered_is_refused(pair: Pair) -> None:
    target = pair.client.env.pool.take(4096)
    failure = pair.failure(READ, read((0, 4097)), target=[target])
    assert failure.status is Status.INVALID
    assert pair.failure(READ, read((0, 1))).status is Status.INVALID
    assert pair.client.call(pair.address, SPACE, storage_pb2.SpaceRequest())


# --- errors -------------------------------------------------------------------------------------------------------------------------


def test_an_error_of_the_handler_arrives_with_its_detail(pair: Pair) -> None:
    failure = pair.failure(REMOVE, storage_pb2.RemoveChunksRequest())
    assert failure.status is Status.STALE_CHAIN_VERSION
    assert failure.strerror == "the chain has moved on"
    assert (failure.detail.id, failure.detail.version) == (7, 9)


def test_a_bug_in_a_handler_is_internal_and_the_connection_lives(pair: Pair) -> None:
    failure = pair.failure(TRUNCATE, storage_pb2.TruncateChunkRequest())
    assert failure.status is Status.INTERNAL and "ZeroDivisionError" in str(failure.strerror)
    assert pair.client.call(pair.address, SPACE, storage_pb2.SpaceRequest())


def test_a_method_that_nobody_serves(pair: Pair) -> None:
    assert pair.failure(rpc.META.Stat, meta_pb2.StatRequest()).status is Status.UNSUPPORTED


def test_a_message_over_the_limit_is_refused_before_it_is_sent(pair: Pair) -> None:
    request = read((0, 1))
    request.capabilities.append(bytes(rpc.MESSAGE_BYTES_MAX))
    assert pair.failure(READ, request).status is Status.TOO_LARGE
    assert pair.client.call(pair.address, SPACE, storage_pb2.SpaceRequest())


def test_nobody_there(pair: Pair, tmp_path: Path) -> None:
    places = {"local": "local:nobody", "shm": unix_address(tmp_path, "none")}
    nowhere = places.get(pair.transport, "tcp:127.0.0.1:9")
    with pytest.raises(StatusError) as raised:
        pair.client.call(nowhere, SPACE, storage_pb2.SpaceRequest())
    assert raised.value.status is Status.UNAVAILABLE and nowhere in str(raised.value.strerror)


# --- time ---------------------------------------------------------------------------------------------------------------------------


def test_no_answer_in_time(pair: Pair) -> None:
    assert pair.client.call(pair.address, SPACE, storage_pb2.SpaceRequest())  # connects: that is not what is timed
    for seconds in (0.2, 2.0, 20.0):  # until the handler has been reached in that time
        failure = pair.failure(SYNC, storage_pb2.SyncRequest(), timeout=seconds)
        assert failure.status is Status.DEADLINE and isinstance(failure, TimeoutError)
        if pair.service.contexts:
            break
    assert eventually(lambda: pair.service.contexts[0].cancelled)
    assert pair.client.call(pair.address, SPACE, storage_pb2.SpaceRequest())


def test_the_handler_knows_the_deadline(pair: Pair) -> None:
    pair.service.gate.set()
    pair.client.call(pair.address, SYNC, storage_pb2.SyncRequest(), timeout=15.0)
    assert 0 < pair.service.contexts[0].remaining() <= 15.0 * time_scale()


def test_an_abandoned_call_is_cancelled_and_its_memory_kept_aside(remote: Pair) -> None:
    pool = remote.client.env.pool
    target = pool.take(8192)
    ticket = remote.client.start(remote.address, READ, read((0, 8192), late=True), target=[target])
    assert remote.service.entered.wait(60)
    remote.client.abandon(ticket)
    pool.give(target)
    assert eventually(lambda: remote.service.contexts[0].cancelled)
    # Over RDMA the blocking driver ends the queue pair, and with it the server's way in.
    revoked = remote.transport == "tcp" or (remote.transport == "rdma" and remote.client.kind == "blocking")
    assert pool.held == (0 if revoked else 8192)
    remote.service.gate.set()
    assert eventually(
        lambda: bool(remote.client.call(remote.address, SPACE, storage_pb2.SpaceRequest())) and pool.held == 0
    )


# --- many at once -------------------------------------------------------------------------------------------------------------------


def test_many_calls_come_back_in_order_each_with_its_own_outcome(pair: Pair) -> None:
    pool = pair.client.env.pool
    targets = [pool.take(4096) for _ in range(20)]
    calls = [Call(pair.address, READ, read((i * 4096, 4096)), 60.0, target=[targets[i]]) for i in range(20)]
    calls[3] = Call(pair.address, REMOVE, storage_pb2.RemoveChunksRequest(), 60.0)
    calls[9] = Call(pair.address.replace("storage", "x") + "0", SPACE, storage_pb2.SpaceRequest(), 5.0)
    results = pair.client.call_many(calls)
    for i, result in enumerate(results):
        if i == 3:
            assert result.status is Status.STALE_CHAIN_VERSION
        elif i == 9:
            assert result.status in (Status.UNAVAILABLE, Status.INVALID)
        else:
            assert list(result.status) == [0]
            assert targets[i].view == pair.service.data[i * 4096 : (i + 1) * 4096]


def test_one_slow_call_among_many_does_not_hold_up_the_others_results(remote: Pair) -> None:
    calls = [Call(remote.address, SPACE, storage_pb2.SpaceRequest(), 60.0 * time_scale()) for _ in range(4)]
    remote.client.call_many(calls)  # connects: that is not what is timed
    for seconds in (0.5, 5.0, 30.0):
        slow = Call(remote.address, SYNC, storage_pb2.SyncRequest(), seconds * time_scale())
        results = remote.client.call_many([calls[0], slow, *calls[1:]])
        if remote.service.contexts:  # it was sent in that time
            break
    assert [isinstance(result, StatusError) for result in results] == [False, True, False, False, False]
    assert results[1].status is Status.DEADLINE


def test_calls_that_were_started_are_collected_in_any_order(pair: Pair) -> None:
    pool = pair.client.env.pool
    targets = [pool.take(MIB) for _ in range(8)]
    tickets = [
        pair.client.start(pair.address, READ, read((i * 4096, MIB)), target=[target])
        for i, target in enumerate(targets)
    ]
    for i in (7, 0, 3, 1, 2, 6, 5, 4):
        pair.client.collect(tickets[i])
        assert targets[i].view == pair.service.data[i * 4096 : i * 4096 + MIB]


def test_the_first_answer_of_several_is_waited_for(remote: Pair) -> None:
    pool, client = remote.client.env.pool, remote.client
    slow, fast = pool.take(8192), pool.take(8192)
    silent = client.start(remote.address, READ, read((0, 8192), late=True), target=[slow])
    assert remote.service.entered.wait(60)
    assert client.collect_any([silent], 0.0) is None
    assert client.collect_any([silent], 0.05) is None
    other = client.start(remote.address, READ, read((4096, 8192)), target=[fast])
    assert client.collect_any([silent, other], 60.0) is other
    assert client.collect_any([silent, other], 0.0) is other, "until it is collected"
    client.collect(other)
    assert fast.view == remote.service.data[4096 : 4096 + 8192]
    remote.service.gate.set()
    assert client.collect_any([silent], 60.0) is silent
    client.collect(silent)
    assert slow.view == remote.service.data[:8192]


def test_what_failed_or_is_too_late_is_an_answer_too(remote: Pair) -> None:
    pool, client = remote.client.env.pool, remote.client
    client.call_many([Call(remote.address, SPACE, storage_pb2.SpaceRequest(), 60.0) for _ in range(2)])  # connects
    late = client.start(remote.address, READ, read((0, 8192), late=True), timeout=0.2, target=[pool.take(8192)])
    slow = client.start(remote.address, READ, read((0, 8192), late=True), target=[pool.take(8192)])
    assert client.collect_any([slow, late], 60.0) is late
    with pytest.raises(StatusError) as deadline:
        client.collect(late)
    assert deadline.value.status is Status.DEADLINE
    nobody = client.start(remote.address + "0", SPACE, storage_pb2.SpaceRequest(), timeout=5.0)
    assert client.collect_any([slow, nobody], 60.0) is nobody
    with pytest.raises(StatusError):
        client.collect(nobody)
    client.abandon(slow)
    remote.service.gate.set()


def test_a_connection_is_given_up_after_its_own_time(tmp_path: Path) -> None:
    """A server that is stopped takes connections, and says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        for kind in ("blocking", "aio"):
            with face(kind, cluster="c") as client:
                began = time.monotonic()
                ticket = client.start(
                    f"unix:{tmp_path}/s", SPACE, storage_pb2.SpaceRequest(), timeout=60.0, connect=0.1
                )
                with pytest.raises(StatusError) as unreachable:
                    client.collect(ticket)
                assert unreachable.value.status is Status.UNAVAILABLE
                assert time.monotonic() - began < 30


def test_large_bulk_both_ways_at_the_same_time(pair: Pair) -> None:
    """More than all socket buffers hold together: neither side may wait for the other to read first."""
    env = pair.client.env
    block = SIZE // 8
    sources = [env.register(bytearray(os.urandom(block))) for _ in range(8)]
    targets = [env.register(bytearray(SIZE)) for _ in range(8)]
    calls = []
    for i in range(8):
        calls.append(Call(pair.address, READ, read((0, SIZE)), 60.0, target=[Slice(targets[i], 0, SIZE)]))
        calls.append(Call(pair.address, WRITE, write(i * block), 60.0, source=[Slice(sources[i], 0, block)]))
    results = pair.client.call_many(calls)
    assert not [result for result in results if isinstance(result, StatusError)]
    assert pair.service.data == b"".join(source.view for source in sources)


def test_threads_share_an_environment(pair: Pair) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            target = pair.client.env.pool.take(65536)
            for i in range(30):
                at = (number * 30 + i) * 1000
                pair.client.call(pair.address, READ, read((at, 65536)), target=[target])
                assert target.view == pair.service.data[at : at + 65536]
            pair.client.env.pool.give(target)
        except BaseException as failed:
            failures.append(failed)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("transport", ["tcp", "shm", RDMA])
def test_the_standard_loop_will_do(transport: str, tmp_path: Path) -> None:
    """Not only uvloop: both sides on asyncio's own event loop."""
    with (
        pinned(transport),
        running(listening_on(transport, tmp_path), loop=Loop(asyncio.new_event_loop)) as server,
        face("aio", loop=Loop(asyncio.new_event_loop)) as client,
    ):
        target = client.env.pool.take(MIB)
        client.call(server.addresses[0], READ, read((5, MIB)), target=[target])
        client.call(server.addresses[0], WRITE, write(0), source=[target])
        assert server.service.data[:MIB] == target.view
