"""The session between a real kernel and handlers that can be held up: nothing that either does may hang or end it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from emberfs.fuse import device, session
from emberfs.fuse.entries import attr
from emberfs.fuse.protocol import Opcode, OpenReply
from emberfs.proto.errors import Status, error

from .little import INODES, Little, stat_of

if TYPE_CHECKING:
    from emberfs.fuse.filesystem import FileSystem
    from emberfs.fuse.session import Request

    from ..plugin.emberfs_mount import MakeMount, MountThread

SECONDS_MAX = 60.0

# What a process that a signal interrupts prints: the errno of its system call, and its seconds until then.
INTERRUPTED = """
import os, signal, sys, time, fcntl, mmap
class Stop(Exception): pass
def stop(number, frame): raise Stop
signal.signal(signal.SIGUSR1, stop)
os.chdir({path!r})
print("ready", flush=True)
try:
    {call}
except Stop:
    print("stopped", flush=True)
"""

MAPPED = """
    mapped = mmap.mmap(os.open('one', os.O_RDONLY), 1 << 20, mmap.MAP_SHARED, mmap.PROT_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # each page is asked for by itself, by whoever needs it
    mapped[0]
    time.sleep(0)  # where Python looks for signals
"""


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < end, "it does not come"
        threading.Event().wait(0.005)


@pytest.fixture
def little() -> Little:
    return Little()


@pytest.fixture
def believed() -> float:
    """Seconds for which the kernel believes names and attributes."""
    return 0.0


@pytest.fixture
def mount(little: Little, make_mount: MakeMount, believed: float) -> Iterator[MountThread]:
    made = make_mount(handlers=little.handlers(), attr_timeout=believed, entry_timeout=believed)
    yield made
    made.soon(little.release)


@pytest.fixture
def child(mount: MountThread) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """A process that makes one system call on the mount, and can be interrupted."""
    made: list[subprocess.Popen[str]] = []

    def start(call: str) -> subprocess.Popen[str]:
        # Not `cwd`: the fork has the GIL, and who serves the mount would need it.
        code = INTERRUPTED.format(call=call, path=str(mount.path))
        made.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
        assert made[-1].stdout is not None
        assert made[-1].stdout.readline() == "ready\n"
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate(timeout=SECONDS_MAX)


@pytest.fixture
def pool(mount: MountThread, little: Little) -> Iterator[ThreadPoolExecutor]:
    """Threads for system calls that wait; whatever the test comes to, they do not wait for ever."""
    made = ThreadPoolExecutor(64)
    yield made
    mount.soon(little.release)
    made.shutdown()


# --- answers ------------------------------------------------------------------------------------------------------------------------


def test_answers_at_once_and_later(mount: MountThread, little: Little, pool: ThreadPoolExecutor) -> None:
    assert (mount.path / "one").stat().st_ino == INODES[b"one"]
    assert (mount.path / "one").read_bytes()[:10] == bytes([INODES[b"one"]]) * 10
    little.held.add(Opcode.GETATTR)
    found = [pool.submit((mount.path / name).stat) for name in ("one", "two", "three")]
    until(lambda: len(little.waiting) >= 3)
    mount.soon(little.release)
    assert [one.result(SECONDS_MAX).st_ino for one in found] == [100, 101, 102]
    until(lambda: not mount.session.inflight)  # which ends a moment after the answer


@pytest.mark.parametrize("held", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("failure", "number"),
    [
        (error(Status.NOT_EMPTY, "of the table"), errno.ENOTEMPTY),
        (PermissionError(errno.EACCES, "an errno"), errno.EACCES),
        (OSError("without a number"), errno.EIO),
        (OSError(524, "the kernel's own"), errno.EIO),
        (OSError(-2, "negative"), errno.EIO),
        (ValueError("a fault of ours"), errno.EIO),
        (RecursionError("deep"), errno.EIO),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_failures_are_errnos(
    mount: MountThread, caplog: pytest.LogCaptureFixture, held: bool, failure: Exception, number: int
) -> None:
    async def later(fs: Any, request: Any) -> Any:
        raise failure

    def at_once(fs: Any, request: Any) -> Any:
        raise failure

    mount.session._handlers[Opcode.GETATTR] = later if held else at_once
    with pytest.raises(OSError) as caught:
        (mount.path / "one").stat()
    assert caught.value.errno == number
    ours = not isinstance(failure, OSError) or not 0 < (failure.errno or 0) < 512
    assert any(record.name.startswith("emberfs.fuse.") for record in caplog.records) == ours
    until(lambda: mount.session.fs.statistics.errors[Opcode.GETATTR] == 1)


def test_operations_that_nobody_serves_are_not_there(mount: MountThread) -> None:
    for call in (lambda: os.mkdir(mount.path / "new"), lambda: os.unlink(mount.path / "one")):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENOSYS


def test_an_answer_that_is_no_answer(mount: MountThread, caplog: pytest.LogCaptureFixture) -> None:
    mount.session._handlers[Opcode.GETATTR] = lambda fs, request: b"much too short"
    with pytest.raises(OSError) as caught:
        (mount.path / "one").stat()
    assert caught.value.errno == errno.EIO
    until(lambda: "refused" in caplog.text)


# --- interrupts ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "call"),
    [
        pytest.param(Opcode.READ, "os.pread(os.open('one', os.O_RDONLY), 100, 0)", id="read"),
        pytest.param(Opcode.SETLKW, "fcntl.lockf(open('one', 'r+b'), fcntl.LOCK_EX)", id="lock"),
    ],
)
def test_what_only_waits_is_interrupted_at_once(
    mount: MountThread, little: Little, child: Callable[[str], subprocess.Popen[str]], opcode: Opcode, call: str
) -> None:
    """ "interrupts (Ctrl-C of a blocked read) return at once". Through the page cache the kernel reads ahead for nobody in particular:
    there only a signal that kills ends the wait, as on a local disk."""
    little.open_flags = OpenReply.DIRECT_IO
    little.held.add(opcode)
    process = child(call)
    until(lambda: little.waiting)
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=SECONDS_MAX)[0] == "stopped\n"
    until(lambda: not mount.session.inflight)
    statistics = mount.session.fs.statistics
    assert (statistics.interrupted, statistics.abandoned) == (1, 0), "it ended, and was not left behind"


@pytest.mark.parametrize(
    ("opcode", "call"),
    [
        pytest.param(Opcode.READ, MAPPED, id="mapped"),
        pytest.param(Opcode.FSYNC, "os.fsync(os.open('one', os.O_RDWR))", id="fsync"),
    ],
)
def test_a_signal_that_is_caught_fails_nothing_that_it_fails_on_no_disk(
    mount: MountThread,
    little: Little,
    child: Callable[[str], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
    opcode: Opcode,
    call: str,
) -> None:
    """With EINTR for an answer, a page that is missing would be a SIGBUS, and a database would take its fsync for failed."""
    monkeypatch.setattr(session, "INTERRUPT_SECONDS", 0.0)
    little.held.add(opcode)
    process = child(call)
    until(lambda: little.waiting)
    process.send_signal(signal.SIGUSR1)
    until(lambda: mount.requests(Opcode.INTERRUPT))
    assert mount.session.inflight
    mount.soon(little.release)
    assert process.communicate(timeout=SECONDS_MAX)[0] == "stopped\n"
    statistics = mount.session.fs.statistics
    assert (statistics.interrupted, statistics.abandoned, process.returncode) == (0, 0, 0)


@pytest.mark.parametrize("first", [signal.SIGKILL, signal.SIGUSR1])
def test_who_is_killed_waits_no_more(
    mount: MountThread,
    little: Little,
    child: Callable[[str], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
    first: signal.Signals,
) -> None:
    """Also if that comes after a signal that is caught: the kernel tells of the first one only."""
    monkeypatch.setattr(session, "INTERRUPT_SECONDS", 0.1)
    little.held.add(Opcode.FSYNC)
    process = child("os.fsync(os.open('one', os.O_RDWR))")
    until(lambda: little.waiting)
    process.send_signal(first)
    until(lambda: mount.requests(Opcode.INTERRUPT))
    process.kill()
    assert process.wait(SECONDS_MAX) == -signal.SIGKILL
    until(lambda: mount.session.fs.statistics.abandoned == 1)


def test_what_cannot_be_taken_back_goes_on_without_its_caller(
    mount: MountThread,
    little: Little,
    child: Callable[[str], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "INTERRUPT_SECONDS", 0.1)
    little.held.add(Opcode.OPEN)
    process = child("os.open('one', os.O_RDONLY)")
    until(lambda: little.waiting)
    process.kill()
    process.communicate(timeout=SECONDS_MAX)
    until(lambda: mount.session.fs.statistics.abandoned == 1)
    assert len(mount.session.inflight) == 1
    mount.soon(little.release)
    until(lambda: not mount.session.inflight and little.opened and little.opened[0].closed)
    assert mount.session.fs.handles == {}


def test_an_interrupt_that_comes_too_late_changes_nothing(mount: MountThread) -> None:
    from emberfs.fuse.session import Request
    from emberfs.fuse.structs import INTERRUPT_IN

    late = Request(Opcode.INTERRUPT, 3, 0, 0, 0, 0, INTERRUPT_IN.pack(12345))
    assert mount.session._interrupt(mount.session.fs, late) is None
    assert mount.session.fs.statistics.interrupted == 0


@pytest.mark.parametrize("flags", [OpenReply(0), OpenReply.DIRECT_IO], ids=["cached", "direct"])
def test_a_killed_process_waits_for_nothing(
    mount: MountThread, little: Little, child: Callable[[str], subprocess.Popen[str]], flags: OpenReply
) -> None:
    """The kernel's own reading ahead cannot be interrupted, but nobody waits for it any more."""
    little.held.add(Opcode.READ)
    little.open_flags = flags
    process = child("os.pread(os.open('one', os.O_RDONLY), 100, 0)")
    until(lambda: little.waiting)
    process.kill()
    process.communicate(timeout=SECONDS_MAX)
    mount.soon(little.release)
    until(lambda: not mount.session.inflight)
    assert (mount.path / "one").exists()


# --- limits -------------------------------------------------------------------------------------------------------------------------


def test_no_more_requests_are_taken_than_the_limit(
    mount: MountThread, little: Little, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "REQUESTS_MAX", 4)
    little.held.add(Opcode.LOOKUP)
    most = []
    found = [pool.submit((mount.path / f"no{number}").exists) for number in range(12)]
    until(lambda: len(mount.session.inflight) == len(little.waiting) == 4)
    most.append(len(little.waiting))
    mount.soon(little.release)
    assert not any(one.result(SECONDS_MAX) for one in found)
    assert most == [4]
    until(lambda: not mount.session.inflight)


def test_waits_for_locks_do_not_use_up_the_limit(
    mount: MountThread,
    little: Little,
    child: Callable[[str], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever unlocks must come through, or all wait for ever."""
    monkeypatch.setattr(session, "REQUESTS_MAX", 2)
    monkeypatch.setattr(session, "LOCK_WAITS_MAX", 3)
    little.held.add(Opcode.SETLKW)
    for number in range(3):
        child("fcntl.lockf(open('one', 'r+b'), fcntl.LOCK_EX)")
        until(lambda count=number + 1: len(little.waiting) == count)  # type: ignore[misc]
    assert (mount.path / "two").read_bytes()
    refused = child("fcntl.lockf(open('one', 'r+b'), fcntl.LOCK_EX)")
    assert refused.wait(SECONDS_MAX) == 1  # ENOLCK
    mount.soon(little.release)
    until(lambda: not mount.session.inflight)
    assert mount.session._lock_waits == 0


def test_waits_for_the_kernel_do_not_use_up_the_limit(
    mount: MountThread, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It drops a page when the READ of it is answered: who waits for that must not keep the READ from being read."""
    gate, waiting = asyncio.Event(), []

    async def after_invalidation(fs: FileSystem, request: Request) -> bytes:
        waiting.append(request)
        await gate.wait()
        await fs.notifier.inode(INODES[b"one"])
        return attr(fs, stat_of(request.node))

    fd = os.open(mount.path / "one", os.O_RDONLY)
    monkeypatch.setattr(session, "REQUESTS_MAX", 2)
    mount.session._handlers[Opcode.SETATTR] = after_invalidation
    try:
        changed = [pool.submit((mount.path / name).chmod, 0o600) for name in ("two", "three")]
        until(lambda: len(waiting) == 2)
        read = pool.submit(os.pread, fd, 10, 0)
        time.sleep(0.3)  # it has locked its page by then, and nobody has read its request
        assert not read.done()
        mount.soon(gate.set)
        assert read.result(SECONDS_MAX / 4) == bytes([INODES[b"one"]]) * 10
        assert [one.result(SECONDS_MAX) for one in changed] == [None, None]
    finally:
        monkeypatch.undo()
        mount.soon(mount.session._resume)
        os.close(fd)
    until(lambda: not mount.session.inflight)


def test_payloads_are_lent_until_they_are_answered(
    mount: MountThread, little: Little, pool: ThreadPoolExecutor
) -> None:
    """More WRITEs at once than buffers are kept: each finds its own bytes, and whoever does something else does not wait for them."""
    little.held.add(Opcode.WRITE)
    count = 2 * device.BUFFERS_KEPT + 8
    size = 1 << 20

    def write(number: int) -> int:
        fd = os.open(mount.path / ("one", "two", "three")[number % 3], os.O_WRONLY)
        try:
            return os.pwrite(fd, bytes([number]) * size, number * size)
        finally:
            os.close(fd)

    done = [pool.submit(write, number) for number in range(count)]
    until(lambda: len(little.waiting) >= 3)
    assert (mount.path / "two").exists()
    mount.soon(little.release)
    assert [one.result(SECONDS_MAX) for one in done] == [size] * count
    assert little.written == {number * size: 64 * number for number in range(count)}
    until(lambda: mount.session.device._made <= device.BUFFERS_KEPT + 1)  # given back after the answer


def test_many_payloads_that_wait_hold_up_nothing_else(
    mount: MountThread, little: Little, pool: ThreadPoolExecutor
) -> None:
    """As where storage does not answer."""
    little.open_flags = OpenReply.DIRECT_IO | OpenReply.PARALLEL_DIRECT_WRITES
    little.held.add(Opcode.WRITE)
    count, size = device.BUFFERS_KEPT + 8, 64 << 10
    fds = [os.open(mount.path / "one", os.O_WRONLY) for _ in range(count)]
    done = [pool.submit(os.pwrite, fd, bytes([number]) * size, number * size) for number, fd in enumerate(fds)]
    until(lambda: len(little.waiting) == count)
    assert (mount.path / "two").read_bytes()
    mount.soon(little.release)
    assert [one.result(SECONDS_MAX) for one in done] == [size] * count
    assert little.written == {number * size: 64 * number for number in range(count)}
    until(lambda: mount.session.device._made <= device.BUFFERS_KEPT + 1)  # the last are taken back after their replies
    for fd in fds:
        os.close(fd)


def test_small_writes_that_wait_use_up_no_buffers(mount: MountThread, little: Little, pool: ThreadPoolExecutor) -> None:
    little.open_flags = OpenReply.DIRECT_IO | OpenReply.PARALLEL_DIRECT_WRITES
    little.held.add(Opcode.WRITE)
    count = 2 * device.BUFFERS_KEPT
    fds = [os.open(mount.path / "one", os.O_WRONLY) for _ in range(count)]
    done = [pool.submit(os.pwrite, fd, bytes([number]) * 4096, number * 4096) for number, fd in enumerate(fds)]
    until(lambda: len(little.waiting) == count)
    assert (mount.path / "two").exists()
    mount.soon(little.release)
    assert [one.result(SECONDS_MAX) for one in done] == [4096] * count
    assert little.written == {number * 4096: 64 * number for number in range(count)}
    for fd in fds:
        os.close(fd)


def test_a_device_that_cannot_be_read_is_no_unmount(mount: MountThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the session hears of it, and may have another process go on."""

    def receive() -> int:
        raise OSError(errno.EFAULT, "bad address")

    monkeypatch.setattr(mount.session.device, "receive", receive)
    asking = threading.Thread(target=os.path.exists, args=(mount.path / "one",), daemon=True)
    asking.start()
    mount._thread.join(SECONDS_MAX)
    assert isinstance(mount._failure, OSError) and mount._failure.errno == errno.EFAULT
    asking.join(SECONDS_MAX)  # the descriptor is closed, and with it the connection


# --- the kernel's caches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("believed", [100.0])
def test_an_invalidation_waits_for_a_page_and_the_loop_does_not(
    mount: MountThread, little: Little, pool: ThreadPoolExecutor
) -> None:
    little.held.add(Opcode.READ)

    async def invalidate(name: bytes) -> None:
        await mount.session.fs.notifier.inode(INODES[name])

    fd = os.open(mount.path / "one", os.O_RDONLY)
    reading = pool.submit(os.pread, fd, 100, 0)
    until(lambda: little.waiting)
    invalidated = pool.submit(mount.call, invalidate(b"one"))
    (mount.path / "two").stat()
    mount.call(invalidate(b"two"))  # nor do other invalidations
    assert not invalidated.done()
    mount.soon(little.release)
    assert len(reading.result(SECONDS_MAX)) == 100
    invalidated.result(SECONDS_MAX)
    os.close(fd)


@pytest.mark.parametrize("believed", [100.0])
def test_names_and_attributes_are_believed_until_they_are_invalidated(mount: MountThread) -> None:
    notifier = mount.session.fs.notifier
    path = mount.path / "one"
    path.stat()
    before = [mount.requests(opcode) for opcode in (Opcode.LOOKUP, Opcode.GETATTR)]
    path.stat()
    assert [mount.requests(opcode) for opcode in (Opcode.LOOKUP, Opcode.GETATTR)] == before

    async def tell() -> None:
        await notifier.entry(1, b"one")
        await notifier.entry(1, b"unheard of")
        await notifier.inode(4711)

    mount.call(tell())
    path.stat()
    assert mount.requests(Opcode.LOOKUP) == before[0] + 1
    assert (notifier.sent, notifier.refused) == (3, 0)


# --- ends ---------------------------------------------------------------------------------------------------------------------------


def test_it_ends_when_it_is_unmounted(mount: MountThread) -> None:
    (mount.path / "one").stat()
    subprocess.run(["umount", mount.path], check=True)
    mount._thread.join(SECONDS_MAX)
    assert not mount._thread.is_alive()


def test_it_ends_when_the_connection_is_aborted(mount: MountThread, little: Little, pool: ThreadPoolExecutor) -> None:
    little.held.add(Opcode.READ)
    fd = os.open(mount.path / "one", os.O_RDONLY)
    reading = pool.submit(os.pread, fd, 100, 0)
    until(lambda: little.waiting)
    mount.abort()
    with pytest.raises(OSError):
        reading.result(SECONDS_MAX)
    mount.soon(little.release)
    with contextlib.suppress(OSError):
        os.close(fd)
    mount._thread.join(SECONDS_MAX)
    assert not mount._thread.is_alive()


def test_what_is_in_flight_when_it_stops_is_answered(
    mount: MountThread,
    little: Little,
    pool: ThreadPoolExecutor,
    child: Callable[[str], subprocess.Popen[str]],
) -> None:
    little.held.add(Opcode.SETLKW)
    locking = child("fcntl.lockf(open('two', 'r+b'), fcntl.LOCK_EX)")
    until(lambda: little.waiting)
    fd = os.open(mount.path / "one", os.O_RDONLY)
    little.held.add(Opcode.GETATTR)
    found = pool.submit(os.fstat, fd)
    until(lambda: len(little.waiting) >= 2)
    mount.soon(mount.session.stop)
    until(lambda: len(mount.session.inflight) == 1)
    assert not found.done()
    mount.soon(little.release)
    assert found.result(SECONDS_MAX).st_ino == INODES[b"one"]
    mount._thread.join(SECONDS_MAX)
    assert not mount._thread.is_alive()
    with contextlib.suppress(OSError):
        os.close(fd)
    assert locking.wait(SECONDS_MAX) == 1  # nobody could give it the lock any more


def test_what_does_not_end_is_cancelled(
    mount: MountThread,
    little: Little,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(session, "DRAIN_SECONDS", 0.1)
    little.held.add(Opcode.GETATTR)
    found = pool.submit((mount.path / "one").stat)
    until(lambda: little.waiting)
    mount.soon(mount.session.stop)
    with pytest.raises(OSError) as caught:
        found.result(SECONDS_MAX)
    assert caught.value.errno == errno.EIO
    assert "do not end" in caplog.text


# --- who may ------------------------------------------------------------------------------------------------------------------------


def test_a_mount_for_its_owner_and_root_keeps_others_out(little: Little, make_mount: MakeMount) -> None:
    mount = make_mount(handlers=little.handlers(), attr_timeout=0.0, allow_root=True, owner=1000)

    def as_user(uid: int) -> int:
        return subprocess.run(
            ["stat", mount.path / "one"], check=False, user=uid, group=uid, capture_output=True
        ).returncode

    assert [as_user(uid) for uid in (0, 1000, 1001)] == [0, 0, 1]
