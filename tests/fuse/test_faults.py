"""Under a mount: servers that die or hang, a cluster that is full, a mount that is taken away while it is used."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from emberfs_mount import can_mount

import emberfs
from emberfs.deploy import mounts
from emberfs.deploy.local import META, STORAGE
from emberfs.fuse import mounting
from emberfs.proto.errors import Status, StatusError

from .processes import details, mounted
from .users import errno_of

if TYPE_CHECKING:
    from emberfs_cluster import MakeCluster

    from emberfs.deploy.local import LocalCluster

PATIENCE = "timeout=250"  # seconds that operations wait for servers here: who waits no longer was let go
CAPACITY_SMALL = 64 << 20
PIECE = bytes(range(256)) * 4096  # 1 MiB

T = TypeVar("T")

pytestmark = pytest.mark.skipif(not can_mount(), reason="mounting needs root and /dev/fuse")


@pytest.fixture
def own(fresh_cluster: LocalCluster) -> Iterator[tuple[LocalCluster, Path]]:
    """A cluster whose servers may be killed, and a mount of it."""
    with mounted(fresh_cluster.url, PATIENCE) as path:
        yield fresh_cluster, path


def abandoned(path: Path) -> int:
    """How many operations were answered with EINTR while they went on."""
    return int((path / ".ember" / "stats").read_text().split("abandoned")[1].split()[0])


class Later(threading.Thread):
    """Something that waits; its outcome."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as failure:
            self.failure = failure

    def ended(self, seconds: float = 100.0) -> None:
        """It has worked."""
        self.join(seconds)
        assert not self.is_alive(), "it still waits"
        if self.failure is not None:
            raise self.failure


@contextlib.contextmanager
def stopped(cluster: LocalCluster, role: str) -> Iterator[None]:
    """A server that does not answer, and has not gone."""
    pid = cluster.servers[role].pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def drop_pages(path: Path) -> None:
    """The kernel's cache of a file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- servers ----------------------------------------------------------------------------------------------------------------------


WAITS = """
import os, sys, threading
place = sys.argv[1]
piece = bytes(range(256)) * 4096

def read():
    with open(f"{place}/before", "rb") as file:
        assert file.read() == piece * 8

def write():
    with open(f"{place}/during", "wb") as file:
        file.write(piece * 3)

opened = open(f"{place}/open", "wb", buffering=0)
opened.write(piece)
print("ready", flush=True)
sys.stdin.readline()
failures = []
threading.excepthook = lambda found: failures.append(found.exc_value)
threads = [threading.Thread(target=work) for work in (read, write, lambda: os.fsync(opened.fileno()), lambda: os.mkdir(f"{place}/made"))]
for thread in threads:
    thread.start()
print("begun", flush=True)
for thread in threads:
    thread.join()
