"""The seam to block files: `Disk`, and the one over real files. The simulated one is in simulated.py."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from ...proto.copying import address_of

BUFFERS_MAX = 1024  # IOV_MAX: buffers in one system call
_preadv = os.preadv  # looked up once: it is called per small read
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
BLOCK_BYTES = 4096  # what goes around the page cache comes in these: no disk wants larger ones
# Where memory for this has to lie. Most disks take less, and say so when they do not; but where the kernel leaves the question to the
# driver, one that has not asked (zram under Linux 6.18) may write beside it.
MEMORY_BYTES = 512
# The kernel lets one thread at a time write to a file, and has the others spin, on processors that the rest of the work needs.
ALONE_BYTES_MIN = 256 << 10  # of one call: from here on they wait asleep
COLD_BYTES_MIN = 256 << 10  # of one call: less is better gathered, or read ahead, in the page cache
_CACHESTAT = 451  # the system call, on every architecture

_Move = Callable[[int, Sequence[Any], int], int]  # os.preadv or os.pwritev


class _CacheRange(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class _CacheStat(ctypes.Structure):
    """Numbers of pages."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")]


class Disk(Protocol):
    """Block files in one directory. Handles are small numbers, real file descriptors in the real one.

    Writes are buffered: they survive a killed process at once, and power loss after `fdatasync` of their file; a new file's name
    after `sync_names`. Without these any part of them may be lost. Methods raise OSError.
    """

    buffered: bool  # what was just written is read back from memory

    def names(self) -> list[str]:
        """The files that are there."""

    def open(self, name: str) -> int:
        """The handle of a file, which is made when it does not exist."""

    def size(self, handle: int) -> int:
        """Its length in bytes."""

    def free(self) -> int:
        """Bytes of disk space that are left."""

    def allocate(self, handle: int, offset: int, length: int) -> None:
        """Reserve disk space for the range, and extend the file over it. ENOSPC when the disk is full."""

    def punch(self, handle: int, offset: int, length: int) -> None:
        """Give the range's disk space back; it reads as zeros."""

    def pwritev(self, handle: int, buffers: Sequence[Any], offset: int, cold: bool = False) -> None:
        """Write all the buffers, one after the other. `cold`: nobody is expected to read them soon, so they had better not take memory."""

    def preadv(self, handle: int, buffers: Sequence[Any], offset: int, wait: bool, cold: bool = False) -> int:
        """Fill the buffers; fewer bytes at the end of the file, or where not `wait` and the rest is not in memory. Raises BlockingIOError
        when not `wait` and nothing is in memory. `cold`: as in `pwritev`."""

    def fill(self, places: Sequence[tuple[int, int]], buffer: memoryview, length: int, *, wait: bool = False) -> int:
        """Fill `buffer` with `length` bytes from each place (handle, offset), one after the other, up to the first that is not in memory
        (unless it may `wait`) or cannot be read; how many came. Nothing is said of the rest of the buffer then, and `preadv` says why."""

    def is_cached(self, handle: int, offset: int, length: int) -> bool:
        """Whether all of the range is in the page cache behind the descriptor `handle`, as far as one can tell."""

    def advise(self, handle: int, offset: int, length: int, needed: bool) -> None:
        """The range will be read soon, and had better be in memory; or not for long, and its clean pages may go. Only advice."""

    def fdatasync(self, handle: int) -> None:
        """What was written to the file before is durable when this returns. After an error nothing is known any more."""

    def sync_names(self) -> None:
        """Files made before are there after power loss."""

    def close(self) -> None: ...


