"""Names and links: what a rename may replace, link counts, which names there are, reading directories."""

from __future__ import annotations

import ctypes
import itertools
import os
import stat
from pathlib import Path

import pytest

from . import calls
from .conftest import Side
from .people import People

KINDS = ("file", "directory", "full", "symlink", "fifo", "socket", "device")
NAME_BYTES_MAX = 255


def _make(people: People, kind: str, path: str) -> None:
    if kind == "full":
        people.alice(os.mkdir, path)
        people.alice(calls.store, f"{path}/inside", b"")
        return
    who = people.root if kind == "device" else people.alice
    who(
        *{
            "file": (calls.store, path, b"bytes"),
            "directory": (os.mkdir, path),
            "symlink": (os.symlink, "somewhere", path),
            "fifo": (calls.mkfifo, path),
            "socket": (calls.mksocket, path),
            "device": (calls.mkchar, path),
        }[kind]
    )


@pytest.mark.parametrize(("source", "target"), list(itertools.product(KINDS, KINDS)))
@pytest.mark.parametrize("other", [False, True], ids=["here", "there"])
def test_what_a_rename_replaces(people: People, here: Path, source: str, target: str, other: bool) -> None:
    (here / "d").mkdir()
    (here / "d").chmod(0o777)
    new = "d/b" if other else "b"
    _make(people, source, "a")
    _make(people, target, new)
    number = (here / "a").lstat().st_ino
    answer = people.alice.fails(os.rename, "a", new)
    tree, onto = source in ("directory", "full"), target in ("directory", "full")
    expected = "ok"
    if tree and not onto:
        expected = "ENOTDIR"
    elif onto and not tree:
        expected = "EISDIR"
    elif target == "full":
        expected = "ENOTEMPTY"
    assert answer == expected
    assert os.path.lexists(here / "a") is (answer != "ok")
    assert ((here / new).lstat().st_ino == number) is (answer == "ok")


@pytest.mark.parametrize(("source", "target"), list(itertools.combinations_with_replacement(KINDS, 2)))
def test_what_an_exchange_exchanges(people: People, here: Path, source: str, target: str) -> None:
    """Everything for everything, full directories and files too; in two directories."""
    (here / "d").mkdir()
    (here / "d").chmod(0o777)
    _make(people, source, "a")
    _make(people, target, "d/b")
    before = (here / "a").lstat().st_ino, (here / "d/b").lstat().st_ino
    links = here.stat().st_nlink + (here / "d").stat().st_nlink
    people.alice(calls.renameat2, "a", "d/b", calls.RENAME_EXCHANGE)
    assert ((here / "d/b").lstat().st_ino, (here / "a").lstat().st_ino) == before
    assert here.stat().st_nlink + (here / "d").stat().st_nlink == links


def test_link_counts(people: People, here: Path) -> None:
    """A file has as many links as names; a directory two, and one for the ".." of each directory in it."""
    alice = people.alice
    alice(calls.store, "f", b"")
    for number in range(10):
        alice(calls.link, "f", f"f{number}")
        assert (here / "f").stat().st_nlink == (here / f"f{number}").stat().st_nlink == number + 2
    for number in range(10):
        alice(os.unlink, f"f{number}")
        assert (here / "f").stat().st_nlink == 10 - number
    alice(os.mkdir, "d")
    assert (here / "d").stat().st_nlink == 2
    for number in range(3):
        alice(os.mkdir, f"d/{number}")
        assert (here / "d").stat().st_nlink == 3 + number
    alice(os.mkdir, "e")
    alice(os.rename, "d/0", "e/0")
    assert ((here / "d").stat().st_nlink, (here / "e").stat().st_nlink) == (4, 3)
    alice(os.rename, "d/1", "e/0")
    assert ((here / "d").stat().st_nlink, (here / "e").stat().st_nlink) == (3, 3)
    alice(os.rmdir, "d/2")
    assert (here / "d").stat().st_nlink == 2


@pytest.mark.parametrize("kind", ["file", "symlink", "fifo", "socket", "device"])
def test_hard_links_of(people: People, here: Path, kind: str) -> None:
    _make(people, kind, "a")
    people.root(calls.link, "a", "b")
    first, second = (here / "a").lstat(), (here / "b").lstat()
    assert (first.st_ino, first.st_nlink, first.st_rdev) == (second.st_ino, second.st_nlink, second.st_rdev)
    assert second.st_nlink == 2
    people.root(os.unlink, "a")
    assert (here / "b").lstat().st_nlink == 1


def test_link_that_follows(people: People, here: Path) -> None:
    people.alice(calls.store, "f", b"")
    people.alice(os.symlink, "f", "s")
    people.alice(calls.link, "s", "itself")
    people.alice(calls.link, "s", "file", calls.AT_SYMLINK_FOLLOW)
    assert stat.S_ISLNK((here / "itself").lstat().st_mode)
    assert (here / "file").lstat().st_ino == (here / "f").stat().st_ino


