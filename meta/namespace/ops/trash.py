"""What can be done with the trash: look, take something back, let it go for good."""

from __future__ import annotations

from ....proto.errors import Status, StatusError, error
from ....proto.gen import meta_pb2
from ....proto.gen.meta_pb2 import TrashEntry
from ... import keys
from .. import dentry as dentries
from .. import inode as inodes
from .. import path, quota, trash
from ..access import EXECUTE, WRITE, require
from ..attempt import Attempt
from ..dentry import Dentry
from ..happenings import LINKED
from ..inode import Inode
from ..path import Found
from ..trash import Removed
from ..ways import Ways
from .stat import check_batch, status_of_entry

ENTRIES_MAX = 1024  # of a page


async def list_trash(attempt: Attempt, request: meta_pb2.ListTrashRequest) -> meta_pb2.ListTrashReply:
    """A page of the entries that the caller may see: root all, others what they own or have removed."""
    limit = min(request.entries_max or ENTRIES_MAX, ENTRIES_MAX)
    begin, end = keys.prefix_range(keys.TRASH)
    begin = min(max(begin, request.cookie + b"\0"), end)
    page = await attempt.txn.scan(begin, end, limit, snapshot=True)
    records = await attempt.txn.get_many([keys.inode_key(keys.dead_inode(key)) for key, _ in page], snapshot=True)
    reply = meta_pb2.ListTrashReply(end=len(page) < limit, cookie=page[-1][0] if page else b"")
    ways = Ways(attempt)
    for (key, value), record in zip(page, records, strict=True):
        if record is None:
            continue
        inode, removed = inodes.unpack(keys.dead_inode(key), record), trash.unpack(value)
        if not _is_his(attempt, inode, removed):
            continue
        reply.entries.append(_entry(key, inode, removed, await ways.to(removed.parent)))
    return reply


def _is_his(attempt: Attempt, inode: Inode, removed: Removed) -> bool:
    return attempt.caller.is_root or attempt.caller.uid in (inode.uid, removed.remover)


def _entry(key: bytes, inode: Inode, removed: Removed, way: bytes) -> TrashEntry:
    return TrashEntry(
        expires=keys.trash_expires(key),
        inode=inode.id,
        parent=removed.parent,
        name=removed.name,
        removed_ns=removed.removed_ns,
        remover=removed.remover,
        attributes=inodes.attributes(inodes.with_counters(inode, 0, 0) if inode.is_directory else inode),
        path=way,
    )


async def restore_trash(attempt: Attempt, request: meta_pb2.RestoreTrashRequest) -> meta_pb2.RestoreTrashReply:
    """Give an entry a name again: in the place that is named, or where it was. Raises NOT_FOUND (no such entry, or its directory is
    gone), EXISTS, NOT_PERMITTED, PERMISSION_DENIED."""
    key, inode, removed = await _entry_of(attempt, request.expires, request.inode)
    if request.HasField("target"):
        target = await path.locate(attempt, request.target)
    else:
        target = await _where_it_was(attempt, removed)
    if not target.name or target.entry is not None:
        raise error(Status.EXISTS, f"{path.shown(target.name or b'/')} exists: restore it under another name")
    if target.slash and not inode.is_directory:
        raise path.missing(target.name)
    require(target.parent, attempt.caller, WRITE | EXECUTE, is_directory=True)
    await _bring_back(attempt, key, inode, target)
    return meta_pb2.RestoreTrashReply(attributes=await attempt.visible_attributes(inode))


async def _bring_back(attempt: Attempt, key: bytes, inode: Inode, target: Found) -> None:
    trash.take_out(attempt.txn, key, inode)
    dentries.insert(attempt.txn, target.parent.id, target.name, Dentry(inode.type, inode.id), attempt.now_ns)
    attempt.tell(LINKED, inode.id, target.parent.id, target.name)
    if inode.is_directory:
        await quota.enter(attempt, inode, target.parent)  # it has counted all the time
        inode.parent = target.parent.id
        attempt.directory_changed()
    else:
        inode.project = target.parent.project
        await quota.require(attempt, quota.owner_of(inode), 1, inode.length)
        quota.appeared(attempt.txn, inode)
        inode.nlink += 1
    inode.touched(attempt.now_ns)
    attempt.put(inode)


async def _where_it_was(attempt: Attempt, removed: Removed) -> Found:
    try:
        parent = await path.directory(attempt, removed.parent)
    except StatusError as gone:
        if gone.status not in (Status.STALE_HANDLE, Status.NOT_DIRECTORY):
            raise
        raise error(Status.NOT_FOUND, "the directory that it was in is gone: name another place") from gone
    return Found(parent, removed.name, await path.child(attempt, parent, removed.name), slash=False)


async def _entry_of(attempt: Attempt, expires: int, number: int) -> tuple[bytes, Inode, Removed]:
    key = keys.trash_key(expires, number)
    value, record = await attempt.txn.get_many([key, keys.inode_key(number)])
    if value is None or record is None:
        raise error(Status.NOT_FOUND, f"there is no entry {expires:x}-{number:x} in the trash (any more)")
    inode, removed = inodes.unpack(number, record), trash.unpack(value)
    if not _is_his(attempt, inode, removed):
        raise error(Status.NOT_PERMITTED, f"entry {expires:x}-{number:x} of the trash belongs to user {inode.uid}")
    return key, inode, removed


async def purge_trash(attempt: Attempt, request: meta_pb2.PurgeTrashRequest) -> meta_pb2.PurgeTrashReply:
    """Let entries go for good. Per entry NOT_FOUND or NOT_PERMITTED."""
    check_batch(len(request.inodes), "entries")
    if len(request.inodes) != len(request.expires):
        raise error(Status.INVALID, f"{len(request.inodes)} inodes and {len(request.expires)} times: as many of each")
    reply = meta_pb2.PurgeTrashReply()
    for expires, number in zip(request.expires, request.inodes, strict=True):
        try:
            key, inode, _ = await _entry_of(attempt, expires, number)
            trash.discard(attempt.txn, key, inode)
            reply.statuses.append(0)
        except StatusError as failure:
            reply.statuses.append(status_of_entry(failure))
    return reply
