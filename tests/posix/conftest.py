"""Where the suite runs: on the local file system, which proves that it is right, and on a mount; or where EMBERFS_POSIX_DIR says."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from emberfs_mount import can_mount, detach

from ..fuse.processes import mounted
from .people import People

GIVEN = os.environ.get("EMBERFS_POSIX_DIR")
COMPLETE = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
}  # local file systems that keep to all of this: statfs(2)'s f_type
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


class Side(NamedTuple):
    """A file system under test."""

    name: str
    directory: Path
    read_only: Path  # the same directory, not to be written to
    elsewhere: Path  # on another file system


def _type_of(path: str) -> int:
    found = ctypes.create_string_buffer(256)
    _libc.statfs(os.fsencode(path), found)
    return int.from_bytes(found.raw[:8], "little")


@contextlib.contextmanager
def _seen_read_only(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="emberfs-ro-") as folder:
        where = os.fsencode(folder)
        for flags in (MS_BIND, MS_BIND | MS_REMOUNT | MS_RDONLY):
            if _libc.mount(os.fsencode(directory), where, None, flags, None):
                raise OSError(ctypes.get_errno(), "bind mount", folder)
        try:
            yield Path(folder)
        finally:
            detach(folder)


@pytest.fixture(scope="session", params=["given"] if GIVEN else ["local", "mount"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    if os.geteuid():
        pytest.skip("only root becomes other users")
    with contextlib.ExitStack() as stack:
        parent = GIVEN
        elsewhere = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emberfs-elsewhere-")))
        if request.param == "mount":
            if not can_mount():
                pytest.skip("mounting needs root and /dev/fuse")
            url = request.getfixturevalue("cluster").url
            parent = os.fspath(stack.enter_context(mounted(url, "dev,suid")))
            read_only = stack.enter_context(mounted(url, "ro"))
        elif request.param == "local":
            if _type_of(tempfile.gettempdir()) not in COMPLETE:
                pytest.skip("the local file system is none to compare with")
            elsewhere = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        if request.param == "mount":  # it goes with its cluster
            directory = Path(tempfile.mkdtemp(prefix="posix-", dir=parent))
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emberfs-posix-", dir=parent)))
        for folder in (directory, elsewhere):
            folder.chmod(0o777)
        if request.param == "mount":
            read_only /= directory.name
        else:
            read_only = stack.enter_context(_seen_read_only(directory))
        yield Side(request.param, directory, read_only, elsewhere)


@pytest.fixture(scope="session")
def people(side: Side) -> Iterator[People]:
    """Root, Alice and Bob."""
    all_of_them = People(os.fspath(side.directory))
    yield all_of_them
    all_of_them.close()


@pytest.fixture
def here(side: Side, people: People) -> Path:
    """An empty directory where everybody may do everything, and in which all of them are."""
    made = side.directory / f"case-{next(_numbers)}"
    made.mkdir()
    made.chmod(0o777)
    people.chdir(os.fspath(made))
    return made
