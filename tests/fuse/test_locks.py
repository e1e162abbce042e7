"""Locks between processes of one mount, and between mounts."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emberfs import connect
from emberfs.client.core.kept import give_all_back
from emberfs.fuse.operation import Operation
from emberfs.fuse.operations.locks import setlkw
from emberfs.fuse.protocol import Opcode
from emberfs.fuse.session import Request
from emberfs.fuse.structs import LK_IN

from .attempts import holds
from .processes import mounted
from .users import errno_of

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

    from ..plugin.emberfs_mount import MakeMount, MountThread

SECONDS_MAX = 200.0
COUNTS = 25  # of each process that counts


@pytest.fixture(scope="module")
def two(cluster: LocalCluster) -> Iterator[tuple[Path, Path]]:
    """The same directory of one cluster, on two mounts."""
    if os.geteuid():
        pytest.skip("only root mounts without fusermount3")
    with mounted(cluster.url) as first, mounted(cluster.url) as second:
        name = f"locks-{time.monotonic_ns()}"  # a worker that takes over tests of others makes this once more, in the same cluster
        (first / name).mkdir()
        yield first / name, second / name


@pytest.fixture(params=["one mount", "two mounts"])
def pair(request: pytest.FixtureRequest, two: tuple[Path, Path]) -> tuple[Path, Path]:
    """A new file, as two processes see it."""
    name = f"file-{time.monotonic_ns()}"
    (two[0] / name).write_bytes(b"")
    return two[0] / name, two[1 if request.param == "two mounts" else 0] / name


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs this. It says "ready" when it is, and goes on when it reads a line."""
    head = "import fcntl, os, sys\ndef ready():\n    print('ready', flush=True)\n    sys.stdin.readline()\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=SECONDS_MAX)
    return out


HOLD = """
fd = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[2] == "flock": fcntl.flock(fd, fcntl.LOCK_EX)
else: fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)
ready()
if sys.argv[3] == "close": os.close(os.dup(fd)) if sys.argv[2] == "fcntl" else os.close(fd)
elif sys.argv[3] == "unlock": fcntl.flock(fd, fcntl.LOCK_UN) if sys.argv[2] == "flock" else fcntl.lockf(fd, fcntl.LOCK_UN)
ready()
"""


@pytest.mark.parametrize("kind", ["fcntl", "flock"])
@pytest.mark.parametrize("way", ["unlock", "close", "kill"])
def test_a_lock_keeps_others_out_until_it_goes(pair: tuple[Path, Path], kind: str, way: str) -> None:
    holder = child(HOLD, pair[0], kind, way)
    until_ready(holder)
    fd = os.open(pair[1], os.O_RDWR)

    def take(flags: int) -> None:
        fcntl.flock(fd, flags) if kind == "flock" else fcntl.lockf(fd, flags, 1, 7)

    assert errno_of(lambda: take(fcntl.LOCK_EX | fcntl.LOCK_NB)) == errno.EAGAIN
    assert errno_of(lambda: take(fcntl.LOCK_SH | fcntl.LOCK_NB)) == errno.EAGAIN
    if kind == "fcntl":
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)  # elsewhere in the file it is free
        wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        type_, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, wanted))
        assert (type_, start, length) == (fcntl.F_WRLCK, 5, 10)
        if pair[0].parent == pair[1].parent:
            assert pid == holder.pid
    if way == "kill":
        holder.send_signal(signal.SIGKILL)
    else:
        go_on(holder)
    take(fcntl.LOCK_EX)  # waits
    os.close(fd)
    if way != "kill":
        until_ready(holder)
        go_on(holder)
    end(holder)


COUNT = """
for _ in range(int(sys.argv[3])):
    fd = os.open(sys.argv[1], os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX) if sys.argv[2] == "flock" else fcntl.lockf(fd, fcntl.LOCK_EX)
    number = int(os.pread(fd, 100, 0) or b"0")
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d" % (number + 1), 0)
    if number % 2: fcntl.flock(fd, fcntl.LOCK_UN) if sys.argv[2] == "flock" else fcntl.lockf(fd, fcntl.LOCK_UN)
    os.close(fd)
"""


@pytest.mark.parametrize("kind", ["fcntl", "flock"])
def test_counting_under_a_lock_loses_nothing(pair: tuple[Path, Path], kind: str) -> None:
    counters = [child(COUNT, pair[i % 2], kind, COUNTS) for i in range(4)]
    for counter in counters:
        end(counter)
        assert counter.returncode == 0
    assert pair[0].read_bytes() == b"%d" % (4 * COUNTS)


