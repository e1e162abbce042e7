"""Locks and appends of many processes against real servers, some of which are killed. In spirit after LTP's fcntl-locktests."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from emberfs_cluster import running_cluster

import emberfs

LEASE_SECONDS = 10  # a client that stands still for half of it has not lost it


class Child:
    """A forked process that runs `work(self)`; both ends talk in single bytes."""

    def __init__(self, work: Callable[[Child], None]) -> None:
        down, self._down = os.pipe()
        self._up, up = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(down)
            os.close(up)
            return
        code = 1
        try:
            self._down, self._up = up, down  # ours
            work(self)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def say(self, what: bytes = b".") -> None:
        os.write(self._down, what)

    def hear(self) -> bytes:
        """The other end's next byte; nothing when it is gone."""
        return os.read(self._up, 1)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._down)
        os.close(self._up)
        return code


@contextlib.contextmanager
def connected(cluster: Any) -> Iterator[Any]:
    with emberfs.connect(cluster.url) as client:
        yield client


@pytest.fixture
def path(cluster: Any) -> str:
    name = f"/locks-{random.randrange(1 << 60):x}"
    with connected(cluster) as client:
        client.write_bytes(name, b"")
    return name


def test_a_counter_under_a_lock(cluster: Any, path: str) -> None:
    """Four processes raise a number in a file: none of it is lost."""

    def raise_it(child: Child) -> None:
        with connected(cluster) as client, client.open(path, "r+b") as file:
            for _ in range(25):
                file.lock(0, 0)
                number = int(file.pread(100, 0) or b"0")
                file.pwrite(b"%d" % (number + 1), 0)
                file.unlock()

    children = [Child(raise_it) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    with connected(cluster) as client:
        assert client.read_bytes(path) == b"100"


def test_a_chain_of_blocked_processes(cluster: Any, path: str) -> None:
    """Each holds its byte and waits for the next one's: when the last lets go, all get theirs, one after the other."""
    count = 4

    def hold_and_want(place: int) -> Callable[[Child], None]:
        def work(child: Child) -> None:
            with connected(cluster) as client, client.open(path, "r+b") as file:
                file.lock(place, 1)
                child.say()
                assert child.hear() == b"."
                if place + 1 < count:
                    file.lock(place + 1, 1)

        return work

    children = [Child(hold_and_want(place)) for place in range(count)]
    for child in children:
        assert child.hear() == b"."
    for child in children:  # the last one, which wants nothing, ends and so begins it
        child.say()
    assert [child.wait() for child in children] == [0] * count


@pytest.mark.parametrize("count", [2, 3])
def test_a_deadlock_of_processes(cluster: Any, path: str, count: int) -> None:
    def work_of(place: int) -> Callable[[Child], None]:
        def work(child: Child) -> None:
            with connected(cluster) as client, client.open(path, "r+b") as file:
                file.lock(place, 1)
                child.say()
                assert child.hear() == b"."
                try:
                    file.lock((place + 1) % count, 1)
                    child.say(b"+")
                except OSError as failure:
                    assert failure.errno == errno.EDEADLK
                    child.say(b"-")

        return work

    children = [Child(work_of(place)) for place in range(count)]
    for child in children:
        assert child.hear() == b"."
    for child in children:
        child.say()
    heard = [child.hear() for child in children]
    assert heard.count(b"-") == 1
    assert [child.wait() for child in children] == [0] * count


def test_a_wait_that_a_signal_ends(cluster: Any, path: str) -> None:
    """As F_SETLKW with EINTR: what was held before is held, and the wait is granted nothing later."""

    class Alarm(Exception):
        pass

    def ring(number: int, frame: object) -> None:
        raise Alarm

    def work(child: Child) -> None:
        signal.signal(signal.SIGALRM, ring)
        with connected(cluster) as client, client.open(path, "r+b") as file:
            file.lock(10, 5, exclusive=False)
            for call in (lambda: file.lock(0, 100), lambda: file.flock("exclusive")):
                with pytest.raises(Alarm):
                    signal.setitimer(signal.ITIMER_REAL, 0.2)
                    call()
            child.say()
            assert child.hear() == b"."
            file.lock(0, 100)

    with connected(cluster) as client, client.open(path, "r+b") as file:
        file.lock(0, 5)
        file.flock("shared")
        interrupted = Child(work)
        assert interrupted.hear() == b"."
        file.unlock()
        file.flock("exclusive", blocking=False)
        found = file.test_lock()
        assert found is not None
        assert (found.exclusive, found.start, found.length) == (False, 10, 5)
        interrupted.say()
        assert interrupted.wait() == 0


def test_locks_stay_with_the_parent_over_a_fork(cluster: Any, path: str) -> None:
    with connected(cluster) as client, client.open(path, "r+b") as file:
        file.lock(0, 10)
        file.flock("exclusive")

        def inherit(child: Child) -> None:
            with pytest.raises(BlockingIOError):
                file.lock(0, 10, blocking=False)
            with pytest.raises(BlockingIOError):
                file.flock("shared", blocking=False)
            file.close()  # gives nothing of the parent's back
            with client.open(path, "r+b") as own:
                found = own.test_lock(0, 1)
                assert found is not None
                assert found.pid == os.getppid()

        assert Child(inherit).wait() == 0
        assert file.pread(1, 0) == b"", "no error: nothing was lost here"


def test_a_file_that_is_unlinked_while_others_read_it_stays(cluster: Any, path: str) -> None:
    data = random.Random(6).randbytes(300_000)
    with connected(cluster) as client:
        client.write_bytes(path, data)

        def read_on(child: Child) -> None:
            with connected(cluster) as own, own.open(path) as file:
                child.say()
                assert child.hear() == b"."
                assert file.read() == data

        reader = Child(read_on)
        assert reader.hear() == b"."
        client.unlink(path)
        assert not client.exists(path)
        reader.say()
        assert reader.wait() == 0


def test_locks_survive_the_metadata_server(fresh_cluster: Any) -> None:
    with (
        connected(fresh_cluster) as first,
        connected(fresh_cluster) as second,
        first.open("/f", "w+b") as a,
        second.open("/f", "r+b") as b,
    ):
        a.lock(0, 10)
        a.flock("shared")
        granted = threading.Event()

        def wait() -> None:
            b.lock(3, 3)
            granted.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        fresh_cluster.kill("meta")
        fresh_cluster.restart("meta")
        with pytest.raises(BlockingIOError):
            b.flock("exclusive", blocking=False)
        assert b.test_lock(9, 1).pid == os.getpid()
        assert not granted.is_set()
        a.unlock(0, 10)
        waiting.join(60)
        assert granted.is_set()


# Appending


def record(who: int, number: int, size: int) -> bytes:
    return (b"%02d %06d " % (who, number)).ljust(size - 1, b"%d" % who) + b"\n"


def append_records(cluster: Any, path: str, who: int, count: int, size: int) -> Callable[[Child], None]:
    def work(child: Child) -> None:
        with connected(cluster) as client, client.open(path, "ab") as file:
            child.say()
            assert child.hear() == b"."
            for number in range(count):
                file.write(record(who, number, size))

    return work


@pytest.mark.parametrize(("count", "size"), [(500, 100), (50, 65_536)])
def test_many_processes_append(cluster: Any, path: str, count: int, size: int) -> None:
    children = [Child(append_records(cluster, path, who, count, size)) for who in range(4)]
    for child in children:
        assert child.hear() == b"."
    for child in children:
        child.say()
    assert [child.wait() for child in children] == [0] * 4
    with connected(cluster) as client:
        content = client.read_bytes(path)
    check_records(content, 4, count, size)


def check_records(content: bytes, writers: int, count: int, size: int) -> None:
    assert len(content) == writers * count * size
    following = [0] * writers
    for at in range(0, len(content), size):
        who = int(content[at : at + 2])
        assert content[at : at + size] == record(who, following[who], size)
        following[who] += 1


def test_appends_and_locks_while_the_metadata_server_is_killed(fresh_cluster: Any) -> None:
    """kill -9 in the middle of grants, waits and settlements: every record is there once, and no lock is held by two."""

    def append(child: Child) -> None:
        who = child.hear()
        with connected(fresh_cluster) as client, client.open("/log", "ab") as log, client.open("/n", "r+b") as counter:
            for number in range(60):
                log.write(record(int(who), number, 200))
                if number % 7 == 0:
                    log.flush()
                counter.lock()
                counter.pwrite(b"%d" % (int(counter.pread(20, 0)) + 1), 0)
                counter.unlock()
                child.say()

    with connected(fresh_cluster) as client:
        client.write_bytes("/n", b"0")
    children = [Child(append) for _ in range(3)]
    for who, child in enumerate(children):
        child.say(b"%d" % who)
    for _ in range(3):
        for _ in range(15):
            assert children[0].hear() == b"."
        fresh_cluster.kill("meta")
        fresh_cluster.restart("meta")
    assert [child.wait() for child in children] == [0] * 3
    with connected(fresh_cluster) as client:
        assert client.read_bytes("/n") == b"180"
        check_records(client.read_bytes("/log"), 3, 60, 200)


# With short leases


@pytest.fixture(scope="module")
def short_leases() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBERFS_CLIENT_LEASE", f"{LEASE_SECONDS}")
        with running_cluster() as running:
            yield running


def test_the_locks_of_a_killed_client_are_free_after_its_lease(short_leases: Any) -> None:
    running = short_leases

    def hold(child: Child) -> None:
        with connected(running) as client, client.open("/f", "w+b") as file:
            file.lock(0, 10)
            file.flock("exclusive")
            file.write(b"under both locks")
            child.say()
            child.hear()

    holder = Child(hold)
    assert holder.hear() == b"."
    with connected(running) as client, client.open("/f", "r+b") as file:
        with pytest.raises(BlockingIOError):
            file.flock("exclusive", blocking=False)
        began = time.monotonic()
        holder.kill()
        file.lock(5, 1)
        file.flock("exclusive")
        assert time.monotonic() - began < 20 + 2 * LEASE_SECONDS
        # It never closed, and its last write was still in its buffers, or not: it wrote all or nothing.
        assert file.pread(100, 0) in (b"", b"under both locks")


def test_a_killed_writer_leaves_a_file_of_the_right_length(short_leases: Any) -> None:
    """kill -9 in the middle of writing: what storage acknowledged counts, after the lease."""
    running = short_leases
    piece = random.Random(5).randbytes(100_000)

    def write_on(child: Child) -> None:
        with emberfs.connect(running.url, write_back=0) as client:
            file = client.open("/f", "wb")
            while True:
                file.write(piece)
                child.say()  # acknowledged: storage has it, the namespace does not know it

    writer = Child(write_on)
    acknowledged = 0
    while acknowledged < 25:
        assert writer.hear() == b"."
        acknowledged += 1
    writer.kill()
    with connected(running) as client:
        end = time.monotonic() + 60
        while client.stat("/f").size < acknowledged * len(piece):
            assert time.monotonic() < end, f"{client.stat('/f').size} of {acknowledged * len(piece)} bytes"
            threading.Event().wait(0.1)
        size = client.stat("/f").size
        content = client.read_bytes("/f")
        assert len(content) == size
        for at in range(0, acknowledged * len(piece), len(piece)):
            assert content[at : at + len(piece)] == piece


def test_an_appender_that_is_killed_loses_nothing_of_others(short_leases: Any) -> None:
    """One of three is killed with the token in its hand. What the others append is whole, and so is what it had flushed."""
    running = short_leases
    with connected(running) as client:
        client.write_bytes("/log", b"")

    def append_until_killed(child: Child) -> None:
        with connected(running) as own, own.open("/log", "ab") as file:
            for number in range(100_000):
                file.write(record(0, number, 100))
                if number % 10 == 9:
                    file.flush()
                    child.say()

    victim = Child(append_until_killed)
    others = [Child(append_records(running, "/log", who, 100, 100)) for who in (1, 2)]
    for child in others:
        assert child.hear() == b"."
    assert victim.hear() == b"."
    for child in others:
        child.say()
    flushed = 10
    while flushed < 50:
        assert victim.hear() == b"."
        flushed += 10
    victim.kill()
    assert [child.wait() for child in others] == [0, 0]
    with connected(running) as client:
        content = client.read_bytes("/log")
    seen = {0: 0, 1: 0, 2: 0}
    for at in range(0, len(content), 100):
        line = content[at : at + 100]
        if not line.strip(b"\0"):
            continue  # what the killed one had not sent in front of something that it had
        who = int(line[:2])
        assert line == record(who, seen[who], 100)
        seen[who] += 1
    assert seen[1] == seen[2] == 100
    assert seen[0] >= flushed
