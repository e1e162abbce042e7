"""The local file system as the oracle: the kernel's own answers, for several users, below a directory of ours.

One helper process per user, forked before anything else, with that user's ids and with the directory as its root. It takes operations
over a pipe and answers with a value or an errno. Only root can make such helpers.
"""

from __future__ import annotations

import ctypes
import os
import stat
from multiprocessing.connection import Connection, Pipe
from typing import Any

from emberfs.meta.namespace.access import Credentials

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_FOLLOW = 0x400
AT_SYMLINK_NOFOLLOW = 0x100
TIMES_PROBED = 20
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFLNK: 3,
    stat.S_IFIFO: 4,
    stat.S_IFSOCK: 5,
    stat.S_IFCHR: 6,
    stat.S_IFBLK: 7,
}

Time = int | str  # nanoseconds since the epoch, "now", "omit"


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _timespec(time: Time) -> _Timespec:
    if isinstance(time, str):
        return _Timespec(0, UTIME_NOW if time == "now" else UTIME_OMIT)
    return _Timespec(*divmod(time, 1_000_000_000))


class Calls:
    """The operations, as system calls. Raises OSError."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _check(self, result: int) -> None:
        if result < 0:
            raise OSError(ctypes.get_errno(), "")

    def mkdir(self, path: str, mode: int, umask: int) -> None:
        os.umask(umask)
        os.mkdir(path, mode)

    def mknod(self, path: str, kind: int, mode: int, umask: int) -> None:
        os.umask(umask)
        os.mknod(path, mode | next(bits for bits, number in TYPES.items() if number == kind), os.makedev(1, 3))

    def symlink(self, path: str, target: str) -> None:
        os.symlink(target, path)

    def open(self, path: str, flags: int, mode: int, umask: int, written: int) -> None:
        os.umask(umask)
        opened = os.open(path, flags | os.O_NONBLOCK, mode)
        try:
            if written and stat.S_ISREG(os.fstat(opened).st_mode):
                os.pwrite(opened, b"x" * written, 0)
        finally:
            os.close(opened)

    def tmpfile(self, directory: str, target: str, mode: int, umask: int, exclusive: bool) -> None:
        os.umask(umask)
        opened = os.open(directory, os.O_TMPFILE | os.O_WRONLY | (os.O_EXCL if exclusive else 0), mode)
        try:
            self._check(self._libc.linkat(opened, b"", AT_FDCWD, target.encode(), AT_EMPTY_PATH))
        finally:
            os.close(opened)

    def truncate(self, path: str, length: int) -> None:
        os.truncate(path, length)

    def link(self, source: str, target: str, follow: bool) -> None:
        flags = AT_SYMLINK_FOLLOW if follow else 0
        self._check(self._libc.linkat(AT_FDCWD, source.encode(), AT_FDCWD, target.encode(), flags))

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def rename(self, source: str, target: str, flags: int) -> None:
        self._check(self._libc.renameat2(AT_FDCWD, source.encode(), AT_FDCWD, target.encode(), flags))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: str, uid: int, gid: int, follow: bool) -> None:
        os.chown(path, uid, gid, follow_symlinks=follow)

    def utimens(self, path: str, atime: Time, mtime: Time, follow: bool) -> None:
        times = (_Timespec * 2)(_timespec(atime), _timespec(mtime))
        flags = 0 if follow else AT_SYMLINK_NOFOLLOW
        self._check(self._libc.utimensat(AT_FDCWD, path.encode(), times, flags))

    def access(self, path: str, mask: int) -> None:
        self._check(self._libc.access(path.encode(), mask))

    def setxattr(self, path: str, name: str, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(path, name, value, flags, follow_symlinks=follow)

    def getxattr(self, path: str, name: str, follow: bool) -> bytes:
        return os.getxattr(path, name, follow_symlinks=follow)

    def listxattr(self, path: str, follow: bool) -> list[str]:
        return sorted(os.listxattr(path, follow_symlinks=follow))

    def removexattr(self, path: str, name: str, follow: bool) -> None:
        os.removexattr(path, name, follow_symlinks=follow)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def stat(self, path: str, follow: bool) -> int:
        return TYPES[stat.S_IFMT(os.stat(path, follow_symlinks=follow).st_mode)]

    # for root

    def reset(self, mode: int) -> None:
        """Everything goes, and the directory itself is as new."""
        for parent, directories, files in os.walk("/", topdown=False):
            for name in files:
                os.unlink(os.path.join(parent, name))
            for name in directories:
                where = os.path.join(parent, name)
                os.unlink(where) if os.path.islink(where) else os.rmdir(where)
        for name in os.listxattr("/"):
            os.removexattr("/", name)
        os.chown("/", 0, 0)
        os.chmod("/", mode)
        os.utime("/")

    def probe(self) -> bool:
        """Whether times move as ext4's do on newer kernels: any two changes differ, if one looked in between, and what changes nothing
        moves nothing. Raises OSError where extended attributes or ACLs are missing."""
        os.setxattr("/", "user.probe", b"")
        os.setxattr("/", "trusted.probe", b"")
        os.setxattr(
            "/", "system.posix_acl_access", bytes.fromhex("0200000001000700ffffffff04000700ffffffff20000700ffffffff")
        )
        seen: set[tuple[int, int]] = set()
        for _ in range(TIMES_PROBED):
            os.mkdir("/probe")
            seen.add(_mtime_and_ctime("/"))
            os.rmdir("/probe")
            seen.add(_mtime_and_ctime("/"))
        os.removexattr("/", "system.posix_acl_default")
        seen.add(_mtime_and_ctime("/"))
        self.reset(0o777)
        return len(seen) == 2 * TIMES_PROBED

    def tree(self) -> list[dict[str, Any]]:
        """Everything there is, depth first in the order of names, the directory itself first."""
        rows: list[dict[str, Any]] = []
        met: dict[int, int] = {}

        def visit(path: str) -> None:
            found = os.lstat(path)
            kind = TYPES[stat.S_IFMT(found.st_mode)]
            rows.append(
                {
                    "path": path,
                    "same": met.setdefault(found.st_ino, len(met)),
                    "number": found.st_ino,
                    "type": kind,
                    "mode": stat.S_IMODE(found.st_mode),
                    "owner": (found.st_uid, found.st_gid),
                    "nlink": found.st_nlink,
                    "size": 0 if kind == 2 else found.st_size,
                    "target": os.readlink(path) if kind == 3 else "",
                    "xattrs": {n: os.getxattr(path, n, follow_symlinks=False) for n in self.listxattr(path, False)},
                    "times": (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns),
                }
            )
            if kind == 2:
                for name in sorted(os.listdir(path)):
                    visit(os.path.join(path, name))

        visit("/")
        return rows


def _mtime_and_ctime(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns


class Local:
    """The helpers of some users over one directory. `close` ends them."""

    def __init__(self, directory: str, users: list[Credentials]) -> None:
        self._pipes: dict[Credentials, Connection] = {}
        self._children: list[int] = []
        for user in users:
            ours, theirs = Pipe()
            child = os.fork()
            if not child:
                for pipe in (ours, *self._pipes.values()):
                    pipe.close()
                _serve(theirs, directory, user)
            theirs.close()
            self._pipes[user] = ours
            self._children.append(child)

    def call(self, user: Credentials, operation: str, *args: Any) -> Any:
        """What the operation returns to that user. Raises OSError."""
        pipe = self._pipes[user]
        pipe.send((operation, args))
        failed, value = pipe.recv()
        if failed:
            raise OSError(value, os.strerror(value))
        return value

    def close(self) -> None:
        for pipe in self._pipes.values():
            pipe.close()
        for child in self._children:
            os.waitpid(child, 0)


def _serve(pipe: Connection, directory: str, user: Credentials) -> None:
    """Be that user, in that directory, until the other end closes."""
    try:
        calls = Calls()
        os.chroot(directory)
        os.chdir("/")
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        while True:
            operation, args = pipe.recv()
            try:
                pipe.send((False, getattr(calls, operation)(*args)))
            except OSError as failure:
                pipe.send((True, failure.errno))
    except EOFError:
        os._exit(0)
    finally:
        os._exit(1)