KEEP_OPEN = """
fd = os.open(sys.argv[1], os.O_RDWR)
for _ in range(int(sys.argv[2])):
    fcntl.lockf(fd, fcntl.LOCK_EX)
    number = int(os.pread(fd, 100, 0) or b"0")
    os.pwrite(fd, b"%-8d" % (number + 1), 0)
    fcntl.lockf(fd, fcntl.LOCK_UN)
"""


def test_a_lock_shows_what_was_written_before_although_the_file_stayed_open(pair: tuple[Path, Path]) -> None:
    """Like two sqlite writers: nobody opens the file again, and its pages are cached."""
    counters = [child(KEEP_OPEN, pair[i % 2], COUNTS) for i in range(2)]
    for counter in counters:
        end(counter)
        assert counter.returncode == 0
    assert int(pair[0].read_bytes()) == 2 * COUNTS


DEADLOCK = """
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX, 1, int(sys.argv[2]))
ready()
try:
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1 - int(sys.argv[2]))
    print("got it")
except OSError as failure:
    print(failure.errno)
"""


def test_a_deadlock_is_told_to_one_of_the_two(pair: tuple[Path, Path]) -> None:
    both = [child(DEADLOCK, pair[i], i) for i in range(2)]
    for process in both:
        until_ready(process)
    for process in both:
        go_on(process)
    assert sorted(end(process) for process in both) == sorted([f"{errno.EDEADLK}\n", "got it\n"])


WAIT = """
import signal
import sqlite3
class Enough(Exception): pass
def stop(number, frame): raise Enough
signal.signal(signal.SIGUSR1, stop)
fd = os.open(sys.argv[1], os.O_RDWR)
print('ready', flush=True)
try:
    fcntl.flock(fd, fcntl.LOCK_EX) if sys.argv[2] == "flock" else fcntl.lockf(fd, fcntl.LOCK_EX)
except Enough:
    print("interrupted", flush=True)
sys.stdin.readline()
"""


def abandoned(path: Path) -> int:
    """How many operations of this file's mount were answered with EINTR while they went on."""
    return int((path.parent.parent / ".ember" / "stats").read_text().split("abandoned")[1].split()[0])


@pytest.mark.parametrize("kind", ["fcntl", "flock"])
def test_a_wait_that_is_interrupted_leaves_no_lock(pair: tuple[Path, Path], kind: str) -> None:
    fd = os.open(pair[0], os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX) if kind == "flock" else fcntl.lockf(fd, fcntl.LOCK_EX)
    waiting = child(WAIT, pair[1], kind)
    until_ready(waiting)
    deadline = time.monotonic() + SECONDS_MAX
    while "fuse" not in Path(f"/proc/{waiting.pid}/stack").read_text():  # until it waits in the kernel
        assert time.monotonic() < deadline
        os.sched_yield()
    before = abandoned(pair[1])
    waiting.send_signal(signal.SIGUSR1)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "interrupted\n"
    assert abandoned(pair[1]) == before, "it ended at once: it has not been left behind"
    os.close(fd)
    fd = os.open(pair[0], os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB) if kind == "flock" else fcntl.lockf(
        fd, fcntl.LOCK_EX | fcntl.LOCK_NB
    )
    os.close(fd)
    go_on(waiting)
    end(waiting)


APPEND = """
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for i in range(int(sys.argv[3])):
    os.write(fd, (b"%s %d " % (sys.argv[2].encode(), i)).ljust(49, b".") + b"\\n")
"""


def test_appenders_on_two_mounts_lose_and_mix_nothing(two: tuple[Path, Path]) -> None:
    (two[0] / "log").write_bytes(b"")
    writers = [child(APPEND, two[i % 2] / "log", i, 40) for i in range(4)]
    for writer in writers:
        end(writer)
        assert writer.returncode == 0
    for path in two:
        lines = (path / "log").read_bytes().splitlines()
        assert all(len(line) == 49 for line in lines)
        found = sorted(tuple(map(int, line.split()[:2])) for line in lines)
        assert found == [(writer, i) for writer in range(4) for i in range(40)]


def test_a_signal_after_a_lock_was_granted_comes_too_late(cluster: LocalCluster, make_mount: MakeMount) -> None:
    """EINTR would say that there is no lock, while the owner keeps others out."""
    mount = make_mount(cluster.url)
    fs = mount.session.fs
    with open(mount.path / "file", "w+b"):
        [fh] = fs.handles

        async def lock() -> object:
            loop = asyncio.get_running_loop()
            ended, revalidate = loop.create_future(), fs.revalidate

            async def interrupted(inode: int, change: int) -> bool:
                loop.call_soon(operation.cancel)
                return await revalidate(inode, change)

            fs.nodes.unknown(fs.handles[fh].file.id)
            fs.revalidate = interrupted
            body = LK_IN.pack(fh, 77, 0, 9, fcntl.F_WRLCK, os.getpid(), 0)
            request = Request(Opcode.SETLKW, 1, fs.handles[fh].file.id, 0, 0, os.getpid(), body)
            operation = Operation(loop, request, setlkw(fs, request), ended.set_result)
            loop.call_soon(operation.step)
            await ended
            return operation.failure

        failure = mount.call(lock())
        assert failure is None and next(iter(fs.handles.values())).file.locks


