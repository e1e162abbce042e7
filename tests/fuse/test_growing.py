"""A file that stays open on one mount while another one writes it, as `tail -f` reads a log: once its attributes say more, its bytes do
too, and none is made up."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from emberfs_mount import MakeMount, MountThread

    from emberfs.deploy.local import LocalCluster


@pytest.fixture
def mounts(cluster: LocalCluster, make_mount: MakeMount) -> tuple[MountThread, MountThread]:
    """Two mounts that believe no attributes for longer than a request."""
    options = {"strict": True, "attr_timeout": 0.0, "entry_timeout": 0.0}
    return make_mount(cluster.url, **options), make_mount(cluster.url, **options)


def by_stat(path: os.PathLike[str], fd: int) -> int:
    return os.stat(path).st_size


def by_fstat(path: os.PathLike[str], fd: int) -> int:
    return os.fstat(fd).st_size


def by_listing(path: os.PathLike[str], fd: int) -> int:
    with os.scandir(os.path.dirname(path)) as entries:
        return next(entry.stat().st_size for entry in entries if entry.name == os.path.basename(path))


@pytest.mark.parametrize("look", [by_stat, by_fstat, by_listing])
@pytest.mark.parametrize("step", [100, 4096, 300_000])
def test_what_was_appended_elsewhere_is_read_without_another_open(
    mounts: tuple[MountThread, MountThread], look: Callable[[os.PathLike[str], int], int], step: int
) -> None:
    here, there = mounts
    name = f"log-{look.__name__}-{step}"
    (here.path / name).write_bytes(b"0" * step)
    fd = os.open(here.path / name, os.O_RDONLY)
    for i in range(1, 5):
        assert os.pread(fd, step, (i - 1) * step) == b"%d" % (i - 1) * step
        with (there.path / name).open("ab") as file:
            file.write(b"%d" % i * step)
        assert look(here.path / name, fd) == (i + 1) * step
        assert os.pread(fd, step, i * step) == b"%d" % i * step
    os.close(fd)


def test_what_was_overwritten_elsewhere_is_read_anew(mounts: tuple[MountThread, MountThread]) -> None:
    here, there = mounts
    (here.path / "page").write_bytes(b"old" * 1000)
    fd = os.open(here.path / "page", os.O_RDONLY)
    assert os.pread(fd, 3, 30) == b"old"
    with (there.path / "page").open("r+b") as file:
        file.seek(30)
        file.write(b"new")
    os.fstat(fd)
    assert os.pread(fd, 3, 30) == b"new"
    os.close(fd)


def test_a_file_that_was_cut_elsewhere_ends_where_it_ends(mounts: tuple[MountThread, MountThread]) -> None:
    here, there = mounts
    (here.path / "cut").write_bytes(b"x" * 10_000)
    fd = os.open(here.path / "cut", os.O_RDONLY)
    assert len(os.pread(fd, 20_000, 0)) == 10_000
    os.truncate(there.path / "cut", 50)
    assert os.fstat(fd).st_size == 50
    assert os.pread(fd, 20_000, 0) == b"x" * 50
    os.close(fd)
