"""Open files: flags of open, what reads and writes give, holes, space, copies, limits, locks, extended attributes, a read-only view."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import calls
from .conftest import Side
from .people import People

_libc = ctypes.CDLL(None, use_errno=True)


# --- open ---------------------------------------------------------------------------------------------------------------------------


def test_flags_of_open(people: People, here: Path) -> None:
    alice = people.alice
    fd = alice(os.open, "f", os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_NONBLOCK, 0o640)
    flags = alice(fcntl.fcntl, fd, fcntl.F_GETFL)
    assert flags & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK) == os.O_RDWR | os.O_APPEND | os.O_NONBLOCK
    alice(os.close, fd)
    assert (here / "f").stat().st_mode & 0o777 == 0o640
    alice(calls.creat, "f", os.O_CREAT | os.O_WRONLY, 0o777)
    assert (here / "f").stat().st_mode & 0o777 == 0o640, "the mode is of new files"


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY], ids=["w", "rw", "r"])
def test_truncation(people: People, here: Path, flags: int) -> None:
    people.alice(calls.store, "f", b"bytes")
    people.alice(calls.creat, "f", flags | os.O_TRUNC)
    assert (here / "f").stat().st_size == 0


def test_a_symlink_makes_its_target(people: People, here: Path) -> None:
    people.alice(os.symlink, "target", "s")
    people.alice(calls.store, "s", b"bytes")
    assert (here / "target").read_bytes() == b"bytes"


def test_append(people: People, here: Path) -> None:
    """ "The file offset shall be set to the end of the file prior to each write", whoever wrote, and pwrite too on Linux."""
    alice, bob = people.alice, people.bob
    alice(calls.store, "f", b"")
    (here / "f").chmod(0o666)
    first, second = (who(os.open, "f", os.O_RDWR | os.O_APPEND) for who in (alice, bob))
    for number in range(20):
        alice(os.write, first, b"a%d " % number)
        bob(os.write, second, b"b%d " % number)
    assert (here / "f").read_bytes() == b"".join(b"a%d b%d " % (number, number) for number in range(20))
    alice(os.lseek, first, 0, os.SEEK_SET)
    alice(os.write, first, b"end")
    alice(os.pwrite, first, b"!", 0)
    assert (here / "f").read_bytes().endswith(b"end!")
    alice(os.ftruncate, first, 2)
    bob(os.write, second, b"x")
    assert (here / "f").read_bytes() == b"a0x"
    alice(os.close, first)
    bob(os.close, second)


def test_unnamed_files(people: People, here: Path) -> None:
    alice = people.alice
    fd = alice(os.open, ".", os.O_TMPFILE | os.O_RDWR, 0o640)
    alice(os.write, fd, b"bytes")
    assert (alice(os.fstat, fd).st_nlink, list(here.iterdir())) == (0, [])
    alice(link_open, fd, "f")
    assert (alice(os.fstat, fd).st_nlink, (here / "f").read_bytes()) == (1, b"bytes")
    assert (here / "f").stat().st_mode & 0o777 == 0o640
    alice(os.close, fd)
    fd = alice(os.open, ".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o640)
    assert alice.fails(link_open, fd, "g") == "ENOENT"
    alice(os.close, fd)


def link_open(fd: int, path: str) -> None:
    """Give an open file a name."""
    calls.link(f"/proc/self/fd/{fd}", path, calls.AT_SYMLINK_FOLLOW)


def test_path_only(people: People, here: Path) -> None:
    people.alice(calls.store, "f", b"bytes")
    people.alice(os.chmod, "f", 0)
    fd = people.bob(os.open, "f", os.O_PATH)
    assert people.bob(os.fstat, fd).st_size == 5
    people.bob(os.close, fd)


@pytest.mark.parametrize("flag", [0, os.O_DIRECT, os.O_SYNC, os.O_DSYNC], ids=["plain", "direct", "sync", "dsync"])
def test_bytes_come_back(people: People, here: Path, flag: int) -> None:
    assert people.alice(round_trip, "f", flag) == (b"q" * 8192, b"s" * 4096 + b"q" * 4096 + b"\0" * 4096 + b"t" * 4096)


def round_trip(path: str, flag: int) -> tuple[bytes, bytes]:
    """Writes, and what is read between and after them; all aligned as O_DIRECT wants it."""
    with mmap.mmap(-1, 8192) as page:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | flag, 0o644)
        try:
            page[:] = b"q" * 8192
            os.pwritev(fd, [page], 0)
            os.preadv(fd, [page], 0)
            first = bytes(page)
            with memoryview(page) as view:
                page[:] = b"s" * 4096 + b"t" * 4096
                os.pwritev(fd, [view[:4096]], 0)
                os.pwritev(fd, [view[4096:]], 12288)
            parts = []
            for offset in (0, 8192):
                os.preadv(fd, [page], offset)
                parts.append(bytes(page))
        finally:
            os.close(fd)
    return first, b"".join(parts)


# --- lengths, holes, space ----------------------------------------------------------------------------------------------------------


def test_what_was_never_written_is_zero(people: People, here: Path) -> None:
    alice = people.alice
    alice(calls.store, "f", b"begin")
    alice(os.truncate, "f", 3)
    alice(os.truncate, "f", 10)
    assert (here / "f").read_bytes() == b"beg" + bytes(7), "and not what was there before"
    alice(calls.on, "f", os.O_WRONLY, "pwrite", "end", 100_000)
    assert (here / "f").read_bytes() == b"beg" + bytes(99_997) + b"end"
    fd = alice(os.open, "f", os.O_RDONLY)
    assert (alice(os.pread, fd, 10, 100_001), alice(os.pread, fd, 10, 200_000)) == (b"nd", b"")
    alice(os.close, fd)


def test_holes(people: People, here: Path, side: Side) -> None:
    """SEEK_DATA and SEEK_HOLE in a file of a megabyte of data, a hole of eight, and data again."""
    alice, mega = people.alice, 1 << 20
    alice(calls.store, "f", b"d" * mega)
    alice(calls.on, "f", os.O_WRONLY, "pwrite", "d", 9 * mega)
    fd = alice(os.open, "f", os.O_RDONLY)
    hole = alice(os.lseek, fd, 0, os.SEEK_HOLE)
    data = alice(os.lseek, fd, hole, os.SEEK_DATA)
    assert mega <= hole < data <= 9 * mega
    assert alice(os.lseek, fd, 9 * mega, os.SEEK_HOLE) == 9 * mega + 1, "the end is a hole"
    assert alice(os.lseek, fd, 5, os.SEEK_DATA) == 5
    alice(os.close, fd)
    if side.name == "local":  # the namespace of the cluster knows lengths only
        assert (here / "f").stat().st_blocks * 512 < 9 * mega


@pytest.mark.parametrize(
    ("mode", "offset", "length", "size", "zeros"),
    [
        (0, 0, 5000, 5000, (10, 5000)),
        (calls.FALLOC_FL_KEEP_SIZE, 0, 5000, 10, None),
        (calls.FALLOC_FL_PUNCH_HOLE | calls.FALLOC_FL_KEEP_SIZE, 2, 3, 10, (2, 5)),
        (calls.FALLOC_FL_PUNCH_HOLE | calls.FALLOC_FL_KEEP_SIZE, 5, 5000, 10, (5, 10)),
        (calls.FALLOC_FL_ZERO_RANGE, 2, 3, 10, (2, 5)),
        (calls.FALLOC_FL_ZERO_RANGE, 5, 50, 55, (5, 55)),
        (calls.FALLOC_FL_ZERO_RANGE | calls.FALLOC_FL_KEEP_SIZE, 5, 50, 10, (5, 10)),
    ],
)
def test_fallocate(
    people: People, here: Path, mode: int, offset: int, length: int, size: int, zeros: tuple[int, int] | None
) -> None:
    people.alice(calls.store, "f", b"0123456789")
    people.alice(calls.on, "f", os.O_RDWR, "fallocate", mode, offset, length)
    expected = bytearray(b"0123456789".ljust(size, b"\0"))
    if zeros:
        expected[slice(*zeros)] = bytes(zeros[1] - zeros[0])
    assert (here / "f").read_bytes() == bytes(expected)


def test_posix_fallocate_keeps_what_is_there(people: People, here: Path) -> None:
    people.alice(calls.store, "f", b"0123456789")
    for offset, length, size in ((0, 5, 10), (5, 100, 105), (200, 1, 201)):
        people.alice(calls.on, "f", os.O_RDWR, "posix_fallocate", offset, length)
        assert (here / "f").read_bytes() == b"0123456789".ljust(size, b"\0")


def test_copy_file_range(people: People, here: Path) -> None:
    alice, mega = people.alice, 1 << 20
    source = os.urandom(3 * mega)
    (here / "a").write_bytes(source)
    (here / "a").chmod(0o666)
    alice(calls.store, "b", b"z" * mega)
    first, second = alice(os.open, "a", os.O_RDONLY), alice(os.open, "b", os.O_RDWR)
    copied = 0
    while copied < 2 * mega:
        copied += alice(os.copy_file_range, first, second, 2 * mega - copied, 1000 + copied, 500_000 + copied)
    assert (here / "b").read_bytes() == b"z" * 500_000 + source[1000 : 1000 + 2 * mega]
    assert alice(os.copy_file_range, first, second, 100, 3 * mega, 0) == 0, "nothing behind the end"
    alice(os.close, first)
    alice(os.close, second)


def test_as_long_as_a_file_may_be(people: People, here: Path) -> None:
    """ "The file size limit of the process": SIGXFSZ and EFBIG."""
    assert people.alice(beyond_the_limit, "f") == (10, errno.EFBIG, errno.EFBIG, 10)


def beyond_the_limit(path: str) -> tuple[int, int, int, int]:
    """Bytes that fitted, two errnos, the size in the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        fitted = os.write(fd, b"x" * 20)
        return fitted, errno_of(os.write, fd, b"x"), errno_of(os.ftruncate, fd, 11), os.fstat(fd).st_size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
        os.close(fd)