opened.close()
print(failures, flush=True)
"""


@pytest.mark.parametrize("role", [STORAGE, META])
def test_operations_wait_for_a_server_that_was_killed(own: tuple[LocalCluster, Path], role: str) -> None:
    """In a process of their own: one that has a file open flushes it in each child that it makes, and servers are children here."""
    cluster, path = own
    (path / "before").write_bytes(PIECE * 8)
    drop_pages(path / "before")
    command = [sys.executable, "-P", "-c", WAITS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None and program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        cluster.kill(role)
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "begun\n"
        assert not select.select([program.stdout], [], [], 0.5)[0], "it waits"
        cluster.start()
        assert program.stdout.readline() == "[]\n"
    assert (path / "during").read_bytes() == PIECE * 3 and (path / "open").read_bytes() == PIECE
    assert (path / "made").is_dir()


def test_a_program_that_waits_can_be_interrupted(own: tuple[LocalCluster, Path]) -> None:
    """Ctrl-C: a read whose storage server does not answer is cancelled, other operations go on without who asked for them."""
    cluster, path = own
    (path / "file").write_bytes(PIECE * 4)
    (path / "directory").mkdir()
    drop_pages(path / "file")
    for role, command, left_behind in (
        (STORAGE, ["cat", str(path / "file")], 0),
        (META, ["mkdir", str(path / "directory" / "made")], 1),
    ):
        before = abandoned(path)
        with stopped(cluster, role), subprocess.Popen(command, stdout=subprocess.DEVNULL) as program:
            wait_until_blocked(program.pid)
            program.send_signal(signal.SIGINT)
            assert program.wait(100) == -signal.SIGINT
            assert role == META or (path / ".ember" / "stats").read_bytes(), "the mount itself answers"
        assert abandoned(path) <= before + left_behind  # none of what the mount had not read yet
    assert (path / "file").read_bytes() == PIECE * 4


READS_DIRECTLY = """
import mmap, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
print("ready", flush=True)
os.preadv(fd, [mmap.mmap(-1, 4 << 20)], 0)
"""


def test_a_direct_read_that_waits_can_be_killed(own: tuple[LocalCluster, Path]) -> None:
    """The kernel sends no INTERRUPT for these: the mount sees to it."""
    cluster, path = own
    (path / "file").write_bytes(PIECE * 4)
    command = [sys.executable, "-P", "-c", READS_DIRECTLY, str(path / "file")]
    with stopped(cluster, STORAGE), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        wait_until_blocked(program.pid)
        program.send_signal(signal.SIGINT)
        assert program.wait(100) == -signal.SIGINT
        assert abandoned(path) == 0


def wait_until_blocked(pid: int) -> None:
    """In a request to the mount, or for a page that one brings."""
    deadline = time.monotonic() + 60
    while not any(word in Path(f"/proc/{pid}/wchan").read_text() for word in ("request_wait", "folio", "fuse")):
        assert time.monotonic() < deadline, Path(f"/proc/{pid}/wchan").read_text()
        os.sched_yield()


def test_a_server_that_hangs_does_not_hang_programs_for_ever(fresh_cluster: LocalCluster) -> None:
    with mounted(fresh_cluster.url, "timeout=2") as path:
        patiently(lambda: (path / "file").write_bytes(PIECE))
        patiently(lambda: drop_pages(path / "file"))
        with stopped(fresh_cluster, STORAGE):
            begin = time.monotonic()
            assert errno_of((path / "file").read_bytes) in (errno.ETIMEDOUT, errno.EIO)
            assert time.monotonic() - begin < 30
            assert patiently(lambda: os.listdir(path)) == ["file"]
        with stopped(fresh_cluster, META):
            assert errno_of((path / "directory").mkdir) in (errno.ETIMEDOUT, errno.EIO)
        assert patiently((path / "file").read_bytes) == PIECE
        patiently(lambda: (path / "other").write_bytes(PIECE))


def patiently(work: Callable[[], T]) -> T:
    """Again and again: two seconds are little on a machine that stops for a moment."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return work()
        except OSError as failure:
            assert failure.errno in (errno.ETIMEDOUT, errno.EIO) and time.monotonic() < deadline, failure


def test_a_mount_that_does_not_answer_can_be_taken_away(fresh_cluster: LocalCluster) -> None:
    with mounted(fresh_cluster.url) as path:
        (path / "file").write_bytes(PIECE)
        drop_pages(path / "file")
        with stopped(fresh_cluster, STORAGE), stopped(fresh_cluster, META):
            waiting = Later((path / "file").read_bytes)
            mounts.stop(str(path), lazy=True, force=True)
            waiting.join(100)
            assert isinstance(waiting.failure, OSError)
            assert mounting.find(str(path)) is None


# --- space ------------------------------------------------------------------------------------------------------------------------


