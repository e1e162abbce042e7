"""A write that fails after it was taken over is told at fsync and close, once to each that has the file open; and then it is over."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .users import errno_of

if TYPE_CHECKING:
    from emberfs_cluster import MakeCluster
    from emberfs_mount import MakeMount

CAPACITY = 64 << 20
MIB = 1 << 20


@pytest.fixture
def full(make_cluster: MakeCluster, make_mount: MakeMount) -> Iterator[Path]:
    """A mount of a cluster that has no room left for chunks."""
    cluster = make_cluster(capacity=CAPACITY)
    path = make_mount(cluster.url).path
    with (path / "filler").open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space"):
            for _ in range(2 * CAPACITY // MIB):
                file.write(os.urandom(MIB))
        assert errno_of(lambda: os.fsync(file.fileno())) == errno.ENOSPC
    yield path


def outcome(work: Callable[[], object]) -> int:
    """0, or the errno."""
    try:
        work()
    except OSError as failure:
        assert failure.errno is not None
        return failure.errno
    return 0


def test_no_space_is_told_once_to_each_descriptor_and_is_over_when_there_is_room(full: Path) -> None:
    first = os.open(full / "file", os.O_CREAT | os.O_RDWR)
    second = os.open(full / "file", os.O_RDWR)
    os.write(first, os.urandom(MIB))  # taken over: it is not known yet that it will not fit
    assert [outcome(lambda: os.fsync(first)) for _ in range(2)] == [errno.ENOSPC, 0]
    assert [outcome(lambda: os.fsync(second)) for _ in range(2)] == [errno.ENOSPC, 0]
    later = os.open(full / "file", os.O_RDWR)
    assert [outcome(lambda fd=fd: os.close(fd)) for fd in (first, second, later)] == [0, 0, 0]  # type: ignore[misc]
    assert (full / "file").stat().st_size < MIB  # what did not arrive is not there


def test_close_tells_it_where_nobody_has_synced(full: Path) -> None:
    fd = os.open(full / "file", os.O_CREAT | os.O_RDWR)
    os.write(fd, os.urandom(MIB))
    assert outcome(lambda: os.close(fd)) == errno.ENOSPC


def test_small_files_and_names_have_room_all_the_same(full: Path) -> None:
    (full / "small").write_bytes(b"beside its inode")
    (full / "directory").mkdir()
    (full / "filler").unlink()
    assert (full / "small").read_bytes() == b"beside its inode"
