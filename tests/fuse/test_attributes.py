"""Attributes on a real mount, by plain system calls."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .users import ALICE, BOB, CAROL, acting, errno_of

SECOND_NS = 1_000_000_000
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_libc = ctypes.CDLL(None, use_errno=True)


def mode_of(path: Path) -> int:
    return os.lstat(path).st_mode & 0o7777


def utimens(path: Path, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True) -> None:
    """utimensat(2) with nanoseconds that mean now or leave it."""
    given = struct.pack("qqqq", *atime, *mtime)
    if _libc.utimensat(-100, os.fsencode(path), given, 0 if follow else 0x100):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.fixture
def hers(both: Path) -> Path:
    """A file of Alice's, with her group."""
    acting(ALICE, lambda: os.mknod(both / "f", 0o644))
    return both / "f"


# --- modes and owners -------------------------------------------------------------------------------------------------------------


def test_chmod(hers: Path) -> None:
    for mode in (0o000, 0o7777, 0o640, 0o4755):
        acting(ALICE, lambda mode=mode: os.chmod(hers, mode))  # type: ignore[misc]
        assert mode_of(hers) == mode
    assert errno_of(lambda: acting(BOB, lambda: os.chmod(hers, 0o777))) == errno.EPERM
    os.chown(hers, ALICE.uid, CAROL.gid)
    acting(ALICE, lambda: os.chmod(hers, 0o2750))  # of a group that she is not in
    assert mode_of(hers) == 0o750


def test_chown(hers: Path) -> None:
    for uid, gid in ((BOB.uid, -1), (BOB.uid, BOB.gid), (-1, CAROL.gid)):
        assert errno_of(lambda u=uid, g=gid: acting(ALICE, lambda: os.chown(hers, u, g))) == errno.EPERM  # type: ignore[misc]
    acting(ALICE, lambda: os.chown(hers, -1, 3100))
    acting(ALICE, lambda: os.chown(hers, ALICE.uid, ALICE.gid))
    os.chown(hers, 4_000_000_000, 4_000_000_001)
    found = os.stat(hers)
    assert (found.st_uid, found.st_gid) == (4_000_000_000, 4_000_000_001)


@pytest.mark.parametrize("mode", [0o6755, 0o6745, 0o4711, 0o2755, 0o2745])
@pytest.mark.parametrize("who", ["root", "owner", "nobody"])
def test_chown_takes_set_ids_away(hers: Path, mode: int, who: str) -> None:
    os.chmod(hers, mode)
    if who == "root":
        os.chown(hers, BOB.uid, BOB.gid)
    elif who == "owner":
        acting(ALICE, lambda: os.chown(hers, -1, 3100))
    else:
        acting(ALICE, lambda: os.chown(hers, -1, -1))
    assert mode_of(hers) == mode & ~0o4000 & ~(0o2000 if mode & 0o010 else 0)


def test_a_write_takes_set_ids_away(hers: Path) -> None:
    for mode, left in ((0o6777, 0o777), (0o4666, 0o666), (0o2777, 0o777)):
        os.chmod(hers, mode)
        acting(BOB, lambda: hers.write_bytes(b"new"))
        assert mode_of(hers) == left
    os.chmod(hers, 0o6777)
    hers.write_bytes(b"by root")  # which may keep them
    assert mode_of(hers) == 0o6777
    os.chmod(hers, 0o4755)
    fd = os.open(hers, os.O_WRONLY)
    try:
        acting(ALICE, lambda: os.write(fd, b"through a descriptor of root's"))
        assert os.fstat(fd).st_mode & 0o7777 == 0o755
    finally:
        os.close(fd)


@pytest.mark.parametrize("mode", [0o4777, 0o6777, 0o2767])
def test_a_write_takes_away_what_was_given_after_the_open(hers: Path, mode: int) -> None:
    fd = os.open(hers, os.O_WRONLY)
    try:
        os.chmod(hers, mode)
        acting(BOB, lambda: os.write(fd, b"x"))
        assert os.fstat(fd).st_mode & 0o7777 == mode & 0o777
    finally:
        os.close(fd)
    assert mode_of(hers) == mode & 0o777


def test_who_is_not_in_the_group_takes_it_away(hers: Path) -> None:
    os.chmod(hers, 0o2666)  # no "run as the group", but a mark of mandatory locking once
    acting(ALICE, lambda: hers.write_bytes(b"hers"))
    assert mode_of(hers) == 0o2666
    acting(BOB, lambda: hers.write_bytes(b"his"))
    assert mode_of(hers) == 0o666
    os.chmod(hers, 0o2666)
    acting(BOB, lambda: os.truncate(hers, 1))
    assert mode_of(hers) == 0o666


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o2745])
def test_who_asks_for_nothing_and_may_not_even_that(hers: Path, mode: int) -> None:
    os.chmod(hers, mode)
    with open(hers, "rb"):
        assert errno_of(lambda: acting(BOB, lambda: os.chown(hers, -1, -1))) == errno.EPERM
    assert mode_of(hers) == mode
    os.chmod(hers, 0o755)
    acting(BOB, lambda: os.chown(hers, -1, -1))


