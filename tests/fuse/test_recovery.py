"""The daemon dies, programs go on: "after a kill of the daemon nothing that was closed or fsynced is lost, and programs see a pause"."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from emberfs_mount import can_mount

import emberfs
from emberfs.deploy import mounts, processes
from emberfs.deploy.local import STORAGE
from emberfs.fuse import mounting
from emberfs.fuse.journal import BYTES, HANDLES_MAX, Journal, new_memory
from emberfs.fuse.protocol import RESEND
from emberfs.fuse.supervisor import DEATHS_MAX, OOM_SCORE

from .processes import daemon_of, details, mounted
from .users import errno_of

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

KILLS = 3  # in a row; five within a minute are too many
SMALL, MEDIUM, LARGE = 10, 5_000, 3_000_000


@pytest.fixture
def fresh(cluster: LocalCluster) -> Iterator[Path]:
    """A mount for one test, which may kill it."""
    if not can_mount():
        pytest.skip("mounting needs root and /dev/fuse")
    with mounted(cluster.url) as path:
        yield path


def generation(path: Path) -> int:
    """Which daemon of this mount answers; waits for one that does."""
    return int((path / ".ember" / "stats").read_text().split("daemon_generation")[1])


def open_handles(path: Path) -> int:
    """As the daemon counts them."""
    return int((path / ".ember" / "stats").read_text().split("open_handles")[1].split()[0])


def kill_daemon(path: Path) -> None:
    """And wait until another one serves."""
    before = generation(path)
    daemon = daemon_of(details(path)["pid"])
    assert daemon, "0 would be everybody"
    os.kill(daemon, signal.SIGKILL)
    assert generation(path) == before + 1


class Work(threading.Thread):
    """Does all that must happen once, in a loop, and compares. `failure` is what a program would have seen."""

    def __init__(self, place: Path, stop: threading.Event, seed: int) -> None:
        super().__init__()
        self.place = place
        self.stop = stop
        self.draw = random.Random(seed)
        self.rounds = 0
        self.told = 0  # fsyncs that said EIO: a daemon had died between write and fsync
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.round(f"{self.place}/{self.rounds}")
                self.rounds += 1
        except BaseException as failure:
            self.failure = failure

    def round(self, name: str) -> None:
        data = self.draw.randbytes(self.draw.choice([SMALL, MEDIUM, LARGE]))
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        self.write_durably(fd, data)
        assert os.pread(fd, len(data) + 1, 0) == data
        os.unlink(name)
        assert os.fstat(fd).st_nlink == 0 and os.fstat(fd).st_size == len(data)
        os.close(fd)
        with open(f"{name}.a", "xb", buffering=0) as file:
            self.write_durably(file.fileno(), data)
        os.rename(f"{name}.a", f"{name}.b")
        os.link(f"{name}.b", f"{name}.c")
        os.symlink("target", f"{name}.link")
        os.mkdir(f"{name}.directory")
        os.rmdir(f"{name}.directory")
        os.unlink(f"{name}.c")
        os.unlink(f"{name}.link")
        os.truncate(f"{name}.b", len(data) // 2)
        os.setxattr(f"{name}.b", "user.x", b"y", os.XATTR_CREATE)
        assert Path(f"{name}.b").read_bytes() == data[: len(data) // 2]

    def write_durably(self, fd: int, data: bytes) -> None:
        while True:
            assert os.pwrite(fd, data, 0) == len(data)
            try:
                os.fsync(fd)
                return
            except OSError as failure:
                if failure.errno != errno.EIO:
                    raise
                self.told += 1


def test_killed_again_and_again_under_load(fresh: Path, cluster: LocalCluster) -> None:
    """Creations, removals and renames happen once, whatever their daemon had got to do of them."""
    (fresh / "load").mkdir()
    stop = threading.Event()
    workers = []
    for seed in range(3):
        (fresh / "load" / str(seed)).mkdir()
        workers.append(Work(fresh / "load" / str(seed), stop, seed))
        workers[-1].start()
    try:
        for _ in range(KILLS):
            rounds = [worker.rounds for worker in workers]
            while any(
                worker.rounds <= before and worker.is_alive() for worker, before in zip(workers, rounds, strict=True)
            ):
                stop.wait(0.01)
            kill_daemon(fresh)
    finally:
        stop.set()
        for worker in workers:
            worker.join(200)
    assert [worker.failure for worker in workers] == [None] * 3
    assert all(worker.told <= KILLS for worker in workers), "a loss is told once"
    with emberfs.connect(cluster.url) as client:
        for worker in workers:
            names = {f"{number}.b" for number in range(worker.rounds)}
            assert set(client.listdir(f"/load/{worker.place.name}")) == names, "nothing is there twice, or still"


def test_reads_go_on(fresh: Path) -> None:
    data = random.Random(1).randbytes(64 << 20)
    (fresh / "large").write_bytes(data)
    with open(fresh / "large", "rb", buffering=0) as file:
        found = [file.read(5 << 20)]
        kill_daemon(fresh)
        while piece := file.read(5 << 20):
            found.append(piece)
            if len(found) == 5:
                kill_daemon(fresh)
    assert b"".join(found) == data


def test_files_without_a_name_stay(fresh: Path) -> None:
    data = bytes(range(256)) * 1000
    (fresh / "read").write_bytes(data)
    reader = os.open(fresh / "read", os.O_RDONLY)
    writer = os.open(fresh / "written", os.O_CREAT | os.O_RDWR)
    unnamed = os.open(fresh, os.O_TMPFILE | os.O_RDWR)
    for fd in (writer, unnamed):
        os.pwrite(fd, data, 0)
        os.fsync(fd)
    os.unlink(fresh / "read")
    os.unlink(fresh / "written")
    for _ in range(2):
        kill_daemon(fresh)
        for fd in (reader, writer, unnamed):
            assert os.pread(fd, len(data) + 1, 0) == data and os.fstat(fd).st_size == len(data)
    os.pwrite(unnamed, b"more", len(data))
    os.fsync(unnamed)
    os.link(
        f"/proc/self/fd/{unnamed}", fresh / "named", src_dir_fd=unnamed
    )  # the descriptor makes Python follow the link
    for fd in (reader, writer, unnamed):
        os.close(fd)
    assert (fresh / "named").read_bytes() == data + b"more"
    assert os.listdir(fresh).count("named") == 1


def test_what_was_not_flushed_is_lost_and_told_once(fresh: Path) -> None:
    with open(fresh / "file", "w+b", buffering=0) as file, open(fresh / "flushed", "w+b", buffering=0) as other:
        file.write(b"first")
        os.fsync(file.fileno())
        other.write(b"all")
        os.fsync(other.fileno())
        file.write(b"second")
        kill_daemon(fresh)
        assert errno_of(lambda: os.fsync(file.fileno())) == errno.EIO
        os.fsync(file.fileno())
        os.fsync(other.fileno())
        assert os.pread(file.fileno(), 5, 0) == b"first"
        os.pwrite(file.fileno(), b"second", 5)
        os.fsync(file.fileno())
    assert (fresh / "file").read_bytes() == b"firstsecond" and (fresh / "flushed").read_bytes() == b"all"


def test_a_loss_is_told_whatever_dies_before(fresh: Path) -> None:
    with open(fresh / "file", "w+b", buffering=0) as file:
        file.write(b"lost")
        kill_daemon(fresh)
        kill_daemon(fresh)  # the one that knew
        assert errno_of(lambda: os.fsync(file.fileno())) == errno.EIO
        os.fsync(file.fileno())
        kill_daemon(fresh)
        os.fsync(file.fileno())


def test_close_tells_of_a_loss_too(fresh: Path) -> None:
    fd = os.open(fresh / "file", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"lost")
    kill_daemon(fresh)
    assert errno_of(lambda: os.close(fd)) == errno.EIO


def test_locks_stay_and_can_be_given_back(fresh: Path, cluster: LocalCluster) -> None:
    (fresh / "locked").write_bytes(bytes(100))
    ranges, whole = (open(fresh / "locked", "r+b") for _ in range(2))  # noqa: SIM115 -- closed where that is looked at
    with mounted(cluster.url) as second, open(second / "locked", "r+b") as other:

        def free() -> bool:
            try:
                fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
            except BlockingIOError:
                return False
            fcntl.lockf(other, fcntl.LOCK_UN, 10, 5)
            return True

        fcntl.lockf(ranges, fcntl.LOCK_EX, 10, 5)
        assert not free()
        kill_daemon(fresh)
        assert not free()
        ranges.close()
        assert free(), "the close gave it back"
        fcntl.flock(whole, fcntl.LOCK_EX)
        kill_daemon(fresh)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        whole.close()
        fcntl.flock(other, fcntl.LOCK_EX)  # RELEASE comes after close(2) has returned


def test_what_others_write_is_seen_by_who_has_it_open(fresh: Path, cluster: LocalCluster) -> None:
    """The kernel holds pages of which a new daemon knows nothing."""
    (fresh / "log").write_bytes(b"0" * 100)
    with open(fresh / "log", "rb", buffering=0) as file:
        assert file.read() == b"0" * 100
        kill_daemon(fresh)
        with emberfs.connect(cluster.url) as client, client.open("/log", "ab") as log:
            log.write(b"1" * 100)
        while os.fstat(file.fileno()).st_size == 100:  # attributes are believed for a second
            os.sched_yield()
        assert os.pread(file.fileno(), 200, 0) == b"0" * 100 + b"1" * 100


def test_of_a_lock_that_the_dead_one_took_nothing_is_kept(fresh: Path, cluster: LocalCluster) -> None:
    """A daemon knows nothing of it, so it could not give it back when somebody else wants it."""
    (fresh / "kept").write_bytes(bytes(100))
    with mounted(cluster.url) as second, open(second / "kept", "r+b") as other, open(fresh / "kept", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
        kill_daemon(fresh)
        for _ in range(3):
            os.stat(fresh / "kept")  # leases, without which nothing is kept
        fcntl.lockf(file, fcntl.LOCK_UN, 10, 5)
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)


def test_a_lock_is_given_back_whoever_dies_meanwhile(fresh: Path, cluster: LocalCluster) -> None:
    """By a close whose locks wait for what was written before."""
    (fresh / "locked").write_bytes(bytes(MEDIUM))
    with mounted(cluster.url) as second, open(second / "locked", "r+b") as other:
        file = open(fresh / "locked", "rb")  # noqa: SIM115 -- closed where that is looked at
        fcntl.flock(file, fcntl.LOCK_EX)
        before = generation(fresh)
        storage = cluster.servers[STORAGE].pid()
        assert storage is not None
        with open(fresh / "locked", "r+b", buffering=0) as writer:
            handles = open_handles(fresh)
            os.kill(storage, signal.SIGSTOP)
            try:
                writer.write(bytes(LARGE))
                file.close()
                while open_handles(fresh) == handles:  # its RELEASE has come to the daemon
                    os.sched_yield()
                os.kill(daemon_of(details(fresh)["pid"]), signal.SIGKILL)
            finally:
                os.kill(storage, signal.SIGCONT)
            assert generation(fresh) == before + 1
            assert errno_of(lambda: os.fsync(writer.fileno())) == errno.EIO
        deadline, pause = time.monotonic() + 60, threading.Event()
        while True:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline, "nobody holds it"
                pause.wait(0.05)


def test_a_daemon_is_replaced_without_a_loss(fresh: Path) -> None:
    """SIGHUP: for a new version of the software."""
    with open(fresh / "file", "w+b", buffering=0) as file:
        file.write(b"not flushed")
        before = generation(fresh)
        os.kill(details(fresh)["pid"], signal.SIGHUP)
        while generation(fresh) == before:
            os.sched_yield()
        os.fsync(file.fileno())
    assert (fresh / "file").read_bytes() == b"not flushed"


def test_a_daemon_that_hangs_is_replaced(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_mount():
        pytest.skip("mounting needs root and /dev/fuse")
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.2")  # a daemon is silent for 12 s then
    monkeypatch.setattr(processes, "READY_SECONDS_MAX", 300.0)
    with mounted(cluster.url) as path:
        (path / "hung").write_bytes(b"x")
        os.kill(daemon_of(details(path)["pid"]), signal.SIGSTOP)
        assert (path / "hung").read_bytes() == b"x" and generation(path) >= 2


def test_without_its_supervisor_a_daemon_goes_on(cluster: LocalCluster, tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("mounting needs root and /dev/fuse")
    report = mounts.start(cluster.url, str(tmp_path))
    daemon = daemon_of(report["pid"])
    os.kill(report["pid"], signal.SIGKILL)
    (tmp_path / "without").write_bytes(b"x")
    pidfd = os.pidfd_open(daemon)
    mounts.stop(str(tmp_path))
    assert select.select([pidfd], [], [], 100)[0], "it ends with its mount"
    os.close(pidfd)
    with emberfs.connect(cluster.url) as client:
        assert client.read_bytes("/without") == b"x"


def test_one_that_dies_always_is_given_up(cluster: LocalCluster, tmp_path: Path) -> None:
    """A directory that does not answer is better than one that answers never."""
    if not can_mount():
        pytest.skip("mounting needs root and /dev/fuse")
    report = mounts.start(cluster.url, str(tmp_path))
    supervisor = os.pidfd_open(report["pid"])
    while not select.select([supervisor], [], [], 0.02)[0]:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # either has ended meanwhile
            if daemon := daemon_of(report["pid"]):
                os.kill(daemon, signal.SIGKILL)
    os.close(supervisor)
    assert mounting.find(str(tmp_path)) is None
    assert "times in 60 s" in Path(report["log"]).read_text()


def test_programs_wait_while_no_metadata_server_answers(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a new daemon finds none."""
    if not can_mount():
        pytest.skip("mounting needs root and /dev/fuse")
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.2")
    monkeypatch.setattr(processes, "READY_SECONDS_MAX", 300.0)
    with mounted(cluster.url) as path:
        (path / "waited").write_bytes(b"x")
        about = details(path)
        cluster.kill("meta")
        try:
            os.kill(daemon_of(about["pid"]), signal.SIGKILL)
            pause = threading.Event()
            while Path(about["log"]).read_text().count("no new daemon") <= DEATHS_MAX:
                assert mounting.find(str(path)), "it is not given up"
                pause.wait(0.05)
        finally:
            cluster.restart("meta")
        assert (path / "waited").read_bytes() == b"x"


