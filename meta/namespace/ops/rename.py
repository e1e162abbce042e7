"""Rename of files and directories: atomic, with replacement, RENAME_NOREPLACE and RENAME_EXCHANGE."""

from __future__ import annotations

from ....proto.errors import Status, StatusError, error
from ....proto.gen import meta_pb2
from ....proto.gen.meta_pb2 import Place
from .. import dentry as dentries
from .. import inode as inodes
from .. import path, quota
from ..access import EXECUTE, WRITE, require, require_removable
from ..attempt import Attempt
from ..dentry import Dentry
from ..directories import Directory
from ..happenings import RENAMED
from ..inode import Inode
from ..path import Found
from .attributes import begin_change, end_change
from .remove import drop_name, erase_directory, require_empty
from .stat import check_batch, status_of_entry

NOREPLACE = 1
EXCHANGE = 2


async def rename(attempt: Attempt, request: meta_pb2.RenameRequest) -> meta_pb2.RenameReply:
    """Move a name, or each of a batch. The checks come in the order of Linux. Raises what is wrong with either side: INVALID for a
    directory that would move below itself, NOT_EMPTY, IS_DIRECTORY, NOT_DIRECTORY, EXISTS, BUSY_RESOURCE…"""
    flags = request.flags
    if flags & ~(NOREPLACE | EXCHANGE) or flags == NOREPLACE | EXCHANGE:
        raise error(Status.INVALID, f"rename flags {flags}: 0, NOREPLACE (1) or EXCHANGE (2)")
    if request.sources:
        return await _rename_many(attempt, request)
    moved, replaced = await _rename_one(attempt, request.source, request.target, flags)
    reply = meta_pb2.RenameReply(attributes=await attempt.visible_attributes(moved))
    if replaced is not None:
        reply.other = replaced.id
        if replaced.is_directory and replaced.id != moved.id and request.flags != EXCHANGE:
            inodes.fill(reply.replaced, replaced)
    return reply


async def _rename_many(attempt: Attempt, request: meta_pb2.RenameRequest) -> meta_pb2.RenameReply:
    check_batch(len(request.sources), "names")
    if len(request.targets) != len(request.sources) or request.flags == EXCHANGE:
        raise error(Status.INVALID, "a batch of renames has as many targets as sources, and exchanges nothing")
    reply = meta_pb2.RenameReply()
    for source, target in zip(request.sources, request.targets, strict=True):
        try:
            await _rename_one(attempt, source, target, request.flags)
            reply.statuses.append(0)
        except StatusError as failure:
            reply.statuses.append(status_of_entry(failure))
    return reply


async def _rename_one(attempt: Attempt, old: Place, new: Place, flags: int) -> tuple[Inode, Inode | None]:
    """What has moved, and what lost its name to it, or has moved the other way."""
    source = await path.locate(attempt, old)
    target = await path.locate(attempt, new)
    _check_names(source, target, flags)
    moved = await _moved(attempt, source)
    if flags == EXCHANGE:
        return moved, await _exchange(attempt, source, target, moved)
    return moved, await _move(attempt, source, target, moved, noreplace=flags == NOREPLACE)


def _check_names(source: Found, target: Found, flags: int) -> None:
    if not source.name:
        raise error(Status.BUSY_RESOURCE, "'.', '..' and the root cannot be renamed")
    if not target.name:
        if flags == NOREPLACE:
            raise error(Status.EXISTS, "the target is a directory that exists")
        raise error(Status.BUSY_RESOURCE, "'.', '..' and the root cannot be replaced")


async def _moved(attempt: Attempt, found: Found) -> Inode:
    if found.entry is None:
        raise path.missing(found.name)
    return await attempt.inode(found.entry.inode)


async def _move(attempt: Attempt, source: Found, target: Found, moved: Inode, *, noreplace: bool) -> Inode | None:
    assert source.entry is not None
    if noreplace and target.entry is not None:
        raise error(Status.EXISTS, f"{path.shown(target.name)} exists")
    if not moved.is_directory and (source.slash or target.slash):
        raise error(Status.NOT_DIRECTORY, f"{path.shown(source.name)} is not a directory, and a path ends in '/'")
    await _check_below(attempt, source.parent, target.parent, moved, Status.INVALID)
    replaced = await attempt.inode(target.entry.inode) if target.entry is not None else None
    if replaced is not None and replaced.is_directory:
        await _check_below(attempt, target.parent, source.parent, replaced, Status.NOT_EMPTY)
    if replaced is not None and replaced.id == moved.id:
        return replaced  # two names of one inode: nothing happens, both stay, whoever asks
    require_removable(source.parent, moved.uid, attempt.caller, source.name)
    await _check_target(attempt, target, moved, replaced)
    if moved.is_directory and source.parent.id != target.parent.id:
        require(moved, attempt.caller, WRITE, is_directory=True)  # its '..' changes
    if replaced is not None and replaced.is_directory:
        await require_empty(attempt, replaced.id)
    await quota.enter(attempt, moved, target.parent)
    await _carry_out(attempt, source, target, moved, replaced)
    return replaced


