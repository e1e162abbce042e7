"""Extended attributes, ACLs and ioctls on a real mount."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest

from .users import ALICE, BOB, CAROL, acting, errno_of

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    """(tag, permissions, id) of each entry in the form of linux/posix_acl_xattr.h."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def for_bob(permissions: int, mask: int = 7) -> bytes:
    """An ACL that says something of Bob."""
    return acl(
        (USER_OBJ, 7, NOBODY),
        (USER, permissions, BOB.uid),
        (GROUP_OBJ, 0, NOBODY),
        (MASK, mask, NOBODY),
        (OTHER, 0, NOBODY),
    )


@pytest.fixture
def file(both: Path) -> Path:
    os.mknod(both / "f", 0o644)
    return both / "f"


def test_values_are_set_read_and_removed(file: Path) -> None:
    assert os.listxattr(file) == []
    os.setxattr(file, "user.a", b"one")
    os.setxattr(file, "user.b", b"\0\xff" * 1000)
    os.setxattr(file, "user.empty", b"")
    os.setxattr(file, "trusted.t", b"root's")
    assert sorted(os.listxattr(file)) == ["trusted.t", "user.a", "user.b", "user.empty"]
    assert os.getxattr(file, "user.a") == b"one"
    assert os.getxattr(file, "user.b") == b"\0\xff" * 1000
    assert os.getxattr(file, "user.empty") == b""
    os.removexattr(file, "user.a")
    assert errno_of(lambda: os.getxattr(file, "user.a")) == errno.ENODATA
    assert errno_of(lambda: os.removexattr(file, "user.a")) == errno.ENODATA
    assert sorted(acting(ALICE, lambda: os.listxattr(file))) == ["user.b", "user.empty"]
    assert errno_of(lambda: acting(ALICE, lambda: os.getxattr(file, "trusted.t"))) == errno.ENODATA


def test_flags(file: Path) -> None:
    assert errno_of(lambda: os.setxattr(file, "user.a", b"x", os.XATTR_REPLACE)) == errno.ENODATA
    os.setxattr(file, "user.a", b"x", os.XATTR_CREATE)
    assert errno_of(lambda: os.setxattr(file, "user.a", b"y", os.XATTR_CREATE)) == errno.EEXIST
    os.setxattr(file, "user.a", b"z", os.XATTR_REPLACE)
    assert os.getxattr(file, "user.a") == b"z"


def test_limits(place: Path) -> None:
    os.mknod(place / "f")
    file = place / "f"
    os.setxattr(file, "user." + "n" * 250, b"x")
    assert errno_of(lambda: os.setxattr(file, "user." + "n" * 251, b"x")) == errno.ERANGE
    os.setxattr(file, "user.big", b"x" * 65536)
    assert os.getxattr(file, "user.big") == b"x" * 65536
    assert errno_of(lambda: os.setxattr(file, "user.big", b"x" * 65537)) == errno.E2BIG
    assert errno_of(lambda: os.setxattr(file, "unknown.x", b"x")) == errno.EOPNOTSUPP


def test_who_may(file: Path) -> None:
    os.setxattr(file, "user.a", b"x")
    assert acting(ALICE, lambda: os.getxattr(file, "user.a")) == b"x"
    assert errno_of(lambda: acting(ALICE, lambda: os.setxattr(file, "user.a", b"y"))) == errno.EACCES
    assert errno_of(lambda: acting(ALICE, lambda: os.setxattr(file, "trusted.a", b"y"))) == errno.EPERM
    os.chmod(file, 0o600)
    assert errno_of(lambda: acting(ALICE, lambda: os.getxattr(file, "user.a"))) == errno.EACCES
    os.symlink("x", file.parent / "l")
    assert errno_of(lambda: os.setxattr(file.parent / "l", "user.a", b"", follow_symlinks=False)) == errno.EPERM