def can_lower_oom_score() -> bool:
    """Some containers may not."""
    program = f"import os; os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'{OOM_SCORE}')"
    return not subprocess.run([sys.executable, "-c", program], check=False, stderr=subprocess.DEVNULL).returncode


def test_the_processes_are_protected(fresh: Path) -> None:
    pid = details(fresh)["pid"]
    expected = OOM_SCORE if can_lower_oom_score() else int(Path("/proc/self/oom_score_adj").read_text())
    for process in (pid, daemon_of(pid)):
        assert int(Path(f"/proc/{process}/oom_score_adj").read_text()) == expected
        limits = Path(f"/proc/{process}/limits").read_text()
        soft, hard = next(line for line in limits.splitlines() if "open files" in line).split()[3:5]
        assert soft == hard or int(soft) >= 1 << 20


# --- the journal alone ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[int]:
    fd = new_memory()
    yield fd
    os.close(fd)


def test_a_journal_remembers_what_is_open(memory: int) -> None:
    first = Journal(memory)
    assert first.files == [] and first.inherited == []
    first.opened(1 << 8, 77, os.O_RDONLY)
    first.opened(2 << 8 | 2, 78, os.O_RDWR)
    first.opened(3 << 8 | 1, 78, os.O_WRONLY)
    first.opened(4 << 8, 79, os.O_RDONLY)
    first.closed(4 << 8)
    first.written(2 << 8 | 2, 78)
    second = Journal(memory)
    assert sorted(second.files) == [(256, 77, 0, False), (514, 78, 2, True), (769, 78, 1, False)]
    first.flushed(78)
    assert not any(file.dirty for file in Journal(memory).files)
    second.closed(514)
    second.opened(5 << 8, 80, os.O_RDONLY)
    assert sorted(file.fh for file in Journal(memory).files) == [256, 769, 1280]


