"""Stat, statfs."""

from __future__ import annotations

from collections.abc import Sequence

from ....proto.errors import Status, StatusError, error
from ....proto.gen import common_pb2, meta_pb2
from ... import keys
from .. import inline, path
from .. import inode as inodes
from ..access import EXECUTE, READ, WRITE, permits, require
from ..attempt import Attempt
from ..inode import Inode

REPLY_BYTES_MAX = 8 << 20  # of contents in one reply
BATCH_MAX = 1024  # places of one request
FIRST_OF_PEERS = 50  # statuses from here on are about servers, not about one entry of a batch


def check_batch(count: int, what: str) -> None:
    """Raise TOO_LARGE for a batch over the limit."""
    if count > BATCH_MAX:
        raise error(Status.TOO_LARGE, f"{count} {what} in one request: at most {BATCH_MAX}; send them in parts")


def status_of_entry(failure: StatusError) -> int:
    """The status of one entry of a batch; what concerns the whole request is raised on."""
    if failure.status >= FIRST_OF_PEERS:
        raise failure
    return int(failure.status)


async def stat(attempt: Attempt, request: meta_pb2.StatRequest) -> meta_pb2.StatReply:
    """The attributes of each place, or why not."""
    places = request.places
    check_batch(len(places), "places")
    reply = meta_pb2.StatReply()
    if len(places) == 1:
        try:
            inode = await path.lookup(attempt, places[0], follow=request.follow)
        except StatusError as failure:
            reply.statuses.append(status_of_entry(failure))
            reply.attributes.add()
        else:
            reply.statuses.append(0)
            inodes.fill(reply.attributes.add(), await attempt.visible(inode))
            if request.content:
                await _add_contents(attempt, [inode], reply.attributes)
        return reply
    statuses: list[int] = []
    found: list[Inode] = []
    for place in places:
        try:
            found.append(await path.lookup(attempt, place, follow=request.follow))
            statuses.append(0)
        except StatusError as failure:
            statuses.append(status_of_entry(failure))
    rows = iter(await attempt.visible_many(found))
    reply.statuses.extend(statuses)
    for status in statuses:
        row = reply.attributes.add()
        if not status:
            inodes.fill(row, next(rows))
    if request.content:
        await _add_contents(attempt, found, [each for each in reply.attributes if each.inode])
    return reply


async def _add_contents(attempt: Attempt, found: list[Inode], rows: Sequence[common_pb2.Attributes]) -> None:
    """The bytes of those that are inlined and that the caller may read, up to REPLY_BYTES_MAX in all."""
    small = [
        (inode, row)
        for inode, row in zip(found, rows, strict=True)
        if inode.flags & inodes.INLINE and permits(inode, attempt.caller, READ)
    ]
    values = await attempt.txn.get_many([keys.inline_key(inode.id) for inode, _ in small], snapshot=True)
    room = REPLY_BYTES_MAX
    for (_, row), value in zip(small, values, strict=True):
        if value is not None and len(value) <= room:
            row.content = inline.unpack(value)
            room -= len(value)
        elif value is not None:
            row.inlined = False  # to be opened for its bytes


async def access(attempt: Attempt, request: meta_pb2.AccessRequest) -> meta_pb2.AccessReply:
    """Whether the caller may do all that the mask says, as access(2). Raises PERMISSION_DENIED, INVALID, and what is wrong with
    the place."""
    if request.mask & ~(READ | WRITE | EXECUTE):
        raise error(Status.INVALID, f"access mask {request.mask}: R_OK (4), W_OK (2) and X_OK (1), or 0")
    inode = await path.lookup(attempt, request.place, follow=request.follow)
    if request.mask:
        require(inode, attempt.caller, request.mask, is_directory=inode.is_directory)
    return meta_pb2.AccessReply()


async def stat_fs(attempt: Attempt, request: meta_pb2.StatFsRequest) -> meta_pb2.StatFsReply:
    """Space on all targets, as storage reported it last, and the number of inodes."""
    space = attempt.namespace.chunks.space()
    used = keys.counter(await attempt.txn.get(keys.INODES_USED, snapshot=True))
    return meta_pb2.StatFsReply(
        bytes_total=space.total, bytes_free=space.free, inodes_used=max(0, used), name_bytes_max=path.NAME_BYTES_MAX
    )
