"""Names and attributes that a mount answers without asking, and how soon it hears of others."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from emberfs.client.core.leases import VALID_SECONDS
from emberfs.fuse.protocol import Opcode
from emberfs.fuse.structs import ENTRY_OUT

from .attempts import holds
from .users import ALICE, acting, errno_of

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

    from ..plugin.emberfs_mount import MakeMount, MountThread

UNCACHED = {"attr_timeout": 0.0, "entry_timeout": 0.0}  # the kernel asks every time
PUSHED_SECONDS_MAX = 60.0  # of a busy machine; the kernels below would believe for an hour


def believing(mount: MountThread) -> MountThread:
    """A mount that holds leases."""
    assert eventually(lambda: mount.call(_remaining(mount)) > 0)
    return mount


async def _remaining(mount: MountThread) -> float:
    leases = mount.session.fs.core.cluster.leases
    assert leases is not None
    leases.asked()
    return leases.remaining()


def eventually(true: Callable[[], bool], seconds: float = PUSHED_SECONDS_MAX) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= until:
            return False
    return True


@pytest.fixture
def pair(cluster: LocalCluster, make_mount: MakeMount) -> tuple[Path, Path]:
    """One directory through two mounts whose kernels would believe for an hour."""
    one, two = (
        believing(make_mount(cluster.url, attr_timeout=3600.0, entry_timeout=3600.0, negative_timeout=3600.0))
        for _ in range(2)
    )
    name = f"pair-{os.getpid()}-{id(one)}"
    (one.path / name).mkdir()
    return one.path / name, two.path / name


def requests(mount: MountThread, asked: Callable[[], object]) -> int:
    """How many requests the metadata server has had of a mount meanwhile."""
    env: Any = mount.session.fs.core.env

    async def count() -> int:
        return sum(connection._number for connection in env._connections.values())

    before = mount.call(count())
    asked()
    return int(mount.call(count())) - before


def test_what_is_known_is_answered_without_a_question(cluster: LocalCluster, make_mount: MakeMount) -> None:
    mount = believing(make_mount(cluster.url, **UNCACHED))
    path = mount.path / f"f-{os.getpid()}"
    path.touch()
    os.stat(path)
    answered = mount.requests(Opcode.LOOKUP) + mount.requests(Opcode.GETATTR)
    # But those that keep the leases.
    assert holds(lambda _: requests(mount, lambda: [os.stat(path) for _ in range(200)]) < 50)
    assert mount.requests(Opcode.LOOKUP) + mount.requests(Opcode.GETATTR) >= answered + 200
    missing = mount.path / "missing"
    assert not missing.exists()
    assert holds(lambda _: requests(mount, lambda: [missing.exists() for _ in range(200)]) < 50)


def test_a_strict_mount_asks_every_time(cluster: LocalCluster, make_mount: MakeMount) -> None:
    mount = make_mount(cluster.url, strict=True, **UNCACHED)
    path = mount.path / f"strict-{os.getpid()}"
    path.touch()
    assert requests(mount, lambda: [os.stat(path) for _ in range(100)]) >= 100


def test_a_listing_answers_for_all_that_it_has_shown(cluster: LocalCluster, make_mount: MakeMount) -> None:
    mount = believing(make_mount(cluster.url, **UNCACHED))
    other = make_mount(cluster.url)
    name = f"listed-{os.getpid()}"
    (other.path / name).mkdir()
    for i in range(100):
        (other.path / name / f"{i}").touch()

    def answers(_: int) -> bool:
        with os.scandir(mount.path / name) as entries:
            paths = [entry.path for entry in entries]
        for entry in paths:
            os.stat(entry)
        return requests(mount, lambda: [os.stat(entry) for entry in paths]) < 50

    assert holds(answers)


def test_the_kernel_believes_a_listing_no_longer_than_its_lease(cluster: LocalCluster, make_mount: MakeMount) -> None:
    mount = believing(make_mount(cluster.url, attr_timeout=3600.0, entry_timeout=3600.0))
    (mount.path / "listed-name").touch()

    async def listed() -> bytes | None:
        fs = mount.session.fs
        assert fs.believed is not None
        began = fs.believed.asked()
        return fs.believed.listed(began, fs.root, b"listed-name", await fs.core.stat("/listed-name"))

    assert eventually(lambda: mount.call(listed()) is not None)
    found = mount.call(listed())
    assert found is None or all(seconds < 1 for seconds in ENTRY_OUT.unpack_from(found)[2:4])


def test_others_see_changes_long_before_the_kernel_would_ask(pair: tuple[Path, Path]) -> None:
    here, there = pair
    file = here / "f"
    file.write_bytes(b"one")
    assert (there / "f").read_bytes() == b"one"
    assert not (there / "g").exists()
    os.chmod(file, 0o600)
    assert eventually(lambda: os.stat(there / "f").st_mode & 0o777 == 0o600)
    file.write_bytes(b"longer")
    assert eventually(lambda: os.stat(there / "f").st_size == 6)
    assert (there / "f").read_bytes() == b"longer"
    os.link(file, here / "g")
    assert eventually((there / "g").exists)
    assert eventually(lambda: os.stat(there / "f").st_nlink == 2)
    os.rename(file, here / "h")
    assert eventually(lambda: not (there / "f").exists())
    os.unlink(here / "g")
    assert eventually(lambda: not (there / "g").exists())
    (here / "d").mkdir()
    assert eventually((there / "d").is_dir)
    assert eventually(lambda: os.stat(there).st_nlink == 3)
    os.rmdir(here / "d")
    assert eventually(lambda: not (there / "d").exists())


def test_whoever_has_a_file_open_reads_what_another_mount_appends(pair: tuple[Path, Path]) -> None:
    here, there = pair
    (here / "log").write_bytes(b"a" * 100)
    with (there / "log").open("rb") as reader:
        assert reader.read() == b"a" * 100
        with (here / "log").open("ab") as writer:
            writer.write(b"b" * 100)
        assert eventually(lambda: os.fstat(reader.fileno()).st_size == 200)
        reader.seek(0)
        assert reader.read() in (b"a" * 100, b"a" * 100 + b"b" * 100)  # never zeros
    assert (there / "log").read_bytes() == b"a" * 100 + b"b" * 100


def test_a_name_that_is_known_here_is_no_business_of_who_may_not_search(
    cluster: LocalCluster, make_mount: MakeMount
) -> None:
    mount = believing(make_mount(cluster.url, **UNCACHED))
    directory = mount.path / f"closed-{os.getpid()}"
    directory.mkdir(mode=0o755)
    (directory / "f").touch()
    os.stat(directory / "f")
    assert acting(ALICE, (directory / "f").exists)
    other = make_mount(cluster.url).path / directory.name
    os.chmod(other, 0o700)
    assert eventually(lambda: os.stat(directory).st_mode & 0o777 == 0o700)
    assert errno_of(lambda: acting(ALICE, lambda: os.stat(directory / "f"))) == 13
    assert os.stat(directory / "f").st_size == 0  # root may


def test_bytes_that_are_not_settled_count(cluster: LocalCluster, make_mount: MakeMount) -> None:
    mount = believing(make_mount(cluster.url, **UNCACHED))
    path = mount.path / f"dirty-{os.getpid()}"
    with path.open("wb", buffering=0) as file:
        os.stat(path)
        file.write(b"x" * 5000)
        assert os.stat(path).st_size == 5000
        written_ns = os.stat(path).st_mtime_ns
    assert os.stat(path).st_size == 5000
    assert os.stat(path).st_mtime_ns == written_ns


def test_nothing_is_answered_for_longer_than_a_second_without_the_server(
    fresh_cluster: LocalCluster, make_mount: MakeMount
) -> None:
    mount = believing(make_mount(fresh_cluster.url, **UNCACHED))
    path = mount.path / "f"
    path.touch()
    os.stat(path)
    pid = fresh_cluster.servers["meta"].pid()
    answered: list[float] = []  # when an answer was asked for that came
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            asked = time.monotonic()
            os.stat(path)
            answered.append(asked)

    asker = threading.Thread(target=ask)
    asker.start()
    assert eventually(lambda: bool(answered))
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        assert eventually(lambda: time.monotonic() > max(stopped, answered[-1]) + VALID_SECONDS)
        assert answered[-1] < stopped + VALID_SECONDS + 0.1
    finally:
        ended.set()
        os.kill(pid, signal.SIGCONT)
        asker.join(30)
    assert not asker.is_alive()
