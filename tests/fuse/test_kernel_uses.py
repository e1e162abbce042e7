"""What programs get at by the less travelled ways into the kernel's protocol: handles, locks of descriptions, statx, set-id bits."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emberfs.fuse.protocol import Opcode

from .users import ALICE, acting

if TYPE_CHECKING:
    from emberfs_mount import MakeMount

    from emberfs.deploy.local import LocalCluster

LIBC = ctypes.CDLL(None, use_errno=True)
F_OFD_GETLK, F_OFD_SETLK = 36, 37
FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = -100, 0x1000, 0x400
RENAME_EXCHANGE = 2
STATX_BTIME = 0x800
HANDLE_BYTES = 128
SECONDS_MAX = 60  # until a lock is free


def called(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def can_be_locked(path: Path) -> bool:
    """Whether another process gets a lock on all of the file, at once."""

    def attempt() -> bool:
        try:
            fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    return acting(ALICE, attempt)


def becomes_free(path: Path) -> bool:
    """Whether another process gets it soon: nobody waits for RELEASE, so neither may a test."""

    def attempt() -> bool:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
        signal.alarm(SECONDS_MAX)
        fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX)
        return True

    try:
        return acting(ALICE, attempt)
    except EOFError:  # it was ended by its alarm
        return False


def test_a_lock_of_an_open_file_description_goes_with_its_last_descriptor(both: Path) -> None:
    """The kernel sends no unlock for it, and FLUSH names the process, not the description: RELEASE is all there is to see."""
    path = both / "file"
    path.touch(0o666)
    path.chmod(0o666)
    other = os.open(path, os.O_RDWR)  # keeps the file open, so that its locks do not go with its last handle
    try:
        locked = os.open(path, os.O_RDWR)
        copy = os.dup(locked)
        fcntl.fcntl(locked, F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 5, 0))
        os.close(locked)
        assert not can_be_locked(path)
        os.close(copy)
        assert becomes_free(path)
    finally:
        os.close(other)


def test_closing_one_description_keeps_the_locks_of_another(both: Path) -> None:
    path = both / "file"
    path.touch(0o666)
    path.chmod(0o666)
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    fcntl.fcntl(one, F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 5, 0))
    fcntl.fcntl(two, F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 100, 5, 0))
    os.close(two)
    assert not can_be_locked(path)
    os.close(one)


def test_a_process_that_locks_again_after_a_close_keeps_its_lock(both: Path) -> None:
    """close(2) of any descriptor drops the process's locks; the late RELEASE of that one must not drop what came after."""
    path = both / "file"
    path.touch(0o666)
    path.chmod(0o666)
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(one)
    fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not can_be_locked(path)
    os.close(two)
    assert becomes_free(path)


def test_getlk_names_who_is_in_the_way(both: Path) -> None:
    path = both / "file"
    path.touch()
    path.chmod(0o666)

    def ask() -> tuple[int, ...]:
        asked = FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        return FLOCK.unpack(fcntl.fcntl(os.open(path, os.O_RDWR), fcntl.F_GETLK, asked))

    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 20)
        assert acting(ALICE, ask) == (fcntl.F_WRLCK, os.SEEK_SET, 20, 10, os.getpid())


CHANGES: dict[str, Callable[[int], object]] = {
    "write": lambda fd: os.write(fd, b"x"),
    "truncate": lambda fd: os.ftruncate(fd, 1),
    "fallocate": lambda fd: os.posix_fallocate(fd, 0, 10),
}


@pytest.mark.parametrize("how", CHANGES)
def test_set_id_bits_that_came_after_the_open_go_with_a_change(both: Path, how: str) -> None:
    path = both / "file"
    path.write_bytes(b"something")
    os.chown(path, ALICE.uid, ALICE.gid)

    def change() -> int:
        fd = os.open(path, os.O_RDWR)
        os.fchmod(fd, 0o6755)
        CHANGES[how](fd)
        return stat.S_IMODE(os.fstat(fd).st_mode)

    assert oct(acting(ALICE, change)) == "0o755"


def test_set_id_bits_go_with_a_truncating_open(both: Path) -> None:
    path = both / "file"
    path.write_bytes(b"something")
    os.chown(path, ALICE.uid, ALICE.gid)
    path.chmod(0o6755)
    acting(ALICE, lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))
    assert oct(stat.S_IMODE(path.stat().st_mode)) == "0o755"


def test_a_file_without_a_name_gets_one(both: Path) -> None:
    fd = os.open(both, os.O_TMPFILE | os.O_RDWR, 0o640)
    try:
        os.write(fd, b"content")
        assert os.fstat(fd).st_nlink == 0
        called(LIBC.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, os.fsencode(both / "name"), AT_SYMLINK_FOLLOW))
        assert os.fstat(fd).st_nlink == 1
    finally:
        os.close(fd)
    assert (both / "name").read_bytes() == b"content"


def test_names_change_places(both: Path) -> None:
    (both / "one").write_bytes(b"1")
    (both / "two").mkdir()
    one, two = os.fsencode(both / "one"), os.fsencode(both / "two")
    called(LIBC.renameat2(AT_FDCWD, one, AT_FDCWD, two, RENAME_EXCHANGE))
    assert (both / "one").is_dir()
    assert (both / "two").read_bytes() == b"1"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_file_handle_finds_its_file_again(make_mount: MakeMount, cluster: LocalCluster, kind: str) -> None:
    """name_to_handle_at(2), as an NFS server uses it, when the kernel has forgotten the inode: LOOKUP of "." in a node, and of ".." up
    to a directory that it knows."""
    mount = make_mount(cluster.url)
    path = mount.path / f"handles-{kind}" / "between" / "last"
    path.parent.mkdir(parents=True)
    if kind == "directory":
        path.mkdir()
    else:
        path.touch()
    handle = ctypes.create_string_buffer(struct.pack("Ii", HANDLE_BYTES, 0) + bytes(HANDLE_BYTES))
    mount_id = ctypes.c_int()
    called(LIBC.name_to_handle_at(AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount_id), 0))
    numbers = {path.stat().st_ino, path.parent.stat().st_ino}
    top, lookups = path.parent.parent.stat().st_ino, mount.requests(Opcode.LOOKUP)

    async def forget() -> None:
        await mount.session.fs.notifier.entry(top, b"between")

    while any(number in mount.session.fs.nodes for number in numbers):
        mount.call(forget())
        os.stat(path.parent.parent)  # FORGET is read before what is asked after it
    somewhere = os.open(mount.path, os.O_RDONLY)
    fd = called(LIBC.open_by_handle_at(somewhere, handle, os.O_RDONLY))
    os.close(somewhere)
    assert os.fstat(fd).st_ino in numbers
    assert os.readlink(f"/proc/self/fd/{fd}").endswith("/between/last" if kind == "directory" else "")
    os.close(fd)
    assert mount.requests(Opcode.LOOKUP) > lookups


def test_the_time_of_birth(both: Path) -> None:
    path = both / "file"
    path.touch()
    result = ctypes.create_string_buffer(256)
    called(LIBC.statx(AT_FDCWD, os.fsencode(path), 0, 0xFFF, result))
    (mask,) = struct.unpack_from("=I", result)
    birth, birth_ns = struct.unpack_from("=qI", result, 80)
    assert mask & STATX_BTIME
    assert abs(birth * 10**9 + birth_ns - path.stat().st_mtime_ns) < 10**9


def test_a_device_of_many_bits(both: Path) -> None:
    path = both / "device"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(4095, 0xFFFFF))
    assert path.stat().st_rdev == os.makedev(4095, 0xFFFFF)
