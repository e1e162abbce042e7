"""What goes wrong between two processes: bad peers, death, limits. The other connections never notice."""

from __future__ import annotations

import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from crc32c import crc32c

from emberfs.proto import frame as wire
from emberfs.proto import hello as hellos
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.frame import Decoder, Frame
from emberfs.proto.gen import storage_pb2
from emberfs.proto.hello import ServerHello, ServerSettings
from emberfs.proto.region import Slice
from emberfs.proto.rpc import Identity

from .pieces import (
    RDMA,
    READ,
    SPACE,
    SYNC,
    WRITE,
    Pair,
    eventually,
    face,
    listening_on,
    paired,
    pinned,
    process,
    read,
    write,
)
from .raw import Raw

SPACE_REQUEST = storage_pb2.SpaceRequest()


@pytest.fixture(params=["tcp", "shm", RDMA])
def pair(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Pair]:
    with paired(request.param, kind, tmp_path, requests_in_flight_max=8, bytes_in_flight_max=8 << 20) as made:
        yield made


@contextmanager
def false_server(folder: Path, behave: Callable[[socket.socket, Frame], None]) -> Iterator[str]:
    """A server that says hello properly and answers the first request as `behave` likes."""
    path = folder / "false"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        with peer:
            greeting = ServerHello(ServerSettings("c1"), "the test", Identity(0, 0))
            decoder = Decoder()
            while True:
                count = peer.recv_into(decoder.buffer())
                if not count:
                    return
                for frame in decoder.received(count):
                    if greeting.identity is None:
                        peer.sendall(greeting.received(frame))
                    elif frame.method != wire.GOODBYE:
                        behave(peer, frame)
                        return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"unix:{path}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


# --- damaged frames ----------------------------------------------------------------------------------------------------------------


def damaged(frame: bytes) -> bytes:
    return frame[:12] + bytes([frame[12] ^ 1]) + frame[13:]


REQUEST = wire.encode(0, SPACE.number, 1, b"", deadline_ms=60_000)
OVERSIZE = struct.pack("<IBBHQIII", wire.MAGIC, 1, 0, SPACE.number, 1, 0, 2**31, 0)
BAD_FRAMES = {
    "noise": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "no emberfs frame"),
    "damaged header": (damaged(REQUEST), "damaged"),
    "frame version": (REQUEST[:4] + b"\x07" + REQUEST[5:], "frame version 7"),
    "oversize": (OVERSIZE + struct.pack("<I", crc32c(OVERSIZE)), "at most"),
    "an unexpected reply": (wire.encode(wire.REPLY, SPACE.number, 1, b""), "no meaning"),
    "a second hello": (wire.encode(0, wire.SUBSCRIBE, 1, b"\xff\xff"), "cannot be read"),
}


@pytest.mark.parametrize("what", BAD_FRAMES)
def test_a_bad_frame_closes_its_connection_with_the_reason_and_no_other(pair: Pair, what: str) -> None:
    data, says = BAD_FRAMES[what]
    raw = Raw(pair.address).hello(pair.address)
    raw.sock.sendall(data)
    reason = raw.farewell()
    assert reason.status is Status.PROTOCOL and says in str(reason.strerror)
    assert pair.client.call(pair.address, SPACE, SPACE_REQUEST)


def test_a_bad_frame_instead_of_a_hello_is_answered_too(pair: Pair) -> None:
    raw = Raw(pair.address)
    raw.sock.sendall(BAD_FRAMES["noise"][0])
    assert raw.farewell().status is Status.PROTOCOL
    raw = Raw(pair.address)
    raw.sock.sendall(REQUEST)
    assert "before its hello" in str(raw.farewell().strerror)


def test_a_request_that_is_no_message_is_invalid_and_the_connection_lives(pair: Pair) -> None:
    raw = Raw(pair.address).hello(pair.address)
    raw.sock.sendall(wire.encode(0, READ.number, 1, b"\xff\xff\xff", deadline_ms=60_000) + REQUEST)
    assert hellos.failure_error(raw.next().message, "").status is Status.INVALID
    assert not raw.next().flags & wire.FAILURE
    raw.sock.close()


def test_a_truncated_request_does_nothing(pair: Pair) -> None:
    before = bytes(pair.service.data)
    message = write(0).SerializeToString()
    whole = wire.encode(0, WRITE.number, 1, message, deadline_ms=60_000, bulk_bytes=100_000) + b"x" * 100_000
    for cut in (10, 40, 20_000, len(whole) - 1):
        raw = Raw(pair.address).hello(pair.address)
        raw.sock.sendall(whole[:cut])
        raw.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            raw.next()
        raw.sock.close()
    assert pair.service.data == before
    assert pair.client.call(pair.address, SPACE, SPACE_REQUEST)


