"""Close and sync of a file: the length that its writer reports is settled."""

from __future__ import annotations

from ....proto.errors import Status, error
from ....proto.gen import common_pb2, meta_pb2
from ... import keys
from .. import append, inline, quota, session
from .. import inode as inodes
from ..attempt import Attempt
from ..happenings import CHANGED, WRITTEN
from ..inode import Inode
from ..session import Session
from ..trim import FinishTrim, Measure, check_length

_Request = meta_pb2.CloseRequest | meta_pb2.SyncFileRequest | meta_pb2.AppendRequest


async def close(attempt: Attempt, request: meta_pb2.CloseRequest) -> meta_pb2.CloseReply:
    """End a writer's session; what it wrote counts from now on. Without a session there is nothing to end. Raises SESSION_ENDED,
    BAD_HANDLE, FILE_TOO_BIG."""
    if request.HasField("ended"):
        await session.end_unwritten(attempt.txn, attempt.client, request.ended)
        if not request.inode:
            return meta_pb2.CloseReply()
    if not request.session:
        return meta_pb2.CloseReply(attributes=await _unwritten(attempt, request))
    inode, opened = await require_open(attempt, request)
    if request.written:
        await settle_any(attempt, inode, request, opened, request.mtime_ns)
    elif request.discard and not inode.truncate_version:
        inode.truncate_version = 1  # some of what is dropped may lie in chunks (gc.py)
        attempt.put(inode)
    if request.token:
        await append.release(attempt, inode.id)
    # A list of what this client reads may be on its way, and mean that nobody has the file open: what is in the queue of the dead
    # already stays under its session.
    kept = request.reading and not inode.nlink
    if not kept:
        attempt.txn.delete(keys.session_key(inode.id, request.session))
    return meta_pb2.CloseReply(attributes=inodes.attributes(inode), kept=kept)


async def sync_file(attempt: Attempt, request: meta_pb2.SyncFileRequest) -> meta_pb2.SyncFileReply:
    """Publish what was written so far; the session goes on. Raises as `close`."""
    if not request.session:
        return meta_pb2.SyncFileReply(attributes=await _unwritten(attempt, request))
    inode, opened = await require_open(attempt, request)
    if request.written:
        await settle_any(attempt, inode, request, opened, request.mtime_ns)
    length_max = await quota.length_max(attempt, inode)
    return meta_pb2.SyncFileReply(attributes=inodes.attributes(inode), length_max=length_max)


async def require_open(attempt: Attempt, request: _Request) -> tuple[Inode, Session]:
    """The inode and the caller's own session on it. Raises SESSION_ENDED, BAD_HANDLE, STALE_HANDLE."""
    number = request.inode
    record, found = await attempt.txn.get_many(
        [keys.inode_key(number), keys.session_key(number, request.session)], snapshot=attempt.reading
    )
    opened = session.own(found, number, attempt.client)
    return inodes.existing(number, record), opened


async def _unwritten(attempt: Attempt, request: _Request) -> common_pb2.Attributes:
    # Without a session there is nothing to settle, so nothing may have been written.
    if request.written:
        raise error(Status.BAD_HANDLE, f"inode {request.inode:x} was written without a session; open it for writing")
    return await attempt.visible_attributes(await attempt.inode(request.inode))


async def settle_any(
    attempt: Attempt,
    inode: Inode,
    request: meta_pb2.CloseRequest | meta_pb2.SyncFileRequest,
    opened: Session,
    mtime_ns: int,
) -> None:
    """`settle`, or take over the bytes of an inlined file; and the times that were set afterwards. Raises NOT_INLINE too."""
    if request.HasField("inlined"):
        await inline.write(attempt, inode, request.inlined)
        _written(attempt, inode, opened, mtime_ns)
    elif not request.times.alone:
        settle(attempt, inode, request, opened, mtime_ns)
    if request.HasField("times"):
        _set_times(attempt, inode, request.times)


def settle(
    attempt: Attempt,
    inode: Inode,
    request: _Request,
    opened: Session,
    mtime_ns: int,
) -> None:
    """The length becomes the highest end that anybody reported. A hint from before a truncate must not regrow the file: the chunks
    say where it ends. Raises the detours for both, FILE_TOO_BIG, and PROTOCOL for a truncate version from the future."""
    if inode.flags & inodes.INLINE:
        if request.length > inode.length:
            raise error(Status.PROTOCOL, f"inode {inode.id:x} is inlined, and was written to chunks without a Grow")
        _written(attempt, inode, opened, mtime_ns)
        return
    end, sparse = request.length, request.sparse
    if request.truncate_version > inode.truncate_version:
        raise error(
            Status.PROTOCOL,
            f"inode {inode.id:x} was written under truncate version {request.truncate_version}, newer than {inode.truncate_version}",
        )
    if request.truncate_version < inode.truncate_version:
        version, end = attempt.task.measured.get(inode.id, (-1, 0))
        if version != inode.truncate_version:
            raise Measure(inode.id)
        sparse = sparse or end > inode.length
    check_length(inode, end)
    if end > inode.length:
        if inode.flags & inodes.TRIMMING:
            raise FinishTrim(inode.id)
        quota.resize(attempt.txn, inode, end)
    if not inode.length and not inode.truncate_version:
        # What was written failed, and may have left chunks: if the file becomes small, this says so (gc.py).
        inode.truncate_version = 1
    if sparse:
        inode.flags |= inodes.SPARSE
    _written(attempt, inode, opened, mtime_ns)


def _written(attempt: Attempt, inode: Inode, opened: Session, mtime_ns: int) -> None:
    attempt.tell(WRITTEN, inode.id)
    session.lose_privileges(attempt.txn, inode, opened)
    # It was changed when it was written: its writer has shown that time to others already. No time lies in the future, whatever the
    # writer's clock says, and ctime never goes back.
    written_ns = min(mtime_ns or attempt.now_ns, attempt.now_ns)
    inode.mtime_ns = written_ns
    inode.touched(max(inode.ctime_ns, written_ns))
    attempt.put(inode)


def _set_times(attempt: Attempt, inode: Inode, times: meta_pb2.TimesSet) -> None:
    def kept(time_ns: int) -> int:
        """What was not in the future for its writer is not for others."""
        return min(time_ns, attempt.now_ns) if time_ns <= times.ctime_ns else time_ns

    ctime_ns = max(inode.ctime_ns, kept(times.ctime_ns))
    if times.alone:
        attempt.tell(CHANGED, inode.id)
        inode.touched(ctime_ns)
    if times.HasField("atime_ns"):
        inode.atime_ns = kept(times.atime_ns)
    if times.HasField("mtime_ns"):
        inode.mtime_ns = kept(times.mtime_ns)
    inode.ctime_ns = ctime_ns
    attempt.put(inode)


async def grow(attempt: Attempt, request: meta_pb2.GrowRequest) -> meta_pb2.GrowReply:
    """From now on the bytes of a file lie in chunks. Raises SESSION_ENDED, BAD_HANDLE, STALE_HANDLE, and what storage raises."""
    inode = await attempt.inode(request.inode)
    await session.require(attempt.txn, inode.id, request.session, attempt.client)
    if inode.flags & inodes.INLINE:
        raise inline.Grow(inode.id, asked=True)
    return meta_pb2.GrowReply(attributes=inodes.attributes(inode))
