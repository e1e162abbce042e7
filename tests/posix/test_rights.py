"""Who may do what: mode bits, sticky directories, groups, set-id bits, the umask."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

import pytest

from . import calls
from .people import ALICE, BOB, SHARED, USERS, People

CLASSES = {"owner": (ALICE, "alice"), "group": (ALICE, "bob"), "other": (ALICE, "bob"), "root": (ALICE, "root")}
SHIFT = {"owner": 6, "group": 3, "other": 0}


def _owned(here: Path, path: str, who: str) -> None:
    """Make it Alice's, and `who` decides whether Bob is in its group."""
    os.chown(here / path, ALICE.uid, SHARED if who == "group" else ALICE.gid)


@pytest.mark.parametrize("who", CLASSES)
def test_mode_bits_of_files(people: People, here: Path, who: str) -> None:
    """Each of the eight modes for each class, with all bits of the other classes against it: the first class that fits decides."""
    acting = people[CLASSES[who][1]]
    for bits in range(8):
        others = 0 if who == "root" else 0o777 & ~(7 << SHIFT[who])
        for mode in {(bits << SHIFT.get(who, 6)) | others, bits << SHIFT.get(who, 6)}:
            path = f"f-{mode:o}"
            (here / path).write_bytes(b"#!/bin/sh\n")
            _owned(here, path, who)
            (here / path).chmod(mode)
            root = who == "root"
            readable, writable = root or bits & 4, root or bits & 2
            executable = mode & 0o111 if root else bits & 1
            answers = {
                "read": acting.fails(calls.creat, path, os.O_RDONLY),
                "write": acting.fails(calls.creat, path, os.O_WRONLY),
                "both": acting.fails(calls.creat, path, os.O_RDWR),
                "append": acting.fails(calls.creat, path, os.O_WRONLY | os.O_APPEND),
                "truncate": acting.fails(os.truncate, path, 5),
                "R_OK": acting.fails(calls.access, path, os.R_OK),
                "W_OK": acting.fails(calls.access, path, os.W_OK),
                "X_OK": acting.fails(calls.access, path, os.X_OK),
                "chmod": acting.fails(os.chmod, path, mode),
            }
            expected = dict.fromkeys(("read", "R_OK"), readable) | dict.fromkeys(
                ("write", "append", "truncate", "W_OK"), writable
            )
            expected |= {"both": readable and writable, "X_OK": executable}
            said = {name: "ok" if may else "EACCES" for name, may in expected.items()}
            assert answers == said | {"chmod": "ok" if who in ("owner", "root") else "EPERM"}, f"mode {mode:o}"


@pytest.mark.parametrize("who", CLASSES)
def test_mode_bits_of_directories(people: People, here: Path, who: str) -> None:
    acting = people[CLASSES[who][1]]
    for bits in range(8):
        mode = bits << SHIFT.get(who, 6)
        path = f"d-{mode:o}"
        (here / path).mkdir()
        for name in ("f", "g"):
            (here / path / name).write_bytes(b"")
            (here / path / name).chmod(0o666)
        _owned(here, path, who)
        (here / path).chmod(mode)
        root = who == "root"
        list_, change, search = root or bits & 4, root or bits & 3 == 3, root or bits & 1
        expected = {
            "list": (list_, os.listdir, path),
            "stat": (search, os.stat, f"{path}/f"),
            "open": (search, calls.creat, f"{path}/f", os.O_RDONLY),
            "chdir": (search, calls.chdir, path),
            "create": (change, calls.creat, f"{path}/new"),
            "mkdir": (change, os.mkdir, f"{path}/newd"),
            "symlink": (change, os.symlink, "x", f"{path}/news"),
            "link": (change, calls.link, f"{path}/f", f"{path}/newl"),
            "rename": (change, os.rename, f"{path}/f", f"{path}/newr"),
            "unlink": (change, os.unlink, f"{path}/g"),
        }
        answers = {name: acting.fails(*row[1:]) for name, row in expected.items()}
        assert answers == {name: "ok" if row[0] else "EACCES" for name, row in expected.items()}, f"mode {mode:o}"


OWNERS = ("root", "alice", "bob")


