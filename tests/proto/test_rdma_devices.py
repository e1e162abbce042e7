"""Which devices the rdma transport finds and takes, through which channels, and when there is a fall-back; from trees of files
as the kernel shows them. What needs a device is in test_transports.py and tests/rdma."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.transport import choice
from emberfs.proto.transport.choice import RETRY_SECONDS, Choices
from emberfs.proto.transport.rdma import devices, verbs
from emberfs.proto.transport.rdma.channel import close_channel, make_channel
from emberfs.proto.transport.rdma.devices import Port

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