def test_bulk_for_a_method_that_takes_none_is_dropped_and_refused(pair: Pair) -> None:
    raw = Raw(pair.address).hello(pair.address)
    raw.sock.sendall(
        wire.encode(0, SPACE.number, 1, b"", deadline_ms=60_000, bulk_bytes=200_000) + bytes(200_000) + REQUEST
    )
    assert hellos.failure_error(raw.next().message, "").status is Status.INVALID
    assert not raw.next().flags & wire.FAILURE
    raw.sock.close()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda number: b"\0" * 64, Status.PROTOCOL),
        (lambda number: damaged(wire.encode(wire.REPLY, SPACE.number, number, b"")), Status.PROTOCOL),
        (lambda number: wire.encode(wire.REPLY, SPACE.number, number + 5, b""), Status.PROTOCOL),
        (lambda number: wire.encode(wire.REPLY, SPACE.number, number, b"\xff\xff"), Status.PROTOCOL),
        (lambda number: wire.encode(wire.REPLY, SPACE.number, number, b"", bulk_bytes=9) + bytes(9), Status.PROTOCOL),
        (lambda number: wire.encode(wire.REPLY, SPACE.number, number, b"")[:20], Status.MAYBE_COMMITTED),
        (lambda number: b"", Status.MAYBE_COMMITTED),
    ],
)
def test_what_a_bad_server_answers_is_an_error_at_the_client(
    kind: str, tmp_path: Path, answer: Callable[[int], bytes], status: Status
) -> None:
    with (
        false_server(tmp_path, lambda peer, frame: peer.sendall(answer(frame.request_id))) as address,
        face(kind) as client,
    ):
        with pytest.raises(StatusError) as raised:
            client.call(address, SPACE, SPACE_REQUEST)
        assert raised.value.status is status


def test_bulk_outside_of_what_was_offered_is_not_taken(kind: str, tmp_path: Path) -> None:
    def answer(peer: socket.socket, frame: Frame) -> None:
        table = wire.SPAN.pack(90, 20)
        peer.sendall(
            wire.encode(wire.REPLY, READ.number, frame.request_id, b"", table=table, bulk_bytes=20) + bytes(20)
        )

    with false_server(tmp_path, answer) as address, face(kind) as client:
        region = client.env.register(bytearray(b"\xee" * 100))
        with pytest.raises(StatusError) as raised:
            client.call(address, READ, read((0, 100)), target=[Slice(region, 0, 100)])
        assert raised.value.status is Status.PROTOCOL and region.view == b"\xee" * 100