@pytest.mark.parametrize("directory", OWNERS)
@pytest.mark.parametrize("sticky", [True, False], ids=["sticky", "plain"])
def test_sticky(people: People, here: Path, directory: str, sticky: bool) -> None:
    """In a sticky directory names belong to who owns the file, or the directory; and to root."""
    (here / "d").mkdir()
    os.chown(here / "d", *USERS[directory][:2])
    (here / "d").chmod(0o1777 if sticky else 0o777)
    for owner, who, call in itertools.product(OWNERS, OWNERS, ("unlink", "rename", "replace", "rmdir", "exchange")):
        (here / "d" / "x").mkdir() if call == "rmdir" else (here / "d" / "x").write_bytes(b"")
        os.chown(here / "d" / "x", *USERS[owner][:2])
        people[who](calls.store, "d/mine", b"")
        answer = {
            "unlink": lambda who=who: people[who].fails(os.unlink, "d/x"),
            "rmdir": lambda who=who: people[who].fails(os.rmdir, "d/x"),
            "rename": lambda who=who: people[who].fails(os.rename, "d/x", "d/y"),
            "replace": lambda who=who: people[who].fails(os.rename, "d/mine", "d/x"),
            "exchange": lambda who=who: people[who].fails(calls.renameat2, "d/mine", "d/x", calls.RENAME_EXCHANGE),
        }[call]()
        may = not sticky or who in ("root", owner, directory)
        assert answer == ("ok" if may else "EPERM"), f"{who} tries {call} on {owner}'s"
        for left in (here / "d").iterdir():
            left.rmdir() if left.is_dir() else left.unlink()


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "symlink", "socket"])
@pytest.mark.parametrize("directory_mode", [0o777, 0o2777])
def test_who_owns_what_is_new(people: People, here: Path, kind: str, directory_mode: int) -> None:
    """ "The file's user ID shall be set to the effective user ID of the process"; its group that of the process, or of a set-group-id
    directory, whose directories are such again."""
    (here / "d").mkdir()
    os.chown(here / "d", 0, SHARED)
    (here / "d").chmod(directory_mode)
    made = {
        "file": (calls.creat, "d/x", os.O_CREAT | os.O_WRONLY, 0o2775),
        "directory": (os.mkdir, "d/x", 0o775),
        "fifo": (calls.mkfifo, "d/x", 0o664),
        "symlink": (os.symlink, "y", "d/x"),
        "socket": (calls.mksocket, "d/x"),
    }[kind]
    people.alice(*made)
    found = (here / "d" / "x").lstat()
    inherited = directory_mode & stat.S_ISGID
    assert (found.st_uid, found.st_gid) == (ALICE.uid, SHARED if inherited else ALICE.gid)
    if kind == "directory":
        assert found.st_mode & 0o7777 == 0o775 | inherited
    if kind == "file":  # she is in the group either way, so that the bit stays
        assert found.st_mode & 0o7777 == 0o2775


def test_a_file_for_a_group_that_one_is_not_in_loses_set_group_id(people: People, here: Path) -> None:
    (here / "d").mkdir()
    os.chown(here / "d", 0, 0)
    (here / "d").chmod(0o2777)
    people.alice(calls.creat, "d/x", os.O_CREAT | os.O_WRONLY, 0o2775)
    found = (here / "d" / "x").stat()
    assert (found.st_gid, found.st_mode & 0o7777) == (0, 0o775)


@pytest.mark.parametrize("mask", [0, 0o022, 0o027, 0o077, 0o777])
def test_umask(people: People, here: Path, mask: int) -> None:
    people.alice(os.umask, mask)
    try:
        for path, call, *args in (
            ("f", calls.creat, os.O_CREAT | os.O_RDWR, 0o666),
            ("d", os.mkdir, 0o777),
            ("p", calls.mkfifo, 0o666),
        ):
            people.alice(call, path, *args)
            assert (here / path).stat().st_mode & 0o777 == args[-1] & ~mask
        people.alice(os.symlink, "f", "s")
        assert (here / "s").lstat().st_mode & 0o777 == 0o777
    finally:
        people.alice(os.umask, 0)


SET_IDS = [
    # who does what to a file of mode 06777 (or as given): the mode afterwards
    ("alice", "write", 0o6777, 0o0777),
    ("bob", "write", 0o6777, 0o0777),
    ("root", "write", 0o6777, 0o6777),
    ("alice", "write", 0o2767, 0o2767),  # only a mark: mandatory locking once
    ("alice", "truncate", 0o6777, 0o0777),
    ("bob", "truncate", 0o6777, 0o0777),
    ("root", "truncate", 0o6777, 0o6777),
    ("bob", "open and truncate", 0o6777, 0o0777),
    ("root", "open and truncate", 0o6777, 0o6777),
    ("bob", "fallocate", 0o6777, 0o0777),
    ("root", "fallocate", 0o6777, 0o6777),
    ("bob", "copy_within", 0o6777, 0o0777),
    ("alice", "chown", 0o6777, 0o0777),
    ("root", "chown", 0o6777, 0o0777),
    ("root", "chown", 0o2767, 0o2767),
    ("alice", "chgrp", 0o6777, 0o0777),
    ("root", "chgrp", 0o6777, 0o0777),
    ("alice", "read", 0o6777, 0o6777),
    ("alice", "utime", 0o6777, 0o6777),
    ("alice", "link", 0o6777, 0o6777),
    ("alice", "rename", 0o6777, 0o6777),
    ("alice", "setxattr", 0o6777, 0o6777),
]


