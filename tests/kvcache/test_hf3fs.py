"""The ring interface of 3FS: what engines rely on, on plain files and on a mount."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emberfs.kvcache.adapters import hf3fs

if TYPE_CHECKING:
    from emberfs_cluster import LocalCluster
    from emberfs_mount import MakeMount

PIECE = 1 << 20
ENTRIES = 8


@pytest.fixture
def shm() -> Iterator[SharedMemory]:
    """As engines make it: unlinked at once, closed at the end (which fails while anybody holds a view)."""
    memory = SharedMemory(create=True, size=PIECE * ENTRIES)
    memory.unlink()
    yield memory
    gc.collect()
    memory.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "pages.bin", os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, 4 * PIECE * ENTRIES)
    hf3fs.register_fd(descriptor)
    yield descriptor
    hf3fs.deregister_fd(descriptor)
    os.close(descriptor)


def pattern(number: int) -> bytes:
    return bytes([number + 1]) * PIECE


def move(memory: SharedMemory, fd: int, offsets: list[int], *, read: bool) -> list[int]:
    """One batch as the engines send it: piece i of the memory for offset i."""
    ring = hf3fs.make_ioring("/", ENTRIES, for_read=read, timeout=1, numa=-1)
    iovec = hf3fs.make_iovec(memory, "/")
    for i, offset in enumerate(offsets):
        ring.prepare(iovec[i * PIECE : (i + 1) * PIECE], read, fd, offset)
    done = ring.submit().wait(min_results=len(offsets), timeout=timedelta(seconds=60))
    return [piece.result for piece in done]


def test_a_batch_is_written_and_read_back(shm: SharedMemory, file: int) -> None:
    assert shm.buf is not None
    offsets = [3 * i * PIECE for i in range(ENTRIES)]
    for i in range(ENTRIES):
        shm.buf[i * PIECE : (i + 1) * PIECE] = pattern(i)
    assert move(shm, file, offsets, read=False) == [PIECE] * ENTRIES
    shm.buf[:] = bytes(len(shm.buf))
    assert move(shm, file, offsets[::-1], read=True) == [PIECE] * ENTRIES
    for i in range(ENTRIES):
        assert bytes(shm.buf[i * PIECE : (i + 1) * PIECE]) == pattern(ENTRIES - 1 - i)


def test_results_come_in_the_order_of_prepare(shm: SharedMemory, file: int) -> None:
    """Engines pair results with pages by position: here each piece has another outcome."""
    ring = hf3fs.make_ioring("/", ENTRIES)
    iovec = hf3fs.make_iovec(shm, "/")
    end = os.fstat(file).st_size
    offsets = [end - PIECE, end, end - PIECE // 2, 0]  # whole, nothing, half, whole
    for i, offset in enumerate(offsets):
        ring.prepare(iovec[i * PIECE : (i + 1) * PIECE], True, file, offset, userdata=i)
    done = ring.submit().wait(min_results=len(offsets))
    assert [piece.result for piece in done] == [PIECE, 0, PIECE // 2, PIECE]
    assert [piece.userdata for piece in done] == [0, 1, 2, 3]


def test_a_batch_may_be_taken_in_parts(shm: SharedMemory, file: int) -> None:
    ring = hf3fs.make_ioring("/", ENTRIES)
    iovec = hf3fs.make_iovec(shm, "/")
    for i in range(5):
        ring.prepare(iovec[i * 4096 : (i + 1) * 4096], True, file, 0, userdata=i)
    ring.submit()
    assert [piece.userdata for piece in ring.wait(max_results=2, min_results=1)] == [0, 1]
    ring.prepare(iovec[:4096], True, file, 0, userdata=5)
    assert [piece.userdata for piece in ring.wait()] == [2, 3, 4]
    assert ring.wait() == []
    assert [piece.userdata for piece in ring.submit().wait()] == [5]


@pytest.mark.parametrize(
    ("read", "registered", "offset", "number"),
    [(False, True, 0, errno.EBADF), (True, False, 0, errno.EBADF), (True, True, -1, errno.EINVAL)],
    ids=["wrong direction", "not registered", "below zero"],
)
def test_prepare_refuses(shm: SharedMemory, file: int, read: bool, registered: bool, offset: int, number: int) -> None:
    if not registered:
        hf3fs.deregister_fd(file)
    with pytest.raises(OSError, match=r".") as refused:
        hf3fs.make_ioring("/", 2, True).prepare(hf3fs.make_iovec(shm, "/")[:4096], read, file, offset)
    assert refused.value.errno == number


def test_a_full_ring_refuses(shm: SharedMemory, file: int) -> None:
    ring = hf3fs.make_ioring("/", 2)
    iovec = hf3fs.make_iovec(shm, "/")
    for _ in range(2):
        ring.prepare(iovec[:4096], True, file, 0)
    with pytest.raises(BlockingIOError):
        ring.prepare(iovec[:4096], True, file, 0)
    ring.submit().wait()
    ring.prepare(iovec[:4096], True, file, 0)


def test_errors_are_negative_results(shm: SharedMemory, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "read-only", os.O_RDONLY | os.O_CREAT)
    hf3fs.register_fd(descriptor)
    assert move(shm, descriptor, [0, PIECE], read=False) == [-errno.EBADF] * 2
    hf3fs.deregister_fd(descriptor)
    os.close(descriptor)


def test_what_has_not_begun_in_time_never_does(shm: SharedMemory, file: int) -> None:
    ring = hf3fs.make_ioring("/", ENTRIES)
    iovec = hf3fs.make_iovec(shm, "/")
    for i in range(ENTRIES):
        ring.prepare(iovec[i * PIECE : (i + 1) * PIECE], True, file, 0)
    done = ring.submit().wait(timeout=timedelta(seconds=-1))
    assert [piece.result for piece in done] == [-errno.ETIMEDOUT] * ENTRIES


def test_descriptors_are_deregistered_twice_without_harm(file: int) -> None:
    hf3fs.deregister_fd(file)
    hf3fs.deregister_fd(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        hf3fs.register_fd(1 << 20)


def test_an_iovec_lets_go_of_its_memory(file: int) -> None:
    """`SharedMemory.close()` raises BufferError while a view of it lives."""
    memory = SharedMemory(create=True, size=PIECE)
    memory.unlink()
    iovec = hf3fs.make_iovec(memory, "/")
    ring = hf3fs.make_ioring("/", 1)
    done = ring.prepare(iovec[:4096], True, file, 0).submit().wait()
    del iovec, ring, done
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        hf3fs.make_iovec(memory, "/")


def test_a_forked_child_moves_pieces_too(shm: SharedMemory, file: int) -> None:
    assert move(shm, file, [0, PIECE], read=False) == [PIECE] * 2  # the threads are there now
    child = os.fork()
    if not child:
        os._exit(0 if move(shm, file, [0, PIECE], read=True) == [PIECE] * 2 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_mount_point_is_its_own() -> None:
    assert hf3fs.extract_mount_point("/proc") == "/proc"
    assert hf3fs.extract_mount_point("/proc/self/no/such/thing") == "/proc"
    assert hf3fs.extract_mount_point("/") == "/"


def test_the_drop_in_is_found_only_where_it_is_wanted(tmp_path: Path) -> None:
    """Its folder goes on PYTHONPATH; nothing else occupies the name of 3FS's package."""
    command = [sys.executable, "-m", "emberfs.kvcache.adapters.hf3fs"]
    folder = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.strip()
    code = "from hf3fs_fuse.io import deregister_fd, extract_mount_point, make_ioring, make_iovec, register_fd"
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path, env={**bare, "PYTHONPATH": folder})
    assert found.returncode == 0
    missing = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, cwd=tmp_path, env=bare)
    assert b"ModuleNotFoundError" in missing.stderr


def test_on_a_mount(make_mount: MakeMount, cluster: LocalCluster, shm: SharedMemory) -> None:
    """As an engine does it: a sparse file on the mount, pages anywhere in it, read back through another descriptor."""
    assert shm.buf is not None
    path = make_mount(cluster.url).path / "hicache.0.bin"
    writer = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(writer, 1 << 30)
    reader = os.open(path, os.O_RDWR)
    for descriptor in (writer, reader):
        hf3fs.register_fd(descriptor)
    assert hf3fs.extract_mount_point(str(path)) == str(path.parent)
    offsets = [((i * 37) % 101) * PIECE for i in range(ENTRIES)]
    for i in range(ENTRIES):
        shm.buf[i * PIECE : (i + 1) * PIECE] = pattern(i)
    assert move(shm, writer, offsets, read=False) == [PIECE] * ENTRIES
    shm.buf[:] = bytes(len(shm.buf))
    assert move(shm, reader, offsets, read=True) == [PIECE] * ENTRIES
    assert all(bytes(shm.buf[i * PIECE : (i + 1) * PIECE]) == pattern(i) for i in range(ENTRIES))
    for descriptor in (writer, reader):
        hf3fs.deregister_fd(descriptor)
        os.close(descriptor)