def test_renaming_onto_another_name_of_the_same_file_does_nothing(people: People, here: Path) -> None:
    people.alice(calls.store, "a", b"bytes")
    people.alice(calls.link, "a", "b")
    people.alice(os.rename, "a", "b")
    people.alice(os.rename, "a", "a")
    assert sorted(path.name for path in here.iterdir()) == ["a", "b"]
    assert (here / "a").stat().st_nlink == 2


def test_a_replaced_file_lives_on_while_it_is_open(people: People, here: Path) -> None:
    people.alice(calls.store, "a", b"new")
    people.alice(calls.store, "b", b"old")
    fd = people.alice(os.open, "b", os.O_RDWR)
    people.alice(os.rename, "a", "b")
    assert (people.alice(os.pread, fd, 9, 0), (here / "b").read_bytes()) == (b"old", b"new")
    assert people.alice(os.fstat, fd).st_nlink == 0
    people.alice(os.close, fd)


def test_an_unlinked_file_is_a_file(people: People, here: Path) -> None:
    alice = people.alice
    fd = alice(os.open, "f", os.O_CREAT | os.O_RDWR, 0o600)
    alice(os.unlink, "f")
    assert not os.path.lexists(here / "f")
    assert alice(os.write, fd, b"bytes" * 100_000) == 500_000
    assert alice(os.pread, fd, 10, 499_990) == b"bytesbytes"
    alice(os.ftruncate, fd, 7)
    alice(os.fchmod, fd, 0o640)
    alice(os.fsync, fd)
    found = alice(os.fstat, fd)
    assert (found.st_nlink, found.st_size, found.st_mode & 0o777) == (0, 7, 0o640)
    alice(os.close, fd)
    assert list(here.iterdir()) == []


def test_a_removed_directory_takes_nothing_in(people: People, here: Path) -> None:
    alice = people.alice
    alice(os.mkdir, "d")
    alice(os.chdir, "d")
    alice(os.rmdir, "../d")
    assert alice.fails(calls.creat, "f") == alice.fails(os.mkdir, "e") == "ENOENT"
    assert alice(os.listdir, ".") == []
    assert alice(os.stat, ".").st_nlink == 0


def symlink_at(path: str) -> None:
    os.symlink("target", path)


@pytest.mark.parametrize("length", [1, 14, NAME_BYTES_MAX])
def test_names_as_long_as_they_may_be(people: People, here: Path, length: int) -> None:
    for call, first in ((os.mkdir, "d"), (calls.creat, "f"), (calls.mkfifo, "p"), (symlink_at, "s")):
        name = first.ljust(length, "x")
        people.alice(call, name)
        assert name in os.listdir(here)
    people.alice(os.rename, "f".ljust(length, "x"), "g".ljust(length, "y"))
    people.alice(calls.link, "g".ljust(length, "y"), "h".ljust(length, "z"))
    assert people.alice.fails(os.rename, "g".ljust(length, "y"), "n" * (NAME_BYTES_MAX + 1)) == "ENAMETOOLONG"


def test_names_of_all_bytes(people: People, here: Path) -> None:
    """Names are bytes: all but "/" and NUL, whether or not they are UTF-8, in either case and in either normal form."""
    names = [bytes([byte]) for byte in range(1, 256) if bytes([byte]) not in (b"/", b".")]
    names += [b"...", b" ", b"a\n", "é".encode(), "é".encode(), b"A", "€".encode() * 85]
    names = sorted(set(names))
    folder = os.fsencode(here)
    for name in names:
        calls.creat(os.fsdecode(folder + b"/" + name))
    assert sorted(os.listdir(folder)) == names
    for name in names:
        os.rename(folder + b"/" + name, folder + b"/x" + name[:200])
    assert len(os.listdir(folder)) == len(names)


@pytest.mark.parametrize("length", [1, 59, 60, 1023, 4095])
def test_targets_of_symlinks_are_any_text(people: People, here: Path, length: int) -> None:
    target = ("/" + "t" * 200) * 30
    people.alice(os.symlink, target[:length], "s")
    assert people.alice(os.readlink, "s") == target[:length]
    assert (here / "s").lstat().st_size == length


def test_forty_symlinks_and_no_more(people: People, here: Path) -> None:
    people.alice(calls.store, "0", b"bytes")
    for number in range(1, 42):
        people.alice(os.symlink, str(number - 1), str(number))
    assert people.alice(calls.load, "40") == b"bytes"
    assert people.alice.fails(calls.load, "41") == "ELOOP"


