"""One attempt to take an append token, or to give it back with the length that was reached."""

from __future__ import annotations

from ....proto.errors import Status, error
from ....proto.gen import meta_pb2
from ... import keys
from .. import append as tokens
from .. import inode as inodes
from .. import session
from ..append import Held, Token
from ..attempt import Attempt, layout_of
from ..inline import Grow
from ..trim import FinishTrim
from .close import require_open, settle


async def append(attempt: Attempt, request: meta_pb2.AppendRequest) -> meta_pb2.AppendReply:
    """Take or give back the token. Raises Held, SESSION_ENDED, BAD_HANDLE, STALE_HANDLE, and the detours of a settlement."""
    if request.action == meta_pb2.TOKEN_ACTION_TAKE:
        return await _take(attempt, request)
    if request.action == meta_pb2.TOKEN_ACTION_GIVE:
        return await _give(attempt, request)
    raise error(Status.INVALID, f"token action {request.action}: not known here")


async def _take(attempt: Attempt, request: meta_pb2.AppendRequest) -> meta_pb2.AppendReply:
    key = keys.append_key(request.inode)
    found, own = await attempt.txn.get_many([key, keys.session_key(request.inode, request.session)])
    session.own(own, request.inode, attempt.client)
    if found is not None and (token := tokens.unpack(found)).client != attempt.client:
        raise Held(token)
    # In the read set: who cuts the file has read that nobody holds the token, and does not conflict with us by that.
    inode = inodes.existing(request.inode, await attempt.txn.get(keys.inode_key(request.inode)))
    layout_of(inode)
    if inode.flags & inodes.TRIMMING:
        raise FinishTrim(inode.id)
    if inode.flags & inodes.INLINE:
        raise Grow(inode.id)  # what is appended goes to chunks
    attempt.txn.put(key, Token(attempt.client, request.session, wanted=False).pack())
    return meta_pb2.AppendReply(attributes=inodes.attributes(inode))


async def _give(attempt: Attempt, request: meta_pb2.AppendRequest) -> meta_pb2.AppendReply:
    await tokens.release(attempt, request.inode)
    if not request.written:
        return meta_pb2.AppendReply()
    inode, writer = await require_open(attempt, request)
    settle(attempt, inode, request, writer, 0)
    return meta_pb2.AppendReply(attributes=inodes.attributes(inode))