def test_bulk_that_nobody_waits_for_any_more_does_not_land_in_memory_given_back(kind: str, tmp_path: Path) -> None:
    size = 2 << 20
    given_up, all_sent = threading.Event(), threading.Event()

    def answer(peer: socket.socket, frame: Frame) -> None:
        table = wire.SPAN.pack(0, size)
        with suppress(ConnectionError):
            peer.sendall(wire.encode(wire.REPLY, READ.number, frame.request_id, b"", table=table, bulk_bytes=size))
            peer.sendall(b"\1" * (size // 2))
            given_up.wait(60.0)
            peer.sendall(b"\1" * (size - size // 2))
        all_sent.set()

    with false_server(tmp_path, answer) as address, face(kind) as client:
        region = client.env.register(bytearray(size))
        ticket = client.start(address, READ, read((0, size)), target=[Slice(region, 0, size)])
        if kind == "aio":  # the loop receives by itself
            assert eventually(lambda: region.view[size // 4] == 1)
        client.abandon(ticket)
        region.view[:] = b"\2" * size  # somebody else's, from now on
        given_up.set()
        assert all_sent.wait(60.0)
        if kind == "aio":
            with pytest.raises(StatusError):  # the end of the connection, which comes after those bytes
                client.call(address, SPACE, SPACE_REQUEST)
        assert region.view == b"\2" * size


# --- death -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "shm", RDMA])
def test_a_server_that_dies_with_a_request_and_comes_back(kind: str, transport: str, tmp_path: Path) -> None:
    with (
        pinned(transport),
        process(listening_on(transport, tmp_path)) as server,
        face(kind) as client,
    ):
        address = server.addresses[0]
        target = client.env.pool.take(1 << 20)
        client.call(address, READ, read((0, 1 << 20)), target=[target])
        ticket = client.start(address, SYNC, storage_pb2.SyncRequest())
        client.call(address, SPACE, SPACE_REQUEST)
        server.signal(signal.SIGKILL)
        with pytest.raises(StatusError) as raised:
            client.collect(ticket)
        assert raised.value.status is Status.MAYBE_COMMITTED
        server.close()
        assert eventually(lambda: _status(lambda: client.call(address, SPACE, SPACE_REQUEST)) is Status.UNAVAILABLE)
        with process(address) as again:
            pid = eventually(lambda: _status(lambda: client.call(address, SPACE, SPACE_REQUEST)) is Status.OK)
            assert pid and list(client.call(address, SPACE, SPACE_REQUEST).chunks) == [again.pid]
            target.view[:] = bytes(1 << 20)
            client.call(address, READ, read((1, 1 << 20)), target=[target])  # its regions are offered anew
            assert target.view == (bytes(range(256)) * 4097)[1 : (1 << 20) + 1]


def _status(work: Callable[[], object]) -> Status:
    try:
        work()
    except StatusError as failure:
        return failure.status
    return Status.OK


def test_a_client_that_dies_in_the_middle_is_forgotten(pair: Pair) -> None:
    raw = Raw(pair.address).hello(pair.address)
    raw.sock.sendall(wire.encode(0, SYNC.number, 1, b"", deadline_ms=60_000))
    assert pair.service.entered.wait(60)
    raw.sock.close()
    assert eventually(lambda: pair.service.contexts[0].cancelled)
    pair.service.gate.set()
    assert pair.running is not None
    server = pair.running.server
    pair.client.call(pair.address, SPACE, SPACE_REQUEST)
    assert eventually(lambda: len(server.connections) <= 2)


def test_a_client_that_stops_reading_holds_up_nobody_else(pair: Pair) -> None:
    raw = Raw(pair.address).hello(pair.address)
    message = read((0, 1 << 20)).SerializeToString()
    table = wire.SLICE.pack(0, 0, 1 << 20)
    for number in range(1, 30):
        raw.sock.sendall(wire.encode(0, READ.number, number, message, deadline_ms=60_000, table=table))
    target = pair.client.env.register(bytearray(1 << 20))
    for _ in range(5):
        pair.client.call(pair.address, READ, read((0, 1 << 20)), target=[Slice(target, 0, 1 << 20)])
    raw.sock.close()


@pytest.mark.parametrize("listening", [False, True])
def test_a_server_is_idle_while_requests_only_listen(pair: Pair, listening: bool) -> None:
    pair.service.listening = listening
    ticket = pair.client.start(pair.address, SYNC, storage_pb2.SyncRequest())
    assert pair.service.entered.wait(60)
    pair.client.call(pair.address, SPACE, SPACE_REQUEST)
    assert pair.running is not None
    server = pair.running.server
    assert server.waiting == (not listening)
    pair.service.gate.set()
    pair.client.collect(ticket)
    pair.client.call(pair.address, SPACE, SPACE_REQUEST)
    assert eventually(lambda: server.waiting == 0), "it counts after it has answered"


def test_stopping_a_server_finishes_what_is_under_way(pair: Pair) -> None:
    ticket = pair.client.start(pair.address, SYNC, storage_pb2.SyncRequest())
    assert pair.service.entered.wait(60)
    assert pair.running is not None
    threading.Timer(0.1, pair.service.gate.set).start()
    pair.running.thread.run(pair.running.server.stop())
    pair.client.collect(ticket)
    with pytest.raises(StatusError) as raised:
        pair.client.call(pair.address, SPACE, SPACE_REQUEST)
    assert raised.value.status is Status.UNAVAILABLE


# --- limits ------------------------------------------------------------------------------------------------------------------------


def test_too_many_requests_are_answered_busy(pair: Pair) -> None:
    raw = Raw(pair.address).hello(pair.address)
    for number in range(1, 11):
        raw.sock.sendall(wire.encode(0, SYNC.number, number, b"", deadline_ms=60_000))
    for _ in range(2):
        failure = hellos.failure_error(raw.next().message, "")
        assert failure.status is Status.BUSY and failure.detail == 20  # retry after so many milliseconds
    pair.service.gate.set()
    assert {raw.next().request_id for _ in range(8)} == set(range(1, 9))
    raw.sock.close()


def test_too_many_bytes_are_answered_busy_and_dropped(pair: Pair) -> None:
    raw = Raw(pair.address).hello(pair.address)
    message = write(0, late=True).SerializeToString()
    size = 3 << 20
    frame = wire.encode(0, WRITE.number, 1, message, deadline_ms=60_000, bulk_bytes=size)
    for number in range(1, 4):
        raw.sock.sendall(
            wire.encode(0, WRITE.number, number, message, deadline_ms=60_000, bulk_bytes=size) + bytes(size)
        )
    refused = raw.next()
    assert refused.request_id == 3 and hellos.failure_error(refused.message, "").status is Status.BUSY
    pair.service.gate.set()
    assert {raw.next().request_id for _ in range(2)} == {1, 2}
    raw.sock.sendall(frame + bytes(size))
    assert not raw.next().flags & wire.FAILURE
    raw.sock.close()


def test_too_many_bytes_to_the_client_are_answered_busy(pair: Pair) -> None:
    region = pair.client.env.register(bytearray(9 << 20))
    failure = pair.failure(READ, read((0, 9 << 20)), target=[Slice(region, 0, 9 << 20)])
    assert failure.status is Status.BUSY
    pair.client.call(pair.address, READ, read((0, 1 << 20)), target=[Slice(region, 0, 1 << 20)])
