"""System calls by name, for tables: each takes what a row says and raises OSError. Those that Python lacks go through libc."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from typing import Any

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_ZERO_RANGE = 1, 2, 8, 16
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def creat(path: str, flags: int = os.O_CREAT | os.O_WRONLY, mode: int = 0o644) -> None:
    os.close(os.open(path, flags, mode))


def store(path: str, data: bytes) -> None:
    """A new file with these bytes, or an old one that has them from now on."""
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def load(path: str) -> bytes:
    """All bytes of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    finally:
        os.close(fd)


def mkfifo(path: str, mode: int = 0o644) -> None:
    os.mkfifo(path, mode)


def mksocket(path: str) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o644)


def mkchar(path: str) -> None:
    os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3))


def mkblock(path: str) -> None:
    os.mknod(path, stat.S_IFBLK | 0o644, os.makedev(7, 250))


def link(source: str, target: str, flags: int = 0) -> None:
    """link(2): a symlink is linked itself."""
    _check(_libc.linkat(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags))


def renameat2(source: str, target: str, flags: int) -> None:
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags))


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """Times are (seconds, nanoseconds), the latter perhaps UTIME_NOW or UTIME_OMIT."""
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), (ctypes.c_long * 4)(*atime, *mtime), flags))


def touch(path: str) -> None:
    """Times of now: who may write may do this."""
    utimensat(path, (0, UTIME_NOW), (0, UTIME_NOW))


def utime(path: str) -> None:
    """Times of one's own choice: only the owner."""
    os.utime(path, (1, 2))


def lutime(path: str) -> None:
    os.utime(path, (1, 2), follow_symlinks=False)


def lchown(path: str, uid: int, gid: int) -> None:
    os.chown(path, uid, gid, follow_symlinks=False)


def access(path: str, mask: int) -> None:
    _check(_libc.access(os.fsencode(path), mask))


def execute(path: str) -> None:
    os.waitpid(os.posix_spawn(path, ["program"], {}), 0)


def chdir(path: str) -> None:
    back = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(path)
        os.fchdir(back)
    finally:
        os.close(back)


def setxattr(path: str, name: str, value: str | int, flags: int = 0) -> None:
    """A number stands for that many bytes."""
    os.setxattr(path, name, bytes(value) if isinstance(value, int) else value.encode(), flags)


def lsetxattr(path: str, name: str, value: str) -> None:
    os.setxattr(path, name, value.encode(), follow_symlinks=False)


def getxattr(path: str, name: str, size: int = 0) -> int:
    """getxattr(2) into a buffer of `size` bytes."""
    return _check(_libc.getxattr(os.fsencode(path), name.encode(), ctypes.create_string_buffer(size or 1), size))


def listxattr(path: str, size: int = 0) -> int:
    return _check(_libc.listxattr(os.fsencode(path), ctypes.create_string_buffer(size or 1), size))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate(fd, mode, offset, length))


def lock(fd: int, kind: int, start: int = 0, length: int = 0) -> None:
    fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))


def copy_within(fd: int, source: int, target: int, length: int) -> int:
    return os.copy_file_range(fd, fd, length, source, target)


def on(path: str, flags: int, call: str, *args: Any) -> Any:
    """A call on an open file."""
    fd = os.open(path, flags)
    try:
        return ON_FILES[call](fd, *args)
    finally:
        os.close(fd)


def exists(path: str) -> bool:
    with contextlib.suppress(OSError):
        os.lstat(path)
        return True
    return False


CALLS: dict[str, Callable[..., Any]] = {
    "on": on,
    **{
        call.__name__: call
        for call in (creat, mkfifo, mksocket, mkchar, mkblock, link, renameat2, touch, utime, lutime, lchown, access)
    },
    **{call.__name__: call for call in (execute, chdir, setxattr, lsetxattr, getxattr, listxattr)},
    **{
        call.__name__: call
        for call in (os.mkdir, os.symlink, os.readlink, os.unlink, os.rmdir, os.rename, os.chmod, os.chown)
    },
    **{call.__name__: call for call in (os.truncate, os.stat, os.lstat, os.listdir, os.statvfs, os.removexattr)},
}
ON_FILES: dict[str, Callable[..., Any]] = {
    "read": os.read,
    "pread": os.pread,
    "write": lambda fd, text: os.write(fd, text.encode()),
    "pwrite": lambda fd, text, offset: os.pwrite(fd, text.encode(), offset),
    "lseek": os.lseek,
    "ftruncate": os.ftruncate,
    "fsync": os.fsync,
    "fdatasync": os.fdatasync,
    "fallocate": fallocate,
    "posix_fallocate": os.posix_fallocate,
    "copy_within": copy_within,
    "fchmod": os.fchmod,
    "fchown": os.fchown,
    "lock": lock,
    "flock": fcntl.flock,
    "getdents": os.listdir,
}
