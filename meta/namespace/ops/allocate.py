"""Allocate: the namespace's part of fallocate(2). Holes are made by the client afterwards, chunk by chunk, with numbers of its own: in
order with its writes, and never by a message that comes late.

No space is set aside: what is allocated is a hole, which reads as zeros, and room for all of it was there when it was asked for.
"""

from __future__ import annotations

from ....proto.errors import Status, error
from ....proto.gen import meta_pb2
from .. import append, quota, session
from .. import inode as inodes
from ..attempt import Attempt
from ..happenings import WRITTEN
from ..inline import Grow
from ..trim import FinishTrim, check_length

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
MODES = frozenset((0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE))


async def allocate(attempt: Attempt, request: meta_pb2.AllocateRequest) -> meta_pb2.AllocateReply:
    """Extend the file over the range unless it is to keep its size, and let it have holes where the mode makes some. Raises UNSUPPORTED
    (modes that move data), INVALID, FILE_TOO_BIG, NO_SPACE, QUOTA_EXCEEDED, SESSION_ENDED, and the detours."""
    mode = request.mode
    if mode not in MODES:
        raise error(
            Status.UNSUPPORTED,
            f"fallocate mode {mode:#x}: 0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE and ZERO_RANGE are supported",
        )
    if not request.length:
        raise error(Status.INVALID, "fallocate of 0 bytes")
    inode, _ = await attempt.regular(request.inode)
    opened = await session.require(attempt.txn, inode.id, request.session, attempt.client)
    if inode.flags & inodes.INLINE:
        raise Grow(inode.id)
    end = request.offset + request.length
    check_length(inode, end)
    missing = end - max(request.offset, inode.length)
    if not mode & PUNCH_HOLE and missing > 0 and (free := attempt.namespace.chunks.space().free) < missing:
        raise error(Status.NO_SPACE, f"{missing} more bytes, and {free} are free: remove files or add storage")
    grows = end > inode.length and not mode & KEEP_SIZE
    if not grows and not mode & (PUNCH_HOLE | ZERO_RANGE):
        return meta_pb2.AllocateReply(attributes=inodes.attributes(inode))
    if inode.flags & inodes.TRIMMING:
        raise FinishTrim(inode.id)
    if grows:
        await append.require_quiet(attempt, inode.id)
        if inode.nlink:
            await quota.require(attempt, quota.owner_of(inode), 0, end - inode.length)
        quota.resize(attempt.txn, inode, end)
    inode.flags |= inodes.SPARSE
    attempt.tell(WRITTEN, inode.id)
    session.lose_privileges(attempt.txn, inode, opened)
    inode.mtime_ns = attempt.now_ns
    inode.touched(attempt.now_ns)
    attempt.put(inode)
    return meta_pb2.AllocateReply(attributes=inodes.attributes(inode))