class FileDisk:
    """Block files in a directory of the host's file system; through the page cache, or around it with `direct`.

    What is cold goes around it in any case, if the file system can: pages that nobody reads again push out those that are read, and
    finding room for them costs more than the disk does (a machine that was idle took 0.4 GiB/s through the cache and 1.4 around it)."""

    def __init__(self, path: str, *, direct: bool = False) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)
        self._path = path
        self._handles: dict[str, int] = {}
        self._direct: dict[int, int] = {}  # handle -> descriptor with O_DIRECT
        self._writing: dict[int, threading.Lock] = {}  # handle -> held by whoever writes much through the page cache
        self._is_direct = direct
        self.buffered = not direct
        self._no_wait = os.RWF_NOWAIT

    def names(self) -> list[str]:
        return sorted(os.listdir(self._path))

    def open(self, name: str) -> int:
        if name in self._handles:
            return self._handles[name]
        path = os.path.join(self._path, name)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # nobody asks when a block file was read last, and to note it costs a small read 2 %
            fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_NOATIME)
        try:
            self._direct[handle] = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            if self._is_direct:
                os.close(handle)
                raise
        self._writing[handle] = threading.Lock()
        self._handles[name] = handle
        return handle

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def free(self) -> int:
        found = os.statvfs(self._path)
        return found.f_bavail * found.f_frsize

    def allocate(self, handle: int, offset: int, length: int) -> None:
        try:
            os.posix_fallocate(handle, offset, length)
        except OSError as failed:
            if failed.errno != errno.EOPNOTSUPP:
                raise
            os.ftruncate(handle, max(self.size(handle), offset + length))

    def punch(self, handle: int, offset: int, length: int) -> None:
        if _libc.fallocate(handle, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length)):
            code = ctypes.get_errno()
            if code != errno.EOPNOTSUPP:  # a file system without holes keeps the space for the next slot
                raise OSError(code, f"fallocate: {os.strerror(code)}")

    def pwritev(self, handle: int, buffers: Sequence[Any], offset: int, cold: bool = False) -> None:
        total = sum(memoryview(buffer).nbytes for buffer in buffers)
        done = self._around(os.pwritev, handle, buffers, offset, total) if cold or self._is_direct else 0
        if total - done < ALONE_BYTES_MIN:
            _write(handle, buffers, offset, done, total)
            return
        with self._writing[handle]:
            _write(handle, buffers, offset, done, total)

    def preadv(self, handle: int, buffers: Sequence[Any], offset: int, wait: bool, cold: bool = False) -> int:
        if wait:
            if cold or self._is_direct:
                total = sum(memoryview(buffer).nbytes for buffer in buffers)
                if done := self._around(os.preadv, handle, buffers, offset, total):
                    return done
            return os.preadv(handle, buffers, offset)
        if self._is_direct:
            raise BlockingIOError(errno.EAGAIN, "direct reads always wait")
        try:
            return _preadv(handle, buffers, offset, self._no_wait)
        except OSError as failed:
            if failed.errno != errno.EOPNOTSUPP:
                raise
            self._no_wait = 0  # this file system cannot tell: its reads are taken as they come
            return os.preadv(handle, buffers, offset)

    def _around(self, move: _Move, handle: int, buffers: Sequence[Any], offset: int, total: int) -> int:
        """How many bytes were moved around the page cache: as many whole blocks as there are, or none where that is not possible."""
        direct = self._direct.get(handle)
        if direct is None or (total < COLD_BYTES_MIN and not self._is_direct):
            return 0
        blocks = _before(buffers, total - total % BLOCK_BYTES)
        if not blocks or offset % BLOCK_BYTES or not all(map(_lies_well, blocks)):
            return 0
        try:
            return move(direct, blocks[:BUFFERS_MAX], offset)
        except OSError as failed:
            if failed.errno != errno.EINVAL:
                raise
            return 0  # the memory does not lie as this disk wants it

    def fill(self, places: Sequence[tuple[int, int]], buffer: memoryview, length: int, *, wait: bool = False) -> int:
        if self._is_direct:
            return 0
        flags, begin = 0 if wait else self._no_wait, 0
        try:
            for handle, offset in places:
                end = begin + length
                if _preadv(handle, (buffer[begin:end],), offset, flags) != length:
                    break
                begin = end
        except OSError:
            pass
        return begin // length

    def is_cached(self, handle: int, offset: int, length: int) -> bool:
        if self._is_direct:
            return False
        first = offset // PAGE_BYTES
        found = _CacheStat()
        wanted = _CacheRange(offset, length)
        # Linux 6.5 has it; what is older says ENOSYS, which reads as "not cached".
        if _libc.syscall(_CACHESTAT, handle, ctypes.byref(wanted), ctypes.byref(found), 0):
            return False
        return int(found.cached) == (offset + length - 1) // PAGE_BYTES - first + 1

    def advise(self, handle: int, offset: int, length: int, needed: bool) -> None:
        os.posix_fadvise(handle, offset, length, os.POSIX_FADV_WILLNEED if needed else os.POSIX_FADV_DONTNEED)

    def fdatasync(self, handle: int) -> None:
        os.fdatasync(handle)

    def sync_names(self) -> None:
        sync_directory(self._path)

    def close(self) -> None:
        for handle in (*self._handles.values(), *self._direct.values()):
            os.close(handle)
        self._handles.clear()
        self._direct.clear()


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def page_memory(length: int) -> memoryview:
    """New memory of so many bytes, all zeros, that begins with a page: a disk may fill it around the page cache."""
    return memoryview(mmap.mmap(-1, max(length, 1)))[:length]


def _lies_well(block: memoryview) -> bool:
    return not block.readonly and address_of(block) % MEMORY_BYTES == 0  # what is read-only does not tell its address


def _before(buffers: Sequence[Any], end: int) -> list[memoryview]:
    first = []
    for buffer in buffers:
        view = memoryview(buffer).cast("B")[:end]
        if view.nbytes:
            first.append(view)
        end -= view.nbytes
    return first


def _write(handle: int, buffers: Sequence[Any], offset: int, done: int, total: int) -> None:
    """Through the page cache, from the byte `done` on."""
    while done < total:
        rest = _after(buffers, done) if done else buffers
        step = os.pwritev(handle, rest[:BUFFERS_MAX], offset + done)
        if step == 0:
            raise OSError(errno.EIO, "the disk took no more bytes")
        done += step


def _after(buffers: Sequence[Any], done: int) -> list[memoryview]:
    rest = []
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        if done < view.nbytes:
            rest.append(view[done:])
        done = max(0, done - view.nbytes)
    return rest


class FileEnds(OSError):
    """A block file is shorter than what was written to it: whatever lay behind its end is not there."""


def read_exactly(
    disk: Disk, handle: int, buffers: Sequence[Any], offset: int, length: int, wait: bool, cold: bool = False
) -> None:
    """Fill the buffers with `length` bytes. Raises BlockingIOError when not `wait` and not all is in memory; FileEnds (EIO) at the end
    of the file."""
    done = disk.preadv(handle, buffers, offset, wait, cold)
    while done < length:
        step = disk.preadv(handle, _after(buffers, done), offset + done, wait, cold)
        if step == 0:
            raise FileEnds(errno.EIO, f"the block file ends {length - done} bytes too early")
        done += step


_libc = ctypes.CDLL(None, use_errno=True)
