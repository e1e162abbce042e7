"""The rdma transport over verbs in memory: what it asks of a device, and what it does when a queue pair breaks; no wire and no VM."""

from __future__ import annotations

import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from emberfs.proto import accepted
from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen import storage_pb2
from emberfs.proto.region import Region, Slice
from emberfs.proto.transport import choice
from emberfs.proto.transport.rdma import endpoint, memory

from . import memory_verbs
from .memory_verbs import LOCAL, REMOTE_READ, REMOTE_WRITE, soft_device
from .pieces import READ, SECRET, SPACE, WRITE, Face, Pair, eventually, face, read, running, write

MIB = 1 << 20


@pytest.fixture
def verbs(tmp_path: Path) -> Iterator[Counter[str]]:
    with soft_device(tmp_path) as counts:
        yield counts


@pytest.fixture(params=["blocking", "aio"])
def pair(request: pytest.FixtureRequest, verbs: Counter[str]) -> Iterator[Pair]:
    where = "tcp:127.0.0.1:0"
    with running(where, secret=SECRET) as server, face(request.param, secret=SECRET) as client:
        yield Pair(client, server.addresses[0], server.service, "rdma", server)


def counted(verbs: Counter[str], work: Callable[[], Any]) -> Counter[str]:
    """What `work` asks of the device, on both sides."""
    before = Counter(verbs)
    work()
    return Counter(verbs) - before


def test_a_read_of_1_mib_is_one_write_and_one_send(pair: Pair, verbs: Counter[str]) -> None:
    target = pair.client.env.pool.take(MIB)

    def once() -> None:
        pair.client.call(pair.address, READ, read((11, MIB)), target=[target])

    once()  # connects, and registers memory
    found = counted(verbs, once)
    assert target.view == pair.service.data[11 : 11 + MIB]
    assert found["bytes moved"] == MIB
    assert found["work requests"] == 3, "the request, the bytes, the reply"
    assert found["post_send"] == 2, "bytes and reply leave together"
    assert found["completions"] <= 5, (
        "two requests received, of what was posted at most two signalled, and one in four SENDs"
    )


def test_a_batch_costs_no_more_calls_when_its_pieces_are_larger(pair: Pair, verbs: Counter[str]) -> None:
    """32 pieces of 4 KiB, or of 128 KiB: as many Python calls in the client's thread and verbs on both sides."""
    pool = pair.client.env.pool
    targets = [pool.take(128 << 10) for _ in range(32)]
    apart = [Slice(target.region, target.offset, 4 << 10) for target in targets]

    def batch(slices: list[Slice]) -> Callable[[], Any]:
        pieces = [(i * 1000, slices[i].length) for i in range(32)]
        return lambda: pair.client.call(pair.address, READ, read(*pieces), target=slices)

    for slices in (apart, targets):
        batch(slices)()
    small, large = counted(verbs, batch(apart)), counted(verbs, batch(targets))
    assert small["work requests"] == 32 + 2 and small["post_send"] <= 4
    assert large["work requests"] <= small["work requests"], "neighbours are one"
    assert large["bytes moved"] == 32 * small["bytes moved"]
    if pair.client.kind == "blocking":
        assert abs(calls_of(batch(apart)) - calls_of(batch(targets))) < 64


def calls_of(work: Callable[[], Any]) -> int:
    """Python functions called in this thread."""
    found = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal found
        found += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def test_a_write_is_fetched_and_a_small_one_comes_along(pair: Pair, verbs: Counter[str]) -> None:
    source = pair.client.env.pool.take(MIB)
    source.view[:] = os.urandom(MIB)

    def once(length: int) -> Callable[[], Any]:
        part = [Slice(source.region, source.offset, length)]
        return lambda: pair.client.call(pair.address, WRITE, write(17), source=part)

    once(MIB)()
    found = counted(verbs, once(MIB))
    assert pair.service.data[17 : 17 + MIB] == source.view
    assert (found["work requests"], found["bytes moved"]) == (3, MIB)
    found = counted(verbs, once(4096))
    assert (found["work requests"], found["bytes moved"]) == (2, 0), "in the request's own SEND"


