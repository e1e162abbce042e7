"""Open, create and stat in one transaction."""

from __future__ import annotations

import os

from ....proto.capability import Rights
from ....proto.errors import Status, error
from ....proto.gen import meta_pb2
from ... import keys
from .. import inline, path, quota, session, trim
from .. import inode as inodes
from ..access import EXECUTE, READ, WRITE, require, require_owner
from ..attempt import DEAD_RECORD, UNNAMED_RECORD, Attempt
from ..inode import Inode
from ..session import Session
from .atime import is_due
from .create import Recipe, check_defaults, make, make_inode, make_parents, mode_of_parents

_RIGHTS = {os.O_RDONLY: READ, os.O_WRONLY: WRITE, os.O_RDWR: READ | WRITE}
# What was asked for was checked against the mode, so a capability grants that and no more.
GRANTED = {os.O_RDONLY: int(Rights.READ), os.O_WRONLY: int(Rights.WRITE), os.O_RDWR: int(Rights.READ | Rights.WRITE)}


def writes(flags: int) -> bool:
    """Whether these flags open for writing."""
    return flags & os.O_ACCMODE != os.O_RDONLY


def changes(request: meta_pb2.OpenRequest) -> bool:
    """Whether carrying the request out can change anything: then it needs a transaction that commits."""
    return writes(request.flags) or request.unnamed or bool(request.flags & (os.O_CREAT | os.O_TRUNC))


async def open_file(attempt: Attempt, request: meta_pb2.OpenRequest) -> meta_pb2.OpenReply:
    """Open what the place names, as open(2) does with these flags; writers get a session."""
    flags = request.flags
    if flags & os.O_ACCMODE not in _RIGHTS:
        raise error(Status.INVALID, f"open flags {flags:#o}: not for reading, writing or both")
    if flags & os.O_CREAT and flags & os.O_DIRECTORY:
        raise error(Status.INVALID, "O_CREAT with O_DIRECTORY: use Create to make a directory")
    if request.HasField("ended") and not attempt.reading:
        await session.end_unwritten(attempt.txn, attempt.client, request.ended)
    if request.unnamed:
        return await _open_unnamed(attempt, request)
    if not request.place.path:
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise error(Status.EXISTS, f"inode {request.place.parent:x} exists")
        return await _open_existing(attempt, await attempt.inode(request.place.parent or path.ROOT), flags)
    if flags & os.O_CREAT:
        return await _open_or_create(attempt, request)
    slash = request.place.path.endswith(b"/")
    found = await path.locate(attempt, request.place, follow=slash or not flags & os.O_NOFOLLOW)
    return await _open_existing(attempt, await path.inode_of(attempt, found), flags)


async def _open_or_create(attempt: Attempt, request: meta_pb2.OpenRequest) -> meta_pb2.OpenReply:
    flags = request.flags
    if request.parents:
        await make_parents(attempt, request.place, mode_of_parents(inodes.REGULAR, request.mode), request.umask)
    exclusive = flags & os.O_EXCL
    found = await path.locate(attempt, request.place, follow=not (exclusive or flags & os.O_NOFOLLOW), creating=True)
    if found.entry is not None:
        if exclusive:
            raise error(Status.EXISTS, f"{path.shown(found.name)} exists")
        return await _open_existing(attempt, await attempt.inode(found.entry.inode), flags)
    inode = await make(attempt, found.parent, found.name, _recipe(request))
    # Whoever makes a file may use it as he asked, whatever mode he gave it.
    return await _opened(attempt, inode, writing=writes(flags), created=True)


async def _opened(attempt: Attempt, inode: Inode, *, writing: bool, created: bool = False) -> meta_pb2.OpenReply:
    reply = meta_pb2.OpenReply(created=created)
    inodes.fill(reply.attributes, inode)
    if inode.flags & inodes.INLINE:
        reply.attributes.content = await inline.content(attempt.txn, inode, snapshot=attempt.reading)
    if writing and (created or inode.flags & inodes.INLINE or await inline.may_begin(attempt, inode, sessions=0)):
        reply.inline_max = attempt.namespace.inline_max()
    if writing:
        reply.session = _start_session(attempt, inode)
        length_max = await quota.length_max(attempt, inode)
        if length_max is not None:
            reply.length_max = length_max
    return reply


def _recipe(request: meta_pb2.OpenRequest) -> Recipe:
    check_defaults(request.chunk_size, request.stripe)
    return Recipe(inodes.REGULAR, request.mode, request.chunk_size, request.stripe, umask=request.umask)


