"""What open files cost in requests, counted; and what the mount does with handles that it never gave out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from emberfs_mount import MountThread

from emberfs.fuse.protocol import Opcode

if TYPE_CHECKING:
    from emberfs_mount import MakeMount

    from emberfs.deploy.local import LocalCluster

MIB = 1 << 20


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
    counted.changes()
    for i in range(5):
        fd = os.open(counted.place / f"file{i}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, bytes(4096))
        os.close(fd)
        assert counted.changes() == 2
    (counted.place / "next").mkdir()  # what nobody waited for has happened before this
    assert counted.changes() == 1


def test_a_file_that_is_written_stays_in_the_kernels_pages(counted: Counted) -> None:
    path = counted.place / "file"
    path.write_bytes(os.urandom(3 * MIB))
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(b"again")
    content = path.read_bytes()
    assert content[MIB : MIB + 5] == b"again"
    assert path.read_bytes() == content
    assert counted.requests(Opcode.READ) == 0


def test_a_file_that_was_read_is_not_read_again(counted: Counted) -> None:
    path = counted.place / "file"
    path.write_bytes(os.urandom(MIB))
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    first = os.pread(fd, MIB, 0)
    os.close(fd)
    assert counted.requests(Opcode.READ) > 0
    assert path.read_bytes() == first
    assert counted.requests(Opcode.READ) == 0


def test_what_others_changed_is_read_again(counted: Counted, cluster: LocalCluster) -> None:
    import emberfs

    path = counted.place / "file"
    path.write_bytes(b"old" * 5000)
    assert path.read_bytes() == b"old" * 5000
    with emberfs.connect(cluster.url) as client:
        client.write_bytes(f"/{path.relative_to(counted.mount.path)}", b"new" * 5000)
    assert path.read_bytes() == b"new" * 5000


def test_many_short_writes_are_few_requests_to_storage(counted: Counted) -> None:
    path = counted.place / "log"
    counted.changes()
    with path.open("wb", buffering=0) as file:
        for i in range(500):
            file.write(b"%08d" % i)
    assert counted.requests(Opcode.WRITE) == 500
    assert counted.changes() == 2
    assert path.stat().st_size == 4000


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
