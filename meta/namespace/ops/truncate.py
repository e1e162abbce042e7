"""Truncate by path, by inode, or through a writer's session."""

from __future__ import annotations

from ....proto.gen import meta_pb2
from .. import inode as inodes
from .. import path, session, trim
from ..access import WRITE, require
from ..attempt import Attempt, layout_of


async def truncate(attempt: Attempt, request: meta_pb2.TruncateRequest) -> meta_pb2.TruncateReply:
    """Set the length of a regular file. A writer's session carries the right to write; otherwise the mode is asked. Raises
    IS_DIRECTORY, INVALID (not a regular file), PERMISSION_DENIED, FILE_TOO_BIG, SESSION_ENDED."""
    inode = await path.lookup(attempt, request.place, follow=True)
    layout_of(inode)
    if request.session:
        await session.require(attempt.txn, inode.id, request.session, attempt.client)
    else:
        require(inode, attempt.caller, WRITE)
    await trim.cut(attempt, inode, request.length)
    return meta_pb2.TruncateReply(attributes=inodes.attributes(inode))