def test_a_truncate_takes_set_ids_away(hers: Path) -> None:
    hers.write_bytes(b"12345")
    for mode, left in ((0o6777, 0o777), (0o4666, 0o666)):
        os.chmod(hers, mode)
        acting(BOB, lambda: os.truncate(hers, 3))
        assert mode_of(hers) == left
    os.chmod(hers, 0o6777)
    os.truncate(hers, 2)
    assert mode_of(hers) == 0o6777
    fd = os.open(hers, os.O_WRONLY)
    try:
        acting(ALICE, lambda: os.ftruncate(fd, 1))
        assert os.fstat(fd).st_mode & 0o7777 == 0o777
    finally:
        os.close(fd)


# --- times ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "when_ns", [0, 1, -1, 1_500_000_000_123_456_789, 2**31 * SECOND_NS + 5, 2**33 * SECOND_NS + 999]
)
def test_times_are_kept_to_the_nanosecond(hers: Path, when_ns: int) -> None:
    os.utime(hers, ns=(when_ns, when_ns + 7))
    found = os.stat(hers)
    assert (found.st_atime_ns, found.st_mtime_ns) == (when_ns, when_ns + 7)
    assert abs(found.st_ctime_ns - time.time_ns()) < 60 * SECOND_NS


def test_one_time_alone(hers: Path) -> None:
    utimens(hers, (5, 6), (7, 8))
    utimens(hers, (0, UTIME_OMIT), (9, 10))
    assert (os.stat(hers).st_atime_ns, os.stat(hers).st_mtime_ns) == (5 * SECOND_NS + 6, 9 * SECOND_NS + 10)
    utimens(hers, (11, 12), (0, UTIME_OMIT))
    assert (os.stat(hers).st_atime_ns, os.stat(hers).st_mtime_ns) == (11 * SECOND_NS + 12, 9 * SECOND_NS + 10)
    utimens(hers, (0, UTIME_NOW), (0, UTIME_OMIT))
    assert abs(os.stat(hers).st_atime_ns - time.time_ns()) < 60 * SECOND_NS
    assert os.stat(hers).st_mtime_ns == 9 * SECOND_NS + 10
    os.symlink("nowhere", hers.parent / "l")
    utimens(hers.parent / "l", (1, 2), (3, 4), follow=False)
    assert os.lstat(hers.parent / "l").st_mtime_ns == 3 * SECOND_NS + 4


def test_who_may_set_times(hers: Path) -> None:
    os.chmod(hers, 0o602)
    acting(CAROL, lambda: os.utime(hers))  # whoever may write may say "now"
    assert errno_of(lambda: acting(CAROL, lambda: os.utime(hers, ns=(1, 1)))) == errno.EPERM
    assert errno_of(lambda: acting(CAROL, lambda: utimens(hers, (0, UTIME_NOW), (0, UTIME_OMIT)))) == errno.EPERM
    os.chmod(hers, 0o644)
    assert errno_of(lambda: acting(CAROL, lambda: os.utime(hers))) == errno.EACCES
    acting(ALICE, lambda: os.utime(hers, ns=(1, 1)))


def test_times_of_what_is_written_stay_when_it_is_closed(both: Path) -> None:
    fd = os.open(both / "f", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b"x" * 10_000)
    written = os.fstat(fd)
    assert written.st_size == 10_000
    assert abs(written.st_mtime_ns - time.time_ns()) < 60 * SECOND_NS
    os.fsync(fd)
    synced = os.fstat(fd)
    os.close(fd)
    closed = os.stat(both / "f")
    assert synced.st_mtime_ns == closed.st_mtime_ns == written.st_mtime_ns
    assert synced.st_ctime_ns == closed.st_ctime_ns == written.st_ctime_ns


def test_times_set_on_an_open_file_stay(both: Path) -> None:
    fd = os.open(both / "f", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b"x" * 100_000)
    os.utime(fd, ns=(1, 2))
    os.close(fd)
    assert (os.stat(both / "f").st_mtime_ns, os.stat(both / "f").st_size) == (2, 100_000)


def test_a_mode_set_on_an_open_file_stays(both: Path) -> None:
    fd = os.open(both / "f", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"x" * 100)
    os.fchmod(fd, 0o444)
    os.write(fd, b"y" * 100)
    os.ftruncate(fd, 150)
    os.close(fd)
    assert (mode_of(both / "f"), (both / "f").read_bytes()) == (0o444, b"x" * 100 + b"y" * 50)


