"""Two mounts of one cluster: what one has closed, the other sees at its next open, whatever its kernel believed until then.

"Close-to-open for data" (the consistency contract). The kernel does not do this by itself: OPEN's reply carries no attributes, so it would
go on reading with the old size, and its pages, for as long as it may believe them. These tests give it minutes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from emberfs.fuse.protocol import Opcode

from .attempts import holds

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

    from ..plugin.emberfs_mount import MakeMount, MountThread

BELIEVED_SECONDS = 100.0  # longer than any of these tests runs


@pytest.fixture
def mounts(cluster: LocalCluster, make_mount: MakeMount) -> tuple[MountThread, MountThread]:
    """Two mounts, as on two machines: a kernel shares nothing between them."""
    options = {"attr_timeout": BELIEVED_SECONDS, "entry_timeout": BELIEVED_SECONDS}
    return make_mount(cluster.url, **options), make_mount(cluster.url, **options)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"short", b"x" * 100_000, id="longer"),
        pytest.param(b"x" * 100_000, b"short", id="shorter"),
        pytest.param(b"a" * 70_000, b"b" * 70_000, id="same length"),
        pytest.param(b"some", b"", id="emptied"),
        pytest.param(b"", b"some", id="was empty"),
    ],
)
def test_what_one_mount_closed_the_other_sees_at_its_next_open(
    mounts: tuple[MountThread, MountThread], before: bytes, after: bytes, request: pytest.FixtureRequest
) -> None:
    here, there = mounts
    name = request.node.name.replace("/", "-")
    (here.path / name).write_bytes(before)
    assert (there.path / name).read_bytes() == before
    assert (there.path / name).stat().st_size == len(before)
    (here.path / name).write_bytes(after)
    with (there.path / name).open("rb", buffering=0) as file:  # no stat in between: OPEN alone has to do it
        assert os.pread(file.fileno(), 1 << 20, 0) == after
        assert os.fstat(file.fileno()).st_size == len(after)


def test_reading_beyond_the_end_that_was_known_is_not_the_end(mounts: tuple[MountThread, MountThread]) -> None:
    here, there = mounts
    (here.path / "grows").write_bytes(b"1")
    (there.path / "grows").read_bytes()
    for length in (2, 5000, 200_000):
        with (here.path / "grows").open("ab") as file:
            file.write(b"+" * (length - file.tell()))
        fd = os.open(there.path / "grows", os.O_RDONLY)
        assert len(os.pread(fd, 1 << 20, 0)) == length
        os.close(fd)


def test_writers_take_turns(mounts: tuple[MountThread, MountThread]) -> None:
    for turn in range(20):
        mount, other = mounts[turn % 2], mounts[1 - turn % 2]
        with (mount.path / "in turns").open("ab") as file:
            file.write(b"%04d\n" % turn)
        assert (other.path / "in turns").read_bytes() == b"".join(b"%04d\n" % t for t in range(turn + 1))


def test_an_overwrite_in_the_middle(mounts: tuple[MountThread, MountThread]) -> None:
    here, there = mounts
    (here.path / "middle").write_bytes(bytes(300_000))
    assert (there.path / "middle").read_bytes() == bytes(300_000)
    fd = os.open(here.path / "middle", os.O_RDWR)
    os.pwrite(fd, b"news", 150_000)
    os.close(fd)
    assert (there.path / "middle").read_bytes()[150_000:150_004] == b"news"


def test_what_nobody_changed_is_not_read_again(mounts: tuple[MountThread, MountThread]) -> None:
    here, there = mounts

    def stays(number: int) -> bool:
        path = there.path / f"same-{number}"
        (here.path / path.name).write_bytes(b"x" * 500_000)
        path.read_bytes()
        before = there.requests(Opcode.READ), there.session.fs.notifier.sent
        for _ in range(3):
            path.read_bytes()
        return (there.requests(Opcode.READ), there.session.fs.notifier.sent) == before

    assert holds(stays)


def test_what_this_mount_wrote_is_not_read_again(mounts: tuple[MountThread, MountThread]) -> None:
    here, _ = mounts
    pages = b"x" * (4096 * 128)  # of the end of a page that is only half written, the kernel asks for the rest

    def stays(number: int) -> bool:
        path, sent = here.path / f"own-{number}", here.session.fs.notifier.sent
        path.write_bytes(pages)
        reads = here.requests(Opcode.READ)
        assert path.read_bytes() == pages
        return (here.requests(Opcode.READ), here.session.fs.notifier.sent) == (reads, sent)

    assert holds(stays)


def test_both_wrote_and_each_sees_all(mounts: tuple[MountThread, MountThread]) -> None:
    """A settlement of ours that another mount's came before must not make the kernel's pages pass for new."""
    here, _ = mounts
    (here.path / "both").write_bytes(b"-" * 8192)
    for mount in mounts:
        (mount.path / "both").read_bytes()
    one, other = (os.open(mount.path / "both", os.O_RDWR) for mount in mounts)
    os.pwrite(one, b"A" * 4096, 0)
    os.pwrite(other, b"B" * 4096, 4096)
    os.close(other)
    os.close(one)
    for mount in mounts:
        assert (mount.path / "both").read_bytes() == b"A" * 4096 + b"B" * 4096
