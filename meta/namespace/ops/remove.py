"""Unlink, rmdir and recursive removal, in batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ....proto.errors import Status, StatusError, error
from ....proto.gen import meta_pb2
from ... import keys
from .. import dentry as dentries
from .. import extended, path, quota, trash
from .. import inode as inodes
from ..access import EXECUTE, READ, STICKY, WRITE, require, require_removable
from ..attempt import Attempt
from ..dentry import Dentry
from ..directories import Directory
from ..happenings import REMOVED
from ..inode import Inode
from ..path import Found
from .attributes import begin_change, end_change
from .stat import check_batch, status_of_entry

TREE_DIRECTORIES_MAX = (
    50_000  # whose permissions one recursive removal checks (root's are not checked): 1.3 s of the 5 of a transaction
)
DIRECTORIES_PER_TURN = 256  # about 6 ms, then other requests come in between
PAGE = 1024  # names per read; then other requests come in between, too
TREE_NAMES_MAX = 2_000_000  # that one recursive removal looks through for subdirectories and foreign entries: most of a transaction's time


async def remove(attempt: Attempt, request: meta_pb2.RemoveRequest) -> meta_pb2.RemoveReply:
    """Remove each place, in order, in one transaction."""
    check_batch(len(request.places), "places")
    one = _KINDS.get(int(request.kind))
    if one is None:
        raise error(Status.INVALID, f"kind of removal {request.kind}: unlink, rmdir or tree")
    reply = meta_pb2.RemoveReply(at_ns=attempt.now_ns)
    attempt.forever = request.forever
    for place in request.places:
        try:
            found = await path.locate(attempt, place)
            gone = await one(attempt, found)
            reply.statuses.append(0)
            reply.inodes.append(found.entry.inode if found.entry is not None else 0)
            if gone is not None:
                inodes.fill(reply.attributes.add(), gone)
        except StatusError as failure:
            reply.statuses.append(status_of_entry(failure))
            reply.inodes.append(0)
    return reply


async def unlink(attempt: Attempt, found: Found) -> Inode | None:
    """Remove a name of anything but a directory. What has other names, as it is then. Raises IS_DIRECTORY, NOT_FOUND and what
    forbids it."""
    if not found.name:
        raise error(Status.IS_DIRECTORY, "unlink of a directory: use rmdir")
    entry = found.entry
    if entry is None:
        raise path.missing(found.name)
    inode = await attempt.inode(entry.inode)
    if found.slash and not inode.is_directory:
        raise error(Status.NOT_DIRECTORY, f"{path.shown(found.name)} is not a directory, and its path ends in '/'")
    if not found.slash:  # or else it is wrong, whoever asks
        require_removable(found.parent, inode.uid, attempt.caller, found.name)
    if inode.is_directory:
        raise error(Status.IS_DIRECTORY, f"{path.shown(found.name)} is a directory: use rmdir")
    dentries.remove(attempt.txn, found.parent.id, found.name, entry, attempt.now_ns)
    attempt.tell(REMOVED, inode.id, found.parent.id, found.name)
    drop_name(attempt, inode, found)
    return inode if inode.nlink > 0 else None


def drop_name(attempt: Attempt, inode: Inode, found: Found) -> None:
    """One name less: that one. The last one sends the inode into the trash, or to the garbage queue (a symlink has nothing that could be
    in use: it goes at once)."""
    inode.nlink -= 1
    inode.touched(attempt.now_ns)
    if inode.nlink <= 0:
        quota.vanished(attempt.txn, inode)
        if inode.type == inodes.SYMLINK:
            if inode.flags & inodes.EXTENDED:
                extended.erase(attempt.txn, inode.id)
            attempt.txn.delete(keys.inode_key(inode.id))
            attempt.txn.add(keys.INODES_USED, -1)
            return
        if not trash.put(attempt, inode, found.parent, found.name):
            attempt.queue(keys.DEAD_FILE, inode.id)
    attempt.put(inode)


async def rmdir(attempt: Attempt, found: Found) -> Inode:
    """Remove an empty directory; as it was left, without a name. Raises NOT_EMPTY, NOT_DIRECTORY, BUSY_RESOURCE (the root),
    INVALID (".")."""
    victim = await _directory_to_go(attempt, found)
    await require_empty(attempt, victim.id)
    take_out(attempt, found, victim)
    inode = await attempt.inode(victim.id)
    erase_directory(attempt, inode)
    inode.nlink = 0
    inode.touched(attempt.now_ns)
    return inode


async def _directory_to_go(attempt: Attempt, found: Found) -> Directory:
    if found.dots == b".":
        raise error(Status.INVALID, "a directory cannot be removed as '.': name it in its parent")
    if found.dots == b"..":
        raise error(Status.NOT_EMPTY, "a directory cannot be removed as '..': it is not empty")
    if not found.name:
        raise error(Status.BUSY_RESOURCE, "the root of the file system cannot be removed")
    if found.entry is None:
        raise path.missing(found.name)
    if not found.entry.is_directory:
        require_removable(found.parent, (await attempt.inode(found.entry.inode)).uid, attempt.caller, found.name)
        raise error(Status.NOT_DIRECTORY, f"{path.shown(found.name)} is not a directory: use unlink")
    victim = await path.directory(attempt, found.entry.inode)
    require_removable(found.parent, victim.uid, attempt.caller, found.name)
    return victim


async def require_empty(attempt: Attempt, number: int) -> None:
    """Raise NOT_EMPTY unless the directory has no names. The range is read, so a name that comes meanwhile is a conflict."""
    if await attempt.txn.scan(*keys.dentry_range(number), 1):
        raise error(Status.NOT_EMPTY, f"directory {number:x} is not empty")


def take_out(attempt: Attempt, found: Found, victim: Directory) -> None:
    """Remove the name of a directory; everybody forgets where it was."""
    dentries.remove(attempt.txn, found.parent.id, found.name, Dentry(inodes.DIRECTORY, victim.id), attempt.now_ns)
    attempt.tell(REMOVED, victim.id, found.parent.id, found.name)
    attempt.directory_changed()


def erase_directory(attempt: Attempt, inode: Inode) -> None:
    """An empty directory without a name ceases to exist, with its extended attributes and ACLs and a quota on it."""
    txn, number = attempt.txn, inode.id
    quota.vanished(txn, inode)
    quota.forget(txn, inode)
    if inode.flags & inodes.EXTENDED:
        extended.erase(txn, number)
    txn.delete(keys.inode_key(number))
    for counter in (keys.entries_key(number), keys.subdirectories_key(number), keys.changed_key(number)):
        txn.delete(counter)
    txn.add(keys.INODES_USED, -1)


async def remove_tree(attempt: Attempt, found: Found) -> None:
    """Remove a name with everything below it. The tree is detached here and now, and kept in the trash or freed in the
    background. Raises what unlink or rmdir would raise for it, and PERMISSION_DENIED or NOT_PERMITTED where the caller could not empty
    a directory below: then nothing is removed."""
    if found.entry is not None and not found.entry.is_directory:
        await unlink(attempt, found)
        return
    victim = await _directory_to_go(attempt, found)
    if not attempt.caller.is_root:
        await _check_tree(attempt, victim)
    inode = await attempt.inode(victim.id)
    take_out(attempt, found, victim)
    await begin_change(attempt, inode)  # out of the trash it comes with its times
    inode.parent = 0
    if not trash.put(attempt, inode, found.parent, found.name):
        attempt.queue(keys.DEAD_TREE, inode.id)
    end_change(attempt, inode)


async def _check_tree(attempt: Attempt, top: Directory) -> None:
    # Whoever may list, write and search a directory may empty it, and a sticky one only if all in it is his. Subdirectory counters
    # tell where no further directory is: a directory of a million files costs two reads. A change of a directory's permissions
    # meanwhile is a conflict (DIRV); new directories that somebody else makes meanwhile go with the tree.
    stack = [top]
    seen, names_left = 0, TREE_NAMES_MAX
    while stack:
        current = stack.pop()
        seen += 1
        if seen % DIRECTORIES_PER_TURN == 0:
            await attempt.namespace.clock.sleep(0)
        if seen > TREE_DIRECTORIES_MAX:
            raise error(Status.TOO_LARGE, f"more than {TREE_DIRECTORIES_MAX} directories: remove the parts one by one")
        entries, subdirectories = (
            keys.counter(value)
            for value in await attempt.txn.get_many(
                [keys.entries_key(current.id), keys.subdirectories_key(current.id)], snapshot=True
            )
        )
        if entries <= 0:
            continue
        require(current, attempt.caller, READ | WRITE | EXECUTE, is_directory=True)
        foreign = current.mode & STICKY and attempt.caller.uid != current.uid
        if subdirectories > 0 or foreign:
            found, names = await _subdirectories(
                attempt, current, subdirectories, names_left, check_owners=bool(foreign)
            )
            stack.extend(found)
            names_left -= names


async def _subdirectories(
    attempt: Attempt, current: Directory, count: int, names_max: int, *, check_owners: bool
) -> tuple[list[Directory], int]:
    """Its subdirectories, and how many names were looked through for them. Raises TOO_LARGE over `names_max`."""
    found: list[Directory] = []
    names = 0
    begin, end = keys.dentry_range(current.id)
    while check_owners or len(found) < count:
        if names:
            await attempt.namespace.clock.sleep(0)
        if names >= names_max:
            raise error(
                Status.TOO_LARGE,
                f"more than {TREE_NAMES_MAX} names beside subdirectories: remove those first, or the parts one by one",
            )
        page = await attempt.txn.scan(begin, end, PAGE, snapshot=True)
        names += len(page)
        entries = [dentries.unpack(value) for _, value in page]
        wanted = entries if check_owners else [entry for entry in entries if entry.is_directory]
        for entry in wanted:
            if check_owners:
                inode = await attempt.inode(entry.inode)
                require_removable(current, inode.uid, attempt.caller, b"an entry")
            if entry.is_directory:
                found.append(await path.directory(attempt, entry.inode))
        if len(page) < PAGE:
            break
        begin = page[-1][0] + b"\0"
    return found, names


_KINDS: dict[int, Callable[[Attempt, Found], Awaitable[Inode | None]]] = {
    int(meta_pb2.REMOVE_KIND_UNLINK): unlink,
    int(meta_pb2.REMOVE_KIND_RMDIR): rmdir,
    int(meta_pb2.REMOVE_KIND_TREE): remove_tree,
}
