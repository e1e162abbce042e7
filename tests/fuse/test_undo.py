"""What a reply gave to nobody is taken back: lookups, open files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from emberfs.client.core.client import Core
from emberfs.client.core.options import Options
from emberfs.fuse.entries import entry, missing
from emberfs.fuse.filesystem import FileSystem
from emberfs.fuse.notifier import Notifier
from emberfs.fuse.options import MountOptions
from emberfs.fuse.protocol import Opcode
from emberfs.fuse.replies import NO_ENTRY, pack_direntplus
from emberfs.fuse.structs import OPEN_OUT
from emberfs.fuse.undo import undo
from emberfs.proto.drivers.aio import AioEnvironment

from .little import Closed, stat_of

Work = Callable[[FileSystem], Any]


def with_file_system(work: Work, **options: Any) -> Any:
    """Run something with a file system of no cluster, on a loop; its background work has ended when this returns."""

    async def main() -> Any:
        fs = FileSystem(Core(AioEnvironment(), (), Options(), 0), MountOptions(**options), Notifier(lambda frame: 0))
        result = work(fs)
        await fs.settle(60)
        return result

    return asyncio.run(main())


@pytest.mark.parametrize("opcode", [Opcode.LOOKUP, Opcode.MKDIR, Opcode.MKNOD, Opcode.SYMLINK, Opcode.LINK])
def test_an_entry_is_a_lookup_less(opcode: Opcode) -> None:
    def work(fs: FileSystem) -> None:
        entry(fs, stat_of(100))
        undo(fs, opcode, entry(fs, stat_of(100)))
        assert fs.nodes.lookups(100) == 1
        undo(fs, opcode, [entry(fs, stat_of(101))])
        assert 101 not in fs.nodes

    with_file_system(work)


def test_a_name_that_is_not_there_counts_nothing() -> None:
    with_file_system(lambda fs: undo(fs, Opcode.LOOKUP, missing(fs)), negative_timeout=1.0)


@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.OPENDIR, Opcode.CREATE, Opcode.TMPFILE])
def test_what_was_opened_is_closed(opcode: Opcode) -> None:
    def work(fs: FileSystem) -> Closed:
        handle = Closed()
        opened = OPEN_OUT.pack(fs.new_handle(handle), 0, 0)
        undo(fs, opcode, opened if opcode in (Opcode.OPEN, Opcode.OPENDIR) else entry(fs, stat_of(100)) + opened)
        assert fs.handles == {}
        assert len(fs.nodes) == 0
        return handle

    assert with_file_system(work).closed == 1


def test_every_entry_of_a_directory_page_is_a_lookup_less() -> None:
    def work(fs: FileSystem) -> None:
        names = [b"a", b"a name of seventeen", b"12345678"]
        page = pack_direntplus(NO_ENTRY, 1, 1, 4, b".")
        for place, name in enumerate(names):
            page += pack_direntplus(entry(fs, stat_of(100 + place)), 100 + place, place + 2, 8, name)
        assert len(fs.nodes) == 3
        undo(fs, Opcode.READDIRPLUS, page)
        assert len(fs.nodes) == 0

    with_file_system(work)


@pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.GETATTR, Opcode.WRITE, Opcode.READDIR])
def test_other_replies_gave_nothing(opcode: Opcode) -> None:
    def work(fs: FileSystem) -> None:
        entry(fs, stat_of(100))
        undo(fs, opcode, entry(fs, stat_of(101)))
        assert len(fs.nodes) == 2

    with_file_system(work)