def test_an_acl_grants_and_takes(file: Path) -> None:
    file.write_bytes(b"secret")
    assert errno_of(lambda: os.getxattr(file, ACCESS)) == errno.ENODATA
    os.chmod(file, 0o700)
    assert errno_of(lambda: acting(BOB, file.read_bytes)) == errno.EACCES
    os.setxattr(file, ACCESS, for_bob(4))
    assert os.stat(file).st_mode & 0o777 == 0o770  # the mask stands where the group's permissions were
    assert acting(BOB, file.read_bytes) == b"secret"
    assert errno_of(lambda: acting(BOB, lambda: file.write_bytes(b"x"))) == errno.EACCES
    assert errno_of(lambda: acting(CAROL, file.read_bytes)) == errno.EACCES
    os.chmod(file, 0o700)  # the mask: now nobody whom the ACL names
    assert errno_of(lambda: acting(BOB, file.read_bytes)) == errno.EACCES
    os.setxattr(file, ACCESS, for_bob(6))
    acting(BOB, lambda: file.write_bytes(b"his"))
    os.removexattr(file, ACCESS)
    assert errno_of(lambda: acting(BOB, file.read_bytes)) == errno.EACCES
    assert errno_of(lambda: acting(BOB, lambda: os.setxattr(file, ACCESS, for_bob(7)))) == errno.EPERM
    assert errno_of(lambda: os.setxattr(file, ACCESS, b"nonsense")) in (errno.EINVAL, errno.EOPNOTSUPP)
    assert errno_of(lambda: os.setxattr(file, DEFAULT, for_bob(7))) == errno.EACCES


def test_an_acl_of_a_directory_is_inherited(both: Path) -> None:
    os.umask(0o077)
    try:
        os.setxattr(both, DEFAULT, for_bob(7))
        os.mkdir(both / "d")
        os.mknod(both / "f", 0o666)
        assert os.getxattr(both / "d", DEFAULT) == for_bob(7)
        assert os.getxattr(both / "d", ACCESS) == for_bob(7)
        assert os.getxattr(both / "f", ACCESS) == acl(
            (USER_OBJ, 6, NOBODY), (USER, 7, BOB.uid), (GROUP_OBJ, 0, NOBODY), (MASK, 6, NOBODY), (OTHER, 0, NOBODY)
        )
        assert os.stat(both / "f").st_mode & 0o777 == 0o660  # and not what the umask leaves
        acting(BOB, lambda: os.mkdir(both / "d" / "his"))
        assert errno_of(lambda: acting(CAROL, lambda: os.listdir(both / "d"))) == errno.EACCES
        os.removexattr(both, DEFAULT)
        os.mkdir(both / "plain")
        assert os.listxattr(both / "plain") == []
        assert os.stat(both / "plain").st_mode & 0o777 == 0o700
    finally:
        os.umask(0o022)


def test_an_acl_of_no_more_than_a_mode_is_one(file: Path) -> None:
    os.setxattr(file, ACCESS, acl((USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 0, NOBODY)))
    assert os.stat(file).st_mode & 0o777 == 0o640
    assert os.listxattr(file) == []


# --- ioctls -----------------------------------------------------------------------------------------------------------------------

GETFLAGS, SETFLAGS, GETVERSION, FSGETXATTR = 0x80086601, 0x40086602, 0x80087601, 0x801C581F


def test_ioctls(place: Path) -> None:
    for path in (place, place / "f"):
        if path != place:
            os.mknod(path, 0o644)
        fd = os.open(path, os.O_RDONLY)
        try:
            flags = array.array("i", [-1])
            fcntl.ioctl(fd, GETFLAGS, flags)
            assert flags[0] == 0
            fcntl.ioctl(fd, SETFLAGS, flags)
            flags[0] = 0x10  # immutable
            assert errno_of(lambda fd=fd, flags=flags: fcntl.ioctl(fd, SETFLAGS, flags)) == errno.EOPNOTSUPP  # type: ignore[misc]
            assert fcntl.ioctl(fd, FSGETXATTR, b"\xff" * 28) == bytes(28)
            assert fcntl.ioctl(fd, GETVERSION, b"\xff" * 8)[:4] == bytes(4)
            assert errno_of(lambda fd=fd: fcntl.ioctl(fd, 0x1234)) == errno.ENOTTY  # type: ignore[misc]
        finally:
            os.close(fd)
