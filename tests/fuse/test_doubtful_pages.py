"""What fails half way, or goes on when its caller was killed, leaves no pages in the kernel that are other bytes than the file's."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emberfs.fuse import session
from emberfs.fuse.filesystem import FileSystem, handlers
from emberfs.fuse.operations.data import copy_file_range, fallocate
from emberfs.fuse.operations.files import fsync
from emberfs.fuse.protocol import Opcode
from emberfs.fuse.structs import FSYNC_IN
from emberfs.proto.errors import Status, error

from .users import errno_of

if TYPE_CHECKING:
    from emberfs_mount import MakeMount

    from emberfs.deploy.local import LocalCluster
    from emberfs.fuse.session import Request

SECONDS_MAX = 60.0
OLD, ZEROS = b"old " * 25_000, bytes(100_000)

LIBC = ctypes.CDLL(None)  # its calls let the thread go on that serves the mount
PUNCH_HOLE = 0x02 | 0x01  # with FALLOC_FL_KEEP_SIZE
PUNCH = f"""
import ctypes, os, sys
sys.stdin.readline()
fd = os.open(sys.argv[1], os.O_RDWR)
ctypes.CDLL(None).fallocate(fd, {PUNCH_HOLE}, ctypes.c_long(0), ctypes.c_long({len(OLD)}))
"""


def until_read(fd: int, wanted: bytes) -> None:
    """The pages go some moments after the answer."""
    end = time.monotonic() + SECONDS_MAX
    while os.pread(fd, len(wanted), 0) != wanted:
        assert time.monotonic() < end, "the kernel keeps the old bytes"
        threading.Event().wait(0.01)


def opened(path: Path, content: bytes = OLD) -> int:
    """A file that was read, so that the kernel has its pages."""
    path.write_bytes(content)
    fd = os.open(path, os.O_RDWR)
    assert os.pread(fd, len(content), 0) == content
    return fd


async def fails_half_way(fs: FileSystem, request: Request) -> bytes:
    await (fallocate if request.opcode == Opcode.FALLOCATE else copy_file_range)(fs, request)
    raise error(Status.IO_ERROR, "some of it was done")


def punch(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        assert LIBC.fallocate(file.fileno(), PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(len(OLD))) == -1


def copy(path: Path) -> None:
    with open(path.parent / "zeros", "w+b", buffering=0) as zeros, open(path, "r+b", buffering=0) as target:
        zeros.write(ZEROS)
        assert errno_of(lambda: os.copy_file_range(zeros.fileno(), target.fileno(), len(ZEROS), 0)) == errno.EIO


@pytest.mark.parametrize("change", [punch, copy])
def test_what_fails_half_way(cluster: LocalCluster, make_mount: MakeMount, change: Callable[[Path], None]) -> None:
    failing = {Opcode.FALLOCATE: fails_half_way, Opcode.COPY_FILE_RANGE: fails_half_way}
    path = make_mount(cluster.url, handlers={**handlers(), **failing, Opcode.COPY_FILE_RANGE_64: fails_half_way}).path
    fd = opened(path / f"half-{change.__name__}")
    change(path / f"half-{change.__name__}")
    until_read(fd, ZEROS)
    os.close(fd)


def test_what_goes_on_without_its_caller(
    cluster: LocalCluster, make_mount: MakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "INTERRUPT_SECONDS", 0.0)
    begun, go_on = threading.Event(), threading.Event()

    async def slowly(fs: FileSystem, request: Request) -> bytes:
        begun.set()
        await asyncio.to_thread(go_on.wait)
        return await fallocate(fs, request)

    mount = make_mount(cluster.url, handlers={**handlers(), Opcode.FALLOCATE: slowly})
    # Begun before this process has files open there: where a child closes those, it waits for the mount, and this process for the child.
    command = [sys.executable, "-c", PUNCH, str(mount.path / "without")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        fd = opened(mount.path / "without")
        print(file=process.stdin, flush=True)
        assert begun.wait(SECONDS_MAX)
        process.kill()
    assert os.pread(fd, len(OLD), 0) == OLD
    go_on.set()
    until_read(fd, ZEROS)
    os.close(fd)


def test_what_was_written_and_lost(cluster: LocalCluster, make_mount: MakeMount) -> None:
    async def loses(fs: FileSystem, request: Request) -> bytes:
        file = fs.handles[FSYNC_IN.unpack_from(request.body)[0]].file
        async with file.lock:
            file.write_back.discard()
            file.fail(error(Status.IO_ERROR, "it did not arrive"))
        return await fsync(fs, request)

    path = make_mount(cluster.url, handlers={**handlers(), Opcode.FSYNC: loses}).path
    fd = opened(path / "lost")
    os.pwrite(fd, ZEROS, 0)
    assert errno_of(lambda: os.fsync(fd)) == errno.EIO
    until_read(fd, OLD)
    os.close(fd)
