"""`.ember/` and `3fs-virt/`: nodes that are no inodes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import emberfs
from emberfs.fuse import accesslog
from emberfs.fuse.protocol import Opcode
from emberfs.fuse.session import Request
from emberfs.fuse.structs import READ_IN

from .processes import mounted
from .users import ALICE, BOB, acting, errno_of

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster


def test_they_are_found_and_listed_nowhere(mount: Path) -> None:
    assert {".ember", "3fs-virt"}.isdisjoint(os.listdir(mount))
    assert sorted(os.listdir(mount / ".ember")) == ["accesslog", "stats"]
    assert os.listdir(mount / "3fs-virt") == ["rm-rf"] and os.listdir(mount / "3fs-virt" / "rm-rf") == []
    kinds = {entry.name: entry.is_dir() for entry in os.scandir(mount / ".ember")}
    assert kinds == {"accesslog": False, "stats": False}
    assert stat.S_ISDIR(os.stat(mount / ".ember").st_mode) and os.path.samefile(mount / ".ember" / "..", mount)


def test_nothing_of_it_can_be_changed(mount: Path) -> None:
    ember = mount / ".ember"
    for work in (
        (ember / "new").touch,
        (ember / "new").mkdir,
        (ember / "stats").unlink,
        ember.rmdir,
        lambda: (ember / "stats").chmod(0o777),
        lambda: os.truncate(ember / "stats", 0),
        lambda: os.link(ember / "stats", ember / "more"),
        lambda: os.symlink("/", ember / "link"),
        lambda: os.setxattr(ember / "stats", "user.a", b""),
        lambda: (ember / "stats").rename(ember / "other"),
    ):
        assert errno_of(work) in (errno.EPERM, errno.EACCES, errno.ENOENT)
    with open(ember / "stats", "wb", buffering=0) as file:
        assert errno_of(lambda: file.write(b"x")) == errno.EPERM
    assert errno_of(lambda: os.stat(ember / "none")) == errno.ENOENT
    assert os.listxattr(ember / "stats") == []


def test_what_it_refuses_it_refuses_for_itself_alone(place: Path, mount: Path) -> None:
    """ENOSYS would switch an operation off for the whole mount."""
    with open(mount / ".ember" / "stats", "rb") as file:
        for work in (lambda: os.fsync(file.fileno()), lambda: os.lseek(file.fileno(), 0, os.SEEK_DATA)):
            try:
                work()
            except OSError as failure:
                assert failure.errno != errno.ENOSYS
    (place / "x").write_bytes(b"0123456789")
    with open(place / "x", "r+b", buffering=0) as own:
        assert os.lseek(own.fileno(), 3, os.SEEK_DATA) == 3
        os.fsync(own.fileno())
        os.setxattr(own.fileno(), "user.a", b"b")


def counted(mount: Path) -> dict[str, list[str]]:
    rows = [line.split() for line in (mount / ".ember" / "stats").read_text().splitlines() if line]
    return {row[0]: row[1:] for row in rows}


def test_stats_count_what_was_done(cluster: LocalCluster) -> None:
    with mounted(cluster.url) as mount:  # where the kernel has nothing to write back of other tests
        stats_count(mount)


def stats_count(mount: Path) -> None:
    place = mount / "counted"
    place.mkdir()
    before = counted(mount)
    (place / "file").write_bytes(bytes(300_000))
    assert (place / "file").read_bytes() == bytes(300_000)
    for number in range(3):
        (place / f"directory-{number}").mkdir()
    assert errno_of(lambda: os.rmdir(place)) == errno.ENOTEMPTY
    after = counted(mount)
    assert before["operation"] == after["operation"] == ["count", "errors", "mean_us", "max_us"]
    assert int(after["bytes_written"][0]) - int(before["bytes_written"][0]) == 300_000
    assert int(after["mkdir"][0]) - int(before["mkdir"][0]) == 3
    assert int(after["rmdir"][1]) - int(before.get("rmdir", [0, 0])[1]) == 1
    assert 0 < float(after["mkdir"][2]) <= float(after["mkdir"][3])


def test_the_access_log_is_written_while_it_is_read(mount: Path, place: Path) -> None:
    found: list[str] = []
    opened = threading.Event()

    def read() -> None:
        with open(mount / ".ember" / "accesslog", "rb", buffering=0) as log:
            opened.set()
            while not any(" unlink " in line for line in found):
                found.extend(log.read(1 << 16).decode().splitlines())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert opened.wait(60)
    (place / "a name").write_bytes(b"12345")
    assert errno_of(lambda: os.mkdir(place / "a name")) == errno.EEXIST
    (place / "a name").unlink()
    reader.join(60)
    assert not reader.is_alive()
    lines = [line for line in found if line != "#"]
    assert any(" create " in line and ",a name)" in line and " OK <" in line for line in lines)
    assert any(" write " in line and ",0,5)" in line for line in lines)
    assert all(f"pid:{os.getpid()}]" in line for line in lines if " create " in line)
    assert not any("accesslog" in line for line in lines), "who reads it is not in it"


def test_the_access_log_is_its_owners(mount: Path) -> None:
    assert errno_of(lambda: acting(ALICE, (mount / ".ember" / "accesslog").read_bytes)) == errno.EACCES
    assert b"operation" in acting(ALICE, (mount / ".ember" / "stats").read_bytes)


def request(opcode: int, body: bytes = b"") -> Request:
    return Request(opcode, 2, 0x1A, 1000, 100, 4403, body)


@pytest.mark.parametrize(
    ("asked", "number", "says"),
    [
        (request(Opcode.LOOKUP, b"data\0"), 0, "lookup (1a,data) OK <0.000123>"),
        (request(Opcode.RENAME2, bytes(16) + b"a\0b\0"), 0, "rename2 (1a,a,b) OK <0.000123>"),
        (request(Opcode.READ, READ_IN.pack(7, 4096, 100, 0, 0, 0)), errno.EIO, "read (1a,4096,100) EIO <0.000123>"),
        (request(Opcode.UNLINK, b"new\nline\xff\0"), 0, "unlink (1a,new\\nline\\\\xff) OK <0.000123>"),
        (request(Opcode.STATFS), 9999, "statfs (1a) 9999 <0.000123>"),
        (request(77), 0, "operation 77 (1a) OK <0.000123>"),
        (request(Opcode.READ, b"short"), 0, "read (1a) OK <0.000123>"),
    ],
)
def test_lines(asked: Request, number: int, says: str) -> None:
    line = accesslog.line(asked, number, 0.000123, datetime(2026, 1, 2, 3, 4, 5, 678, UTC))
    assert line == f"2026-01-02 03:04:05.000678 [uid:1000,gid:100,pid:4403] {says}\n".encode()


async def test_a_slow_reader_is_told_what_he_missed() -> None:
    reader = accesslog.Reader()
    for number in range(accesslog.LINES_MAX + 5):
        reader.add(b"%d\n" % number)
    assert await reader.read(40) == b"# 5 lines were dropped\n5\n6\n7\n8\n9\n10\n11\n1"
    assert (await reader.read(5)) == b"2\n13\n"


async def test_a_reader_of_a_quiet_log_is_not_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "QUIET_SECONDS", 0.01)
    assert await accesslog.Reader().read(100) == accesslog.QUIET_LINE


# --- rm-rf ------------------------------------------------------------------------------------------------------------------------


def make_tree(top: Path) -> None:
    (top / "a" / "b").mkdir(parents=True)
    for number in range(20):
        (top / "a" / f"file-{number}").write_bytes(b"x" * number)
    (top / "a" / "b" / "deep").touch()


@pytest.mark.parametrize("how", ["absolute", "relative"])
def test_a_link_in_rm_rf_removes_a_tree(mount: Path, place: Path, how: str) -> None:
    make_tree(place / "tree")
    (place / "kept").touch()
    target = place / "tree" if how == "absolute" else Path("../..") / place.name / "tree"
    before = int(counted(mount).get("symlink", ["0"])[0])
    os.symlink(target, mount / "3fs-virt" / "rm-rf" / "tree-1234567")
    assert int(counted(mount)["symlink"][0]) == before + 1  # unlike what only looks at these directories
    assert os.listdir(place) == ["kept"] and not (place / "tree").exists()
    assert errno_of(lambda: os.stat(place / "tree" / "a")) == errno.ENOENT
    assert os.listdir(mount / "3fs-virt" / "rm-rf") == []
    make_tree(place / "tree")  # the name is free


def test_what_rm_rf_refuses(mount: Path, place: Path) -> None:
    trash = mount / "3fs-virt" / "rm-rf"
    assert errno_of(lambda: os.symlink("/usr", trash / "x")) == errno.EXDEV
    assert errno_of(lambda: os.symlink(f"{mount}x", trash / "x")) == errno.EXDEV
    assert errno_of(lambda: os.symlink(mount, trash / "x")) == errno.EPERM
    assert errno_of(lambda: os.symlink("../..", trash / "x")) == errno.EPERM
    assert errno_of(lambda: os.symlink("../../../../..", trash / "x")) == errno.EPERM
    assert errno_of(lambda: os.symlink(mount / ".ember", trash / "x")) == errno.EPERM
    assert errno_of(lambda: os.symlink(place / "none", trash / "x")) == errno.ENOENT
    assert place.is_dir()


def test_rm_rf_removes_with_the_callers_rights(mount: Path, place: Path) -> None:
    acting(ALICE, lambda: make_tree(place / "hers"))
    os.chmod(place, 0o1777)
    link = mount / "3fs-virt" / "rm-rf" / "x"
    assert errno_of(lambda: acting(BOB, lambda: os.symlink(place / "hers", link))) in (errno.EPERM, errno.EACCES)
    assert (place / "hers" / "a" / "b" / "deep").exists()
    acting(ALICE, lambda: os.symlink(place / "hers", link))
    assert not (place / "hers").exists()


def test_a_mount_of_a_directory_removes_below_it(cluster: LocalCluster) -> None:
    with emberfs.connect(cluster.url) as client:
        client.mkdir("/part/of it/inner", parents=True, exist_ok=True)
        client.mkdir("/outside", exist_ok=True)
        with mounted(f"{cluster.url}part/of it") as path:
            assert os.listdir(path) == ["inner"]
            os.symlink(path / "inner", path / "3fs-virt" / "rm-rf" / "x")
            assert os.listdir(path) == [] and client.listdir("/part/of it") == [] and client.exists("/outside")


def test_no_symlink_leads_rm_rf_elsewhere(cluster: LocalCluster) -> None:
    """Neither out of what is mounted, nor to what somebody else has put in a directory's place."""
    with emberfs.connect(cluster.url) as client:
        client.mkdir("/shown/inner", parents=True)
        client.mkdir("/secret/kept", parents=True)
        client.symlink("/secret", "/shown/absolute")
        client.symlink("../secret", "/shown/relative")
        with mounted(f"{cluster.url}shown") as path:
            link = path / "3fs-virt" / "rm-rf" / "x"
            for target in (path / "absolute" / "kept", path / "relative" / "kept"):
                assert errno_of(lambda target=target: os.symlink(target, link)) == errno.ELOOP
            for target in (path / "absolute" / ".." / "inner", Path("../../absolute/../inner")):
                assert errno_of(lambda target=target: os.symlink(target, link)) == errno.EINVAL
            os.symlink(path / "relative", link)  # the symlink itself is no way elsewhere
            assert client.exists("/secret/kept") and client.exists("/shown/inner")
            assert sorted(client.listdir("/shown")) == ["absolute", "inner"]