def test_a_slot_that_is_used_again_is_the_new_files_alone(memory: int) -> None:
    journal = Journal(memory)
    journal.opened(1 << 8, 77, os.O_RDWR)
    journal.written(1 << 8, 77)
    journal.closed(1 << 8)
    journal.opened(2 << 8, 78, os.O_RDWR)
    journal.written(2 << 8, 78)
    journal.flushed(77)
    assert Journal(memory).files == [(512, 78, os.O_RDWR, True)]


def test_a_loss_stays_until_it_was_told(memory: int) -> None:
    first = Journal(memory)
    first.opened(1 << 8, 77, os.O_RDWR)
    first.opened(2 << 8, 77, os.O_RDWR)
    first.written(1 << 8, 77)
    second = Journal(memory)
    assert second.has_lost(1 << 8) and not second.has_lost(2 << 8)
    second.written(1 << 8, 77)
    second.written(2 << 8, 77)
    second.flushed(77)
    assert [file.dirty for file in Journal(memory).files] == [True, False]
    second.written(1 << 8, 77)
    second.told(1 << 8)
    assert Journal(memory).has_lost(1 << 8), "what was written since"
    second.flushed(77)
    assert not Journal(memory).has_lost(1 << 8)


def test_a_journal_is_full(memory: int) -> None:
    journal = Journal(memory)
    for number in range(1, HANDLES_MAX + 10):
        journal.opened(number << 8, number, 0)
    assert len(Journal(memory).files) == HANDLES_MAX
    for number in range(1, HANDLES_MAX + 10):
        journal.closed(number << 8)
    assert Journal(memory).files == []
    journal.opened(1, 1, 0)
    assert len(Journal(memory).files) == 1