def test_memory_that_cannot_be_registered_takes_the_slow_way(
    pair: Pair, verbs: Counter[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert pair.client.call(pair.address, SPACE, storage_pb2.SpaceRequest())

    def refuse(*_: Any, **__: Any) -> Any:
        raise memory_verbs.Failed(12)

    monkeypatch.setattr(memory_verbs.NAMES, "MR", refuse)
    target = pair.client.env.register(bytearray(3 * MIB))
    for _ in range(2):
        pair.client.call(pair.address, READ, read((5, 3 * MIB)), target=[Slice(target, 0, 3 * MIB)])
    assert target.view == pair.service.data[5 : 5 + 3 * MIB]
    assert verbs["bytes moved"] == 0
    assert len([1 for record in caplog.records if "not registered" in record.getMessage()]) == 1


def test_registered_memory_serves_every_connection_and_goes_with_its_region(pair: Pair) -> None:
    env = pair.client.env
    region = env.register(bytearray(MIB))
    calls = [Call(pair.address, READ, read((i, MIB // 4)), 20.0, target=[Slice(region, 0, MIB // 4)]) for i in range(4)]
    pair.client.call_many(calls)
    (device,) = memory.opened()
    _, before = memory_verbs.alive()
    pair.client.call(pair.address, READ, read((0, MIB)), target=[Slice(region, 0, MIB)])
    assert memory_verbs.alive()[1] == before, "registered once"
    if pair.client.loop:
        pair.client.loop.do(lambda: env.unregister(region))
    else:
        env.unregister(region)
    assert memory_verbs.alive()[1] == before - 1
    assert not device.knows(region.id)
    target = env.pool.take(4096)
    pair.client.call(pair.address, READ, read((0, 4096)), target=[target])  # tells the server, too
    assert target.view == pair.service.data[:4096]


def test_a_peer_may_do_no_more_than_was_asked_of_it(pair: Pair) -> None:
    """A server's memory is for nobody else; what a client writes from may be read, and written to only once it reads into it."""
    region = pair.client.env.register(bytearray(MIB))
    part = [Slice(region, 0, MIB)]
    pair.client.call(pair.address, WRITE, write(3), source=part)
    (device,) = memory.opened()
    source = device._known[region.id]
    assert [known.access for known in memory_verbs.memory_of(source.address)] == [LOCAL | REMOTE_READ]
    for found in device._known.values():
        if found is not source and found.region is not pair.client.env.pool.region:
            assert found.access[0] == memory.LOCAL
            assert [known.access for known in memory_verbs.memory_of(found.address)] == [LOCAL]
    before = source.keys[0]
    pair.client.call(pair.address, READ, read((11, MIB)), target=part)
    assert region.view == pair.service.data[11 : 11 + MIB]
    assert source.keys[0] != before, "another key; the old one lets nobody write"
    assert [known.access for known in memory_verbs.memory_of(source.address)] == [
        LOCAL | REMOTE_READ,
        LOCAL | REMOTE_READ | REMOTE_WRITE,
    ]
    pair.client.call(pair.address, WRITE, write(3), source=part)
    if pair.client.loop:
        pair.client.loop.do(lambda: pair.client.env.unregister(region))
    else:
        pair.client.env.unregister(region)
    assert not memory_verbs.memory_of(source.address)


def test_a_peer_without_permission_breaks_its_own_connection_only(pair: Pair) -> None:
    """The client's device forgets memory while the server means to write into it."""
    region = pair.client.env.register(bytearray(MIB))
    whole = [Slice(region, 0, MIB)]
    pair.client.call(pair.address, READ, read((0, MIB)), target=whole)
    (device,) = memory.opened()
    device.forget(region.id, lambda _: False)
    device._known[region.id] = memory.Registration(region)  # it believes that the server may
    device._known[region.id].keys[0] = 1
    device._known[region.id].access[0] = memory.WRITABLE
    device.version -= 1
    failure = pair.failure(READ, read((0, MIB)), target=whole)
    assert failure.status is Status.MAYBE_COMMITTED
    target = pair.client.env.pool.take(4096)
    pair.client.call(pair.address, READ, read((0, 4096)), target=[target])
    assert target.view == pair.service.data[:4096]


def test_connections_leave_nothing_behind(verbs: Counter[str]) -> None:
    with running("tcp:127.0.0.1:0", secret=SECRET) as server:
        for kind in ("blocking", "aio"):
            for _ in range(10):
                with face(kind, secret=SECRET) as client:
                    target = client.env.pool.take(MIB)
                    client.call(server.addresses[0], READ, read((1, MIB)), target=[target])
        assert eventually(lambda: memory_verbs.alive()[0] == 0)
        descriptors = len(os.listdir("/proc/self/fd"))
        with face("blocking", secret=SECRET) as client:
            client.call(server.addresses[0], SPACE, storage_pb2.SpaceRequest())
        assert eventually(lambda: memory_verbs.alive()[0] == 0 and len(os.listdir("/proc/self/fd")) <= descriptors)
    assert memory_verbs.alive() == (0, 0)


def test_a_queue_pair_that_carries_nothing_is_found_out_before_it_is_used(
    verbs: Counter[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory_verbs.QP, "_deliver", staticmethod(lambda request, peer: memory_verbs.NO_ANSWER))
    with running("tcp:127.0.0.1:0", secret=SECRET) as server:
        for kind in ("blocking", "aio"):
            monkeypatch.setenv("EMBERFS_TRANSPORT", "rdma")
            with face(kind, secret=SECRET) as client:
                with pytest.raises(StatusError) as raised:
                    client.call(server.addresses[0], SPACE, storage_pb2.SpaceRequest())
                assert raised.value.status is Status.UNAVAILABLE and "does not answer" in str(raised.value.strerror)
            monkeypatch.setenv("EMBERFS_TRANSPORT", "auto")
            caplog.clear()
            with face(kind, secret=SECRET) as client:
                target = client.env.pool.take(MIB)
                for _ in range(3):
                    client.call(server.addresses[0], READ, read((1, MIB)), target=[target])
                assert target.view == server.service.data[1 : 1 + MIB]
                spoken = client.env.spoken()[server.addresses[0]]
                assert spoken.transport == "tcp" and "does not answer" in spoken.reason
                assert len([1 for record in caplog.records if "not over RDMA" in record.getMessage()]) == 1
    assert eventually(lambda: memory_verbs.alive()[0] == 0)
    assert endpoint.SLOT_BYTES == 8192


@pytest.mark.parametrize("kind", ["blocking", "aio"])
def test_who_fell_back_to_tcp_goes_over_to_rdma_once_that_works(
    verbs: Counter[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("EMBERFS_TRANSPORT", "auto")
    works = memory_verbs.QP._deliver
    with running("tcp:127.0.0.1:0", secret=SECRET) as server, face(kind, secret=SECRET) as client:
        address, target = server.addresses[0], client.env.pool.take(MIB)

        def spoken() -> str:
            client.call(address, READ, read((1, MIB)), target=[target])
            assert target.view == server.service.data[1 : 1 + MIB]
            return str(client.env.spoken()[address].transport)

        monkeypatch.setattr(memory_verbs.QP, "_deliver", staticmethod(lambda request, peer: memory_verbs.NO_ANSWER))
        assert spoken() == "tcp"
        monkeypatch.setattr(memory_verbs.QP, "_deliver", staticmethod(works))
        assert spoken() == "tcp", "not yet"
        monkeypatch.setattr(choice, "RETRY_SECONDS", 0.0)
        client.env.choices._failed[address] = (0.0, "a minute is over")
        assert eventually(lambda: spoken() == "rdma")
        moved = verbs["bytes moved"]
        assert spoken() == "rdma"
        assert verbs["bytes moved"] == moved + MIB


def test_memory_of_one_request_is_not_registered(pair: Pair, verbs: Counter[str]) -> None:
    pair.client.call(pair.address, SPACE, storage_pb2.SpaceRequest())
    _, before = memory_verbs.alive()
    for source in (memoryview(os.urandom(60_000)), memoryview(bytearray(60_000))):  # the first is read-only, too
        whole = [Slice(Region(source), 0, 60_000)]
        pair.client.call(pair.address, WRITE, write(3), source=whole)
        assert pair.service.data[3:60_003] == source
    pair.client.call(pair.address, READ, read((7, 60_000)), target=whole)
    assert source == pair.service.data[7:60_007]
    assert (verbs["bytes moved"], memory_verbs.alive()[1]) == (0, before)


def test_memory_of_a_reply_comes_back_without_another_request(pair: Pair) -> None:
    target = pair.client.env.pool.take(MIB)
    pair.client.call(pair.address, READ, read((11, MIB)), target=[target])
    assert pair.running is not None
    registered = pair.running.server.buffers._registered
    assert registered is not None
    assert eventually(lambda: registered.used == 0)


def test_a_server_whose_own_memory_is_refused_sends_its_clients_back_to_tcp(
    verbs: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERFS_TRANSPORT", "auto")
    registered = memory.Device.pin

    def pin(device: memory.Device, view: memoryview, access: int) -> Any:
        if access == memory.LOCAL and len(view) > MIB:
            raise error(Status.UNSUPPORTED, "no memory may be locked")
        return registered(device, view, access)

    monkeypatch.setattr(memory.Device, "pin", pin)
    with running("tcp:127.0.0.1:0", secret=SECRET) as server:
        for kind in ("blocking", "aio"):
            with face(kind, secret=SECRET) as client:
                target = client.env.pool.take(MIB)

                def again(client: Face = client, target: Slice = target) -> bool:
                    with suppress(StatusError):
                        client.call(server.addresses[0], READ, read((1, MIB)), target=[target])
                    return bool(target.view == server.service.data[1 : 1 + MIB])

                assert eventually(again)
                spoken = client.env.spoken()[server.addresses[0]]
                assert spoken.transport == "tcp" and "does not register the server's pool" in spoken.reason


def test_who_asks_for_more_than_it_takes_in_is_told_to_wait(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies that do not leave must not grow without limit: a client might take in one message and ask for sixteen more."""
    assert pair.client.call(pair.address, SPACE, storage_pb2.SpaceRequest())
    monkeypatch.setattr(accepted.Connection, "unsent", accepted.OUT_BYTES_HIGH + 1)
    assert pair.failure(SPACE, storage_pb2.SpaceRequest()).status is Status.BUSY
    monkeypatch.undo()


def hostile(pair: Pair, then: Callable[[endpoint.Endpoint], None]) -> None:
    """A client that does this with its queue pair loses the connection, and nobody else anything."""
    pair.client.call(pair.address, SPACE, storage_pb2.SpaceRequest())
    (own,) = [found for found in endpoint.endpoints() if not found.serves and not found.failed]
    before = memory_verbs.alive()[0]
    if pair.client.loop:  # whose thread it belongs to
        pair.client.loop.do(lambda: then(own))
    else:
        then(own)
    assert eventually(lambda: memory_verbs.alive()[0] < before)

    def again() -> bool:
        with suppress(StatusError):
            return bool(pair.client.call(pair.address, SPACE, storage_pb2.SpaceRequest()))
        return False

    assert eventually(again)


def test_a_client_that_sends_without_credits_loses_its_connection(pair: Pair) -> None:
    def one_too_many(own: endpoint.Endpoint) -> None:
        (served,) = [found for found in endpoint.endpoints() if found.serves and not found.failed]
        served._credits._given = 0
        own.send(0)
        own.post()

    hostile(pair, one_too_many)


def test_a_client_that_sends_more_than_is_received_loses_its_connection(pair: Pair) -> None:
    def flood(own: endpoint.Endpoint) -> None:
        own._credits.available = 1000
        with memory_verbs.at_once():  # else a server that is quick enough posts receives again meanwhile
            for _ in range(endpoint.RECEIVES + 1):
                own._slots_free = endpoint.SENDS
                own.slot()[:32] = bytes(32)
                own.send(0)
                with suppress(OSError):
                    own.post()

    hostile(pair, flood)


@pytest.mark.parametrize("header", [b"", b"\0", struct.pack("<HH", 0, 7), struct.pack("<HH", 5000, 0)])
def test_a_client_that_sends_nonsense_loses_its_connection(pair: Pair, header: bytes) -> None:
    def send(own: endpoint.Endpoint) -> None:
        begin = (endpoint.RECEIVES + own._slot) * endpoint.SLOT_BYTES
        own._view[begin : begin + len(header)] = header
        request, entry = own._chain[endpoint.BATCH - 1]
        entry.addr, entry.length, entry.lkey = own._base + begin, len(header), own._memory.lkey
        request.opcode, request.send_flags, request.wr_id = own._send, own._solicited, endpoint.RECEIVES
        own._pair.post_send(request)

    hostile(pair, send)


def test_queue_pairs_that_cannot_be_are_refused(verbs: Counter[str]) -> None:
    for field, value in [("lid", 1 << 16), ("sequence", 1 << 24), ("number", 1 << 24), ("gid", b""), ("receives", 1)]:
        end = endpoint.Endpoint(memory_verbs.PORT, serves=True)
        peer = end.queue()
        setattr(peer, field, value)
        with pytest.raises(StatusError) as raised:
            end.connect(peer)
        assert raised.value.status is Status.PROTOCOL
        end.close()


def test_a_server_that_has_enough_queue_pairs_leaves_others_on_tcp(
    verbs: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERFS_TRANSPORT", "auto")
    monkeypatch.setattr(accepted, "RDMA_CONNECTIONS_MAX", 1)
    with running("tcp:127.0.0.1:0", secret=SECRET) as server:
        with face("aio", secret=SECRET) as one, face("aio", secret=SECRET) as two:
            for client in (one, two):
                client.call(server.addresses[0], SPACE, storage_pb2.SpaceRequest())
            spoken = [client.env.spoken()[server.addresses[0]] for client in (one, two)]
        assert [found.transport for found in spoken] == ["rdma", "tcp"] and "takes no more" in spoken[1].reason


def test_a_forked_child_destroys_nothing_of_its_parents(verbs: Counter[str]) -> None:
    with running("tcp:127.0.0.1:0", secret=SECRET) as server, face("blocking", secret=SECRET) as client:
        target = client.env.pool.take(MIB)
        client.call(server.addresses[0], READ, read((1, MIB)), target=[target])
        before = memory_verbs.alive()
        child = os.fork()
        if not child:
            client.env.close()
            os._exit(memory_verbs.alive() != before)
        assert os.waitpid(child, 0)[1] == 0
        client.call(server.addresses[0], READ, read((2, MIB)), target=[target])
        assert target.view == server.service.data[2 : 2 + MIB]


def test_a_slice_beyond_its_region_is_refused(pair: Pair) -> None:
    """Also where it would be in a window that the region does not have."""
    size = memory.WINDOW_BYTES_MIN
    region = pair.client.env.register(bytearray(size))
    for at in (size - 4095, size):
        assert pair.failure(READ, read((0, 4096)), target=[Slice(region, at, 4096)]).status is Status.REGION_DEAD
    assert pair.client.call(pair.address, READ, read((0, 4096)), target=[Slice(region, size - 4096, 4096)])
