"""LOOKUPs that follow a listing: which ones bring more than was asked for, and what they bring."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from emberfs import connect
from emberfs.fuse import ahead
from emberfs.fuse.ahead import ENTRIES_MAX, ENTRIES_MIN, REST, RUN, Ahead

from .attempts import holds

if TYPE_CHECKING:
    from emberfs_mount import MakeMount

    from emberfs.deploy.local import LocalCluster

FILES = 2000
DIRECTORY = 7


class Nodes(set[int]):
    """The part of a FileSystem that decides: which inodes the kernel knows, and which are leased."""

    def __init__(self) -> None:
        self.removed: set[int] = set()

    @property
    def nodes(self) -> set[int]:
        return self

    def keeps(self, inode: int) -> bool:
        return inode not in self.removed


def name(number: int) -> bytes:
    return b"%06d" % number


@pytest.fixture
def watched() -> Ahead:
    known = Nodes()
    return Ahead(known, known)  # type: ignore[arg-type]


def test_names_in_order_are_a_walk(watched: Ahead) -> None:
    assert [watched.wants(DIRECTORY, name(i)) for i in range(RUN + 2)] == [0] * RUN + [ENTRIES_MIN] * 2
    assert watched.wants(DIRECTORY, name(3)) == 0, "backwards"
    assert not any(watched.wants(d, name(i)) for i in range(RUN) for d in range(10, 20)), "each directory by itself"


def test_pages_grow_while_they_are_used(watched: Ahead) -> None:
    assert isinstance(watched._fs, Nodes)
    for i in range(RUN):
        watched.wants(DIRECTORY, name(i))
    asked = []
    for i in range(RUN, RUN + 8):
        asked.append(watched.wants(DIRECTORY, name(i)))
        watched._runs[DIRECTORY].sample = range(100 * i, 100 * i + 10)
        (watched._fs.removed if i % 2 else watched._fs).update(range(100 * i, 100 * i + 8))
    assert asked == [min(ENTRIES_MIN << i, ENTRIES_MAX) for i in range(8)]
    watched._fs.clear()
    watched._fs.removed.clear()
    watched._runs[DIRECTORY].entries = ENTRIES_MIN
    more = [watched.wants(DIRECTORY, name(100 + i)) for i in range(REST + RUN + 2)]
    assert not any(more[:REST]) and more[-1] == ENTRIES_MIN, "of no use for now"


def test_few_directories_are_remembered(watched: Ahead) -> None:
    for directory in range(1000):
        watched.wants(directory, b"x")
    assert len(watched._runs) == ahead.DIRECTORIES_MAX


def test_a_walk_asks_the_server_a_page_at_a_time(cluster: LocalCluster, make_mount: MakeMount) -> None:
    with connect(cluster.url) as client:
        client.mkdir("/walked")
        client.create_many([f"/walked/{i:06d}" for i in range(FILES)])

        def walks(number: int) -> bool:
            mount = make_mount(cluster.url)
            place = mount.path / "walked"
            before = mount.session.fs.statistics.inline
            found = {entry: os.lstat(place / entry) for entry in os.listdir(place)}
            assert len(found) == FILES and len({stat.st_ino for stat in found.values()}) == FILES
            return mount.session.fs.statistics.inline - before > 0.7 * FILES

        assert holds(walks)
        for number in (1000, 1500):
            client.chmod(f"/walked/{number:06d}", 0o600)
            client.unlink(f"/walked/{number + 1:06d}")
        fresh = make_mount(cluster.url).path / "walked"
        modes = {entry: os.lstat(fresh / entry).st_mode & 0o777 for entry in os.listdir(fresh)}

        def removes(number: int) -> bool:
            """As rm -r, which looks each name up before it removes it."""
            name = f"removed-{number}"
            client.mkdir(f"/{name}")
            client.create_many([f"/{name}/{i:06d}" for i in range(FILES)])
            another = make_mount(cluster.url)
            for entry in os.listdir(another.path / name):
                os.unlink(another.path / name / entry)
            assert not list(client.listdir(f"/{name}"))
            return another.session.fs.statistics.inline > 2.5 * FILES

        assert holds(removes), "most of the LOOKUPs, too"
    assert len(modes) == FILES - 2
    assert [entry for entry, mode in sorted(modes.items()) if mode == 0o600] == ["001000", "001500"]
