"""What open files cost in requests, counted; and what the mount does with handles that it never gave out."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from emberfs_mount import MountThread

from emberfs import connect
from emberfs.fuse.protocol import Opcode

from .attempts import holds

if TYPE_CHECKING:
    from emberfs_mount import MakeMount

    from emberfs.deploy.local import LocalCluster

MIB = 1 << 20
SECONDS_MAX = 60.0


class Counted:
    """A mount with a directory of its own, and how much was asked of it and of the metadata server since the last look."""

    def __init__(self, mount: MountThread, name: str) -> None:
        self.mount = mount
        self.place = mount.path / name
        self.place.mkdir()
        self._before: dict[int, int] = {}

    def changes(self) -> int:
        """Requests to the metadata server that change something."""
        return self._since(-1, self.mount.session.fs.core.cluster.requests.last)

    def requests(self, opcode: Opcode) -> int:
        """Requests of the kernel."""
        return self._since(opcode, self.mount.requests(opcode))

    def _since(self, key: int, count: int) -> int:
        before, self._before[key] = self._before.get(key, 0), count
        return count - before


@pytest.fixture
def counted(cluster: LocalCluster, make_mount: MakeMount, request: pytest.FixtureRequest) -> Counted:
    return Counted(make_mount(cluster.url), request.node.name)


def test_a_small_file_costs_two_changes_from_creation_to_close(counted: Counted) -> None:

    def costs_two(number: int) -> bool:
        counted.changes()
        fd = os.open(counted.place / f"file{number}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, bytes(4096))
        os.close(fd)
        closed = counted.changes()
        (counted.place / f"next{number}").mkdir()  # what nobody waited for has happened before this
        return (closed, counted.changes()) == (2, 1)

    assert holds(costs_two)


def test_a_file_that_is_written_stays_in_the_kernels_pages(counted: Counted) -> None:

    def stays(number: int) -> bool:
        path = counted.place / f"file{number}"
        path.write_bytes(os.urandom(3 * MIB))
        with path.open("r+b") as file:
            file.seek(MIB)
            file.write(b"again")
        content = path.read_bytes()
        assert content[MIB : MIB + 5] == b"again"
        assert path.read_bytes() == content
        return counted.requests(Opcode.READ) == 0

    assert holds(stays)


def test_a_file_that_was_read_is_not_read_again(counted: Counted) -> None:

    def stays(number: int) -> bool:
        path = counted.place / f"file{number}"
        path.write_bytes(os.urandom(MIB))
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        first = os.pread(fd, MIB, 0)
        os.close(fd)
        assert counted.requests(Opcode.READ) > 0
        assert path.read_bytes() == first
        return counted.requests(Opcode.READ) == 0

    assert holds(stays)


def test_what_others_changed_is_read_again(counted: Counted, cluster: LocalCluster) -> None:
    import emberfs

    path = counted.place / "file"
    path.write_bytes(b"old" * 5000)
    assert path.read_bytes() == b"old" * 5000
    with emberfs.connect(cluster.url) as client:
        client.write_bytes(f"/{path.relative_to(counted.mount.path)}", b"new" * 5000)
    assert path.read_bytes() == b"new" * 5000


def test_the_space_is_asked_for_once_a_second(counted: Counted) -> None:
    before = counted.mount.session.fs.statistics.inline
    for _ in range(100):
        os.statvfs(counted.place)
    assert counted.mount.session.fs.statistics.inline - before > 50


def test_many_short_writes_are_few_requests_to_storage(counted: Counted) -> None:

    def are_few(number: int) -> bool:
        path = counted.place / f"log{number}"
        counted.changes()
        with path.open("wb", buffering=0) as file:
            for i in range(500):
                file.write(b"%08d" % i)
        assert counted.requests(Opcode.WRITE) == 500
        assert path.stat().st_size == 4000
        return counted.changes() == 2

    assert holds(are_few)


def test_handles_of_a_daemon_before_this_one_go_on(counted: Counted) -> None:
    path = counted.place / "file"
    path.write_bytes(b"content" * 1000)
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)

    async def forget() -> None:
        handles = counted.mount.session.fs.handles
        for fh in list(handles):
            await handles.pop(fh).close()

    counted.mount.call(forget())
    os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(reader, 7000, 0) == b"content" * 1000
    os.pwrite(writer, b"CONTENT", 7)
    os.fsync(writer)
    os.close(writer)
    os.close(reader)
    assert path.read_bytes()[:21] == b"contentCONTENTcontent"


PAST_NS = 1_000_000_000 * 10**9 + 7  # in 2001


def test_times_owner_and_mode_as_tar_sets_them_go_with_the_close(cluster: LocalCluster, counted: Counted) -> None:
    """The last two change nothing but ctime. Everybody sees the same before the close and afterwards."""

    def costs_nothing(number: int) -> bool:
        path = counted.place / f"file{number}"
        fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
        until_leased(counted.mount, fd)
        os.write(fd, bytes(4096))
        before = os.fstat(fd)
        counted.changes()
        os.utime(fd, ns=(PAST_NS, PAST_NS + 1))
        os.fchown(fd, before.st_uid, before.st_gid)
        os.fchmod(fd, before.st_mode & 0o7777)
        until_then = counted.changes()
        told = os.fstat(fd)
        assert (told.st_size, told.st_atime_ns, told.st_mtime_ns) == (4096, PAST_NS, PAST_NS + 1)
        assert told.st_ctime_ns > before.st_ctime_ns
        os.close(fd)
        closed = counted.changes()
        with connect(cluster.url) as client:
            there = client.stat("/" + str(path.relative_to(counted.mount.path)))
        kept = os.stat(path)
        times = (there.size, there.atime_ns, there.mtime_ns, there.ctime_ns)
        assert times == (4096, PAST_NS, PAST_NS + 1, kept.st_ctime_ns)
        assert kept.st_ctime_ns >= told.st_ctime_ns
        return (until_then, closed) == (0, 1)

    assert holds(costs_nothing)


def test_a_write_after_times_were_set_moves_them(counted: Counted) -> None:
    path = counted.place / "file"
    with path.open("wb", buffering=0) as file:
        until_leased(counted.mount, file.fileno())
        file.write(b"one")
        os.utime(file.fileno(), ns=(PAST_NS, PAST_NS))
        file.write(b"two")
        written = os.fstat(file.fileno())
        assert written.st_mtime_ns > PAST_NS
        assert written.st_atime_ns == PAST_NS
    kept = os.stat(path)
    assert (kept.st_mtime_ns, kept.st_atime_ns) == (written.st_mtime_ns, PAST_NS)


def test_a_chown_that_changes_nothing_moves_only_ctime(counted: Counted) -> None:

    def costs_one(number: int) -> bool:
        path = counted.place / f"file{number}"
        path.write_bytes(b"here")
        before = os.stat(path)
        with path.open("r+b", buffering=0) as file:
            until_leased(counted.mount, file.fileno())
            counted.changes()
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
            until_then = counted.changes()
            assert os.fstat(file.fileno()).st_ctime_ns > before.st_ctime_ns
        after = os.stat(path)
        assert after.st_mtime_ns == before.st_mtime_ns
        assert after.st_ctime_ns > before.st_ctime_ns
        closed = counted.changes()
        assert path.read_bytes() == b"here"
        return (until_then, closed) == (0, 1)

    assert holds(costs_one)


def test_a_mode_that_is_another_one_is_there_at_once(cluster: LocalCluster, counted: Counted) -> None:
    path = counted.place / "file"
    with path.open("wb", buffering=0) as file, connect(cluster.url) as client:
        file.write(b"secret")
        os.fchmod(file.fileno(), 0o600)
        assert client.stat("/" + str(path.relative_to(counted.mount.path))).mode == 0o600


def until_leased(mount: MountThread, descriptor: int, mode: int = 0o644) -> None:
    """Ask for attributes until they come from a lease."""
    number = os.fstat(descriptor).st_ino

    async def owner() -> object:
        assert mount.session.fs.believed is not None
        return mount.session.fs.believed.plain_owner(number)

    deadline = time.monotonic() + SECONDS_MAX
    while mount.call(owner()) is None:
        assert time.monotonic() < deadline, "no lease was granted"
        os.fchmod(descriptor, mode)  # so that the kernel asks
        os.fstat(descriptor)


def test_a_mode_that_is_set_after_writing_takes_what_was_written_along(cluster: LocalCluster, counted: Counted) -> None:
    """As tar does it: made for its owner alone, written, given its times, owner and mode, closed."""

    def costs_one(length: int, number: int) -> bool:
        path, data = counted.place / f"file{length}-{number}", os.urandom(length)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        until_leased(counted.mount, fd, 0o600)
        os.write(fd, data)
        counted.changes()
        os.utime(fd, ns=(PAST_NS, PAST_NS + 1))
        os.fchown(fd, os.fstat(fd).st_uid, os.fstat(fd).st_gid)
        os.fchmod(fd, 0o664)
        os.close(fd)
        cost = counted.changes()
        with connect(cluster.url) as client:
            name = "/" + str(path.relative_to(counted.mount.path))
            there = client.stat(name)
            assert client.read_bytes(name) == data
        assert (there.size, there.mode) == (length, 0o664)
        if length:
            assert (there.atime_ns, there.mtime_ns) == (PAST_NS, PAST_NS + 1)
        kept = os.stat(path)
        assert (kept.st_size, kept.st_ctime_ns, kept.st_mode & 0o7777) == (length, there.ctime_ns, 0o664)
        assert path.read_bytes() == data
        return cost <= (1 if 0 < length <= 4096 else 2)

    for length in (0, 100, 4096, 300_000):
        assert holds(partial(costs_one, length))


def test_a_write_after_the_mode_was_set(counted: Counted) -> None:
    path = counted.place / "file"
    with path.open("w+b", buffering=0) as file:
        file.write(b"one")
        os.fchmod(file.fileno(), 0o640)
        file.write(b"two")
        os.fchmod(file.fileno(), 0o600)
        assert os.pread(file.fileno(), 10, 0) == b"onetwo"
    assert path.read_bytes() == b"onetwo"
    assert os.stat(path).st_mode & 0o7777 == 0o600
