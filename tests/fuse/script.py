"""The system calls behind the recording: a program on a mounted file system, one step when told. Standard library only.

    python script.py MOUNTPOINT      each line of input is a step's name; the answer is what the step saw, as one line of JSON

It runs in a process of its own because the one that answers the kernel must not wait for itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_NOREPLACE = 1
FALLOC_KEEP_SIZE_PUNCH_HOLE = 3
STATX_BASIC_AND_BIRTH = 0xFFF
FS_IOC_GETFLAGS = 0x80086601
IOCTL_BOTH_WAYS = 0xC0104501  # _IOWR('E', 1, 16 bytes)
OTHER_USER, OTHER_GROUP, DIRECTORY_GROUP = 1000, 1001, 1002

STEPS: dict[str, Callable[[], Any]] = {}
files: dict[str, int] = {}  # descriptors that stay open between steps


def step(function: Callable[[], Any]) -> Callable[[], Any]:
    STEPS[function.__name__] = function
    return function


def called(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def seen(stat: os.stat_result) -> dict[str, int]:
    return {name: getattr(stat, name) for name in dir(stat) if name.startswith("st_") and not name.endswith("time")}


@step
def missing() -> bool:
    return os.path.exists("missing")


@step
def mkdir() -> None:
    os.umask(0o027)
    os.mkdir("directory", 0o770)


@step
def stat() -> dict[str, int]:
    return seen(os.stat("ready"))


@step
def create() -> None:
    files["file"] = os.open("directory/file", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)


@step
def write() -> int:
    return os.pwrite(files["file"], b"0123456789", 100)


@step
def fstat() -> dict[str, int]:
    return seen(os.fstat(files["file"]))


@step
def open_read() -> str:
    files["ready"] = os.open("ready", os.O_RDWR)
    return os.pread(files["ready"], 16, 5).hex()


@step
def read_direct() -> str:
    page = mmap.mmap(-1, 4096)
    files["direct"] = os.open("ready", os.O_RDONLY | os.O_DIRECT)
    count = os.preadv(files["direct"], [memoryview(page)[:512]], 4096)
    return page[:count].hex()


@step
def chmod() -> None:
    os.chmod("directory/file", 0o604)


@step
def chown() -> None:
    os.chown("directory/file", 12, 34)


@step
def truncate() -> None:
    os.truncate("directory/file", 77)


@step
def ftruncate() -> None:
    os.ftruncate(files["file"], 66)


@step
def utime() -> dict[str, int]:
    os.utime("directory/file", ns=(-5_000_000_001, 1_234_567_890_123_456_789))
    return seen(os.stat("directory/file"))


@step
def utime_now() -> None:
    os.utime("directory/file")


@step
def symlink() -> None:
    os.symlink("../where/to", "directory/link")


@step
def readlink() -> str:
    return os.readlink("directory/link")


@step
def link() -> None:
    os.link("ready", "directory/second")


@step
def mknod() -> dict[str, int]:
    os.mknod("directory/pipe", 0o010666)
    os.mknod("directory/device", 0o020666, os.makedev(300, 70000))
    return seen(os.stat("directory/device"))


@step
def rename() -> None:
    os.rename("directory/second", "third")


@step
def rename_noreplace() -> None:
    called(LIBC.renameat2(AT_FDCWD, b"third", AT_FDCWD, b"directory/fourth", RENAME_NOREPLACE))


@step
def setxattr() -> None:
    os.setxattr("directory/file", "user.colour", b"r\0d", os.XATTR_CREATE)


@step
def getxattr() -> str:
    return os.getxattr("directory/file", "user.colour").hex()


@step
def listxattr() -> list[str]:
    return os.listxattr("directory/file")


@step
def removexattr() -> None:
    os.removexattr("directory/file", "user.colour")


@step
def fsync() -> None:
    os.fsync(files["file"])


@step
def fdatasync() -> None:
    os.fdatasync(files["file"])


@step
def fsyncdir() -> None:
    directory = os.open("directory", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


@step
def listdir() -> list[str]:
    return sorted(os.listdir("directory"))


@step
def listdir_again() -> list[str]:
    return sorted(os.listdir("directory"))


@step
def statvfs() -> list[int]:
    return list(os.statvfs("."))


@step
def access() -> bool:
    return os.access("directory/file", os.R_OK | os.W_OK)


@step
def setlk() -> None:
    fcntl.lockf(files["file"], fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20)


@step
def setlkw() -> None:
    fcntl.lockf(files["file"], fcntl.LOCK_SH, 0, 5)


@step
def getlk() -> int:
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 7, 3, 0)
    return struct.unpack("hhqqi4x", fcntl.fcntl(files["file"], fcntl.F_GETLK, wanted))[0]


@step
def unlock() -> None:
    fcntl.lockf(files["file"], fcntl.LOCK_UN)


@step
def flock() -> None:
    fcntl.flock(files["ready"], fcntl.LOCK_EX)


@step
def fallocate() -> None:
    os.posix_fallocate(files["file"], 1000, 24)


@step
def punch() -> None:
    offset, length = ctypes.c_int64(8), ctypes.c_int64(16)
    called(LIBC.fallocate(files["file"], FALLOC_KEEP_SIZE_PUNCH_HOLE, offset, length))


@step
def lseek() -> list[int]:
    return [os.lseek(files["ready"], 5, os.SEEK_DATA), os.lseek(files["ready"], 6, os.SEEK_HOLE)]


@step
def copy_file_range() -> int:
    return os.copy_file_range(files["ready"], files["file"], 100, 11, 22)


@step
def getflags() -> None:
    fcntl.ioctl(files["file"], FS_IOC_GETFLAGS, bytes(8))


@step
def ioctl() -> str:
    return fcntl.ioctl(files["file"], IOCTL_BOTH_WAYS, b"sixteen bytes ok").hex()


@step
def poll() -> list[int]:
    waiting = select.poll()
    waiting.register(files["file"], select.POLLIN)
    return [events for _, events in waiting.poll(1000)]


@step
def tmpfile() -> None:
    os.close(os.open("directory", os.O_TMPFILE | os.O_RDWR, 0o600))


@step
def statx() -> list[int]:
    result = ctypes.create_string_buffer(256)
    called(LIBC.statx(AT_FDCWD, b"directory/file", 0, STATX_BASIC_AND_BIRTH, result))
    birth = struct.unpack_from("=qI", result, 80)
    return list(birth)


@step
def interrupt() -> str:
    """A signal while the file system takes its time; again and again, in case that the first comes before the call."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        os.getxattr("ready", "user.slow")
    except OSError as error:
        return error.strerror
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "not interrupted"


@step
def supplementary_group() -> None:
    """A user whose second group owns the directory makes a file there."""
    os.chown("directory", OTHER_USER, DIRECTORY_GROUP)
    os.setgroups([DIRECTORY_GROUP])
    os.setegid(OTHER_GROUP)
    os.seteuid(OTHER_USER)
    try:
        os.mkdir("directory/grouped", 0o755)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


@step
def retrieve() -> None:
    os.pread(files["ready"], 64, 0)
    os.getxattr("ready", "user.retrieve")


@step
def forget() -> None:
    """Names that the file system takes back while their inodes are in use nowhere."""
    names = ["one", "two", "three"]
    for name in names:
        os.mkdir(name)
    os.setxattr("ready", "user.push", ",".join(names).encode())
    os.getxattr("ready", "user.push")


@step
def unlink() -> None:
    os.unlink("directory/fourth")


@step
def rmdir() -> None:
    os.rmdir("directory/grouped")


@step
def close() -> None:
    for name in ("direct", "ready", "file"):
        os.close(files.pop(name))


def main() -> None:
    os.chdir(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(STEPS[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
