"""Directories on a real mount: read whole, in part, from where one was, and while they change."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emberfs import connect

from .users import ALICE, acting, errno_of

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

    from ..plugin.emberfs_mount import MakeMount

MANY = 100_000
_libc = ctypes.CDLL(None, use_errno=True)
for _name, _types in {
    "opendir": [ctypes.c_char_p],
    "readdir": [ctypes.c_void_p],
    "closedir": [ctypes.c_void_p],
    "rewinddir": [ctypes.c_void_p],
    "telldir": [ctypes.c_void_p],
    "seekdir": [ctypes.c_void_p, ctypes.c_long],
}.items():
    getattr(_libc, _name).argtypes = _types
    getattr(_libc, _name).restype = ctypes.c_void_p if _name in ("opendir", "readdir") else ctypes.c_long


class Listing:
    """A directory as C sees it."""

    def __init__(self, path: Path) -> None:
        self.stream = _libc.opendir(os.fsencode(path))
        assert self.stream

    def next(self) -> str | None:
        found = _libc.readdir(self.stream)
        return ctypes.string_at(found + 19).decode() if found else None  # d_name of struct dirent

    def tell(self) -> int:
        return int(_libc.telldir(self.stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self.stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self.stream)

    def rest(self) -> list[str]:
        names: list[str] = []
        while (name := self.next()) is not None:
            names.append(name)
        return names


@contextmanager
def listing(path: Path) -> Iterator[Listing]:
    made = Listing(path)
    try:
        yield made
    finally:
        _libc.closedir(made.stream)


def fill(path: Path, count: int, prefix: str = "n") -> list[str]:
    names = [f"{prefix}{i:06d}" for i in range(count)]
    for name in names:
        os.mkfifo(path / name)
    return names


@pytest.fixture(scope="module")
def many(cluster: LocalCluster, mount: Path) -> Path:
    """A directory of 100,000 files, made by a client beside the mount."""
    from emberfs import connect

    with connect(cluster.url) as client:
        name = f"many-{time.monotonic_ns()}"  # a worker that takes over tests of others makes this once more, in the same cluster
        client.mkdir(f"/{name}")
        client.create_many([f"/{name}/{i:06d}" for i in range(MANY)])
    return mount / name


def test_dots_and_kinds(both: Path) -> None:
    os.mkdir(both / "d")
    os.mkdir(both / "d" / "inner")
    os.symlink("x", both / "d" / "l")
    with listing(both / "d") as names:
        assert sorted(names.rest()) == [".", "..", "inner", "l"]
    inodes = {entry.name: entry.inode() for entry in os.scandir(both / "d")}
    assert inodes == {name: os.lstat(both / "d" / name).st_ino for name in ("inner", "l")}


def test_rewinding_shows_what_is_there_now(both: Path) -> None:
    with listing(both) as names:
        assert sorted(names.rest()) == [".", ".."]
        os.mkfifo(both / "new")
        names.rewind()
        assert sorted(names.rest()) == [".", "..", "new"]
        os.unlink(both / "new")
        names.rewind()
        assert sorted(names.rest()) == [".", ".."]


def test_seeking_to_every_place(both: Path) -> None:
    fill(both, 60)
    with listing(both) as names:
        places, order = [names.tell()], []
        while (name := names.next()) is not None:
            order.append(name)
            places.append(names.tell())
        for index in (0, 1, 2, 30, 59, 61, 3):
            names.seek(places[index])
            assert names.rest() == order[index:]
        names.seek(places[62])
        assert names.rest() == []


def test_seeking_back_over_what_was_removed(place: Path) -> None:
    fill(place, 1600)
    with listing(place) as names:
        order, places = [], []
        while (name := names.next()) is not None:
            order.append(name)
            places.append(names.tell())
        assert len(order) == 1602
        for name in order[2:1000:2]:
            os.unlink(place / name)
        gone = set(order[2:1000:2])
        for index in (0, 1, 2, 3, 300, 700, 701, 999, 1500):
            names.seek(places[index])
            assert names.rest() == [name for name in order[index + 1 :] if name not in gone]


def test_seeking_in_a_listing_that_is_longer_than_is_remembered(
    cluster: LocalCluster, make_mount: MakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emberfs.fuse.operations import directories

    monkeypatch.setattr(directories, "MARKS_MAX", 1000)
    top = make_mount(cluster.url).path / "long-listing"
    top.mkdir()
    with connect(cluster.url) as client:
        assert not [
            one for one in client.create_many(f"/{top.name}/{n:05}" for n in range(6000)) if isinstance(one, OSError)
        ]
    with listing(top) as opened:
        places = []
        while (name := opened.next()) is not None:
            places.append((opened.tell(), name))
        for (place, _), (_, name) in random.Random(1).sample(list(pairwise(places)), 100):
            opened.seek(place)
            assert opened.next() == name
        (top / "00010").unlink()
        opened.seek(places[2][0])
        assert sorted(opened.rest())[-1] == "05999"
        opened.rewind()
        assert len(opened.rest()) == 6001


def test_a_directory_that_is_emptied_while_it_is_read(both: Path) -> None:
    fill(both, 1600)
    removed = 0
    with os.scandir(both) as entries:
        for entry in entries:
            os.unlink(entry.path)
            removed += 1
    assert removed == 1600
    assert os.listdir(both) == []


def test_a_directory_that_grows_while_it_is_read(both: Path) -> None:
    before = fill(both, 700, "m")
    seen: list[str] = []
    with os.scandir(both) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number < 300:
                os.mkfifo(both / f"a{number}")
                os.mkfifo(both / f"z{number}")
    assert [name for name in seen if name.startswith("m")] == sorted(before) or set(before) <= set(seen)
    assert len(seen) == len(set(seen))


def test_what_changes_while_a_directory_is_listed_does_not_change_back(both: Path) -> None:
    """Attributes that were asked for with a page are of then: given to the kernel later, they would make files short, and names exist."""
    names = [f"{number:03d}{'x' * 200}" for number in range(300)]
    for name in names:
        (both / name).touch()
    with listing(both) as found:
        first = {found.next() for _ in range(100)}
        for name in names:
            if name in first:
                (both / name).stat()  # so the kernel goes on asking for attributes
        rest = [name for name in names if name not in first]
        written, removed = rest[::2], rest[1::2]
        for name in written:
            (both / name).write_bytes(b"x" * 100)
        for name in removed:
            (both / name).unlink()
        found.rest()
    assert {(both / name).stat().st_size for name in written} == {100}
    assert not any((both / name).exists() for name in removed)


def test_reading_many_names(many: Path) -> None:
    names = os.listdir(many)
    assert len(names) == MANY
    assert len(set(names)) == MANY
    with os.scandir(many) as entries:
        assert sum(entry.is_file() and entry.stat().st_size == 0 for entry in entries) == MANY


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_removing_many_names(many: Path) -> None:
    """The last test of this file that looks at them."""
    doomed = many.parent / f"doomed-{many.name}"
    os.rename(many, doomed)
    shutil.rmtree(doomed)
    assert not doomed.exists()


def test_who_may_list(both: Path) -> None:
    os.mkdir(both / "d", 0o700)
    os.mkfifo(both / "d" / "f")
    assert errno_of(lambda: acting(ALICE, lambda: os.listdir(both / "d"))) == errno.EACCES
    os.chmod(both / "d", 0o744)  # names, and nothing about them
    assert acting(ALICE, lambda: os.listdir(both / "d")) == ["f"]
    assert errno_of(lambda: acting(ALICE, lambda: os.stat(both / "d" / "f"))) == errno.EACCES
    os.chmod(both / "d", 0o711)  # what is known by name
    assert errno_of(lambda: acting(ALICE, lambda: os.listdir(both / "d"))) == errno.EACCES
    acting(ALICE, lambda: os.stat(both / "d" / "f"))


def test_an_open_directory_stays_readable(both: Path) -> None:
    def work() -> list[str]:
        os.mkdir(both / "d", 0o700)
        os.mkfifo(both / "d" / "f")
        fd = os.open(both / "d", os.O_RDONLY)
        os.chmod(both / "d", 0)
        return os.listdir(fd)

    assert acting(ALICE, work) == ["f"]


def test_fsync_of_a_directory(both: Path) -> None:
    fd = os.open(both, os.O_RDONLY)
    try:
        os.mkfifo("f", dir_fd=fd)
        os.fsync(fd)
        os.fdatasync(fd)
    finally:
        os.close(fd)
