"""Files are opened, made, flushed, synced and released.

What is written is sent and settled by FLUSH, at each close(2), which also ends the writer's session in the same request: RELEASE then
has nothing left to do, and a small file costs two requests to the metadata server from its creation to its close. Whoever writes
again through a duplicate gets another session.

The kernel's pages live on over opens as long as nobody else has changed the file: OPEN reads the attributes fresh, and where its version
is not the one that the kernel was told, the pages are dropped before it is answered. What this mount changed itself is known to be
followed by the kernel (`followed`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

from ...client.core.locks import FLOCK, POSIX
from ...client.core.options import Mode
from ...client.core.paths import at
from ...proto.errors import Status, StatusError, error
from ..entries import entry
from ..filesystem import ACCESS_BITS
from ..inheritance import know_little, note_loss
from ..protocol import FSYNC_DATASYNC, OPEN_KILL_SUIDGID, RELEASE_FLOCK_UNLOCK, Opcode, OpenReply
from ..requests import name
from ..structs import CREATE_IN, FLUSH_IN, FSYNC_IN, OPEN_IN, OPEN_OUT, RELEASE_IN
from .attributes import lose_set_ids

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ...client.core.file import Handle
    from ...client.core.inode import Inode
    from ..filesystem import FileSystem
    from ..session import Handler, Request

# What the core and the server want to know of open(2)'s flags; the kernel has seen to the rest.
OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND | os.O_NOATIME
CREATE_FLAGS = OPEN_FLAGS | os.O_CREAT | os.O_EXCL
FMODE_EXEC = 0x20  # open_flags of execve(2): the kernel checked the right to execute, not to read

logger = logging.getLogger(__name__)


# --- opening ----------------------------------------------------------------------------------------------------------------------


async def open_(fs: FileSystem, request: Request) -> bytes:
    """Open a file that has a node."""
    flags, more = OPEN_IN.unpack_from(request.body)
    view = fs.core if flags & FMODE_EXEC else fs.callers.view(request)
    handle: Handle = await view.open(fs.place(request.node), Mode(flags & OPEN_FLAGS, "", False))
    try:
        if handle.opened is not None and not handle.opened.nlink and handle.file.handles == 1:
            # Nobody here has it open: the kernel came by a name that has been taken away elsewhere. So it looks again.
            raise error(Status.STALE_HANDLE, f"inode {handle.file.id:x} has no name any more")
        if more & OPEN_KILL_SUIDGID and handle.file.id in fs.set_ids:
            await lose_set_ids(fs, request, handle.file.id)
        return await _opened(fs, handle)
    except BaseException:
        fs.later(handle.close())
        raise


async def create(fs: FileSystem, request: Request) -> bytes:
    """Make a file and open it; one that somebody else has just made is opened. The kernel has looked: there was no such name."""
    flags, mode, umask, _ = CREATE_IN.unpack_from(request.body)
    place = fs.place(request.node, name(request.body, CREATE_IN.size))
    wanted = Mode(flags & CREATE_FLAGS | os.O_CREAT | os.O_NOFOLLOW, "", False)
    view = fs.callers.view(request, umask)
    handle = await view.open(place, wanted, permissions=mode, known_new=True)
    return await _made(fs, await _not_of_the_dead(fs, request, handle))


async def tmpfile(fs: FileSystem, request: Request) -> bytes:
    """Make a file without a name, in the directory that the node is, and open it."""
    flags, mode, umask, _ = CREATE_IN.unpack_from(request.body)
    view = fs.callers.view(request, umask)
    wanted = Mode(flags & (OPEN_FLAGS | os.O_EXCL), "", False)
    handle = await view.open(fs.place(request.node), wanted, permissions=mode, unnamed=True)
    return await _made(fs, await _not_of_the_dead(fs, request, handle))


async def _not_of_the_dead(fs: FileSystem, request: Request, handle: Handle) -> Handle:
    """A creation that was sent again may be one that another daemon has made before it died: the session of that one is over."""
    if fs.journal is None or not fs.journal.was_replayed(request.unique):
        return handle
    fresh = await fs.core.open(at(handle.file.id), Mode(handle.flags & os.O_ACCMODE, "", False))
    fs.later(handle.close())
    return fresh


async def _made(fs: FileSystem, handle: Handle) -> bytes:
    """The reply to CREATE and TMPFILE."""
    assert handle.opened is not None
    try:
        if handle.file.id in fs.nodes:  # it was there
            await fs.revalidate(handle.file.id, handle.opened.change)
        return entry(fs, handle.opened) + await _opened(fs, handle)
    except BaseException:
        fs.later(handle.close())
        raise


async def _opened(fs: FileSystem, handle: Handle) -> bytes:
    """An OPEN_OUT. Pages that the kernel has stay if they are of the version that was opened."""
    file = handle.file
    followed(fs, file)
    flags = OpenReply(0)
    if await fs.revalidate(file.id, file.change):
        flags |= OpenReply.KEEP_CACHE
    if handle.append and handle.can_write:
        # Where the end is, only the server knows: pages would keep what was appended where the kernel took the end to be.
        flags |= OpenReply.DIRECT_IO
    fs.nodes.opened(file.id)
    fh = fs.new_handle(handle, handle.flags)
    if fs.journal is not None:
        fs.journal.opened(fh, file.id, handle.flags)
    return OPEN_OUT.pack(fh, flags, 0)


def followed(fs: FileSystem, file: Inode) -> None:
    """What was changed through this mount is nothing new to the kernel."""
    fs.nodes.followed(file.id, file.since, file.change)
    if fs.journal is not None and not file.unsettled:
        fs.journal.flushed(file.id)


# --- handles ----------------------------------------------------------------------------------------------------------------------


async def handle_of(fs: FileSystem, node: int, fh: int) -> Handle:
    """The handle of a number that this process did not give out: one before it did, and died. The file is opened again by its inode,
    with the access that the number says. Raises STALE_HANDLE when it is gone."""
    while (handle := fs.handles.get(fh)) is None:
        waiting = fs.reopening.get(fh)
        if waiting is None:
            waiting = fs.reopening[fh] = asyncio.get_running_loop().create_future()
            try:
                fs.handles[fh] = await _reopen(fs, node, fh)
            finally:
                del fs.reopening[fh]
                waiting.set_result(None)
        else:
            await asyncio.shield(waiting)
    return handle  # type: ignore[no-any-return]


async def _reopen(fs: FileSystem, node: int, fh: int) -> Handle:
    access = fh & (1 << ACCESS_BITS) - 1 & os.O_ACCMODE
    try:
        handle = await fs.core.open(fs.place(node), Mode(access, "", False))
    except FileNotFoundError:
        raise error(Status.STALE_HANDLE, f"inode {fs.inode(node):x} is gone; open the path again") from None
    know_little(fs, handle.file)
    if fs.journal is not None and fs.journal.has_lost(fh):
        note_loss(handle.file)
    return handle


# --- closing ----------------------------------------------------------------------------------------------------------------------


def flush(fs: FileSystem, request: Request) -> bytes | Coroutine[Any, Any, bytes]:
    """close(2) of one descriptor: what was written has to be there for others, or the caller hears why not. The caller's byte-range
    locks on the file go, through whichever descriptor they came."""
    fh, owner = FLUSH_IN.unpack_from(request.body)
    if fs.lock_owners:
        fs.lock_owners.get(fh, set()).discard(owner)  # what it takes from now on is not this descriptor's to give back
    handle: Handle | None = fs.handles.get(fh)
    if handle is not None and not _has_news(handle) and not _holds(fs, handle, fh, POSIX, owner):
        return b""
    return _flush(fs, request, fh, owner)


def _has_news(handle: Handle) -> bool:
    file = handle.file
    untold = file.error is not None or handle.failures_told != file.failures
    return handle.can_write and (file.unsettled or untold or handle.epoch != handle.core.epoch)


async def _flush(fs: FileSystem, request: Request, fh: int, owner: int) -> bytes:
    handle = fs.handles.get(fh) or await handle_of(fs, request.node, fh)
    try:
        await handle.flush(ending=True)
    finally:
        followed(fs, handle.file)
        _told(fs, fh, handle)
        if _holds(fs, handle, fh, POSIX, owner):
            await handle.unlock_range(0, 0, owner=owner)
    return b""


def _holds(fs: FileSystem, handle: Handle, fh: int, kind: int, owner: int) -> bool:
    """Whether an owner may hold locks. Of those that a daemon before this one took, only the server knows."""
    file = handle.file
    return (kind, owner) in file.locks or (kind == POSIX and owner in file.granted) or fh in fs.inherited


async def release(fs: FileSystem, request: Request) -> bytes:
    """Nobody has this open file any more. The kernel waits for no answer, and its errors were told by FLUSH."""
    fh, _, flags, owner = RELEASE_IN.unpack_from(request.body)
    handle: Handle | None = fs.handles.pop(fh, None)
    try:
        if handle is not None:
            await _release(fs, handle, fh, flags, owner)
    finally:
        # Not before: a daemon after this one, to which the kernel sends this again, must know what is left to give back.
        if fs.journal is not None:
            fs.journal.closed(fh)
    return b""


async def _release(fs: FileSystem, handle: Handle, fh: int, flags: int, owner: int) -> None:
    file = handle.file
    for left in fs.lock_owners.pop(fh, ()):  # open file descriptions: a process that closed it is not among these
        if (POSIX, left) in file.locks or left in file.granted:
            await _logged(handle.unlock_range(0, 0, owner=left), file)
    if flags & RELEASE_FLOCK_UNLOCK and _holds(fs, handle, fh, FLOCK, owner):
        await _logged(handle.flock("unlock", owner=owner), file)
    await _logged(handle.close(), file)
    followed(fs, file)
    fs.inherited.discard(fh)


async def _logged(work: Coroutine[Any, Any, None], file: Inode) -> None:
    """Nobody hears of a failure any more: the log does, and what is left to do is done."""
    try:
        await work
    except StatusError as failure:
        logger.warning("closing inode %x: %s", file.id, failure)


async def fsync(fs: FileSystem, request: Request) -> bytes:
    """What was written survives a loss of power, and so does the name. fdatasync(2) of a file that has not grown asks the storage only."""
    fh, flags = FSYNC_IN.unpack_from(request.body)
    handle = fs.handles.get(fh) or await handle_of(fs, request.node, fh)
    try:
        await handle.fsync(data_only=bool(flags & FSYNC_DATASYNC))
    finally:
        _told(fs, fh, handle)
    followed(fs, handle.file)
    return b""


def _told(fs: FileSystem, fh: int, handle: Handle) -> None:
    """If it heard of all losses, so did whoever has it: a daemon after this one need not say it again."""
    if fs.journal is not None and handle.failures_told == handle.file.failures:
        fs.journal.told(fh)


OPERATIONS: dict[int, Handler] = {
    Opcode.OPEN: open_,
    Opcode.CREATE: create,
    Opcode.TMPFILE: tmpfile,
    Opcode.FLUSH: flush,
    Opcode.RELEASE: release,
    Opcode.FSYNC: fsync,
}