def test_paths_as_deep_as_they_may_be(people: People, here: Path) -> None:
    """PATH_MAX is of one call's path, not of the tree."""
    depth = 30
    for _ in range(depth):
        people.alice(os.mkdir, "d" * 200)
        people.alice(os.chdir, "d" * 200)
    people.alice(calls.store, "f", b"deep")
    assert people.alice(calls.load, "f") == b"deep"
    for _ in range(depth):
        people.alice(os.unlink, "f") if people.alice(calls.exists, "f") else None
        people.alice(os.chdir, "..")
        people.alice(os.rmdir, "d" * 200)


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "block"])
def test_special_files(people: People, here: Path, kind: str) -> None:
    call = {"fifo": calls.mkfifo, "socket": calls.mksocket, "device": calls.mkchar, "block": calls.mkblock}[kind]
    people.root(call, "x")
    found = (here / "x").lstat()
    number = {"device": os.makedev(1, 3), "block": os.makedev(7, 250)}.get(kind, 0)
    kinds = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFCHR, "block": stat.S_IFBLK}
    assert (stat.S_IFMT(found.st_mode), found.st_rdev, found.st_size) == (kinds[kind], number, 0)
    people.root(os.chmod, "x", 0o600)
    people.root(os.rename, "x", "y")
    assert stat.S_IMODE((here / "y").lstat().st_mode) == 0o600


def test_a_fifo_carries_bytes(people: People, here: Path) -> None:
    people.alice(calls.mkfifo, "p", 0o666)
    reader = people.alice(os.open, "p", os.O_RDONLY | os.O_NONBLOCK)
    writer = people.bob(os.open, "p", os.O_WRONLY)
    people.bob(os.write, writer, b"through")
    assert people.alice(os.read, reader, 100) == b"through"
    people.alice(os.close, reader)
    people.bob(os.close, writer)


def test_a_device_is_the_device(people: People, here: Path, side: Side) -> None:
    people.root(calls.mkchar, "null")
    if os.statvfs(here).f_flag & os.ST_NODEV:
        assert people.root.fails(calls.creat, "null", os.O_RDWR) == "EACCES"
    else:
        assert people.root(calls.load, "null") == b""


# --- reading directories ------------------------------------------------------------------------------------------------------------


class _Entry(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Entry)
_libc.telldir.restype = ctypes.c_long
for _call in (_libc.readdir, _libc.telldir, _libc.rewinddir, _libc.closedir):
    _call.argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class Directory:
    """A directory stream of libc."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))

    def __iter__(self) -> Directory:
        return self

    def __next__(self) -> _Entry:
        if not (found := _libc.readdir(self._stream)):
            raise StopIteration
        copy = _Entry()
        ctypes.memmove(ctypes.byref(copy), found, found.contents.reclen)
        return copy

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, place: int) -> None:
        _libc.seekdir(self._stream, place)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


def test_entries_say_number_and_type(people: People, here: Path) -> None:
    for kind in KINDS:
        _make(people, kind, kind)
    stream = Directory(here)
    found = {entry.name.decode(): (entry.ino, entry.type) for entry in stream}
    stream.close()
    for kind in KINDS:
        status = (here / kind).lstat()
        assert found[kind] == (status.st_ino, stat.S_IFMT(status.st_mode) >> 12)
    assert found["."] == (here.stat().st_ino, 4)
    assert found[".."][1] == 4


@pytest.mark.parametrize("count", [0, 1, 300, 2000])
def test_seekdir(people: People, here: Path, count: int) -> None:
    """From every place that telldir named the same follows, in any order, and rewinddir begins anew."""
    for number in range(count):
        calls.creat(str(here / f"{number:04}"))
    stream = Directory(here)
    seen, places = [], [stream.tell()]
    for entry in stream:
        seen.append(entry.name)
        places.append(stream.tell())
    assert sorted(seen) == sorted([b".", b"..", *(f"{n:04}".encode() for n in range(count))])
    for at in [*range(0, len(seen), max(1, len(seen) // 40))][::-1]:
        stream.seek(places[at])
        assert next(stream).name == seen[at]
    stream.seek(places[-1])
    assert list(stream) == []
    calls.creat(str(here / "another"))
    stream.rewind()
    assert {entry.name for entry in stream} == {*seen, b"another"}
    stream.close()


@pytest.mark.parametrize("change", ["unlink", "create", "rename"])
def test_a_directory_that_changes_while_it_is_read(people: People, here: Path, change: str) -> None:
    """What is there all the time comes exactly once."""
    names = {f"{number:04}".encode() for number in range(600)}
    for name in names:
        calls.creat(os.fsdecode(os.fsencode(here) + b"/" + name))
    stream = Directory(here)
    seen, touched = [], set()
    for count, entry in enumerate(stream):
        seen.append(entry.name)
        if entry.name in names and count % 3 == 0:
            path = os.path.join(here, entry.name.decode())
            touched.add(entry.name)
            if change == "unlink":
                os.unlink(path)
            elif change == "rename":
                os.rename(path, path + "-moved")
            else:
                calls.creat(path + "-new")
    stream.close()
    for name in names - (touched if change != "create" else set()):
        assert seen.count(name) == 1