# --- length -----------------------------------------------------------------------------------------------------------------------


def test_truncate(both: Path) -> None:
    file = both / "f"
    file.write_bytes(b"0123456789")
    os.truncate(file, 4)
    assert file.read_bytes() == b"0123"
    os.truncate(file, 8)
    assert file.read_bytes() == b"0123\0\0\0\0"
    before = os.stat(file)
    os.truncate(file, 0)
    after = os.stat(file)
    assert (after.st_size, after.st_mtime_ns >= before.st_mtime_ns) == (0, True)
    os.mkdir(both / "d")
    assert errno_of(lambda: os.truncate(both / "d", 0)) == errno.EISDIR
    assert errno_of(lambda: os.truncate(both / "none", 0)) == errno.ENOENT
    assert errno_of(lambda: os.truncate(file, -1)) == errno.EINVAL
    assert errno_of(lambda: acting(BOB, lambda: os.truncate(file, 0))) == errno.EACCES


def test_truncate_of_what_is_not_closed(both: Path) -> None:
    fd = os.open(both / "f", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(fd, b"x" * 3_000_000)
        os.truncate(both / "f", 2_000_001)
        assert os.fstat(fd).st_size == 2_000_001
        os.ftruncate(fd, 5)
        assert os.stat(both / "f").st_size == 5
        os.pwrite(fd, b"y", 9)
        assert os.pread(fd, 100, 0) == b"xxxxx\0\0\0\0y"
    finally:
        os.close(fd)
    assert (both / "f").read_bytes() == b"xxxxx\0\0\0\0y"


def test_who_may_truncate_through_a_descriptor(both: Path) -> None:
    def work() -> bytes:
        fd = os.open(both / "f", os.O_RDWR | os.O_CREAT, 0o400)  # writable through this descriptor alone
        os.write(fd, b"0123456789")
        os.ftruncate(fd, 3)
        os.close(fd)
        return (both / "f").read_bytes()

    assert acting(ALICE, work) == b"012"
    assert errno_of(lambda: acting(ALICE, lambda: os.truncate(both / "f", 0))) == errno.EACCES


# --- access, statfs, statx ------------------------------------------------------------------------------------------------------------


def test_access(hers: Path) -> None:
    os.chmod(hers, 0o640)
    os.chown(hers, ALICE.uid, 3100)
    answers: list[tuple[Callable[[], bool], bool]] = [
        (lambda: acting(ALICE, lambda: os.access(hers, os.R_OK | os.W_OK)), True),
        (lambda: acting(ALICE, lambda: os.access(hers, os.X_OK)), False),
        (lambda: acting(BOB, lambda: os.access(hers, os.R_OK)), True),
        (lambda: acting(BOB, lambda: os.access(hers, os.W_OK)), False),
        (lambda: acting(CAROL, lambda: os.access(hers, os.F_OK)), True),
        (lambda: acting(CAROL, lambda: os.access(hers, os.R_OK)), False),
        (lambda: os.access(hers, os.R_OK | os.W_OK), True),
        (lambda: os.access(hers, os.X_OK), False),
    ]
    for ask, expected in answers:
        assert ask() is expected


def test_statfs(place: Path) -> None:
    space = os.statvfs(place)
    assert space.f_blocks >= space.f_bavail > 0
    assert space.f_files > space.f_ffree > 0
    assert space.f_namemax == 255
    assert space.f_frsize == 4096


def test_birth_is_told(place: Path) -> None:
    (place / "f").write_bytes(b"x")
    os.chmod(place / "f", 0o640)
    buffer = ctypes.create_string_buffer(256)
    statx_btime, basic = 0x800, 0x7FF
    assert not _libc.statx(-100, os.fsencode(place / "f"), 0, basic | statx_btime, buffer)
    mask, _, _, links, uid, gid, mode, inode, size = struct.unpack_from("=IIQIIIH2xQQ", buffer)
    assert mask & (basic | statx_btime) == basic | statx_btime
    found = os.stat(place / "f")
    assert (links, uid, gid, mode, inode, size) == (
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_mode,
        found.st_ino,
        found.st_size,
    )
    assert stat.S_ISREG(mode)
    birth, change = (struct.unpack_from("=qI", buffer, at) for at in (0x50, 0x60))
    assert birth[0] * SECOND_NS + birth[1] <= change[0] * SECOND_NS + change[1] == found.st_ctime_ns


@pytest.mark.parametrize("seconds", [1 << 40, -(1 << 40), 32_503_680_000])
def test_a_time_that_cannot_be_kept_is_the_nearest_that_can(place: Path, seconds: int) -> None:
    (place / "file").touch()
    os.utime(place / "file", (seconds, seconds))
    found = (place / "file").stat()
    assert found.st_mtime_ns == found.st_atime_ns == ((1 << 63) - 1 if seconds > 0 else -(1 << 63))
