"""What the rdma transport decides without a device: credits, which ports reach each other, how bulk becomes work requests, how a stream
becomes SENDs, and when there is a fall-back. What needs a device is in test_transports.py and tests/rdma."""

from __future__ import annotations

import os
import random
import select
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import rpc_pb2
from emberfs.proto.region import Region, Slice
from emberfs.proto.transport import choice
from emberfs.proto.transport.choice import RETRY_SECONDS, Choices
from emberfs.proto.transport.rdma import devices, sinks, verbs
from emberfs.proto.transport.rdma.channel import close_channel, make_channel
from emberfs.proto.transport.rdma.credits import RESERVED, Credits
from emberfs.proto.transport.rdma.devices import Port
from emberfs.proto.transport.rdma.memory import REGISTRATIONS_MAX, WINDOW_BYTES_MIN, Registration, window_bytes
from emberfs.proto.transport.rdma.sinks import RemoteRegion, RemoteRegions
from emberfs.proto.transport.rdma.socket import RdmaSocket

MIB = 1 << 20


# --- credits ------------------------------------------------------------------------------------------------------------------------


class Side:
    """One end in the model: what it would send, what has arrived and was not taken, and its receives."""

    def __init__(self, receives: int, group: int, peer: int) -> None:
        self.credits = Credits(peer, receives)
        self.posted, self.group, self.receives = receives, group, receives
        self.taken = 0  # of the group that is not complete
        self.to_send = 0
        self.got = 0
        self.wire: deque[tuple[int, bool]] = deque()  # on the way to this side: credits told, whether with data
        self.arrived: deque[bool] = deque()

    def send(self, other: Side) -> bool:
        if self.to_send and self.credits.may_send:
            self.to_send -= 1
            other.wire.append((self.credits.sent(), True))
        elif self.credits.update_due:
            other.wire.append((self.credits.sent(), False))
        else:
            return False
        return True

    def receive(self) -> bool:
        if not self.wire:
            return False
        assert self.posted, "receiver not ready: a SEND found no receive"
        self.posted -= 1
        told, data = self.wire.popleft()
        self.credits.received(told)
        self.arrived.append(data)
        return True

    def take(self) -> bool:
        if not self.arrived:
            return False
        self.got += self.arrived.popleft()
        self.taken += 1
        if self.taken == self.group:
            self.taken = 0
            self.posted += self.group
            self.credits.posted(self.group)
        return True


