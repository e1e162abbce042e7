"""Who talks to whom: hellos and identities, where a server listens, subscriptions, and what a fork or an interruption leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from emberfs.proto import frame as wire
from emberfs.proto.drivers.blocking import BlockingEnvironment
from emberfs.proto.drivers.calls import BACKOFF_SECONDS_MAX
from emberfs.proto.env import Call, drive
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import rpc_pb2, storage_pb2
from emberfs.proto.hello import ClientHello, Credentials
from emberfs.proto.region import Slice

from .pieces import (
    READ,
    SECRET,
    SPACE,
    SYNC,
    Running,
    eventually,
    face,
    process,
    read,
    running,
    unix_address,
)
from .raw import Raw

SPACE_REQUEST = storage_pb2.SpaceRequest()


# --- hello -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_another_cluster_is_refused(kind: str, both: Running, which: int) -> None:
    with face(kind, cluster="other", secret=SECRET) as client, pytest.raises(StatusError, match="c1") as raised:
        client.call(both.addresses[which], SPACE, SPACE_REQUEST)
    assert raised.value.status is Status.WRONG_CLUSTER


@pytest.mark.parametrize("which", [0, 1])
def test_who_goes_on_sending_hears_why_he_is_sent_away(both: Running, which: int) -> None:
    """Closing with bytes unread would reset the connection, and the reason be lost."""
    raw = Raw(both.addresses[which]).hello(both.addresses[which])
    raw.sock.sendall(b"this is no frame of ours" * 20_000)
    assert raw.farewell().status is Status.PROTOCOL


def test_descriptors_are_not_collected_before_the_hello(both: Running) -> None:
    """A region comes with one. Who sends more would take them from the whole process, connections and block files included."""
    address = both.addresses[0]
    raw = Raw(address)
    first = ClientHello(Credentials(secret=SECRET), address).first
    with open(os.devnull, "rb") as null, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for position in range(len(first) // 2):
            socket.send_fds(raw.sock, [first[position : position + 1]], [null.fileno()] * 3)
    failure = raw.farewell()
    assert failure.status is Status.PROTOCOL and "descriptors" in str(failure.strerror)


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
        got = [wait(60) for _ in range(5)]
        assert [(notice.version, notice.body, notice.resync) for notice in got] == [
            (version, b"body %d" % version, False) for version in range(1, 6)
        ]
        assert wait(0.05) is None


def test_who_comes_late_is_told_to_ask_for_everything(kind: str, both: Running) -> None:
    both.publish("routing", 7, b"seven")
    with face(kind, secret=SECRET) as client:
        late = client.subscribe(both.addresses[0], "routing", since=3)(60)
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
        client.subscribe(both.addresses[0], "gossip")(60)
    assert raised.value.status is Status.INVALID


def test_a_subscriber_hears_that_its_server_is_gone(kind: str, tmp_path: Path) -> None:
    with process(unix_address(tmp_path)) as server, face(kind) as client:
        wait = client.subscribe(server.addresses[0], "routing")
        assert wait(0.05) is None
        server.signal(signal.SIGKILL)
        with pytest.raises(StatusError) as raised:
            wait(60)
        assert raised.value.status is Status.UNAVAILABLE


# --- the client's own process ------------------------------------------------------------------------------------------------------


def test_an_interrupted_call_leaves_no_half_finished_connection_behind(both: Running) -> None:
    env = BlockingEnvironment(secret=SECRET)
    address = both.addresses[1]
    drive(env.call(Call(address, SPACE, SPACE_REQUEST, 60.0)))
    main = threading.get_ident()

    def interrupt() -> None:
        assert both.service.entered.wait(60)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        drive(env.call(Call(address, SYNC, storage_pb2.SyncRequest(), 90.0)))
    thread.join()
    assert eventually(lambda: both.service.contexts[0].cancelled)
    assert drive(env.call(Call(address, SPACE, SPACE_REQUEST, 60.0)))
    env.close()


def test_a_forked_child_is_another_client_with_connections_of_its_own(both: Running) -> None:
    env = BlockingEnvironment(secret=SECRET)
    addresses = both.addresses
    target = env.pool.take(8192)

    def works(slice_: Slice) -> bool:
        for address in addresses:
            drive(env.call(Call(address, READ, read((4, 8192)), 60.0, target=[slice_])))
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
        known = both.thread.do(lambda: {connection.peer.client for connection in both.server.connections})
        assert client.env.client in known


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
        began = time.monotonic()
        for _ in range(300):
            with pytest.raises(StatusError) as raised:
                client.call(unix_address(tmp_path), SPACE, SPACE_REQUEST)
            assert raised.value.status is Status.UNAVAILABLE
        seconds = time.monotonic() - began
        stop.set()
        thread.join()
    listener.close()
    # While the time between two of them doubles, and then one in half of the longest at most.
    assert 1 <= attempts <= 12 + seconds / (BACKOFF_SECONDS_MAX / 2)
