"""What a mount believes of a directory after changes of its own is what the server has, without asking."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from emberfs import connect
from emberfs.fuse.protocol import Opcode

from .attempts import holds

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

    from ..plugin.emberfs_mount import MakeMount, MountThread

SECONDS_MAX = 60.0


def until_leased(mount: MountThread, directory: Path) -> None:
    """Look at a directory until the answer comes from a lease."""
    believed = mount.session.fs.believed
    assert believed is not None
    number = os.stat(directory).st_ino
    deadline = time.monotonic() + SECONDS_MAX
    while mount.call(known(mount, number)) is None:
        assert time.monotonic() < deadline, "no lease was granted"
        os.utime(directory)  # so that the kernel asks
        os.stat(directory)


async def known(mount: MountThread, inode: int) -> bytes | None:
    """The reply to GETATTR that needs no question."""
    assert mount.session.fs.believed is not None
    return mount.session.fs.believed.attr(inode)


def test_times_of_a_directory_after_each_change_in_it(cluster: LocalCluster, make_mount: MakeMount) -> None:
    mount = make_mount(cluster.url, attr_timeout=0.0, entry_timeout=0.0)
    top = mount.path / "own-changes"
    (top / "d").mkdir(parents=True)
    (top / "other").mkdir()
    d, other = top / "d", top / "other"
    (top / "file").write_bytes(b"x")
    changes: list[Callable[[], object]] = [
        lambda: os.mknod(d / "a"),
        lambda: (d / "b").write_bytes(b"b"),
        lambda: os.symlink("x", d / "c"),
        lambda: os.link(top / "file", d / "e"),
        lambda: os.rename(d / "a", d / "f"),
        lambda: os.rename(d / "f", other / "g"),
        lambda: os.rename(other / "g", d / "b"),
        lambda: os.unlink(d / "b"),
        lambda: os.mkdir(d / "sub"),
        lambda: os.rmdir(d / "sub"),
        lambda: os.unlink(d / "c"),
    ]
    with connect(cluster.url) as client:
        for change in changes:
            until_leased(mount, d)
            until_leased(mount, other)
            change()
            for path in (d, other):
                seen, there = os.stat(path), client.stat("/" + str(path.relative_to(mount.path)))
                assert (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_nlink) == (
                    there.mtime_ns,
                    there.ctime_ns,
                    there.nlink,
                )


def test_a_change_in_a_directory_costs_no_look_at_it(cluster: LocalCluster, make_mount: MakeMount) -> None:
    mount = make_mount(cluster.url)
    d = mount.path / "no-look"
    d.mkdir()
    inode = os.stat(d).st_ino

    def is_known_all_the_time(number: int) -> bool:
        until_leased(mount, d)
        after = []
        for i in range(10):
            os.mknod(d / f"f{i}")
            after.append(mount.call(known(mount, inode)))
            os.unlink(d / f"f{i}")
            after.append(mount.call(known(mount, inode)))
        return None not in after

    assert holds(is_known_all_the_time)
    assert mount.requests(Opcode.MKNOD) >= 10


def test_what_loses_one_of_its_names_is_known_and_keeps_its_pages(cluster: LocalCluster, make_mount: MakeMount) -> None:
    """As git makes objects: written under one name, linked to another, the first one removed."""
    mount = make_mount(cluster.url)

    def is_known(number: int) -> bool:
        d = mount.path / f"two-names-{number}"
        d.mkdir()
        until_leased(mount, d)
        (d / "tmp").write_bytes(b"object")
        os.link(d / "tmp", d / "object")
        os.unlink(d / "tmp")
        after = mount.call(known(mount, os.stat(d / "object").st_ino))
        reads = mount.requests(Opcode.READ)
        assert (d / "object").read_bytes() == b"object"
        assert os.stat(d / "object").st_nlink == 1
        return after is not None and mount.requests(Opcode.READ) - reads <= 1

    assert holds(is_known)


def test_what_is_written_here_stays_in_the_kernel_when_a_small_file_becomes_a_large_one(
    cluster: LocalCluster, make_mount: MakeMount
) -> None:
    """The server moves its bytes into chunks, as we asked it to: nobody else has changed it."""
    mount = make_mount(cluster.url)
    large = bytes(range(256)) * 512

    def stays(number: int) -> bool:
        d = mount.path / f"becomes-large-{number}"
        d.mkdir()
        until_leased(mount, d)
        (d / "file").write_bytes(b"small")
        (d / "other").write_bytes(b"")
        for path in (d / "file", d / "other"):
            os.utime(path)
            os.stat(path)
        with connect(cluster.url) as client, open(d / "file", "r+b", buffering=0) as file:
            assert file.read() == b"small"
            reads = mount.requests(Opcode.READ)
            os.pwrite(file.fileno(), large, 0)
            os.fsync(file.fileno())
            client.write_bytes(
                f"/{d.name}/other", b"by somebody else"
            )  # once we hear of this, we have heard of all before
            deadline = time.monotonic() + SECONDS_MAX
            while (d / "other").stat().st_size != 16:
                assert time.monotonic() < deadline
            assert os.pread(file.fileno(), len(large), 0) == large
            return mount.requests(Opcode.READ) == reads

    assert holds(stays)