def test_a_copy_into_a_file_of_ours_reaches_no_other(cluster: LocalCluster) -> None:
    """The handles of these nodes are not those of the cluster's files."""
    with mounted(cluster.url) as path:
        victim = os.open(path / "victim", os.O_RDWR | os.O_CREAT)
        os.write(victim, b"untouched")
        (path / "source").write_bytes(b"overwritten")
        source = os.open(path / "source", os.O_RDONLY)
        opened = []
        try:
            for _ in range(1100):  # a handle's number is 256 times how many there were before, and its access mode
                opened.append(os.open(path / ".ember" / "stats", os.O_WRONLY))
                errno_of(lambda: os.copy_file_range(source, opened[-1], 11, 0, 0))
            assert os.pread(victim, 100, 0) == b"untouched"
        finally:
            for fd in (*opened, source, victim):
                os.close(fd)


def test_smallpond_removes_its_trees_so(mount: Path, place: Path) -> None:
    """Its own lines, but for the prefix of the mount point."""
    make_tree(place / "temp")
    program = """
import os, sys, time
mount, path = sys.argv[1:]
real = os.path.realpath(path)
link = os.path.join(mount, "3fs-virt", "rm-rf", f"{os.path.basename(path)}-{time.time_ns()}")
os.symlink(real, link)
assert not os.path.exists(path)
"""
    subprocess.run([sys.executable, "-P", "-c", program, str(mount), str(place / "temp")], check=True)


def test_without_control_the_names_are_free(cluster: LocalCluster) -> None:
    with mounted(cluster.url, "nocontrol") as path:
        assert not (path / ".ember").exists()