def test_a_request_keeps_its_numbers(memory: int) -> None:
    first = Journal(memory)
    first.begin(10, 1001)
    first.begin(10, 1002)
    first.begin(12, 1003)
    first.begin(14, 1004)
    first.end(12)
    second = Journal(memory)
    assert second.inherited == [1001, 1002, 1004]
    assert not second.was_replayed(10)
    assert [second.replay(10) for _ in range(3)] == [1001, 1002, 0] and second.replay(16) == 0
    assert second.was_replayed(10 | RESEND) and not second.was_replayed(14)
    assert Journal(memory).inherited == [1001, 1002, 1004], "until it is answered, whoever dies meanwhile"
    second.end(10)
    second.forget_inherited()
    assert Journal(memory).inherited == []


def test_a_journal_cut_anywhere_is_one_from_before_or_after(memory: int) -> None:
    """Each store is tried as the last one of its daemon."""
    program = """
import os, sys
from emberfs.fuse.journal import Journal
journal = Journal(int(sys.argv[1]))
for number in range(1, 1_000_000):
    journal.opened(number << 8, number, number % 3)
    journal.written(number << 8, number)
    journal.begin(2 * number, number)
    if number == 1:
        os.write(1, b"x")
    if number > 100:
        journal.closed(number - 100 << 8)
        journal.end(2 * (number - 100))
"""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program, str(memory)], pass_fds=(memory,), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.read(1) == b"x"
        process.kill()
    found = Journal(memory)
    assert 0 < len(found.files) <= 101
    assert all(file.inode == file.fh >> 8 and file.flags == file.inode % 3 for file in found.files)
    assert len(found.inherited) <= 101 and os.fstat(memory).st_size == BYTES
