"""What goes wrong between two processes: bad peers, death, limits, wrong credentials. The other connections never notice."""

from __future__ import annotations

import os
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
from emberfs.proto.drivers.blocking import BlockingEnvironment
from emberfs.proto.env import Call, drive
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.frame import Decoder, Frame
from emberfs.proto.gen import rpc_pb2, storage_pb2
from emberfs.proto.hello import ClientHello, Credentials, ServerHello, ServerSettings
from emberfs.proto.region import Slice
from emberfs.proto.rpc import Identity

from .pieces import (
    READ,
    SECRET,
    SPACE,
    SYNC,
    WRITE,
    Pair,
    Running,
    eventually,
    face,
    paired,
    process,
    read,
    running,
    unix_address,
    write,
)

SPACE_REQUEST = storage_pb2.SpaceRequest()


@pytest.fixture(params=["blocking", "aio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["tcp", "shm"])
def pair(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Pair]:
    with paired(request.param, kind, tmp_path, requests_in_flight_max=8, bytes_in_flight_max=8 << 20) as made:
        yield made


class Raw:
    """A peer that sends whatever the test likes."""

    def __init__(self, address: str) -> None:
        kind, _, rest = address.partition(":")
        if kind == "unix":
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(rest)
        else:
            host, port = rest.rsplit(":", 1)
            self.sock = socket.create_connection((host, int(port)))
        self.sock.settimeout(10)
        self.decoder = Decoder(lambda frame: [memoryview(bytearray(frame.bulk_bytes))])
        self.frames: list[Frame] = []

    def hello(self, address: str) -> Raw:
        greeting = ClientHello(Credentials(secret=SECRET), address)
        self.sock.sendall(greeting.first)
        while greeting.reply is None:
            if answer := greeting.received(self.next()):
                self.sock.sendall(answer)
        return self

    def next(self) -> Frame:
        """The next frame. Raises EOFError at the end."""
        while not self.frames:
            count = self.sock.recv_into(self.decoder.buffer())
            if not count:
                raise EOFError
            self.frames += self.decoder.received(count)
        return self.frames.pop(0)

    def farewell(self) -> StatusError:
        """The error in the last frame, after which the connection has ended."""
        last = None
        try:
            while True:
                last = self.next()
        except EOFError:
            assert last is not None and last.flags & wire.FAILURE
            return hellos.failure_error(last.message, "the server")
        finally:
            self.sock.close()


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


REQUEST = wire.encode(0, SPACE.number, 1, b"", deadline_ms=1000)
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
    raw.sock.sendall(wire.encode(0, READ.number, 1, b"\xff\xff\xff", deadline_ms=1000) + REQUEST)
    assert hellos.failure_error(raw.next().message, "").status is Status.INVALID
    assert not raw.next().flags & wire.FAILURE
    raw.sock.close()


def test_a_truncated_request_does_nothing(pair: Pair) -> None:
    before = bytes(pair.service.data)
    message = write(0).SerializeToString()
    whole = wire.encode(0, WRITE.number, 1, message, deadline_ms=1000, bulk_bytes=100_000) + b"x" * 100_000
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
        wire.encode(0, SPACE.number, 1, b"", deadline_ms=1000, bulk_bytes=200_000) + bytes(200_000) + REQUEST
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
            client.call(address, SPACE, SPACE_REQUEST, timeout=10.0)
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
            given_up.wait(10.0)
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
        assert all_sent.wait(10.0)
        if kind == "aio":
            with pytest.raises(StatusError):  # the end of the connection, which comes after those bytes
                client.call(address, SPACE, SPACE_REQUEST, timeout=10.0)
        assert region.view == b"\2" * size


# --- death -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "shm"])
def test_a_server_that_dies_with_a_request_and_comes_back(kind: str, transport: str, tmp_path: Path) -> None:
    address = unix_address(tmp_path) if transport == "shm" else "tcp:127.0.0.1:0"
    with process(address) as server, face(kind) as client:
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
    assert pair.service.entered.wait(10)
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


def test_stopping_a_server_finishes_what_is_under_way(pair: Pair) -> None:
    ticket = pair.client.start(pair.address, SYNC, storage_pb2.SyncRequest())
    assert pair.service.entered.wait(10)
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


# --- hello -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Running]:
    with running(unix_address(tmp_path), "tcp:127.0.0.1:0", secret=SECRET) as server:
        yield server


@pytest.mark.parametrize("which", [0, 1])
def test_another_cluster_is_refused(kind: str, both: Running, which: int) -> None:
    with face(kind, cluster="other", secret=SECRET) as client, pytest.raises(StatusError, match="c1") as raised:
        client.call(both.addresses[which], SPACE, SPACE_REQUEST)
    assert raised.value.status is Status.WRONG_CLUSTER


@pytest.mark.parametrize("which", [0, 1])
def test_a_client_that_knows_no_cluster_yet_learns_it_and_stays(
    kind: str, both: Running, which: int, tmp_path: Path
) -> None:
    (tmp_path / "x").mkdir()
    with running(unix_address(tmp_path / "x"), cluster="c2") as other, face(kind, secret=SECRET) as client:
        client.call(both.addresses[which], SPACE, SPACE_REQUEST)
        assert client.env.credentials.cluster == "c1"
        with pytest.raises(StatusError) as raised:
            client.call(other.addresses[0], SPACE, SPACE_REQUEST)
        assert raised.value.status is Status.WRONG_CLUSTER


@pytest.mark.parametrize(
    ("secret", "says"), [(b"", "EMBERFS_SECRET_FILE"), (b"another secret, longer", "another cluster secret")]
)
def test_tcp_needs_the_secret(kind: str, both: Running, secret: bytes, says: str) -> None:
    with face(kind, secret=secret) as client, pytest.raises(StatusError, match=says) as raised:
        client.call(both.addresses[1], SPACE, SPACE_REQUEST)
    assert raised.value.status is Status.UNAUTHENTICATED and isinstance(raised.value, PermissionError)


def test_a_server_without_the_secret_is_not_believed(kind: str) -> None:
    with running("tcp:127.0.0.1:0") as server, face(kind, secret=SECRET) as client:
        with pytest.raises(StatusError) as raised:
            client.call(server.addresses[0], SPACE, SPACE_REQUEST)
        assert raised.value.status is Status.UNAUTHENTICATED


def test_a_proof_cannot_be_used_again(both: Running) -> None:
    address = both.addresses[1]
    greeting = ClientHello(Credentials(secret=SECRET), address)
    raw = Raw(address)
    raw.sock.sendall(greeting.first)
    proof = greeting.received(raw.next())
    raw.sock.sendall(proof)
    greeting.received(raw.next())
    assert greeting.reply is not None
    again = Raw(address)
    again.sock.sendall(greeting.first)
    again.next()
    again.sock.sendall(proof)
    assert again.farewell().status is Status.UNAUTHENTICATED
    raw.sock.close()


def test_without_a_secret_only_loopback_is_served() -> None:
    with pytest.raises(StatusError, match="secret") as raised:
        Running(["tcp:0.0.0.0:0"])
    assert raised.value.status is Status.UNAUTHENTICATED


def test_an_older_protocol_is_refused_by_name(both: Running) -> None:
    raw = Raw(both.addresses[0])
    hello = rpc_pb2.Hello(protocol=0, client=bytes(16), nonce=bytes(32))
    raw.sock.sendall(wire.encode(0, wire.HELLO, 0, hello.SerializeToString()))
    failure = raw.farewell()
    assert failure.status is Status.PROTOCOL and "protocol 0" in str(failure.strerror)


def test_a_newer_protocol_is_met_half_way(both: Running) -> None:
    raw = Raw(both.addresses[0])
    hello = rpc_pb2.Hello(protocol=99, client=bytes(16), nonce=bytes(32))
    raw.sock.sendall(wire.encode(0, wire.HELLO, 0, hello.SerializeToString()))
    assert rpc_pb2.HelloReply.FromString(raw.next().message).protocol == 1
    raw.sock.close()


def test_who_a_client_is(kind: str, both: Running) -> None:
    """SO_PEERCRED on a Unix socket; on TCP what was claimed under the secret, except root."""
    with face(kind, secret=SECRET) as client:
        by_kernel = client.call(both.addresses[0], SPACE, SPACE_REQUEST)
        assert list(by_kernel.target) == [os.geteuid(), os.getegid(), 1]
        assert set(by_kernel.used) == set(os.getgroups())
        claimed = client.call(both.addresses[1], SPACE, SPACE_REQUEST)
        assert list(claimed.target) == ([65534, 65534, 0] if os.geteuid() == 0 else [os.geteuid(), os.getegid(), 0])
    with face(kind, secret=SECRET, acts_for_others=True) as server:
        trusted = server.call(both.addresses[1], SPACE, SPACE_REQUEST)
        assert list(trusted.target) == [os.geteuid(), os.getegid(), 1]


def test_a_tcp_peer_without_a_secret_is_nobody(kind: str) -> None:
    with running("tcp:127.0.0.1:0") as server, face(kind) as client:
        assert list(client.call(server.addresses[0], SPACE, SPACE_REQUEST).target) == [65534, 65534, 0]


# --- listening ---------------------------------------------------------------------------------------------------------------------


def test_a_unix_socket_is_private_replaces_a_dead_one_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with running(f"unix:{path}"):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(StatusError, match="another server") as raised:
            Running([f"unix:{path}"])
        assert raised.value.status is Status.BUSY_RESOURCE
        assert path.exists()
    assert not path.exists()


def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(StatusError, match="no socket"):
        Running([unix_address(tmp_path)])
    assert (tmp_path / "s").read_text() == "mine"


def test_a_path_longer_than_a_socket_address(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20) / ("path-" * 20)
    folder.mkdir(parents=True)
    with running(unix_address(folder)) as server, face(kind) as client:
        assert client.call(server.addresses[0], SPACE, SPACE_REQUEST)
        target = client.env.pool.take(4096)
        client.call(server.addresses[0], READ, read((0, 4096)), target=[target])


def test_a_port_that_is_taken(both: Running) -> None:
    with pytest.raises(StatusError, match="taken") as raised:
        Running([both.addresses[1]])
    assert raised.value.status is Status.BUSY_RESOURCE


# --- subscriptions -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_notices_arrive_in_order(kind: str, both: Running, which: int) -> None:
    with face(kind, secret=SECRET) as client:
        wait = client.subscribe(both.addresses[which], "routing")
        assert wait(0.05) is None
        for version in range(1, 6):
            both.publish("routing", version, b"body %d" % version)
            both.publish("invalidate", 100 + version)
        got = [wait(10) for _ in range(5)]
        assert [(notice.version, notice.body, notice.resync) for notice in got] == [
            (version, b"body %d" % version, False) for version in range(1, 6)
        ]
        assert wait(0.05) is None


def test_who_comes_late_is_told_to_ask_for_everything(kind: str, both: Running) -> None:
    both.publish("routing", 7, b"seven")
    with face(kind, secret=SECRET) as client:
        late = client.subscribe(both.addresses[0], "routing", since=3)(10)
        assert late.resync and late.version == 7
        assert client.subscribe(both.addresses[0], "routing", since=7)(0.05) is None


def test_a_slow_subscriber_gets_resync_instead_of_a_queue_without_end(both: Running) -> None:
    raw = Raw(both.addresses[0]).hello(both.addresses[0])
    message = rpc_pb2.Subscribe(subscription=9, topic="routing")
    raw.sock.sendall(wire.encode(0, wire.SUBSCRIBE, 1, message.SerializeToString()))
    assert raw.next().method == wire.SUBSCRIBE
    for version in range(1, 1001):
        both.publish("routing", version, bytes(50_000))
    notices: list[rpc_pb2.Notice] = []
    while not notices or notices[-1].version < 1000:
        notices.append(rpc_pb2.Notice.FromString(raw.next().message))
    assert any(notice.resync for notice in notices) and len(notices) < 300
    assert [notice.version for notice in notices] == sorted(notice.version for notice in notices)
    raw.sock.close()


def test_an_unknown_topic_is_refused(kind: str, both: Running) -> None:
    with face(kind, secret=SECRET) as client, pytest.raises(StatusError, match="no topic") as raised:
        client.subscribe(both.addresses[0], "gossip")(10)
    assert raised.value.status is Status.INVALID


def test_a_subscriber_hears_that_its_server_is_gone(kind: str, tmp_path: Path) -> None:
    with process(unix_address(tmp_path)) as server, face(kind) as client:
        wait = client.subscribe(server.addresses[0], "routing")
        assert wait(0.05) is None
        server.signal(signal.SIGKILL)
        with pytest.raises(StatusError) as raised:
            wait(10)
        assert raised.value.status is Status.UNAVAILABLE


# --- the client's own process ------------------------------------------------------------------------------------------------------


def test_an_interrupted_call_leaves_no_half_finished_connection_behind(both: Running) -> None:
    env = BlockingEnvironment(secret=SECRET)
    address = both.addresses[1]
    drive(env.call(Call(address, SPACE, SPACE_REQUEST, 10.0)))
    main = threading.get_ident()

    def interrupt() -> None:
        assert both.service.entered.wait(10)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        drive(env.call(Call(address, SYNC, storage_pb2.SyncRequest(), 30.0)))
    thread.join()
    assert eventually(lambda: both.service.contexts[0].cancelled)
    assert drive(env.call(Call(address, SPACE, SPACE_REQUEST, 10.0)))
    env.close()


def test_a_forked_child_is_another_client_with_connections_of_its_own(both: Running) -> None:
    env = BlockingEnvironment(secret=SECRET)
    addresses = both.addresses
    target = env.pool.take(8192)

    def works(slice_: Slice) -> bool:
        for address in addresses:
            drive(env.call(Call(address, READ, read((4, 8192)), 10.0, target=[slice_])))
            if slice_.view != both.service.data[4:8196]:
                return False
        return True

    assert works(target)
    parent = env.client
    child = os.fork()
    if child == 0:
        code = 1
        try:
            mine = env.pool.take(8192)
            env.pool.give(target)  # the parent's: ignored
            good = (
                env.client != parent and mine.region is not target.region and works(mine) and works(env.pool.take(8192))
            )
            code = 0 if good else 2
        finally:
            os._exit(code)
    assert works(target) and works(target)
    assert os.waitpid(child, 0)[1] == 0
    assert env.client == parent and works(target)
    env.close()


def test_a_new_identity_uses_new_connections(kind: str, both: Running) -> None:
    with face(kind, secret=SECRET) as client:
        target = client.env.pool.take(4096)
        for _ in range(3):
            for address in both.addresses:
                client.call(address, READ, read((0, 4096)), target=[target])
            before = client.env.client
            client.loop.do(client.env.renew_identity) if client.loop else client.env.renew_identity()
            assert client.env.client != before
        client.call(both.addresses[0], READ, read((0, 4096)), target=[target])
        assert any(connection.peer.client == client.env.client for connection in both.server.connections)


def test_a_dead_address_is_not_tried_over_and_over(kind: str, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    listener.settimeout(0.01)
    attempts = 0
    with face(kind) as client:
        stop = threading.Event()

        def refuse() -> None:
            nonlocal attempts
            while not stop.is_set():
                try:
                    listener.accept()[0].close()
                    attempts += 1
                except TimeoutError:
                    continue

        thread = threading.Thread(target=refuse)
        thread.start()
        for _ in range(300):
            with pytest.raises(StatusError) as raised:
                client.call(unix_address(tmp_path), SPACE, SPACE_REQUEST)
            assert raised.value.status is Status.UNAVAILABLE
        stop.set()
        thread.join()
    listener.close()
    assert 1 <= attempts < 60
