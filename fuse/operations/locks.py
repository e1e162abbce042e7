"""Locks: byte ranges as of fcntl(2), and flock(2), held at the metadata server and so between all mounts and clients.

The kernel names the owner of each lock: a process (or an open file description) for byte ranges, an open file for flock. What
a process holds goes with its close(2) of any descriptor (FLUSH names it), what an open file holds with the last one (RELEASE); an
open file description's byte ranges go then too, but no request names it: hence `lock_owners`. See files.py. A lock is a point of
consistency: who gets one reads what was written before it was free, also through the kernel's pages; who gives one back has
published first.
"""

from __future__ import annotations

import asyncio
import fcntl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..protocol import LK_FLOCK, Opcode
from ..requests import Lock
from ..structs import LK_OUT
from .files import followed, handle_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ...client.core.file import Handle
    from ..filesystem import FileSystem
    from ..session import Handler, Request

_FLOCKS = {fcntl.F_RDLCK: "shared", fcntl.F_WRLCK: "exclusive", fcntl.F_UNLCK: "unlock"}
OFFSET_MAX = (1 << 63) - 1  # as the last byte of a range: to the end of the file, however far it grows


def length_of(lock: Lock) -> int:
    """Bytes of a range; 0: to the end."""
    return 0 if lock.end >= OFFSET_MAX else lock.end - lock.start + 1


async def getlk(fs: FileSystem, request: Request) -> bytes:
    """The lock that is in the way of this one, if any."""
    asked = Lock.parse(request.body)
    handle: Handle = fs.handles.get(asked.fh) or await handle_of(fs, request.node, asked.fh)
    exclusive = asked.type == fcntl.F_WRLCK
    found = await handle.test_lock(asked.start, length_of(asked), exclusive=exclusive, owner=asked.owner)
    if found is None:
        return LK_OUT.pack(asked.start, asked.end, fcntl.F_UNLCK, 0)
    end = found.start + found.length - 1 if found.length else OFFSET_MAX
    return LK_OUT.pack(
        found.start, min(end, OFFSET_MAX), fcntl.F_WRLCK if found.exclusive else fcntl.F_RDLCK, found.pid
    )


async def setlk(fs: FileSystem, request: Request) -> bytes:
    """Take, change or give back a lock, without waiting. Raises EAGAIN, ENOLCK."""
    return await _set(fs, request, blocking=False)


async def setlkw(fs: FileSystem, request: Request) -> bytes:
    """As SETLK, waiting until it is free. Raises EDEADLK; an interrupt withdraws it."""
    return await _set(fs, request, blocking=True)


async def _set(fs: FileSystem, request: Request, *, blocking: bool) -> bytes:
    asked = Lock.parse(request.body)
    handle: Handle = fs.handles.get(asked.fh) or await handle_of(fs, request.node, asked.fh)
    if asked.lk_flags & LK_FLOCK:
        await handle.flock(_FLOCKS[asked.type], blocking=blocking, owner=asked.owner)
    elif asked.type == fcntl.F_UNLCK:
        await handle.unlock_range(asked.start, length_of(asked), owner=asked.owner, keep=True)
    else:
        exclusive = asked.type == fcntl.F_WRLCK
        span = asked.start, length_of(asked)
        fs.lock_owners.setdefault(asked.fh, set()).add(asked.owner)
        await handle.lock_range(*span, exclusive=exclusive, blocking=blocking, owner=asked.owner, pid=asked.pid)
    followed(fs, handle.file)
    if asked.type != fcntl.F_UNLCK:
        await _whatever_comes(fs.revalidate(handle.file.id, handle.file.change))
    return b""


async def _whatever_comes(work: Coroutine[Any, Any, object]) -> None:
    """Do this to its end. The lock was granted: a signal comes too late, and with EINTR nobody would know that there is a lock to give
    back, while others wait for it."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()


OPERATIONS: dict[int, Handler] = {
    Opcode.GETLK: getlk,
    Opcode.SETLK: setlk,
    Opcode.SETLKW: setlkw,
}
