"""Names on a real mount, by plain system calls: what leads where, and who may change it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from .users import ALICE, BOB, CAROL, acting, errno_of, link_open, renameat2

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def entry(path: Path) -> tuple[int, int, int]:
    """Type, permissions, links."""
    found = os.lstat(path)
    return stat.S_IFMT(found.st_mode), found.st_mode & 0o7777, found.st_nlink


def test_each_kind_is_made_and_found(both: Path) -> None:
    os.umask(0o022)
    (both / "d").mkdir()
    (both / "l").symlink_to("d/x")
    os.mkfifo(both / "p", 0o640)
    os.mknod(both / "s", stat.S_IFSOCK | 0o755)
    os.mknod(both / "c", stat.S_IFCHR | 0o600, os.makedev(259, 70000))
    os.mknod(both / "b", stat.S_IFBLK | 0o666, os.makedev(8, 300))
    os.mknod(both / "f", stat.S_IFREG | 0o666)
    assert entry(both / "d") == (stat.S_IFDIR, 0o755, 2)
    assert entry(both / "l") == (stat.S_IFLNK, 0o777, 1)
    assert entry(both / "p") == (stat.S_IFIFO, 0o640, 1)
    assert entry(both / "s") == (stat.S_IFSOCK, 0o755, 1)
    assert entry(both / "c") == (stat.S_IFCHR, 0o600, 1)
    assert entry(both / "b") == (stat.S_IFBLK, 0o644, 1)
    assert entry(both / "f") == (stat.S_IFREG, 0o644, 1)
    assert os.lstat(both / "c").st_rdev == os.makedev(259, 70000)
    assert os.lstat(both / "b").st_rdev == os.makedev(8, 300)
    assert os.readlink(both / "l") == "d/x"
    assert os.lstat(both / "l").st_size == 3
    assert {e.name: e.is_dir(follow_symlinks=False) for e in os.scandir(both)} == {
        name: name == "d" for name in "dlpscbf"
    }


def test_odd_names_are_names(both: Path) -> None:
    names = [
        b"\xff\xfe",
        b"a\nb",
        b" ",
        b"...",
        b"-rf",
        b"\\",
        b"\x01",
        "ä日本".encode(),
        b"n" * 255,
        b"*",
        b"a\tb",
        b"'\"",
    ]
    folder = os.fsencode(both)
    for name in names:
        os.mkdir(os.path.join(folder, name))
        os.symlink(b"to " + name, os.path.join(folder, name, name))
    assert sorted(os.listdir(folder)) == sorted(names)
    for name in names:
        assert os.listdir(os.path.join(folder, name)) == [name]
        assert os.readlink(os.path.join(folder, name, name)) == b"to " + name
        os.rename(os.path.join(folder, name, name), os.path.join(folder, name, b"x"))
        os.unlink(os.path.join(folder, name, b"x"))
        os.rmdir(os.path.join(folder, name))
    assert os.listdir(folder) == []
    assert errno_of(lambda: os.mkdir(os.path.join(folder, b"n" * 256))) == errno.ENAMETOOLONG
    assert errno_of(lambda: os.stat(os.path.join(folder, b"n" * 1025))) == errno.ENAMETOOLONG


def test_errors_of_paths(both: Path) -> None:
    (both / "d").mkdir()
    (both / "d" / "inner").mkdir()
    os.mknod(both / "f")
    (both / "loop").symlink_to("loop")
    (both / "dangling").symlink_to("nowhere")
    for work, expected in [
        (lambda: os.stat(both / "none"), errno.ENOENT),
        (lambda: os.stat(both / "f" / "x"), errno.ENOTDIR),
        (lambda: os.stat(str(both / "f") + "/"), errno.ENOTDIR),
        (lambda: os.stat(both / "loop"), errno.ELOOP),
        (lambda: os.stat(both / "dangling"), errno.ENOENT),
        (lambda: os.mkdir(both / "d"), errno.EEXIST),
        (lambda: os.mkdir(both / "dangling"), errno.EEXIST),
        (lambda: os.mkdir(both / "none" / "x"), errno.ENOENT),
        (lambda: os.mkdir(both / "f" / "x"), errno.ENOTDIR),
        (lambda: os.symlink("x", both / "f"), errno.EEXIST),
        (lambda: os.symlink("", both / "empty"), errno.ENOENT),
        (lambda: os.symlink("x" * 4096, both / "long"), errno.ENAMETOOLONG),
        (lambda: os.mknod(both / "f", stat.S_IFIFO), errno.EEXIST),
        (lambda: os.unlink(both / "d"), errno.EISDIR),
        (lambda: os.unlink(both / "none"), errno.ENOENT),
        (lambda: os.rmdir(both / "f"), errno.ENOTDIR),
        (lambda: os.rmdir(both / "d"), errno.ENOTEMPTY),
        (lambda: os.rmdir(both / "none"), errno.ENOENT),
        (lambda: os.rmdir(str(both / "d") + "/."), errno.EINVAL),
        (lambda: os.rmdir(str(both / "d" / "inner") + "/.."), errno.ENOTEMPTY),
        (lambda: os.readlink(both / "f"), errno.EINVAL),
        (lambda: os.link(both / "d", both / "hard"), errno.EPERM),
        (lambda: os.link(both / "f", both / "d"), errno.EEXIST),
        (lambda: os.link(both / "none", both / "x"), errno.ENOENT),
        (lambda: os.rename(both / "none", both / "x"), errno.ENOENT),
        (lambda: os.rename(both / "d", both / "f"), errno.ENOTDIR),
        (lambda: os.rename(both / "f", both / "d"), errno.EISDIR),
        (lambda: os.rename(both / "d", both / "d" / "inner" / "x"), errno.EINVAL),
        (lambda: os.rename(both / "d" / "inner", both / "d"), errno.ENOTEMPTY),
    ]:
        assert errno_of(work) == expected
    os.symlink("x" * 4095, both / "long")
    assert len(os.readlink(both / "long")) == 4095


def test_hard_links_are_one_inode(both: Path) -> None:
    os.mknod(both / "a", 0o600)
    os.link(both / "a", both / "b")
    first, second = os.stat(both / "a"), os.stat(both / "b")
    assert (first.st_ino, first.st_nlink, second.st_nlink) == (second.st_ino, 2, 2)
    os.chmod(both / "a", 0o640)
    assert os.stat(both / "b").st_mode & 0o777 == 0o640
    os.rename(both / "a", both / "b")  # two names of one inode: nothing happens
    assert sorted(os.listdir(both)) == ["a", "b"]
    os.unlink(both / "a")
    assert os.stat(both / "b").st_nlink == 1
    os.symlink("b", both / "s")
    os.link(both / "s", both / "t", follow_symlinks=False)
    assert os.lstat(both / "t").st_nlink == 2
    assert os.readlink(both / "t") == "b"


def test_rename_replaces_and_moves(both: Path) -> None:
    for name in ("a", "b"):
        (both / name).mkdir()
    os.mknod(both / "a" / "f", 0o600)
    os.mknod(both / "b" / "g", 0o600)
    moved = os.stat(both / "a" / "f").st_ino
    os.rename(both / "a" / "f", both / "b" / "g")
    assert os.listdir(both / "a") == []
    assert os.stat(both / "b" / "g").st_ino == moved
    os.mkdir(both / "a" / "sub")
    assert os.stat(both / "a").st_nlink == 3
    os.mkdir(both / "b" / "sub")
    os.rename(both / "a" / "sub", both / "b" / "sub")  # onto an empty directory
    assert os.stat(both / "a").st_nlink == 2
    assert os.stat(both / "b").st_nlink == 3
    assert os.stat(both / "b" / "sub" / "..").st_ino == os.stat(both / "b").st_ino
    os.rename(both / "a", both / "b" / "sub" / "deep")
    assert os.stat(both / "b" / "sub" / "deep" / "..").st_ino == os.stat(both / "b" / "sub").st_ino


def test_rename_with_flags(both: Path) -> None:
    os.mkdir(both / "d")
    os.mknod(both / "d" / "inner")
    os.mknod(both / "f", 0o600)
    directory, file = os.stat(both / "d").st_ino, os.stat(both / "f").st_ino
    assert errno_of(lambda: renameat2(both / "f", both / "d", NOREPLACE)) == errno.EEXIST
    renameat2(both / "f", both / "d" / "inner", EXCHANGE)
    assert os.stat(both / "d" / "inner").st_ino == file
    renameat2(both / "d", both / "f", EXCHANGE)
    assert (os.stat(both / "f").st_ino, os.path.isdir(both / "f")) == (directory, True)
    assert os.listdir(both / "f") == ["inner"]
    renameat2(both / "f", both / "g", NOREPLACE)
    assert sorted(os.listdir(both)) == ["d", "g"]
    assert errno_of(lambda: renameat2(both / "g", both / "none", EXCHANGE)) == errno.ENOENT
    assert errno_of(lambda: renameat2(both / "g", both / "g" / "x", EXCHANGE)) in (errno.EINVAL, errno.ENOENT)
    assert errno_of(lambda: renameat2(both / "g", both / "d", NOREPLACE | EXCHANGE)) == errno.EINVAL


def test_no_whiteouts(place: Path) -> None:
    os.mknod(place / "f")
    assert errno_of(lambda: renameat2(place / "f", place / "g", WHITEOUT)) == errno.EINVAL
    assert os.listdir(place) == ["f"]


def test_times_of_what_a_name_changes(both: Path) -> None:
    def times(path: Path) -> tuple[int, int]:
        found = os.lstat(path)
        return found.st_mtime_ns, found.st_ctime_ns

    os.mkdir(both / "d")
    os.mknod(both / "f")
    for work in (
        lambda: os.mknod(both / "d" / "x"),
        lambda: os.rename(both / "d" / "x", both / "d" / "y"),
        lambda: os.link(both / "f", both / "d" / "z"),
        lambda: os.unlink(both / "d" / "y"),
        lambda: os.rename(both / "d" / "z", both / "w"),
        lambda: os.mkdir(both / "d" / "sub"),
        lambda: os.rmdir(both / "d" / "sub"),
        lambda: os.symlink("x", both / "d" / "l"),
    ):
        before = times(both / "d")
        work()
        after = times(both / "d")
        assert after[0] == after[1]
        assert after >= before
    before = os.stat(both / "f")
    os.unlink(both / "w")
    after = os.stat(both / "f")
    assert (after.st_nlink, after.st_mtime_ns) == (1, before.st_mtime_ns)
    assert after.st_ctime_ns >= before.st_ctime_ns


def test_who_is_in_a_removed_directory(both: Path) -> None:
    os.mkdir(both / "d")
    fd = os.open(both / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rmdir(both / "d")
        left = os.fstat(fd)
        assert (left.st_nlink, stat.S_ISDIR(left.st_mode)) == (0, True)
        assert errno_of(lambda: os.mknod("x", dir_fd=fd)) == errno.ENOENT
        assert errno_of(lambda: os.stat("x", dir_fd=fd)) == errno.ENOENT
        assert os.listdir(fd) == []
    finally:
        os.close(fd)
    assert not (both / "d").exists()


def test_who_is_in_a_directory_that_was_replaced(both: Path) -> None:
    os.mkdir(both / "old")
    os.mkdir(both / "new")
    fd = os.open(both / "old", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rename(both / "new", both / "old")
        assert os.fstat(fd).st_nlink == 0
        assert os.fstat(fd).st_ino != os.stat(both / "old").st_ino
    finally:
        os.close(fd)


def test_a_name_is_gone_and_the_open_file_is_not(both: Path) -> None:
    fd = os.open(both / "f", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(fd, b"hello")
        os.unlink(both / "f")
        assert os.fstat(fd).st_nlink == 0
        os.fchmod(fd, 0o644)
        os.pwrite(fd, b"J", 0)
        assert os.pread(fd, 10, 0) == b"Jello"
        assert os.fstat(fd).st_mode & 0o777 == 0o644
        assert errno_of(lambda: link_open(fd, both / "again")) == errno.ENOENT
    finally:
        os.close(fd)


def test_a_file_gets_its_first_name_when_it_is_written(both: Path) -> None:
    fd = os.open(both, os.O_RDWR | os.O_TMPFILE, 0o640)
    try:
        os.write(fd, b"whole")
        assert os.listdir(both) == []
        link_open(fd, both / "f")
        assert os.fstat(fd).st_nlink == 1
        assert errno_of(lambda: link_open(fd, both / "f")) == errno.EEXIST
    finally:
        os.close(fd)
    assert (both / "f").read_bytes() == b"whole"
    assert os.stat(both / "f").st_mode & 0o777 == 0o640


# --- who may ----------------------------------------------------------------------------------------------------------------------


def test_others_may_not(both: Path) -> None:
    os.mkdir(both / "d", 0o755)
    os.mknod(both / "d" / "f")
    os.mkdir(both / "closed", 0o700)
    os.mknod(both / "closed" / "f")
    for work, expected in [
        (lambda: os.mkdir(both / "d" / "x"), errno.EACCES),
        (lambda: os.unlink(both / "d" / "f"), errno.EACCES),
        (lambda: os.rename(both / "d" / "f", both / "d" / "g"), errno.EACCES),
        (lambda: os.rename(both / "d" / "f", both / "g"), errno.EACCES),
        (lambda: os.symlink("x", both / "d" / "s"), errno.EACCES),
        (lambda: os.stat(both / "closed" / "f"), errno.EACCES),
        (lambda: os.listdir(both / "closed"), errno.EACCES),
        (lambda: os.mknod(both / "dev", stat.S_IFCHR | 0o600, os.makedev(1, 3)), errno.EPERM),
    ]:
        assert errno_of(lambda work=work: acting(BOB, work)) == expected  # type: ignore[misc]
    acting(BOB, lambda: os.mkfifo(both / "p"))
    assert os.stat(both / "p").st_uid == BOB.uid


def test_sticky_directories(both: Path) -> None:
    os.mkdir(both / "t")
    os.chmod(both / "t", 0o1777)
    acting(ALICE, lambda: os.mknod(both / "t" / "hers"))
    acting(BOB, lambda: os.mkdir(both / "t" / "his"))
    assert errno_of(lambda: acting(BOB, lambda: os.unlink(both / "t" / "hers"))) == errno.EPERM
    assert errno_of(lambda: acting(BOB, lambda: os.rename(both / "t" / "hers", both / "x"))) == errno.EPERM
    assert errno_of(lambda: acting(ALICE, lambda: os.rmdir(both / "t" / "his"))) == errno.EPERM
    acting(BOB, lambda: os.mknod(both / "t" / "f"))
    assert errno_of(lambda: acting(BOB, lambda: os.rename(both / "t" / "f", both / "t" / "hers"))) == errno.EPERM
    acting(ALICE, lambda: os.unlink(both / "t" / "hers"))
    acting(BOB, lambda: os.rmdir(both / "t" / "his"))


def test_groups_of_the_caller_count(both: Path) -> None:
    os.mkdir(both / "shared")
    os.chown(both / "shared", 0, 3100)
    os.chmod(both / "shared", 0o2770)
    made = acting(ALICE, lambda: (os.mkdir(both / "shared" / "d"), os.mknod(both / "shared" / "f", 0o660)))
    assert made == (None, None)
    directory, file = os.stat(both / "shared" / "d"), os.stat(both / "shared" / "f")
    assert (directory.st_uid, directory.st_gid, directory.st_mode & 0o7000) == (ALICE.uid, 3100, 0o2000)
    assert (file.st_uid, file.st_gid, file.st_mode & 0o7777) == (ALICE.uid, 3100, 0o660)
    acting(BOB, lambda: os.rename(both / "shared" / "f", both / "shared" / "g"))
    assert errno_of(lambda: acting(CAROL, lambda: os.stat(both / "shared" / "g"))) == errno.EACCES
    acting(ALICE, lambda: os.chown(both / "shared" / "g", -1, 3001))
    assert errno_of(lambda: acting(ALICE, lambda: os.chown(both / "shared" / "g", -1, 3003))) == errno.EPERM


def test_the_umask_is_the_callers(both: Path) -> None:
    def make() -> None:
        os.umask(0o027)
        os.mkdir(both / "d")
        os.mknod(both / "f", 0o777)

    acting(ALICE, make)
    assert (os.stat(both / "d").st_mode & 0o7777, os.stat(both / "f").st_mode & 0o7777) == (0o750, 0o750)


@pytest.mark.parametrize("kind", ["hers", "readable", "suid"])
def test_whose_file_may_be_linked(both: Path, kind: str) -> None:
    acting(ALICE, lambda: os.mknod(both / "f", 0o600))
    if kind == "readable":
        os.chmod(both / "f", 0o666)
    elif kind == "suid":
        os.chmod(both / "f", 0o4777)
    acting(ALICE, lambda: os.link(both / "f", both / "own"))
    if kind == "readable":
        acting(BOB, lambda: os.link(both / "f", both / "his"))
    elif Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1":
        assert errno_of(lambda: acting(BOB, lambda: os.link(both / "f", both / "his"))) == errno.EPERM
