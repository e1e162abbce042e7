"""Which times each call moves: of the file, of its directory, of a second file and its directory. Everything else stays."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from . import calls
from .people import ALICE, People

CLOCK_REALTIME_COARSE = 5  # linux/time.h
KINDS = ("atime", "mtime", "ctime")
WATCHED = (
    "f",
    "d",
    ".",
    "d/g",
    "s",
)  # a file, a directory, the directory of both, a file in that directory, a symlink to the first


class Row(NamedTuple):
    """Alice makes a call; `moved` says what moves: "f:c" the file's ctime, ".:mc" its directory's mtime and ctime."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    moved: str


def _write(path: str, data: bytes = b"other", flags: int = 0) -> None:
    calls.on(path, os.O_WRONLY | flags, "pwrite", data.decode(), 0)


def _on(path: str, call: str, *args: Any, flags: int = os.O_RDWR) -> None:
    calls.on(path, flags, call, *args)


def _copy(path: str) -> None:
    calls.on(path, os.O_RDWR, "copy_within", 0, 9, 3)


READING = (calls.load, _copy)
TABLE = [
    Row(calls.creat, ("new",), ".:mc"),
    Row(calls.creat, ("f",), ""),
    Row(calls.creat, ("f", os.O_RDWR), ""),
    Row(calls.creat, ("f", os.O_WRONLY | os.O_TRUNC), "f:mc"),
    Row(calls.creat, ("empty", os.O_WRONLY | os.O_TRUNC), ""),
    Row(os.mkdir, ("new",), ".:mc"),
    Row(calls.mkfifo, ("new",), ".:mc"),
    Row(calls.mksocket, ("new",), ".:mc"),
    Row(os.symlink, ("f", "new"), ".:mc"),
    Row(calls.link, ("f", "new"), "f:c .:mc"),
    Row(calls.link, ("f", "d/new"), "f:c d:mc"),
    Row(os.unlink, ("f",), "f:c .:mc"),
    Row(os.unlink, ("twin",), "f:c .:mc"),
    Row(os.unlink, ("s",), ".:mc"),
    Row(os.unlink, ("d/g",), "d:mc"),
    Row(os.rmdir, ("e",), ".:mc"),
    Row(os.rename, ("f", "new"), ".:mc f:c"),
    Row(os.rename, ("f", "d/new"), ".:mc d:mc f:c"),
    Row(os.rename, ("d/g", "f"), ".:mc d:mc d/g:c f:c"),
    Row(os.rename, ("f", "twin"), ""),
    Row(os.rename, ("e", "d/new"), ".:mc d:mc"),
    Row(calls.renameat2, ("f", "d/g", calls.RENAME_EXCHANGE), ".:mc d:mc f:c d/g:c"),
    Row(os.chmod, ("f", 0o600), "f:c"),
    Row(os.chmod, ("d", 0o700), "d:c"),
    Row(os.chmod, ("s", 0o600), "f:c"),
    Row(os.chown, ("f", -1, 3100), "f:c"),
    Row(calls.lchown, ("s", -1, 3100), "s:c"),
    Row(os.utime, ("f",), "f:amc"),
    Row(calls.utimensat, ("f", (1, 2), (3, 4)), "f:amc"),
    Row(calls.utimensat, ("f", (0, calls.UTIME_OMIT), (3, 4)), "f:mc"),
    Row(calls.utimensat, ("f", (3, 4), (0, calls.UTIME_OMIT)), "f:ac"),
    Row(calls.utimensat, ("f", (0, calls.UTIME_OMIT), (0, calls.UTIME_OMIT)), ""),
    Row(calls.utimensat, ("s", (1, 2), (3, 4), calls.AT_SYMLINK_NOFOLLOW), "s:amc"),
    Row(os.truncate, ("f", 2), "f:mc"),
    Row(os.truncate, ("f", 4000), "f:mc"),
    Row(os.truncate, ("f", 5), "f:mc"),
    Row(_on, ("f", "ftruncate", 2), "f:mc"),
    Row(_on, ("f", "ftruncate", 5), "f:mc"),
    Row(_write, ("f",), "f:mc"),
    Row(_write, ("f", b""), ""),
    Row(_write, ("f", b"more", os.O_APPEND), "f:mc"),
    Row(_on, ("f", "fallocate", 0, 0, 4000), "f:mc"),
    Row(_on, ("f", "fallocate", calls.FALLOC_FL_PUNCH_HOLE | calls.FALLOC_FL_KEEP_SIZE, 0, 4), "f:mc"),
    Row(_on, ("f", "fallocate", calls.FALLOC_FL_ZERO_RANGE, 0, 4), "f:mc"),
    Row(_copy, ("f",), "f:mc"),
    Row(_on, ("f", "fsync"), ""),
    Row(_on, ("f", "lseek", 0, os.SEEK_END), ""),
    Row(_on, ("f", "lock", fcntl.F_WRLCK), ""),
    Row(_on, ("f", "flock", fcntl.LOCK_EX), ""),
    Row(calls.setxattr, ("f", "user.n", "value"), "f:c"),
    Row(calls.setxattr, ("d", "user.n", "value"), "d:c"),
    Row(os.removexattr, ("f", "user.there"), "f:c"),
    Row(calls.getxattr, ("f", "user.there", 64), ""),
    Row(calls.listxattr, ("f", 64), ""),
    Row(os.stat, ("f",), ""),
    Row(os.readlink, ("s",), ""),
    Row(os.listdir, ("d",), ""),
    Row(calls.load, ("f",), ""),
    Row(calls.access, ("f", os.R_OK), ""),
    Row(os.chown, ("f", -1, -1), "f:c"),
    Row(os.chmod, ("f", 0o644), "f:c"),
]