async def _check_target(attempt: Attempt, target: Found, moved: Inode, replaced: Inode | None) -> None:
    if replaced is None:
        require(target.parent, attempt.caller, WRITE | EXECUTE, is_directory=True)
        return
    require_removable(target.parent, replaced.uid, attempt.caller, target.name)
    if moved.is_directory and not replaced.is_directory:
        raise error(
            Status.NOT_DIRECTORY, f"{path.shown(target.name)} is not a directory; a directory cannot replace it"
        )
    if replaced.is_directory and not moved.is_directory:
        raise error(Status.IS_DIRECTORY, f"{path.shown(target.name)} is a directory; a file cannot replace it")


async def _carry_out(attempt: Attempt, source: Found, target: Found, moved: Inode, replaced: Inode | None) -> None:
    assert source.entry is not None
    txn, now_ns = attempt.txn, attempt.now_ns
    dentries.remove(txn, source.parent.id, source.name, source.entry, now_ns)
    attempt.tell(RENAMED, moved.id, source.parent.id, source.name, target.parent.id, target.name)
    if target.entry is None or replaced is None:
        dentries.insert(txn, target.parent.id, target.name, source.entry, now_ns)
    else:
        dentries.substitute(txn, target.parent.id, target.name, target.entry, source.entry, now_ns)
        if replaced.is_directory:
            erase_directory(attempt, replaced)
            replaced.nlink = 0
            replaced.touched(now_ns)
        else:
            drop_name(attempt, replaced, target)
    await _moved_to(attempt, moved, target.parent)
    if moved.is_directory:
        attempt.directory_changed()


async def _moved_to(attempt: Attempt, inode: Inode, parent: Directory) -> None:
    await begin_change(attempt, inode)
    if inode.is_directory:
        inode.parent = parent.id
    end_change(attempt, inode)


async def _exchange(attempt: Attempt, source: Found, target: Found, moved: Inode) -> Inode:
    assert source.entry is not None
    if target.entry is None:
        raise path.missing(target.name)
    other = await attempt.inode(target.entry.inode)
    for found, inode in ((source, moved), (target, other)):
        if found.slash and not inode.is_directory:
            raise error(Status.NOT_DIRECTORY, f"{path.shown(found.name)} is not a directory, and its path ends in '/'")
    await _check_below(attempt, source.parent, target.parent, moved, Status.INVALID)
    await _check_below(attempt, target.parent, source.parent, other, Status.INVALID)
    if moved.id == other.id:
        return other
    for found, inode in ((source, moved), (target, other)):
        require_removable(found.parent, inode.uid, attempt.caller, found.name)
    for inode in (moved, other):
        if inode.is_directory and source.parent.id != target.parent.id:
            require(inode, attempt.caller, WRITE, is_directory=True)
    await quota.enter(attempt, moved, target.parent)
    await quota.enter(attempt, other, source.parent)
    _swap(attempt, source, target, source.entry, target.entry)
    await _moved_to(attempt, moved, target.parent)
    await _moved_to(attempt, other, source.parent)
    if moved.is_directory or other.is_directory:
        attempt.directory_changed()
    return other


def _swap(attempt: Attempt, source: Found, target: Found, first: Dentry, second: Dentry) -> None:
    dentries.substitute(attempt.txn, source.parent.id, source.name, first, second, attempt.now_ns)
    attempt.tell(RENAMED, first.inode, source.parent.id, source.name, target.parent.id, target.name)
    attempt.tell(RENAMED, second.inode, target.parent.id, target.name, source.parent.id, source.name)
    dentries.substitute(attempt.txn, target.parent.id, target.name, second, first, attempt.now_ns)


async def _check_below(attempt: Attempt, parent: Directory, into: Directory, moved: Inode, status: Status) -> None:
    # A directory must not come to lie below itself. The way up is stable: every move of a directory changes DIRV, which we have read.
    if not moved.is_directory or parent.id == into.id:
        return
    current = into
    while current.id != path.ROOT:
        if current.id == moved.id:
            raise error(status, "a directory cannot go below itself, nor in the place of one that it lies in")
        current = await path.directory(attempt, current.parent)