def errno_of(call: Callable[..., Any], *args: Any) -> int:
    try:
        call(*args)
    except OSError as failure:
        return failure.errno or 0
    return 0


def test_large_offsets(people: People, here: Path) -> None:
    people.alice(calls.store, "f", b"")
    people.alice(calls.on, "f", os.O_WRONLY, "pwrite", "end", 1 << 40)
    fd = people.alice(os.open, "f", os.O_RDONLY)
    assert people.alice(os.lseek, fd, 0, os.SEEK_END) == (1 << 40) + 3
    assert people.alice(os.pread, fd, 6, (1 << 40) - 3) == b"\0\0\0end"
    people.alice(os.close, fd)


def test_a_program_that_runs_is_not_written_and_one_that_is_written_does_not_run(people: People, here: Path) -> None:
    alice = people.alice
    alice(calls.store, "program", Path("/bin/true").read_bytes())
    alice(os.chmod, "program", 0o755)
    fd = alice(os.open, "program", os.O_WRONLY)
    assert alice.fails(calls.execute, "./program") == "ETXTBSY"
    alice(os.close, fd)
    assert alice.fails(calls.execute, "./program") == "ok"


def test_shared_mappings(people: People, here: Path) -> None:
    people.alice(calls.store, "f", b"0" * 10_000)
    assert people.alice(write_mapped, "f") == b"0mapped00"
    assert (here / "f").read_bytes() == b"0mapped" + b"0" * 9993
    assert people.bob(calls.load, "f")[:8] == b"0mapped0"