def _times(here: Path, numbers: dict[int, str]) -> dict[str, tuple[int, int, int]]:
    """Of the watched inodes, wherever they are by now."""
    found = {}
    for path in (here, *here.rglob("*")):
        status = path.lstat()
        if status.st_ino in numbers:
            found[numbers[status.st_ino]] = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
    return found


def _tick() -> None:
    """Until the clock that a kernel takes times from has moved on."""
    begun = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == begun:
        pass


def _scene(people: People) -> None:
    alice = people.alice
    people.root(os.chown, ".", ALICE.uid, ALICE.gid)
    for path in ("d", "e"):
        alice(os.mkdir, path)
    for path in ("f", "d/g"):
        alice(calls.store, path, b"bytes")
    alice(calls.store, "empty", b"")
    alice(os.link, "f", "twin")
    alice(os.symlink, "f", "s")
    alice(os.setxattr, "f", "user.there", b"value")


@pytest.mark.parametrize("row", TABLE, ids=[f"{row.call.__name__.strip('_')}{row.args}" for row in TABLE])
def test_what_moves(people: People, here: Path, row: Row) -> None:
    _scene(people)
    numbers = {(here / path).lstat().st_ino: path for path in WATCHED}
    before = _times(here, numbers)
    _tick()
    people.alice(row.call, *row.args)
    after = _times(here, numbers)
    moved = {
        path: "".join(kind[0] for kind, old, new in zip(KINDS, before[path], after[path], strict=True) if old != new)
        for path in WATCHED
        if path in after
    }
    expected = dict(item.split(":") for item in row.moved.split())
    for path, kinds in moved.items():
        # When reading moves the time of access is the mount's choice, and looking at all this reads directories.
        reads = (
            {"a"} if (path in (".", "d", "s") and "a" not in expected.get(path, "")) or row.call in READING else set()
        )
        assert set(kinds) - reads == set(expected.get(path, "")) - reads, path


@pytest.mark.parametrize(
    "seconds", [-1, 0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) + 1, 9_000_000_000], ids="at {}".format
)
def test_times_are_kept_to_the_nanosecond(people: People, here: Path, seconds: int) -> None:
    people.alice(calls.store, "f", b"")
    people.alice(calls.utimensat, "f", (seconds, 123_456_789), (seconds, 999_999_999))
    found = (here / "f").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (seconds * 10**9 + 123_456_789, seconds * 10**9 + 999_999_999)


@pytest.mark.parametrize("flag", [calls.UTIME_NOW, calls.UTIME_OMIT], ids=["now", "omitted"])
def test_one_time_by_the_clock(people: People, here: Path, flag: int) -> None:
    people.alice(calls.store, "f", b"")
    people.alice(calls.utimensat, "f", (5, 6), (7, 8))
    begun = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    people.alice(calls.utimensat, "f", (9, 10), (0, flag))
    found = (here / "f").stat()
    assert found.st_atime_ns == 9_000_000_010
    assert found.st_mtime_ns >= begun if flag == calls.UTIME_NOW else found.st_mtime_ns == 7_000_000_008


def test_a_new_file_has_one_time(people: People, here: Path) -> None:
    for call, *args in ((os.mkdir, "d"), (calls.mkfifo, "p"), (os.symlink, "x", "s"), (calls.creat, "f")):
        people.alice(call, *args)
        found = (here / args[-1]).lstat()
        assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns
        assert here.stat().st_mtime_ns == here.stat().st_ctime_ns >= found.st_ctime_ns


def test_writing_through_an_open_file_moves_the_times_at_once(people: People, here: Path) -> None:
    alice = people.alice
    alice(calls.store, "f", b"bytes")
    fd = alice(os.open, "f", os.O_RDWR)
    first = (here / "f").stat()
    _tick()
    alice(os.write, fd, b"more")
    second = (here / "f").stat()
    assert second.st_mtime_ns > first.st_mtime_ns
    assert second.st_ctime_ns > first.st_ctime_ns
    alice(os.close, fd)
    assert (here / "f").stat().st_mtime_ns == second.st_mtime_ns, "the close moves nothing"