async def _open_unnamed(attempt: Attempt, request: meta_pb2.OpenRequest) -> meta_pb2.OpenReply:
    # O_TMPFILE: the place is the directory whose defaults it takes. It is in the garbage queue from the start: it goes when
    # its writer is gone, unless link or publish gave it a name.
    if not writes(request.flags):
        raise error(Status.INVALID, "an unnamed file is opened for writing")
    if request.parents:
        inside = meta_pb2.Place(parent=request.place.parent, path=request.place.path + b"/.")
        await make_parents(attempt, inside, mode_of_parents(inodes.REGULAR, request.mode), request.umask)
    node = await path.lookup(attempt, request.place, follow=True)
    parent = await path.directory(attempt, node.id)
    require(parent, attempt.caller, WRITE | EXECUTE, is_directory=True)
    # With O_EXCL nobody may name it: it is as a file whose last name is gone.
    flags, record = (0, DEAD_RECORD) if request.flags & os.O_EXCL else (inodes.UNNAMED, UNNAMED_RECORD)
    inode = await make_inode(attempt, parent, _recipe(request), nlink=0, flags=flags)
    attempt.queue(keys.DEAD_FILE, inode.id, record)
    return await _opened(attempt, inode, writing=True, created=True)


async def _open_existing(attempt: Attempt, inode: Inode, flags: int) -> meta_pb2.OpenReply:
    writing, cutting = writes(flags), flags & os.O_TRUNC
    if inode.type == inodes.SYMLINK:
        if flags & os.O_DIRECTORY:
            raise error(Status.NOT_DIRECTORY, f"inode {inode.id:x} is a symlink, not a directory")
        raise error(Status.SYMLINK_LOOP, f"inode {inode.id:x} is a symlink, and it was not to be followed")
    if inode.is_directory:
        if writing or cutting or flags & os.O_CREAT:
            raise error(Status.IS_DIRECTORY, f"inode {inode.id:x} is a directory; it is opened for reading only")
        require(inode, attempt.caller, READ, is_directory=True)
        _check_noatime(attempt, inode, flags)
        return meta_pb2.OpenReply(attributes=await attempt.visible_attributes(inode))
    if flags & os.O_DIRECTORY:
        raise error(Status.NOT_DIRECTORY, f"inode {inode.id:x} is not a directory")
    if not attempt.task.has_open(inode.id, GRANTED[flags & os.O_ACCMODE]):
        require(inode, attempt.caller, _RIGHTS[flags & os.O_ACCMODE])
    if cutting and not attempt.task.has_open(inode.id, GRANTED[os.O_WRONLY]):
        require(inode, attempt.caller, WRITE)  # who may go on reading may not cut
    _check_noatime(attempt, inode, flags)
    if inode.layout is None:
        raise error(Status.NO_DEVICE, f"inode {inode.id:x} is a device, FIFO or socket: only a mount can open it")
    if cutting:
        await trim.cut(attempt, inode, 0)
    elif writing and inode.flags & inodes.TRIMMING:
        raise trim.FinishTrim(inode.id)  # before anybody writes where chunks are going
    if writing:
        _lose_privileges(attempt, inode)
    reply = await _opened(attempt, inode, writing=writing)
    reply.atime_due = flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_NOATIME and is_due(inode, attempt.now_ns)
    return reply


def _lose_privileges(attempt: Attempt, inode: Inode) -> None:
    # The first write takes set-id bits and capabilities away, and it is told only when the length is settled. Until then the program
    # would run with them, and with what somebody else wrote. So a stranger's open takes them; from its owner, who gains nothing, the
    # settlement does.
    caller = attempt.caller
    if caller.is_root or (caller.uid == inode.uid and caller.member_of(inode.gid)):
        return
    mode = inode.mode
    session.lose_privileges(attempt.txn, inode, _session_of(attempt, inode))
    if inode.mode != mode:
        inode.touched(attempt.now_ns)
        attempt.put(inode)


def _check_noatime(attempt: Attempt, inode: Inode, flags: int) -> None:
    if flags & os.O_NOATIME:
        require_owner(inode, attempt.caller, "read it with O_NOATIME")


def _start_session(attempt: Attempt, inode: Inode) -> int:
    number = attempt.namespace.random_u64()
    attempt.txn.put(keys.session_key(inode.id, number), session.pack(_session_of(attempt, inode)))
    return number


def _session_of(attempt: Attempt, inode: Inode) -> Session:
    caller = attempt.caller
    return Session(caller.uid, attempt.client, attempt.now_ns, caller.is_root or caller.member_of(inode.gid))
