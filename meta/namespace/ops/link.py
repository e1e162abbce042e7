"""Hard links, and names for files that were made without one."""

from __future__ import annotations

from ....proto.errors import Status, error
from ....proto.gen import meta_pb2
from .. import dentry as dentries
from .. import inode as inodes
from .. import path, quota
from ..access import EXECUTE, WRITE, require, require_linkable, require_owner, require_removable
from ..attempt import Attempt
from ..dentry import Dentry
from ..directories import Directory
from ..happenings import LINKED
from ..inode import Inode
from ..path import Found
from .remove import drop_name
from .stat import check_batch


async def link(attempt: Attempt, request: meta_pb2.LinkRequest) -> meta_pb2.LinkReply:
    """Another name for what is not a directory. Raises NOT_PERMITTED for a directory, EXISTS, TOO_MANY_LINKS, and NOT_FOUND for a file
    whose last name is gone."""
    inode = await path.lookup(attempt, request.source, follow=request.follow)
    target = await path.locate(attempt, request.target)
    if target.entry is not None:
        raise error(Status.EXISTS, f"{path.shown(target.name or b'/')} exists")
    if target.slash:
        raise path.missing(target.name)
    require_linkable(inode, attempt.caller, is_regular=inode.layout is not None)
    require(target.parent, attempt.caller, WRITE | EXECUTE, is_directory=True)
    if inode.is_directory:
        raise error(Status.NOT_PERMITTED, "a directory has one name: no hard links to it")
    if not inode.nlink and not inode.flags & inodes.UNNAMED:
        raise error(Status.NOT_FOUND, f"inode {inode.id:x} was unlinked; it cannot get a name again")
    await give_name(attempt, target, inode)
    return meta_pb2.LinkReply(attributes=inodes.attributes(inode))


async def give_name(attempt: Attempt, target: Found, inode: Inode) -> None:
    """One name more, where none was."""
    if inode.nlink >= inodes.LINKS_MAX:
        raise error(Status.TOO_MANY_LINKS, f"inode {inode.id:x} has {inode.nlink} names; there can be no more")
    dentries.insert(attempt.txn, target.parent.id, target.name, Dentry(inode.type, inode.id), attempt.now_ns)
    attempt.tell(LINKED, inode.id, target.parent.id, target.name)
    await _count_name(attempt, inode, target.parent)


async def _count_name(attempt: Attempt, inode: Inode, parent: Directory) -> None:
    if not inode.nlink:
        inode.project = parent.project
        await quota.require(attempt, quota.owner_of(inode), 1, inode.length)
        quota.appeared(attempt.txn, inode)
    elif inode.project != parent.project:
        raise error(
            Status.CROSS_DEVICE,
            f"inode {inode.id:x} counts for another directory's quota: copy it instead of linking it",
        )
    inode.nlink += 1
    inode.flags &= ~inodes.UNNAMED
    inode.touched(attempt.now_ns)
    attempt.put(inode)


async def publish(attempt: Attempt, request: meta_pb2.PublishRequest) -> meta_pb2.PublishReply:
    """Give each unnamed file its name, all of them or none. A file that has the name already is replaced, unless `exclusive`. Raises
    EXISTS, IS_DIRECTORY, STALE_HANDLE, NOT_PERMITTED (somebody else's file), INVALID (a file that has or had a name)."""
    check_batch(len(request.inodes), "files")
    if len(request.inodes) != len(request.targets):
        raise error(Status.INVALID, f"{len(request.inodes)} files and {len(request.targets)} names: as many of each")
    reply = meta_pb2.PublishReply()
    for number, place in zip(request.inodes, request.targets, strict=True):
        inode = await attempt.inode(number)
        require_owner(inode, attempt.caller, "publish it")
        if not inode.flags & inodes.UNNAMED:
            raise error(Status.INVALID, f"inode {number:x} has or had a name; only an unnamed file is published")
        target = await path.locate(attempt, place)
        if target.slash or not target.name:
            raise error(Status.IS_DIRECTORY, "a file cannot get a name that ends in '/' or is a directory")
        if target.entry is None:
            require(target.parent, attempt.caller, WRITE | EXECUTE, is_directory=True)
            await give_name(attempt, target, inode)
        else:
            await _replace(attempt, target, target.entry, inode, exclusive=request.exclusive)
        reply.attributes.append(inodes.attributes(inode))
    return reply


async def _replace(attempt: Attempt, target: Found, entry: Dentry, inode: Inode, *, exclusive: bool) -> None:
    if exclusive:
        raise error(Status.EXISTS, f"{path.shown(target.name)} exists")
    old = await attempt.inode(entry.inode)
    require_removable(target.parent, old.uid, attempt.caller, target.name)
    if old.is_directory:
        raise error(Status.IS_DIRECTORY, f"{path.shown(target.name)} is a directory; a file cannot replace it")
    dentries.substitute(attempt.txn, target.parent.id, target.name, entry, Dentry(inode.type, inode.id), attempt.now_ns)
    attempt.tell(LINKED, inode.id, target.parent.id, target.name)
    drop_name(attempt, old, target)
    await _count_name(attempt, inode, target.parent)