def test_a_full_cluster(make_cluster: MakeCluster) -> None:
    """Somebody who wrote hears of it: at write, fsync or close, and what could be kept is kept."""
    cluster = make_cluster(capacity=CAPACITY_SMALL)
    with mounted(cluster.url) as path:
        (path / "kept").write_bytes(PIECE)

        def fill() -> None:
            with open(path / "filling", "wb", buffering=0) as file:
                for _ in range(2 * CAPACITY_SMALL // len(PIECE)):
                    file.write(PIECE)
                os.fsync(file.fileno())

        assert errno_of(fill) == errno.ENOSPC
        assert (path / "kept").read_bytes() == PIECE
        fd = os.open(path / "more", os.O_CREAT | os.O_WRONLY)

        def write_and_close() -> None:
            for _ in range(8):
                os.write(fd, PIECE)
            os.close(fd)

        assert errno_of(write_and_close) == errno.ENOSPC
        (path / "filling").unlink()
        (path / "more").unlink()
        (path / "a directory").mkdir()
        deadline = time.monotonic() + 60  # removed files are freed in the background
        while True:
            try:
                with open(path / "again", "wb", buffering=0) as file:
                    file.write(PIECE * 4)
                    os.fsync(file.fileno())
                break
            except OSError as failure:
                assert failure.errno == errno.ENOSPC and time.monotonic() < deadline
        assert (path / "again").read_bytes() == PIECE * 4


# --- taken away -------------------------------------------------------------------------------------------------------------------


def test_a_busy_mount_stays_and_says_who_uses_it(cluster: LocalCluster) -> None:
    with mounted(cluster.url) as path:
        with subprocess.Popen(["sleep", "600"], cwd=path) as user:
            with pytest.raises(StatusError, match=f"sleep {user.pid}") as refused:
                mounts.stop(str(path))
            assert refused.value.status is Status.BUSY_RESOURCE and "--lazy" in str(refused.value.strerror)
            (path / "still").write_bytes(b"there")
            user.kill()
        mounts.stop(str(path))
        assert mounting.find(str(path)) is None and os.listdir(path) == []


def test_a_lazy_unmount_lets_users_finish(cluster: LocalCluster) -> None:
    with mounted(cluster.url) as path:
        pidfd = os.pidfd_open(details(path)["pid"])
        with open(path / "lazy", "w+b", buffering=0) as file:
            file.write(b"before")
            mounts.stop(str(path), lazy=True)
            assert os.listdir(path) == []
            file.write(b" and after")
            os.fsync(file.fileno())
            assert os.pread(file.fileno(), 100, 0) == b"before and after"
        assert select.select([pidfd], [], [], 100)[0], "the last user has gone"
        os.close(pidfd)
    with emberfs.connect(cluster.url) as client:
        assert client.read_bytes("/lazy") == b"before and after"


def test_the_end_of_a_busy_mount_flushes_everything(cluster: LocalCluster) -> None:
    """SIGTERM, at a shutdown: who has files open loses the files, not what was written."""
    with mounted(cluster.url) as path:
        with open(path / "ended", "wb", buffering=0) as file:
            file.write(PIECE * 5)
            assert mounts.end(str(path))
            assert errno_of(lambda: file.write(b"more")) in (errno.ENOTCONN, errno.ECONNABORTED)
            with contextlib.suppress(OSError):
                file.close()
        assert mounting.find(str(path)) is None
    with emberfs.connect(cluster.url) as client:
        assert client.read_bytes("/ended") == PIECE * 5


def test_mapped_pages_are_written_back_by_the_unmount(cluster: LocalCluster) -> None:
    program = """
import mmap, sys
with open(sys.argv[1], "w+b") as file:
    file.truncate(100_000)
    pages = mmap.mmap(file.fileno(), 100_000)
    pages[:] = b"m" * 100_000
"""
    with mounted(cluster.url) as path:
        subprocess.run([sys.executable, "-P", "-c", program, str(path / "mapped")], check=True)
        mounts.stop(str(path))
    with emberfs.connect(cluster.url) as client:
        assert client.read_bytes("/mapped") == b"m" * 100_000
