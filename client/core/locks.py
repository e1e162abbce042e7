"""Locks on files, from the client's side: flock(2), and byte ranges as of fcntl(2).

The server grants them; here is what makes them points of consistency. Who gets a lock sees what its holder before wrote: attributes come
with the grant, and what was read ahead is dropped. Who gives one back (or weakens or closes it) sends what is dirty and settles the length
first. What this client holds is noted with the inode, so that a wait that was interrupted can be undone: whether it was granted in that
moment, nobody here knows.

Locks belong to this identity of the client. They are gone with its lease, which every handle that took one reports once, and a forked
child has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...proto.errors import Status, StatusError, error
from ...proto.gen.meta_pb2 import (
    LOCK_KIND_FLOCK,
    LOCK_KIND_POSIX,
    LOCK_TYPE_EXCLUSIVE,
    LOCK_TYPE_SHARED,
    LOCK_TYPE_UNLOCK,
    LockReply,
    LockRequest,
    TestLockReply,
    TestLockRequest,
)
from ...proto.ranges import OFFSET_END, Piece, overlaid, within
from ...proto.rpc import META
from .inode import Inode
from .kept import covers, give_back, may_keep, publish
from .lease import Lease

if TYPE_CHECKING:
    from .client import Core
    from .reading import Reader

FLOCK = int(LOCK_KIND_FLOCK)
POSIX = int(LOCK_KIND_POSIX)
SHARED = int(LOCK_TYPE_SHARED)
EXCLUSIVE = int(LOCK_TYPE_EXCLUSIVE)
UNLOCK = int(LOCK_TYPE_UNLOCK)
THIS_PROCESS = 0  # the owner of byte-range locks, unless the caller names another
UNDO_SECONDS_MAX = 5.0  # for undoing a wait that was interrupted

# After these the lock was certainly not granted.
_REFUSALS = frozenset(
    {
        Status.WOULD_BLOCK,
        Status.DEADLOCK,
        Status.NO_LOCKS,
        Status.INVALID,
        Status.PERMISSION_DENIED,
        Status.STALE_HANDLE,
        Status.SESSION_ENDED,
        Status.UNSUPPORTED,
    }
)


@dataclass(slots=True)
class LockInfo:
    """A lock that is in the way of another one."""

    exclusive: bool
    start: int  # bytes
    length: int  # bytes; 0: to the end of the file, however far it grows
    pid: int  # as its taker said, perhaps on another machine


@dataclass(slots=True, frozen=True)
class Span:
    """What a request is about: whose locks of which kind, in which range."""

    kind: int
    owner: int
    start: int = 0
    length: int = 0  # 0: to the end

    @property
    def end(self) -> int:
        return self.start + self.length if self.length else OFFSET_END


async def take(handle: Reader, span: Span, type_: int, *, pid: int = 0, blocking: bool = True) -> None:
    """Take the lock, or change what is held in this range to it. Raises WOULD_BLOCK (if not `blocking`), DEADLOCK, NO_LOCKS."""
    core, file = handle.core, handle.file
    granted = file.granted.get(span.owner, ()) if span.kind == POSIX else ()
    if granted and covers(granted, span.start, span.end, type_) and may_keep(core, file):
        core.lease.check()
        file.note_lock(span.kind, span.owner, span.start, span.end, type_)
        handle.locked = True
        return
    file.taking += 1  # from here on nothing is kept that could be in the way
    try:
        if span.kind == POSIX:
            await give_back(core, file, span.start, span.end)
        await _take(handle, span, type_, pid=pid, blocking=blocking)
    finally:
        file.taking -= 1


async def _take(handle: Reader, span: Span, type_: int, *, pid: int, blocking: bool) -> None:
    core, file = handle.core, handle.file
    held = within(file.locks.get((span.kind, span.owner), ()), span.start, span.end)
    if type_ == SHARED and any(piece[2] == EXCLUSIVE for piece in held):
        await publish(core, file)
    epoch, sent = core.epoch, core.env.now()
    request = _request(file, span, type_, pid)
    request.number, request.wait = next(core.numbers), blocking
    try:
        while True:
            sent = core.env.now()
            reply: LockReply = await core.cluster.change(META.Lock, request, inode=file.id)
            if not reply.waiting:
                break
    except StatusError as failure:
        if span.kind == FLOCK and failure.status is Status.WOULD_BLOCK:
            file.note_lock(
                span.kind, span.owner, span.start, span.end, None
            )  # a flock that cannot be converted at once is lost
        if failure.status not in _REFUSALS:
            await _undo(core, file, span, held, request)
        raise
    except BaseException:
        await _undo(core, file, span, held, request)
        raise
    if epoch != core.epoch:
        raise Lease.ended_error()
    core.lease.begin(sent)
    core.keeper.start()
    handle.locked = True
    async with file.lock:
        file.note_lock(span.kind, span.owner, span.start, span.end, type_)
        _note_granted(file, span, type_)
        file.take(reply.attributes)
        file.generation += 1


async def give(handle: Reader, span: Span, *, keep: bool = False) -> None:
    """Give back what the owner holds in this range, after what was written here is there for whoever comes next. Raises what went
    wrong with that; the lock is given back even then. `keep`: it may be kept for the next one here (`kept.py`)."""
    core, file = handle.core, handle.file
    if keep and span.kind == POSIX and may_keep(core, file):
        file.note_lock(span.kind, span.owner, span.start, span.end, None)
        return
    failure: StatusError | None = None
    try:
        await publish(core, file)
    except StatusError as broken:
        failure = broken
    request = _request(file, span, UNLOCK, 0)
    request.number = next(core.numbers)
    try:
        await core.cluster.change(META.Lock, request, inode=file.id)
    except BaseException as broken:
        if not isinstance(broken, StatusError) or broken.status not in _REFUSALS:
            await _undo(core, file, span, [], request)  # not later, when the owner has locked it again
        raise
    file.note_lock(span.kind, span.owner, span.start, span.end, None)
    _note_granted(file, span, None)
    if failure is not None:
        raise failure


def _note_granted(file: Inode, span: Span, type_: int | None) -> None:
    if span.kind == POSIX:
        file.note_granted(span.owner, span.start, span.end, type_)


async def find(handle: Reader, span: Span, type_: int) -> LockInfo | None:
    """The lock that is in the way of this one; None: it would be granted."""
    file = handle.file
    await give_back(handle.core, file)  # beyond the range too: the answer says how far a lock goes
    request = TestLockRequest(
        inode=file.id,
        kind=span.kind,  # type: ignore[arg-type]  # an open enum
        type=type_,  # type: ignore[arg-type]
        owner=span.owner,
        start=span.start,
        length=span.length,
    )
    reply: TestLockReply = await handle.core.cluster.meta(META.TestLock, request, inode=file.id)
    if not reply.type:
        return None
    return LockInfo(reply.type == EXCLUSIVE, reply.start, reply.length, reply.pid)


async def leave(handle: Reader, *, last: bool) -> None:
    """Before a handle closes: its flock goes, and, as POSIX wants it, every byte-range lock of this process on the file, through whichever
    handle it was taken. `last`: no other handle of the file is open here, so that nobody is left to give back the rest. Raises the first
    error, after it has tried all, unless nobody answers."""
    file = handle.file
    failure: StatusError | None = None
    for kind, owner in {**file.locks, **{(POSIX, owner): None for owner in file.granted}}:
        if last or (kind, owner) in ((FLOCK, handle.number), (POSIX, THIS_PROCESS)):
            try:
                await give(handle, Span(kind, owner))
            except StatusError as broken:
                failure = failure or broken
                if broken.status is Status.DEADLINE:
                    break
    if failure is not None:
        raise failure


def _request(file: Inode, span: Span, type_: int, pid: int) -> LockRequest:
    return LockRequest(
        inode=file.id,
        kind=span.kind,  # type: ignore[arg-type]
        type=type_,  # type: ignore[arg-type]
        owner=span.owner,
        start=span.start,
        length=span.length,
        pid=pid,
        capability=file.capability_write or file.capability_read,
    )


async def _undo(core: Core, file: Inode, span: Span, held: list[Piece[int]], asked: LockRequest) -> None:
    """Nobody knows whether the lock was granted: put back what was held in the range before. A flock is lost: the server gave it back
    when it began to wait."""
    _note_granted(file, span, None)  # not certainly anything
    pieces = [(span.start, span.end, UNLOCK)]
    for start, end, type_ in held if span.kind == POSIX else ():
        pieces = overlaid(pieces, start, end, type_)
    if span.kind == FLOCK:
        file.note_lock(span.kind, span.owner, span.start, span.end, None)
    try:
        for start, end, type_ in pieces:
            part = Span(span.kind, span.owner, start, 0 if end == OFFSET_END else end - start)
            request = _request(file, part, type_, asked.pid)
            if type_ == UNLOCK:
                request.withdraw = asked.number
            await core.cluster.change(META.Lock, request, core.cluster.patience(UNDO_SECONDS_MAX), inode=file.id)
            if type_ != UNLOCK:
                _note_granted(file, part, type_)
    except StatusError:  # then it goes when the file is closed, or with the client
        file.note_lock(span.kind, span.owner, span.start, span.end, asked.type)


def checked_span(handle: Reader, start: int, length: int, owner: int) -> Span:
    """The range of a byte-range lock. Raises INVALID."""
    if start < 0 or length < 0 or start + length > OFFSET_END or start >= OFFSET_END:
        raise error(Status.INVALID, f"{handle.name}: no lock can cover {length} bytes at {start}")
    return Span(POSIX, owner, start, length)
