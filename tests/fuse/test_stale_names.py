"""A name that the kernel believes, and that another mount has taken away or given to another file meanwhile: ESTALE makes the kernel look
it up again, so that programs never find a file that has no name any more."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .users import errno_of

if TYPE_CHECKING:
    from emberfs_mount import MakeMount, MountThread

    from emberfs.deploy.local import LocalCluster

BELIEF_SECONDS = 300.0  # for which the kernel believes names and attributes here
TRANSACTIONS = 20  # of each writer


@pytest.fixture
def mounts(cluster: LocalCluster, make_mount: MakeMount) -> tuple[MountThread, MountThread]:
    options = {"attr_timeout": BELIEF_SECONDS, "entry_timeout": BELIEF_SECONDS}
    return make_mount(cluster.url, **options), make_mount(cluster.url, **options)


def test_a_file_that_was_replaced_elsewhere_is_opened_as_it_is_now(mounts: tuple[MountThread, MountThread]) -> None:
    here, there = mounts
    (here.path / "config").write_bytes(b"old")
    assert (here.path / "config").read_bytes() == b"old"
    (there.path / "new").write_bytes(b"newer")
    os.replace(there.path / "new", there.path / "config")
    assert (here.path / "config").read_bytes() == b"newer"


def test_a_file_that_was_removed_elsewhere_is_made_anew(mounts: tuple[MountThread, MountThread]) -> None:
    here, there = mounts
    (here.path / "journal").write_bytes(b"first")
    (there.path / "journal").unlink()
    fd = os.open(here.path / "journal", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"second")
    os.close(fd)
    assert (there.path / "journal").read_bytes() == b"second"
    (there.path / "journal").unlink()
    assert errno_of(lambda: os.open(here.path / "journal", os.O_RDONLY)) == errno.ENOENT


def test_a_file_without_a_name_that_is_open_here_can_be_opened_again(mounts: tuple[MountThread, MountThread]) -> None:
    here, there = mounts
    fd = os.open(here.path / "unlinked", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"content")
    os.fsync(fd)
    (there.path / "unlinked").unlink()
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.read(again, 100) == b"content"
    os.close(again)
    os.close(fd)


WRITER = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for i in range(int(sys.argv[2])):
    database.execute("begin immediate")
    (value,) = database.execute("select value from counter").fetchone()
    database.execute("update counter set value = ?", (value + 1,))
    database.execute("insert into log values (?)", (os.urandom(300).hex(),))
    database.execute("commit")
"""


def test_sqlite_under_four_writers_on_two_mounts(cluster: LocalCluster, make_mount: MakeMount) -> None:
    """Its rollback journal is made, found and removed by turns on both."""
    paths = [make_mount(cluster.url).path / "counted.db" for _ in range(2)]
    with sqlite3.connect(paths[0]) as database:
        database.execute("create table counter (value)")
        database.execute("insert into counter values (0)")
        database.execute("create table log (text)")
    database.close()
    command = [sys.executable, "-c", WRITER]
    writers = [subprocess.Popen([*command, paths[i % 2], str(TRANSACTIONS)]) for i in range(4)]
    assert [writer.wait(250) for writer in writers] == [0] * 4
    for path in paths:
        database = sqlite3.connect(path)
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        assert database.execute("select value from counter").fetchone() == (4 * TRANSACTIONS,)
        assert database.execute("select count(*) from log").fetchone() == (4 * TRANSACTIONS,)
        database.close()