@pytest.mark.parametrize(("who", "action", "mode", "expected"), SET_IDS)
def test_set_id_bits(people: People, here: Path, who: str, action: str, mode: int, expected: int) -> None:
    people.alice(calls.store, "f", b"some bytes")
    people.alice(os.chmod, "f", mode)
    people[who](
        *{
            "write": (calls.on, "f", os.O_WRONLY, "write", "x"),
            "truncate": (os.truncate, "f", 3),
            "open and truncate": (calls.creat, "f", os.O_WRONLY | os.O_TRUNC),
            "fallocate": (calls.on, "f", os.O_RDWR, "fallocate", 0, 0, 100),
            "copy_within": (calls.on, "f", os.O_RDWR, "copy_within", 0, 20, 3),
            "chown": (os.chown, "f", -1, -1),
            "chgrp": (os.chown, "f", -1, SHARED),
            "read": (calls.load, "f"),
            "utime": (os.utime, "f"),
            "link": (calls.link, "f", "g"),
            "rename": (os.rename, "f", "g"),
            "setxattr": (calls.setxattr, "f", "user.n", "v"),
        }[action]
    )
    path = here / ("g" if action == "rename" else "f")
    assert f"{path.stat().st_mode & 0o7777:o}" == f"{expected:o}"


def test_chown_of_directories_keeps_their_bits(people: People, here: Path) -> None:
    people.alice(os.mkdir, "d")
    people.alice(os.chmod, "d", 0o7777)
    people.root(os.chown, "d", BOB.uid, BOB.gid)
    assert (here / "d").stat().st_mode & 0o7777 == 0o7777


def test_chmod_takes_set_group_id_from_who_is_not_in_the_group(people: People, here: Path) -> None:
    people.alice(calls.store, "f", b"")
    people.root(os.chown, "f", ALICE.uid, 0)
    people.alice(os.chmod, "f", 0o2755)
    assert (here / "f").stat().st_mode & 0o7777 == 0o755
    people.root(os.chmod, "f", 0o2755)
    assert (here / "f").stat().st_mode & 0o7777 == 0o2755


CHOWN = [
    (-1, SHARED, "ok"),
    (ALICE.uid, SHARED, "ok"),
    (ALICE.uid, -1, "ok"),
    (-1, -1, "ok"),
    (BOB.uid, -1, "EPERM"),
    (-1, BOB.gid, "EPERM"),
    (BOB.uid, SHARED, "EPERM"),
]


@pytest.mark.parametrize(("uid", "gid", "answer"), CHOWN)
def test_chown_by_the_owner(people: People, here: Path, uid: int, gid: int, answer: str) -> None:
    """Only to groups that one is in, and never to another user."""
    people.alice(calls.store, "f", b"")
    assert people.alice.fails(os.chown, "f", uid, gid) == answer
    found = (here / "f").stat()
    assert (found.st_uid, found.st_gid) == (ALICE.uid, gid if gid >= 0 and answer == "ok" else ALICE.gid)


def test_what_is_open_stays_open(people: People, here: Path) -> None:
    """Rights are those of the open: neither chmod nor chown nor the directory matter afterwards."""
    people.alice(calls.store, "f", b"bytes")
    people.alice(os.chmod, "f", 0o666)
    fd = people.bob(os.open, "f", os.O_RDWR)
    people.alice(os.chmod, "f", 0)
    people.root(os.chmod, ".", 0o700)
    try:
        assert people.bob(os.pread, fd, 9, 0) == b"bytes"
        assert people.bob(os.pwrite, fd, b"other", 0) == 5
        people.bob(os.ftruncate, fd, 3)
        assert people.bob(os.fstat, fd).st_size == 3
        people.bob(os.fsync, fd)
    finally:
        people.bob(os.close, fd)
        people.root(os.chmod, ".", 0o777)
    assert (here / "f").read_bytes() == b"oth"


def test_a_new_file_of_mode_0_is_open_for_who_made_it(people: People, here: Path) -> None:
    fd = people.alice(os.open, "f", os.O_CREAT | os.O_RDWR, 0)
    assert people.alice(os.write, fd, b"bytes") == 5
    people.alice(os.close, fd)
    assert people.alice.fails(calls.creat, "f", os.O_RDONLY) == "EACCES"
