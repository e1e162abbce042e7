"""What goes wrong in a sort: bad input, a full disk, processes that are killed. Names are what they were, and nothing is left over."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

np = pytest.importorskip("numpy")
import emberfs  # noqa: E402
from emberfs.deploy.local import LocalCluster  # noqa: E402
from emberfs.deploy.sorting import external, generator, parallel, places  # noqa: E402
from emberfs.deploy.sorting.parallel import File, Kind, Workers  # noqa: E402
from emberfs.deploy.sorting.workplace import LOCK, workplace  # noqa: E402
from emberfs.proto.errors import Status, StatusError  # noqa: E402

from ..room import at_most  # noqa: E402

if TYPE_CHECKING:
    from emberfs_cluster import MakeCluster

COUNT = 50_000
MEMORY = external.MEMORY_MIN
DISK_BYTES = 1_000_000
PATIENCE_SECONDS = 60


@pytest.fixture
def pool() -> Iterator[Workers]:
    with parallel.workers(1) as made:
        yield made


@pytest.fixture
def source(pool: Workers, tmp_path: Path) -> File:
    made = File("", str(tmp_path / "in"))
    parallel.generate(pool, made, COUNT, Kind())
    return made


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def left_over(there: places.Place, path: str) -> None:
    """What a sort leaves that is killed in its first phase."""
    there.make_directory(path)
    for name in (LOCK, "output", "run-000000"):
        there.make(f"{path}/{name}")
        there.write(f"{path}/{name}", 0, b"half a record")


def test_input_that_is_none(pool: Workers, tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(bytes(1050))
    (tmp_path / "directory").mkdir()
    for name, complaint in (
        ("torn", "1050 bytes are no whole number of records"),
        ("directory", "is no regular file"),
        ("none", "No such file or directory"),
    ):
        file = File("", str(tmp_path / name))
        with pytest.raises(OSError, match=complaint):
            external.sort(pool, file, File("", str(tmp_path / "out")))
        with pytest.raises(OSError, match=complaint):
            parallel.validate(pool, [file])
    with pytest.raises(StatusError, match="no record to validate"):
        (tmp_path / "empty").touch()
        parallel.validate(pool, [File("", str(tmp_path / "empty"))])
    assert names(tmp_path) == ["directory", "empty", "torn"]


def test_output_that_cannot_be(source: File, pool: Workers, tmp_path: Path) -> None:
    """A sort ends in a rename: a device would be replaced by it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        target = File("", str(tmp_path / name))
        with pytest.raises(StatusError, match="no regular file"):
            external.sort(pool, source, target)
        with pytest.raises(StatusError, match="no regular file"):
            parallel.generate(pool, target, 10, Kind())
    with pytest.raises(FileNotFoundError):
        external.sort(pool, source, File("", str(tmp_path / "none/out")))
    with pytest.raises(StatusError, match="there are 2"):
        parallel.generate(pool, source, 2, Kind(begin=generator.NUMBERS - 1))
    assert names(tmp_path) == ["directory", "in", "pipe"]


@pytest.fixture
def little_room() -> Iterator[None]:
    """A limit on the size of files does to a write what a full disk does."""
    with at_most(DISK_BYTES):
        yield


def test_a_full_disk(source: File, pool: Workers, little_room: None, tmp_path: Path) -> None:
    """What had the name keeps it, and its content."""
    (tmp_path / "out").write_bytes(b"before")
    target = File("", str(tmp_path / "out"))
    with pytest.raises(OSError, match=r"File too large: .*run-000000"):
        external.sort(pool, source, target, memory=MEMORY)
    with pytest.raises(OSError, match=r"File too large: .*output"):
        parallel.generate(pool, target, 10**30, Kind())
    assert names(tmp_path) == ["in", "out"] and (tmp_path / "out").read_bytes() == b"before"


def test_what_a_killed_sort_left_goes_with_the_next(source: File, pool: Workers, tmp_path: Path) -> None:
    """But not what another one is at work on, nor what belongs to another output."""
    there = places.Local()
    for name in (".out.sorting-00000000", ".other.sorting-00000000"):
        left_over(there, str(tmp_path / name))
    (tmp_path / ".out.sorting-11111111").mkdir()  # killed before it had a lock, or about to make one
    with workplace(there, str(tmp_path / "out")) as busy:
        assert Path(busy).name.startswith(".out.sorting-")
        external.sort(pool, source, File("", str(tmp_path / "out")), memory=MEMORY)
        assert Path(busy).is_dir()
    assert names(tmp_path) == [".other.sorting-00000000", ".out.sorting-11111111", "in", "out"]
    assert parallel.validate(pool, [File("", str(tmp_path / "out"))]).ordered


def test_the_same_in_a_cluster(cluster: LocalCluster, pool: Workers) -> None:
    with emberfs.connect(cluster.url) as client, emberfs.connect(cluster.url) as other:
        client.mkdir("/killed")
        there = places.Cluster(client)
        left_over(there, "/killed/.out.sorting-00000000")
        with workplace(places.Cluster(other), "/killed/out") as busy:
            assert client.listdir("/killed") == [busy.removeprefix("/killed/")]
            parallel.generate(pool, File(cluster.url, "/killed/out"), 100, Kind())
            assert client.exists(busy)
        assert client.listdir("/killed") == ["out"]
        client.remove_tree("/killed", forever=True)


def test_scratch_elsewhere(source: File, pool: Workers, tmp_path: Path) -> None:
    """Both directories go, also when the sort fails."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def give_up(size: int) -> None:
        assert len(names(scratch)) == 1 and len(names(tmp_path)) == 3
        raise KeyboardInterrupt

    target, aside = File("", str(tmp_path / "out")), File("", str(scratch))
    with pytest.raises(KeyboardInterrupt):
        external.sort(pool, source, target, scratch=aside, memory=MEMORY, done=give_up)
    assert names(scratch) == [] and names(tmp_path) == ["in", "scratch"]


def test_a_cluster_without_room(make_cluster: MakeCluster, pool: Workers) -> None:
    running = make_cluster(capacity=64 << 20, kv_capacity=0)
    with pytest.raises(StatusError, match="no space left"):
        parallel.generate(pool, File(running.url, "/out"), 10**9, Kind())
    with emberfs.connect(running.url) as client:
        assert client.listdir("/") == []


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    with parallel.workers(2) as pool:
        with pytest.raises(StatusError, match="a process was killed") as caught:
            list(pool.map(os._exit, [9]))
        assert caught.value.status is Status.CANCELLED


PROGRAM = """\
import sys
from emberfs.deploy.sorting import parallel
if __name__ == "__main__":
    with parallel.workers(2) as pool:
        pool.start([])
        print(*set(pool.map(parallel._ready, [[]] * 16)), flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_first(how: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    first = subprocess.Popen(
        [sys.executable, "-P", str(tmp_path / "program.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert first.stdin and first.stdout and first.stderr
    others = [os.pidfd_open(int(pid)) for pid in first.stdout.readline().split()]
    assert others
    os.killpg(first.pid, how) if how == signal.SIGINT else first.kill()
    said = first.stderr.read()
    first.wait(PATIENCE_SECONDS)
    for other in others:
        assert select.select([other], [], [], PATIENCE_SECONDS)[0]
        os.close(other)
    for pipe in (first.stdin, first.stdout, first.stderr):
        pipe.close()
    # Ctrl-C reaches all of them: only the first one has something to say.
    assert said.count("Traceback") == (how == signal.SIGINT)