def write_mapped(path: str) -> bytes:
    """What read(2) sees of a change through a mapping."""
    fd = os.open(path, os.O_RDWR)
    try:
        with mmap.mmap(fd, 0) as pages:
            pages[1:7] = b"mapped"
            seen = os.pread(fd, 9, 0)
            pages.flush()
            return seen
    finally:
        os.close(fd)


def test_a_file_that_is_gone_is_stale_by_its_handle(people: People, here: Path) -> None:
    """name_to_handle_at, open_by_handle_at: what NFS servers do."""
    people.alice(calls.store, "f", b"bytes")
    handle = handle_of(os.fspath(here / "f"))
    fd = open_handle(os.fspath(here), handle)
    assert os.read(fd, 9) == b"bytes"
    os.close(fd)
    people.alice(os.unlink, "f")
    assert errno_of(open_handle, os.fspath(here), handle) == errno.ESTALE


def handle_of(path: str) -> bytes:
    handle, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 8 + 128), ctypes.c_int()
    if _libc.name_to_handle_at(calls.AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle.raw


def open_handle(mount: str, handle: bytes) -> int:
    where = os.open(mount, os.O_RDONLY)
    try:
        fd = _libc.open_by_handle_at(where, ctypes.create_string_buffer(handle, len(handle)), os.O_RDONLY)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
        return int(fd)
    finally:
        os.close(where)


# --- locks --------------------------------------------------------------------------------------------------------------------------

READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


def holder(fd: int, kind: int, start: int = 0, length: int = 0) -> tuple[int, int, int]:
    """F_GETLK: kind, start and length of a lock in the way."""
    asked = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    found = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return found[0], found[2], found[3]


@pytest.fixture
def shared(people: People, here: Path) -> tuple[int, int]:
    """The same file, open for Alice and for Bob."""
    people.alice(calls.store, "f", b"0123456789")
    people.root(os.chmod, "f", 0o666)
    return people.alice(os.open, "f", os.O_RDWR), people.bob(os.open, "f", os.O_RDWR)


@pytest.mark.parametrize(
    ("first", "second", "answer"),
    [
        (READ, READ, "ok"),
        (READ, WRITE, "EAGAIN"),
        (WRITE, READ, "EAGAIN"),
        (WRITE, WRITE, "EAGAIN"),
        (NONE, WRITE, "ok"),
    ],
)
def test_record_locks(people: People, shared: tuple[int, int], first: int, second: int, answer: str) -> None:
    """Bytes 10 to 19 against every way to overlap them, and the neighbours."""
    alice, bob = people.alice, people.bob
    ranges = {
        (0, 10): False,
        (20, 5): False,
        (5, 10): True,
        (15, 10): True,
        (10, 10): True,
        (12, 2): True,
        (0, 0): True,
    }
    for (start, length), overlaps in ranges.items():
        alice(calls.lock, shared[0], first, 10, 10)
        assert bob.fails(calls.lock, shared[1], second, start, length) == (answer if overlaps else "ok"), (
            start,
            length,
        )
        found = bob(holder, shared[1], second, start, length)
        assert found == ((first, 10, 10) if overlaps and answer != "ok" else (NONE, start, length))
        for who, fd in ((alice, shared[0]), (bob, shared[1])):
            who(calls.lock, fd, NONE)
    for who, fd in ((alice, shared[0]), (bob, shared[1])):
        who(os.close, fd)


def test_record_locks_split_and_change(people: People, shared: tuple[int, int]) -> None:
    alice, bob = people.alice, people.bob
    alice(calls.lock, shared[0], WRITE, 0, 100)
    alice(calls.lock, shared[0], NONE, 40, 20)
    assert [bob(holder, shared[1], WRITE, at, 1) for at in (0, 39, 40, 59, 60, 99, 100)] == [
        (WRITE, 0, 40),
        (WRITE, 0, 40),
        (NONE, 40, 1),
        (NONE, 59, 1),
        (WRITE, 60, 40),
        (WRITE, 60, 40),
        (NONE, 100, 1),
    ]
    alice(calls.lock, shared[0], READ, 0, 40)
    assert bob.fails(calls.lock, shared[1], READ, 0, 40) == "ok"
    assert alice.fails(calls.lock, shared[0], WRITE, 0, 40) == "EAGAIN", "who shares cannot have it alone"
    another = alice(os.open, "f", os.O_RDONLY)
    alice(os.close, another)
    assert bob(holder, shared[1], WRITE, 60, 40)[0] == NONE, "closing any descriptor of the file gives up all"
    alice(os.close, shared[0])
    bob(os.close, shared[1])


@pytest.mark.parametrize(
    ("first", "second", "answer"),
    [
        (fcntl.LOCK_SH, fcntl.LOCK_SH, "ok"),
        (fcntl.LOCK_SH, fcntl.LOCK_EX, "EAGAIN"),
        (fcntl.LOCK_EX, fcntl.LOCK_SH, "EAGAIN"),
        (fcntl.LOCK_EX, fcntl.LOCK_EX, "EAGAIN"),
    ],
)
def test_flock(people: People, shared: tuple[int, int], first: int, second: int, answer: str) -> None:
    alice, bob = people.alice, people.bob
    alice(fcntl.flock, shared[0], first)
    assert bob.fails(fcntl.flock, shared[1], second | fcntl.LOCK_NB) == answer
    assert bob.fails(calls.lock, shared[1], WRITE) == "ok", "the two families do not know each other"
    copy = alice(os.dup, shared[0])
    alice(os.close, shared[0])
    assert bob.fails(fcntl.flock, shared[1], second | fcntl.LOCK_NB) == answer, "the copy holds it"
    alice(os.close, copy)
    bob(fcntl.flock, shared[1], second)  # waits a moment on a mount, whose kernel does not wait for the release itself
    bob(os.close, shared[1])


# --- extended attributes -------------------------------------------------------------------------------------------------------------


def test_extended_attributes(people: People, here: Path) -> None:
    alice = people.alice
    alice(calls.store, "f", b"")
    long = "user." + "n" * 250
    for name, value in (("user.empty", b""), ("user.bytes", bytes(range(256))), (long, b"long"), ("user.é", b"e")):
        alice(os.setxattr, "f", name, value, os.XATTR_CREATE)
        alice(os.setxattr, "f", name, value, os.XATTR_REPLACE)
        assert people.bob(os.getxattr, "f", name) == value
    assert sorted(people.bob(os.listxattr, "f")) == sorted(["user.empty", "user.bytes", long, "user.é"])
    alice(os.rename, "f", "g")
    alice(calls.link, "g", "h")
    assert alice(os.getxattr, "h", "user.bytes") == bytes(range(256))
    alice(os.removexattr, "h", "user.bytes")
    assert "user.bytes" not in alice(os.listxattr, "g")


def test_trusted_is_for_root(people: People, here: Path) -> None:
    people.alice(calls.store, "f", b"")
    people.root(os.setxattr, "f", "trusted.n", b"v")
    assert people.root(os.listxattr, "f") == ["trusted.n"]
    assert people.alice(os.listxattr, "f") == []
    assert people.alice.fails(os.getxattr, "f", "trusted.n") == "ENODATA"


# --- a read-only view ----------------------------------------------------------------------------------------------------------------

READ_ONLY = [
    (calls.creat, "new"),
    (calls.creat, "f", os.O_WRONLY),
    (calls.creat, "f", os.O_RDONLY | os.O_TRUNC),
    (os.mkdir, "new"),
    (calls.mkfifo, "new"),
    (calls.mksocket, "new"),
    (os.symlink, "x", "new"),
    (calls.link, "f", "new"),
    (os.unlink, "f"),
    (os.rmdir, "d"),
    (os.rename, "f", "new"),
    (calls.renameat2, "f", "d", calls.RENAME_EXCHANGE),
    (os.chmod, "f", 0o600),
    (os.chown, "f", -1, -1),
    (os.utime, "f"),
    (os.truncate, "f", 0),
    (calls.setxattr, "f", "user.n", "v"),
    (os.removexattr, "f", "user.n"),
    (calls.access, "f", os.W_OK),
]


@pytest.mark.parametrize("who", ["root", "alice"])
def test_a_read_only_file_system(people: People, here: Path, side: Side, who: str) -> None:
    acting = people[who]
    people.alice(calls.store, "f", b"bytes")
    people.alice(os.mkdir, "d")
    acting(os.chdir, os.fspath(side.read_only / here.name))
    try:
        assert [(call.__name__, acting.fails(call, *args)) for call, *args in READ_ONLY] == [
            (call.__name__, "EROFS") for call, *_ in READ_ONLY
        ]
        assert acting(calls.load, "f") == b"bytes"
        assert acting.fails(calls.creat, "f", os.O_CREAT) == "ok"
        assert acting.fails(os.mkdir, "d") == "EEXIST"
        assert os.statvfs(side.read_only).f_flag & os.ST_RDONLY
    finally:
        acting(os.chdir, os.fspath(here))