def test_a_lock_that_is_taken_again_asks_nobody_until_others_want_it(
    cluster: LocalCluster, make_mount: MakeMount
) -> None:
    first, second = make_mount(cluster.url), make_mount(cluster.url)
    here = first.path / "kept"
    here.write_bytes(b"before")
    one, other = os.open(here, os.O_RDWR), os.open(second.path / "kept", os.O_RDWR)
    requests = first.session.fs.core.cluster.requests
    try:

        def asks_nobody(_: int) -> bool:
            until_kept(first, one)
            before = requests.last
            for _ in range(10):
                fcntl.lockf(one, fcntl.LOCK_SH, 5, 5)
                fcntl.lockf(one, fcntl.LOCK_EX, 10)
                os.pwrite(one, b"behind", 0)
                fcntl.lockf(one, fcntl.LOCK_UN)
            return requests.last == before

        assert holds(asks_nobody)
        soon(lambda: fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 3, 2))
        assert os.pread(other, 10, 0) == b"behind"
        assert errno_of(lambda: fcntl.lockf(one, fcntl.LOCK_SH | fcntl.LOCK_NB)) == errno.EAGAIN
        os.pwrite(other, b"others", 0)
        soon(lambda: fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB, 3, 5))  # beside it
        fcntl.lockf(other, fcntl.LOCK_UN)
        soon(lambda: fcntl.lockf(one, fcntl.LOCK_SH | fcntl.LOCK_NB))
        assert os.pread(one, 10, 0) == b"others"
    finally:
        os.close(one)
        os.close(other)


def soon(take: Callable[[], object]) -> None:
    """At once, unless who keeps it is so late to say that he does not need it that the server takes it for needed."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        try:
            take()
            return
        except BlockingIOError:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("end", ["close", "leases"])
def test_what_is_kept_goes_with_the_file_and_with_the_leases(
    cluster: LocalCluster, make_mount: MakeMount, end: str
) -> None:
    mount = make_mount(cluster.url)
    (mount.path / end).write_bytes(b"before")
    fd = os.open(mount.path / end, os.O_RDWR)
    until_kept(mount, fd)
    with connect(cluster.url) as client, client.open(f"/{end}", "rb+") as file:
        core = mount.session.fs.core
        number = os.fstat(fd).st_ino
        assert core.inodes[number].granted
        if end == "close":
            os.close(fd)
        else:
            mount.call(give_all_back(core))
        file.lock(blocking=False)  # the server has nothing of it any more: it would have asked
        if end == "leases":
            assert not core.inodes[number].granted
            os.close(fd)


def until_kept(mount: MountThread, fd: int) -> None:
    """Lock and unlock the first 10 bytes until that costs no request: a lock is kept only under leases."""
    requests = mount.session.fs.core.cluster.requests
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        before = requests.last
        fcntl.lockf(fd, fcntl.LOCK_EX, 10)
        fcntl.lockf(fd, fcntl.LOCK_UN, 10)
        if requests.last == before:
            return
        assert time.monotonic() < deadline, "no lock was kept"
        os.utime(fd)  # so that the kernel asks, and leases begin
        os.fstat(fd)


INCREMENTS = 20  # by each writer


def test_sqlite_with_writers_on_one_mount_and_on_another(two: tuple[Path, Path]) -> None:
    """Each transaction locks and unlocks nine times; what one mount keeps is asked for by the other."""
    name = f"writers-{time.monotonic_ns()}.db"
    with closing(sqlite3.connect(two[0] / name, isolation_level=None)) as database:
        database.execute("CREATE TABLE t (n INTEGER)")
        database.execute("INSERT INTO t VALUES (0)")
    code = (
        "import sqlite3\nready()\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)\n"
        "for _ in range(int(sys.argv[2])):\n"
        "    database.execute('BEGIN IMMEDIATE')\n"
        "    (n,) = database.execute('SELECT n FROM t').fetchone()\n"
        "    database.execute('UPDATE t SET n = ?', (n + 1,))\n"
        "    database.execute('COMMIT')\n"
    )
    writers = [child(code, path / name, INCREMENTS) for path in (*two, two[0])]
    for writer in writers:
        until_ready(writer)
    for writer in writers:
        go_on(writer)
    assert [writer.wait() for writer in writers] == [0] * len(writers)
    for path in two:
        with closing(sqlite3.connect(path / name)) as database:
            assert database.execute("SELECT n FROM t").fetchone() == (INCREMENTS * len(writers),)
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
