"""Locks that are kept: byte ranges that nobody here holds any more, and that the server still has for this client.

Programs that lock around every small step, as databases do, take and give back the same ranges again and again (sqlite: nine requests a
transaction). Nobody else can have had what the server has for us all the time, so who takes it again asks nobody, and has nothing to
look at anew. An unlock that only keeps the lock need not publish what was written: that happens when the lock is given back.

The server knows nothing of keeping. Its table has at least what is held here, in any case, so no failure gives a lock to two. It is
told what is not needed when
- somebody else wants it: the server asks (`WatchLeases`), and is answered when the rest is given back. For a while nothing of that inode
  is kept then: two clients that take turns would ask each other each time;
- a lock is taken here that what is kept would be in the way of, or another owner waits;
- its owner closes the file, which is a real unlock;
- the metadata leases end, since without them nobody can ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ...proto.errors import Status, StatusError
from ...proto.gen.meta_pb2 import LOCK_KIND_POSIX, LOCK_TYPE_EXCLUSIVE, LOCK_TYPE_UNLOCK, LockRequest
from ...proto.ranges import OFFSET_END, Piece, within
from ...proto.rpc import META
from .inode import Inode

if TYPE_CHECKING:
    from .client import Core

EXACT_SECONDS = 12.0  # after the server has asked, in which nothing is kept; longer than the server counts on; scaled

_POSIX, _EXCLUSIVE, _UNLOCK = int(LOCK_KIND_POSIX), int(LOCK_TYPE_EXCLUSIVE), int(LOCK_TYPE_UNLOCK)


def may_keep(core: Core, file: Inode) -> bool:
    """Whether a lock of this file that is given back may be kept."""
    leases = core.cluster.leases
    if file.keeps_no_locks or file.taking:
        return False
    return leases is not None and leases.remaining() > 0 and core.env.now() >= file.exact_until


def covers(granted: Sequence[Piece[int]], start: int, end: int, type_: int) -> bool:
    """Whether the server has the whole range, as strong as it is wanted."""
    at = start
    for first, last, has in within(granted, start, end):
        if first > at or (type_ == _EXCLUSIVE and has != _EXCLUSIVE):
            return False
        at = last
    return at >= end


def excess(granted: Sequence[Piece[int]], held: Sequence[Piece[int]]) -> list[Piece[int]]:
    """What the server has beyond what is held: the ranges, with what is to be left of them."""
    found: list[Piece[int]] = []
    for start, end, has in granted:
        at = start
        for first, last, needed in within(held, start, end):
            if first > at:
                found.append((at, first, _UNLOCK))
            if needed != has:
                found.append((first, last, needed))
            at = last
        if at < end:
            found.append((at, end, _UNLOCK))
    return found


async def give_back(core: Core, file: Inode, start: int = 0, end: int = OFFSET_END) -> None:
    """Have the server take back what nobody needs in this range, after what was written under it is there for whoever comes next. Raises
    what that raises."""
    if not any(_rest(file, start, end)):
        return
    async with file.giving:
        await publish(core, file)
        rest = list(_rest(file, start, end))
        for owner, first, last, left in rest:  # all of it before the first is sent: nobody takes it again meanwhile
            file.note_granted(owner, first, last, None if left == _UNLOCK else left)
        for owner, first, last, left in rest:
            try:
                await _tell(core, file, owner, first, last, left)
            except StatusError:
                file.note_lock(_POSIX, owner, first, last, _EXCLUSIVE)  # it goes when the file is closed
                raise


def _rest(file: Inode, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Owner and range of what nobody needs, with what is to be left of it."""
    for owner, granted in file.granted.items():
        held = file.locks.get((_POSIX, owner), ())
        for piece in excess(within(granted, start, end), held):
            yield owner, *piece


async def publish(core: Core, file: Inode) -> None:
    """Have what this client wrote to the file where others find it."""
    if file.unsettled or (file.write_back is not None and file.write_back.pending):
        async with file.lock:
            await core.flush_inode(file)


async def _tell(core: Core, file: Inode, owner: int, start: int, end: int, left: int) -> None:
    request = LockRequest(
        inode=file.id,
        kind=LOCK_KIND_POSIX,
        type=left,  # type: ignore[arg-type]  # an open enum
        owner=owner,
        start=start,
        length=0 if end == OFFSET_END else end - start,
        capability=file.capability_write or file.capability_read,
        number=next(core.numbers),
    )
    await core.cluster.change(META.Lock, request, inode=file.id)


async def recalled(core: Core, inode: int) -> None:
    """Others want locks of this inode: give back what is not needed, and say so."""
    file = core.inodes.get(inode)
    try:
        if file is not None:
            file.exact_until = core.env.now() + core.options.scaled(EXACT_SECONDS)
            await give_back(core, file)
        await core.cluster.change(META.Lock, LockRequest(inode=inode, kind=LOCK_KIND_POSIX, recalled=True), inode=inode)
    except StatusError as failure:  # then whoever asks will be told that it is locked, and asks again
        if file is not None and failure.status is Status.SESSION_ENDED:
            file.granted.clear()


async def give_all_back(core: Core) -> None:
    """Nobody can ask for them any more."""
    for file in list(core.inodes.values()):
        if file.granted:
            await recalled(core, file.id)