@pytest.mark.parametrize("seed", range(20))
def test_no_send_finds_the_receiver_not_ready_and_both_always_get_on(seed: int) -> None:
    chance = random.Random(seed)
    group = chance.choice([1, 4, 8])
    sizes = [group * chance.randint(-(-4 // group), 6) for _ in range(2)]
    one, two = Side(sizes[0], group, sizes[1]), Side(sizes[1], group, sizes[0])
    if group * 2 > min(sizes):  # half of the receives must be whole groups, as they are in the endpoint
        return
    wanted = [chance.randint(0, 150) for _ in range(2)]
    one.to_send, two.to_send = wanted
    for _ in range(4_000):
        side, other = chance.sample([one, two], 2)
        chance.choice([lambda: side.send(other), side.receive, side.take])()
    while any([one.send(two), two.send(one), one.receive(), two.receive(), one.take(), two.take()]):
        pass
    assert (one.to_send, two.to_send) == (0, 0), "both wait for each other"
    assert (two.got, one.got) == (wanted[0], wanted[1])


def test_a_peer_that_gives_back_more_than_was_used_breaks_the_protocol() -> None:
    credits = Credits(32, 32)
    credits.sent()
    credits.received(1)
    with pytest.raises(StatusError) as raised:
        credits.received(1)
    assert raised.value.status is Status.PROTOCOL
    with pytest.raises(StatusError):
        Credits(RESERVED, 32)


def test_a_peer_that_sends_without_credits_breaks_the_protocol() -> None:
    credits = Credits(8, 4)
    for _ in range(3):
        credits.received(0)
    credits.posted(2)
    assert credits.sent() == 2
    for _ in range(3):
        credits.received(0)
    credits.posted(2)  # which the peer was not told of
    with pytest.raises(StatusError) as raised:
        credits.received(0)
    assert raised.value.status is Status.PROTOCOL


# --- devices ------------------------------------------------------------------------------------------------------------------------

V4 = "0000:0000:0000:0000:0000:ffff:0a63:0001"
LINK_LOCAL = "fe80:0000:0000:0000:7c13:5bff:fe0a:92c1"
NOTHING = "0000:0000:0000:0000:0000:0000:0000:0000"


def record(root: Path, device: str, port: int, files: dict[str, str]) -> None:
    """A port as sysfs shows it."""
    for name, text in files.items():
        path = root / device / "ports" / str(port) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def roce(root: Path, device: str, *gids: tuple[str, str], state: str = "4: ACTIVE") -> None:
    files = {"state": state, "link_layer": "Ethernet", "lid": "0x0", "rate": "200 Gb/sec (4X HDR)"}
    for index, (kind, gid) in enumerate(gids):
        files |= {f"gids/{index}": gid, f"gid_attrs/types/{index}": kind, f"gid_attrs/ndevs/{index}": "eth0"}
    record(root, device, 1, files)


def test_of_a_roce_port_the_ipv4_address_of_version_2_is_taken(tmp_path: Path) -> None:
    roce(
        tmp_path,
        "mlx5_0",
        ("IB/RoCE v1", LINK_LOCAL),
        ("RoCE v2", LINK_LOCAL),
        ("IB/RoCE v1", V4),
        ("RoCE v2", V4),
        ("RoCE v2", NOTHING),
    )
    (found,) = devices.survey(tmp_path, "")
    assert found.port is not None
    assert (found.name, found.port.gid_index, found.port.gid_text) == ("mlx5_0:1", 3, V4)
    assert (found.port.infiniband, found.port.interface, found.port.rate) == (False, "eth0", "200 Gb/sec (4X HDR)")


def test_an_infiniband_port_has_a_lid_and_one_that_is_down_says_so(tmp_path: Path) -> None:
    files = {"link_layer": "InfiniBand", "lid": "0x1c", "gids/0": "fe80:0000:0000:0000:0c42:a103:0065:b4d0"}
    record(tmp_path, "mlx5_0", 1, {**files, "state": "4: ACTIVE"})
    record(tmp_path, "mlx5_0", 2, {**files, "state": "1: DOWN"})
    roce(tmp_path, "mlx5_1", ("IB/RoCE v1", V4))
    one, two, three = devices.survey(tmp_path, "")
    assert one.port is not None and one.port.infiniband and one.port.lid == 0x1C
    assert two.port is None and two.reason == "the port is down; is the link up?"
    assert three.port is None and "no RoCE v2 address" in three.reason


def test_the_filter_names_devices_or_ports(tmp_path: Path) -> None:
    for name in ("mlx5_0", "mlx5_1", "mlx5_2"):
        roce(tmp_path, name, ("RoCE v2", V4))

    def used(wanted: str) -> list[str]:
        return [found.name for found in devices.survey(tmp_path, wanted) if found.port is not None]

    assert used("") == ["mlx5_0:1", "mlx5_1:1", "mlx5_2:1"]
    assert used("mlx5_1, mlx5_2:1") == ["mlx5_1:1", "mlx5_2:1"]
    assert used("none") == []
    with pytest.raises(StatusError) as raised:
        used("mlx5_7")
    assert raised.value.status is Status.INVALID and "mlx5_7" in str(raised.value.strerror)
    assert devices.survey(tmp_path / "nothing", "") == []


def port(name: str, address: str, infiniband: bool = False) -> Port:
    gid = socket.inet_pton(socket.AF_INET6, f"::ffff:{address}" if "." in address else address)
    return Port(name, 1, infiniband, gid, 0, 1)


def test_the_nearest_port_answers_and_equals_take_turns() -> None:
    own = [port("a", "10.1.0.7"), port("b", "10.2.0.7"), port("c", "10.2.0.8"), port("d", "fe80::9", infiniband=True)]
    asked = port("x", "10.2.0.1")
    names = [devices.partner(own, asked.gid, False, turn) for turn in range(8)]
    assert {found.device for found in names if found} == {"b", "c"}
    other_subnet = port("y", "fe80:1::2", infiniband=True)
    assert devices.partner(own, other_subnet.gid, True, 0) is None
    same_subnet = port("y", "fe80::77", infiniband=True)
    found = devices.partner(own, same_subnet.gid, True, 0)
    assert found is not None and found.device == "d"
    assert devices.partner([], asked.gid, False, 0) is None


# --- channels ------------------------------------------------------------------------------------------------------------------------


class Channel:
    """A completion channel as the kernel shows it: a descriptor of which only the name tells what it is."""

    folder: Path
    meanwhile: ClassVar[list[threading.Thread]] = []  # threads that want a channel, too, just when one is made

    def __init__(self, _context: Any) -> None:
        while Channel.meanwhile:
            other = Channel.meanwhile.pop()
            other.start()
            other.join(0.2)  # it gets on only if nothing keeps it from that
        self.descriptor = os.open(self.folder / "[infinibandevent]", os.O_RDONLY | os.O_CREAT)

    def close(self) -> None:
        os.close(self.descriptor)


def test_threads_that_make_channels_at_once_get_each_its_own(tmp_path: Path) -> None:
    """Who waited for news of another thread's channel would wait for ever: a server's reply would be there, and nobody woken."""
    Channel.folder = tmp_path
    verbs = SimpleNamespace(CompChannel=Channel)
    made: list[tuple[Any, int]] = []
    threads = [threading.Thread(target=lambda: made.append(make_channel(verbs, None))) for _ in range(4)]
    Channel.meanwhile = threads[1:]
    threads[0].start()
    for thread in threads:
        thread.join()
    assert [channel.descriptor for channel, _ in made] == [number for _, number in made]
    assert not any(os.get_blocking(number) for _, number in made)
    for channel, _ in made:
        close_channel(channel)


def test_a_channel_is_found_where_its_number_is_not_the_one_expected(tmp_path: Path) -> None:
    Channel.folder = tmp_path
    first, _ = make_channel(SimpleNamespace(CompChannel=Channel), None)

    class Second(Channel):
        """Another thread opens a file just before."""

        def __init__(self, context: Any) -> None:
            self.other = os.open("/dev/null", os.O_RDONLY)
            super().__init__(context)

        def close(self) -> None:
            super().close()
            os.close(self.other)

    second, number = make_channel(SimpleNamespace(CompChannel=Second), None)
    assert number == second.descriptor != first.descriptor
    for channel in (first, second):
        close_channel(channel)


# --- bulk ---------------------------------------------------------------------------------------------------------------------------


def test_windows_of_a_region_are_few_and_not_small() -> None:
    for size in (1, MIB, 16 * MIB, 16 * MIB + 1, 256 * MIB, 300 * MIB, 100 << 30):
        window = window_bytes(size)
        assert window >= WINDOW_BYTES_MIN and not window & (window - 1)
        assert -(-size // window) <= 16


class OwnDevice:
    """A device that has registered all that it is asked for."""

    name = "rxe0"

    def cover(self, region: Region, offset: int, length: int, access: int) -> Registration:
        made = Registration(region)
        made.local_keys = [100 + index for index in range(len(made.local_keys))]
        return made


class OwnEnd:
    device = OwnDevice()


def offered(identity: int, size: int, windows: int) -> rpc_pb2.RdmaRegion:
    return rpc_pb2.RdmaRegion(
        id=identity, address=1 << 40, length=size, window=16 * MIB, index=windows, key=7 + windows
    )


def test_bulk_becomes_work_requests_that_stay_within_windows_and_pieces() -> None:
    regions = RemoteRegions(OwnEnd())  # type: ignore[arg-type]
    for index in range(3):
        regions.offer(offered(5, 40 * MIB, index))
    region = regions.by_id[5]
    local = Region(memoryview(bytearray(40 * MIB)))
    pieces = [(region, 15 * MIB, 2 * MIB), (region, 0, 10), (region, 30 * MIB, 9 * MIB)]
    spans = [(MIB // 2, MIB), (2 * MIB + 4, MIB + 6)]
    moves = sinks._moves(OwnEnd(), pieces, spans, Slice(local, 15 * MIB, 12 * MIB))  # type: ignore[arg-type]
    assert sum(length for _, length, _, _, _ in moves) == sum(length for _, length in spans)
    base = region.address
    assert [(length, there - base, key) for _, length, _, there, key in moves] == [
        (MIB // 2, 15 * MIB + MIB // 2, 7),
        (MIB // 2, 16 * MIB, 8),
        (6, 4, 7),
        (MIB, 30 * MIB, 8),
    ]
    for here, length, key, _, _ in moves:
        first = here - Registration(local).address
        assert key == 100 + first // (16 * MIB) == 100 + (first + length - 1) // (16 * MIB)


def test_a_server_hears_of_as_many_regions_as_a_client_may_register() -> None:
    regions = RemoteRegions(OwnEnd())  # type: ignore[arg-type]
    for identity in range(1, REGISTRATIONS_MAX + 1):
        regions.offer(offered(identity, 4096, 0))
    with pytest.raises(StatusError) as raised:
        regions.offer(offered(REGISTRATIONS_MAX + 1, 4096, 0))
    assert raised.value.status is Status.PROTOCOL
    regions.withdraw(rpc_pb2.RdmaWithdraw(id=[1]))
    regions.offer(offered(REGISTRATIONS_MAX + 1, 4096, 0))


def test_what_a_client_never_offered_is_refused() -> None:
    regions = RemoteRegions(OwnEnd())  # type: ignore[arg-type]
    regions.offer(offered(5, 40 * MIB, 0))
    table = sinks.SLICE.pack
    local = Slice(Region(memoryview(bytearray(4096))), 0, 4096)
    for bad in (table(6, 0, 1), table(5, 40 * MIB - 1, 2)):
        with pytest.raises(StatusError) as raised:
            regions.resolve(bad)
        assert raised.value.status is Status.REGION_DEAD
    with pytest.raises(StatusError) as raised:  # its second window
        sinks._moves(OwnEnd(), regions.resolve(table(5, 20 * MIB, 4096)), [(0, 4096)], local)  # type: ignore[arg-type]
    assert raised.value.status is Status.REGION_DEAD
    regions.withdraw(rpc_pb2.RdmaWithdraw(id=[5]))
    with pytest.raises(StatusError):
        regions.resolve(table(5, 0, 1))
    for message in (
        rpc_pb2.RdmaRegion(id=1, address=0, length=4096, window=1),
        rpc_pb2.RdmaRegion(id=1, address=0, length=1 << 40, window=16 * MIB),  # a table of 65,536 windows
        rpc_pb2.RdmaRegion(id=1, address=(1 << 64) - 1, length=4096, window=16 * MIB),
        rpc_pb2.RdmaRegion(id=1, address=0, length=0, window=16 * MIB),
    ):
        with pytest.raises(StatusError) as raised:
            RemoteRegion(message)
        assert raised.value.status is Status.PROTOCOL
    with pytest.raises(StatusError) as raised:
        regions.offer(offered(7, 16 * MIB, 1))
    assert raised.value.status is Status.PROTOCOL


# --- the stream ---------------------------------------------------------------------------------------------------------------------


class End:
    """An endpoint in memory: credits, slots and completions as the device would have them; SENDs arrive when the other end looks."""

    receives, group, payload_max = 8, 4, 100

    def __init__(self) -> None:
        self.credits = Credits(self.receives, self.receives)
        self.other: End = self
        self.failed = ""
        self.arrived: deque[memoryview] = deque()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK)
        self.sends: list[int] = []  # sizes
        self._slot = bytearray(self.payload_max)
        self._wire: deque[tuple[int, bytes]] = deque()
        self._freed = 0

    pending = False

    @property
    def may_send(self) -> bool:
        return self.credits.may_send

    def slot(self) -> memoryview:
        return memoryview(self._slot)

    def send(self, length: int) -> None:
        self.sends.append(length)
        self.other._wire.append((self.credits.sent(), bytes(self._slot[:length])))
        os.eventfd_write(self.other.descriptor, 1)

    def post(self) -> None:
        """It has left already."""

    arm = post

    def poll(self) -> None:
        while self._wire:
            told, data = self._wire.popleft()
            self.credits.received(told)
            if data:
                self.arrived.append(memoryview(data))
            else:
                self._took()

    def take(self, buffer: memoryview) -> int:
        filled = 0
        while self.arrived and filled < len(buffer):
            part = self.arrived[0][: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            self.arrived[0] = self.arrived[0][len(part) :]
            if not self.arrived[0]:
                self.arrived.popleft()
                self._took()
        return filled

    def _took(self) -> None:
        self._freed += 1
        if self._freed == self.group:
            self._freed = 0
            self.credits.posted(self.group)

    def disarm(self) -> bool:
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return False
        return True

    def give_credits(self) -> None:
        if self.credits.update_due:
            self.send(0)

    def close(self) -> None:
        os.close(self.descriptor)


@contextmanager
def stream() -> Iterator[tuple[RdmaSocket, RdmaSocket, End, End]]:
    ends: list[Any] = [End(), End()]
    ends[0].other, ends[1].other = ends[1], ends[0]
    one, two = (RdmaSocket(end, sock) for end, sock in zip(ends, socket.socketpair(), strict=True))
    try:
        yield one, two, ends[0], ends[1]
    finally:
        one.close()
        two.close()


def readable(sock: RdmaSocket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_is_cut_into_sends_and_arrives_whole_both_ways(seed: int) -> None:
    chance = random.Random(seed)
    with stream() as (one, two, _, _):
        sides = [(one, two), (two, one)]
        data = [chance.randbytes(chance.randint(0, 12_000)) for _ in sides]
        sent, got = [0, 0], [bytearray(), bytearray()]
        for _ in range(60_000):
            way = chance.randrange(2)
            source, target = sides[way]
            if chance.random() < 0.5:
                pieces = [memoryview(data[way])[a:b] for a, b in pairwise(sorted(chance.choices(range(500), k=4)))]
                rest = [memoryview(data[way])[sent[way] : sent[way] + sum(map(len, pieces))]]
                try:
                    sent[way] += source.sendmsg(rest) if rest[0] else 0
                except BlockingIOError:
                    assert not source.endpoint.may_send
            elif readable(target):
                buffer = memoryview(bytearray(chance.choice([1, 50, 5000])))
                with suppress(BlockingIOError):  # only credits came
                    got[way] += buffer[: target.recv_into(buffer)]
            if sent == [len(d) for d in data] and [len(g) for g in got] == sent:
                break
        assert got == data, "in order, and nobody waits for ever"


def test_small_frames_share_a_send_and_what_is_left_is_told() -> None:
    with stream() as (one, two, end, _):
        assert one.sendmsg([b"a" * 30, b"b" * 30, b"c" * 30]) == 90
        assert end.sends == [90]
        assert one.send(memoryview(b"x" * 10_000)) == 600, "seven credits of which one is kept"
        with pytest.raises(BlockingIOError):
            one.send(b"more")
        buffer = memoryview(bytearray(64))
        assert two.recv_into(buffer) == 64
        assert readable(two), "the rest is here, and the descriptor says so"
        whole = memoryview(bytearray(2000))
        assert two.recv_into(whole) == 626
        assert not readable(two)
        one.endpoint.poll()
        assert one.send(b"more") == 4, "with the credits that came back"


def test_the_end_comes_after_all_that_was_sent() -> None:
    with stream() as (one, two, _, _):
        one.send(b"last")
        one.shutdown(socket.SHUT_WR)
        buffer = memoryview(bytearray(10))
        assert readable(two) and two.recv_into(buffer) == 4
        assert readable(two) and two.recv_into(buffer) == 0


# --- choices ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a device, as far as the choice can see."""
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(choice, "DEVICES", str(tmp_path))
    monkeypatch.delenv("EMBERFS_TRANSPORT", raising=False)
    monkeypatch.delenv("EMBERFS_RDMA_DEVICES", raising=False)
    return tmp_path


def test_rdma_is_tried_where_both_have_it_and_not_again_for_a_while(
    device: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choices = Choices()
    assert choices.tries("tcp:a:1", True, 0.0)
    assert not choices.tries("tcp:b:1", False, 0.0)
    assert choices.spoken["tcp:b:1"] == choice.Spoken("tcp", "the server does not offer it")
    assert not choices.tries("unix:/s", True, 0.0) and choices.spoken["unix:/s"].transport == "shm"
    for _ in range(2):
        choices.failed("tcp:a:1", "the peer does not answer", 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "tcp:a:1 is spoken to over tcp, not over RDMA: the peer does not answer"
    ], "one warning that names the reason"
    assert not choices.tries("tcp:a:1", True, RETRY_SECONDS - 1)
    assert choices.spoken["tcp:a:1"].reason == "the peer does not answer"
    assert choices.tries("tcp:a:1", True, RETRY_SECONDS)
    choices.upgraded("tcp:a:1", "mlx5_0:1")
    assert choices.moves("tcp:a:1") and not choices.moves("tcp:b:1")


def test_a_pinned_transport_is_kept_or_an_error(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERFS_TRANSPORT", "tcp")
    assert not Choices().tries("tcp:a:1", True, 0.0)
    monkeypatch.setenv("EMBERFS_TRANSPORT", "rdma")
    assert Choices().tries("tcp:a:1", True, 0.0)
    for refuse in (lambda: Choices().tries("tcp:a:1", False, 0.0), lambda: Choices().failed("tcp:a:1", "no QP", 0.0)):
        with pytest.raises(StatusError) as raised:
            refuse()
        assert raised.value.status is Status.UNAVAILABLE
    assert not Choices().tries("unix:/s", False, 0.0), "on one machine nothing changes"
    monkeypatch.setenv("EMBERFS_TRANSPORT", "carrier pigeon")
    with pytest.raises(StatusError) as raised:
        choice.offers_rdma()
    assert raised.value.status is Status.INVALID


def test_without_a_device_or_with_none_named_nothing_is_offered(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.offers_rdma()
    monkeypatch.setenv("EMBERFS_RDMA_DEVICES", "none")
    assert choice.why_not_here() == "EMBERFS_RDMA_DEVICES says none"
    monkeypatch.delenv("EMBERFS_RDMA_DEVICES")
    (device / "mlx5_0").rmdir()
    assert choice.why_not_here() == "this machine has no RDMA device"


def test_a_missing_pyverbs_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(StatusError) as raised:
        verbs.find([tmp_path])
    assert raised.value.status is Status.UNSUPPORTED and "python3-pyverbs" in str(raised.value.strerror)
    (tmp_path / "pyverbs").mkdir()
    (tmp_path / "pyverbs" / "device.cpython-39-x86_64-linux-gnu.so").touch()
    with pytest.raises(StatusError) as raised:
        verbs.find([tmp_path])
    assert "for another Python" in str(raised.value.strerror)
    (tmp_path / "pyverbs" / f"device{verbs._SUFFIX}").touch()
    assert verbs.find([tmp_path]) == tmp_path / "pyverbs"


def test_somebody_looks_again_once_a_minute_whether_rdma_works_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERFS_TRANSPORT", "auto")
    choices = Choices()
    assert not choices.look_again("tcp:a", 0.0), "never failed"
    choices.failed("tcp:a", "the link is down", 100.0)
    assert not choices.look_again("tcp:a", 100.0 + RETRY_SECONDS - 1)
    now = 100.0 + RETRY_SECONDS
    assert choices.look_again("tcp:a", now) and not choices.look_again("tcp:a", now), "one at a time"
    choices.looked("tcp:a", now)
    assert not choices.look_again("tcp:a", now + 1), "the server was not even reached"
    now += RETRY_SECONDS
    assert choices.look_again("tcp:a", now)
    choices.upgraded("tcp:a", "mlx5_0:1")
    choices.looked("tcp:a", now)
    assert not choices.look_again("tcp:a", now + 1e6)
