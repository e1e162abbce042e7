"""Names and attributes of one cluster through two mounts, and by handles from one in the other."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .users import ALICE, acting, errno_of

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

    from ..plugin.emberfs_mount import MakeMount, MountThread

AT_FDCWD = -100
HANDLE_BYTES_MAX = 128
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def strict(cluster: LocalCluster, make_mount: MakeMount) -> tuple[Path, Path]:
    """A directory through two mounts whose kernels believe nothing."""
    options = {"strict": True, "attr_timeout": 0.0, "entry_timeout": 0.0}
    one, two = (make_mount(cluster.url, **options).path for _ in range(2))
    name = f"strict-{os.getpid()}-{id(one)}"
    (one / name).mkdir(mode=0o777)
    (one / name).chmod(0o777)
    return one / name, two / name


def test_each_change_shows_in_the_next_operation(strict: tuple[Path, Path]) -> None:
    here, there = strict
    (here / "d").mkdir()
    assert (there / "d").is_dir()
    os.mknod(here / "d" / "f", 0o600)
    assert os.listdir(there / "d") == ["f"]
    os.chmod(there / "d" / "f", 0o644)
    assert os.stat(here / "d" / "f").st_mode & 0o777 == 0o644
    os.link(here / "d" / "f", here / "g")
    assert os.stat(there / "d" / "f").st_nlink == 2
    os.rename(there / "d" / "f", there / "h")
    assert sorted(os.listdir(here)) == ["d", "g", "h"]
    assert not (here / "d" / "f").exists()
    os.unlink(here / "h")
    assert os.stat(there / "g").st_nlink == 1
    os.rmdir(there / "d")
    assert not (here / "d").exists()
    os.setxattr(here / "g", "user.x", b"1")
    assert os.getxattr(there / "g", "user.x") == b"1"
    os.removexattr(there / "g", "user.x")
    assert os.listxattr(here / "g") == []
    (here / "l").symlink_to("one")
    assert os.readlink(there / "l") == "one"
    os.unlink(here / "l")
    (here / "l").symlink_to("other")
    assert os.readlink(there / "l") == "other"


def test_a_mode_counts_in_the_next_operation_of_others(strict: tuple[Path, Path]) -> None:
    here, there = strict
    (here / "d").mkdir(mode=0o755)
    os.mknod(here / "d" / "f", 0o644)
    acting(ALICE, lambda: os.stat(there / "d" / "f"))
    os.chmod(here / "d", 0o700)
    assert errno_of(lambda: acting(ALICE, lambda: os.stat(there / "d" / "f"))) == 13
    access = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in (
            (1, 7, 0xFFFFFFFF),
            (2, 5, ALICE.uid),
            (4, 0, 0xFFFFFFFF),
            (16, 5, 0xFFFFFFFF),
            (32, 0, 0xFFFFFFFF),
        )
    )
    os.setxattr(here / "d", "system.posix_acl_access", access)
    acting(ALICE, lambda: os.stat(there / "d" / "f"))


def handle_of(path: Path) -> bytes:
    """name_to_handle_at(2): a struct file_handle."""
    handle = ctypes.create_string_buffer(struct.pack("=Ii", HANDLE_BYTES_MAX, 0), 8 + HANDLE_BYTES_MAX)
    mount = ctypes.c_int()
    assert not _libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount), 0), ctypes.get_errno()
    return handle.raw


def open_handle(mount: Path, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2)."""
    where = os.open(mount, os.O_RDONLY)
    try:
        fd = int(_libc.open_by_handle_at(where, handle, flags))
    finally:
        os.close(where)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def test_a_handle_is_good_in_a_mount_that_has_never_seen_the_file(cluster: LocalCluster, make_mount: MakeMount) -> None:
    first: MountThread = make_mount(cluster.url)
    (first.path / "handles" / "deep").mkdir(parents=True)
    (first.path / "handles" / "deep" / "f").write_bytes(b"found again")
    handles = [handle_of(first.path / "handles" / "deep" / "f"), handle_of(first.path / "handles" / "deep")]
    (first.path / "handles" / "gone").write_bytes(b"")
    gone = handle_of(first.path / "handles" / "gone")
    os.unlink(first.path / "handles" / "gone")
    second: MountThread = make_mount(cluster.url)
    fd = open_handle(second.path, handles[0], os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        assert file.read() == b"found again"
    fd = open_handle(second.path, handles[1], os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(fd) == ["f"]
        assert os.stat("..", dir_fd=fd).st_ino == os.stat(second.path / "handles").st_ino
        assert os.readlink(f"/proc/self/fd/{fd}") == str(second.path / "handles" / "deep")
    finally:
        os.close(fd)
    os.rename(second.path / "handles", second.path / "moved")
    fd = open_handle(second.path, handles[0], os.O_RDONLY)
    os.close(fd)
    assert gone != handles[0]
