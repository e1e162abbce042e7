"""What a daemon does first that takes over from one that died: it opens what programs have open, and ends what the dead one began.

Files are opened before the sessions of the dead one end, so that a file without a name never has nobody. What a program had written
and not flushed may be lost: its next flush, fsync or close says EIO, once, and the kernel drops the pages that it took for written.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from ..client.core.options import Mode
from ..client.core.paths import at
from ..proto.errors import Status, StatusError, error

if TYPE_CHECKING:
    from ..client.core.inode import Inode
    from .filesystem import FileSystem
    from .journal import Journal, OpenFile

OPENS_AT_ONCE = 64

logger = logging.getLogger(__name__)


async def inherit(fs: FileSystem, journal: Journal) -> list[int]:
    """Open all files of the journal under their handles; the inodes of which writes may be lost. Files that are gone, and what cannot
    be settled because storage is away, are logged: programs find out when they use them."""
    waiting = asyncio.Semaphore(OPENS_AT_ONCE)
    await asyncio.gather(*(_open(fs, file, waiting) for file in journal.files))
    keep = [handle.session for handle in fs.handles.values() if handle.session]
    try:
        await fs.core.settle_predecessor(keep)
    except StatusError as failure:
        logger.error("files that were being written have the lengths of their last flush: %s", failure)
    lost = sorted({file.inode for file in journal.files if file.dirty})
    await asyncio.gather(*(_reread(fs, inode) for inode in sorted({file.inode for file in journal.files})))
    for inode in lost:
        if (opened := fs.core.inodes.get(inode)) is not None:
            note_loss(opened)
    logger.warning("took over %d open files, %d with writes that may be lost", len(journal.files), len(lost))
    return lost


def note_loss(file: Inode) -> None:
    """Each handle that there is hears once that bytes were lost. Not `fail`: what is written from now on is good, and arrives."""
    text = f"inode {file.id:x}: the mount's daemon died before what was written was flushed; write it again"
    file.failure = error(Status.IO_ERROR, text)
    file.failures += 1


def know_little(fs: FileSystem, file: Inode) -> None:
    """It was open before this process was there: the kernel may hold any pages of it, and the server any locks."""
    fs.nodes.inherited(file.id)
    file.keeps_no_locks = True


async def _open(fs: FileSystem, file: OpenFile, waiting: asyncio.Semaphore) -> None:
    async with waiting:
        try:
            flags = file.flags & (os.O_ACCMODE | os.O_APPEND)
            fs.handles[file.fh] = await fs.core.open(at(file.inode), Mode(flags, "", False))
            fs.inherited.add(file.fh)
            know_little(fs, fs.handles[file.fh].file)
        except StatusError as failure:
            logger.error("inode %x cannot be opened again: %s", file.inode, failure)


async def _reread(fs: FileSystem, inode: int) -> None:
    """Its length, as it was settled."""
    opened = fs.core.inodes.get(inode)
    if opened is not None:
        try:
            async with opened.lock:
                await opened.fetch()
        except StatusError as failure:
            logger.error("inode %x: %s", inode, failure)
