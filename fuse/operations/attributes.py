"""Attributes of inodes: asked for and set, access(2), statfs(2).

What is open and written here shows as it is here (`Core.seen`): the length with what is still buffered, and the time of the last
write. A change of our own lets the kernel keep the pages that it has (`FileSystem.advanced`).
"""

from __future__ import annotations

import errno
import os
from time import monotonic
from typing import TYPE_CHECKING, Any

from ...client.core.attributes import Stat
from ...client.core.file import Handle
from ...client.core.paths import at
from ...proto.errors import Status, StatusError
from ..entries import SET_ID_BITS, attr, encoded
from ..protocol import Opcode, SetAttr
from ..requests import Setattr, Statx
from ..structs import ACCESS_IN, STATFS_OUT, STATX_OUT

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ...client.core.acting import Acting
    from ...client.core.inode import Inode
    from ...client.core.namespace import Changes
    from ...proto.gen.meta_pb2 import Place
    from ..filesystem import FileSystem
    from ..session import Handler, Request

SECOND_NS = 1_000_000_000
TIME_NS_MIN, TIME_NS_MAX = -(1 << 63), (1 << 63) - 1  # in 1677 and 2262
SET_GROUP_ID = 0o2000
STATFS_BLOCK_BYTES = 4096  # in which statfs(2) counts
NAME_BYTES_MAX = 255
SPACE_SECONDS = 1.0  # for which statfs(2) says the same
STATX_BASIC_AND_BIRTH = 0xFFF  # STATX_BASIC_STATS | STATX_BTIME

_NOT_CHANGES = SetAttr.FH | SetAttr.LOCK_OWNER | SetAttr.CTIME | SetAttr.KILL_SUIDGID  # where there is nothing of that
_TIMES = SetAttr.ATIME | SetAttr.MTIME | SetAttr.ATIME_NOW | SetAttr.MTIME_NOW

_OWNED = SetAttr.MODE | SetAttr.UID | SetAttr.GID
_SETTLED = _TIMES | _OWNED


# --- asking -----------------------------------------------------------------------------------------------------------------------


def getattr_(fs: FileSystem, request: Request) -> bytes | Coroutine[Any, Any, bytes]:
    """The attributes of a node. Whether it is asked by an open file makes no difference: all files open here share what is known."""
    if fs.removed and (removed := fs.removed.get(request.node)) is not None:
        return attr(fs, removed)
    if fs.believed is not None and (known := fs.believed.attr(fs.inode(request.node))) is not None:
        return known
    return _getattr(fs, request)


async def _getattr(fs: FileSystem, request: Request) -> bytes:
    stat = await fs.core.stat(fs.place(request.node), follow=False)
    return attr(fs, await fs.current(stat))


async def statx(fs: FileSystem, request: Request) -> bytes:
    """As GETATTR, with the time of birth."""
    Statx.parse(request.body)
    stat = fs.removed.get(request.node) or await fs.core.stat(fs.place(request.node), follow=False)
    stat = await fs.current(stat)
    fs.nodes.tell(stat.inode, stat.change)
    number, size, blocks, *_, mode, links, uid, gid, rdev, block_bytes, _ = encoded(fs, stat)
    times = (stat.atime_ns, stat.birth_ns, stat.ctime_ns, stat.mtime_ns)
    return STATX_OUT.pack(
        *fs.attr_timeout,
        0,
        STATX_BASIC_AND_BIRTH,
        block_bytes,
        0,  # attributes: none of those that statx(2) knows
        links,
        uid,
        gid,
        mode,
        number,
        size,
        blocks,
        0,
        *(part for time_ns in times for part in divmod(time_ns, SECOND_NS)),
        os.major(rdev),
        os.minor(rdev),
        0,
        0,
    )


async def access(fs: FileSystem, request: Request) -> bytes:
    """access(2), from kernels that do not check by themselves. Raises PERMISSION_DENIED."""
    (mask,) = ACCESS_IN.unpack_from(request.body)
    await fs.callers.view(request).check_access(fs.place(request.node), mask & 7, follow=False)
    return b""


def statfs(fs: FileSystem, request: Request) -> bytes | Coroutine[Any, Any, bytes]:
    """Space and inodes of the whole cluster, as of a second ago at most: there are programs that ask before each write."""
    until, known = fs.space
    return known if monotonic() < until else _statfs(fs)


async def _statfs(fs: FileSystem) -> bytes:
    """There is no limit of inodes: as many are said to be free as have a block each."""
    space = await fs.core.statfs()
    free = space.free // STATFS_BLOCK_BYTES
    reply = STATFS_OUT.pack(
        space.total // STATFS_BLOCK_BYTES,
        free,
        free,
        space.inodes + free,
        free,
        STATFS_BLOCK_BYTES,
        NAME_BYTES_MAX,
        STATFS_BLOCK_BYTES,
    )
    if not fs.options.strict:
        fs.space = monotonic() + SPACE_SECONDS, reply
    return reply


# --- setting ----------------------------------------------------------------------------------------------------------------------


async def setattr_(fs: FileSystem, request: Request) -> bytes:
    """chmod, chown, utimensat, truncate and ftruncate: the length in one request, all the rest in another."""
    asked = Setattr.parse(request.body)
    if (inode := fs.core.inodes.get(fs.inode(request.node))) is not None and inode.sessions:
        async with inode.lock:
            if (reply := _with_settlement(fs, inode, asked)) is not None:
                return reply
            if (reply := await _and_settle(fs, request, inode, asked)) is not None:
                return reply
    place = fs.place(request.node)
    view = fs.callers.view(request)
    stat: Stat | None = None
    if asked.valid & SetAttr.SIZE:
        stat = await _truncate(fs, asked, view, place)
        if asked.valid & SetAttr.KILL_SUIDGID and stat.mode & SET_ID_BITS:
            stat = await lose_set_ids(fs, request, stat.inode)
    changes = _changes(asked)
    if changes or stat is None:
        if asked.valid & _TIMES:
            await _write_out(fs, fs.inode(request.node))
        stat = await _set(fs, view, place, changes)
    return attr(fs, stat)


def _with_settlement(fs: FileSystem, inode: Inode, asked: Setattr) -> bytes | None:
    """Set times of a file that is being written here together with what was written, when that is settled; so does what else changes
    nothing but ctime, as chmod and chown of a file that has that mode and owner already (tar does all three with each file). None:
    now."""
    if fs.believed is None or fs.shown_uid is not None or fs.shown_gid is not None:
        return None
    now = fs.believed.plain_owner(inode.id)
    valid = asked.valid
    if now is None or not valid & _SETTLED or valid & ~(_SETTLED | _NOT_CHANGES):
        return None
    asks = ((SetAttr.MODE, asked.mode & 0o7777), (SetAttr.UID, asked.uid), (SetAttr.GID, asked.gid))
    if any(valid & bit and wanted != has for (bit, wanted), has in zip(asks, now, strict=True)):
        return None
    changes, now_ns = _changes(asked), fs.core.env.wall_ns()
    atime_ns = now_ns if "atime_now" in changes else changes.get("atime_ns")
    mtime_ns = now_ns if "mtime_now" in changes else changes.get("mtime_ns")
    return fs.believed.attr(inode.id) if inode.set_times(atime_ns=atime_ns, mtime_ns=mtime_ns) else None


async def _and_settle(fs: FileSystem, request: Request, inode: Inode, asked: Setattr) -> bytes | None:
    """Change the mode or owner of a file that is being written here, and settle it in the same request: after tar's chmod its close has
    nothing left to say. None: in the usual way."""
    if asked.valid & ~(_OWNED | _NOT_CHANGES) or not asked.valid & _OWNED or not inode.may_settle_along:
        return None
    try:
        stat = await fs.callers.view(request).set_attributes_of(inode, **_changes(asked))
    except StatusError as failure:
        if failure.status is not Status.NOT_INLINE:
            raise
        return None
    fs.nodes.followed(inode.id, inode.since, inode.change)
    return attr(fs, stat)


def _changes(asked: Setattr) -> Changes:
    """What is to be set, but for the length, as `Namespace.set_attributes` takes it."""
    valid = asked.valid
    changes: Changes = {}
    if valid & SetAttr.MODE:
        changes["mode"] = asked.mode & 0o7777
    if valid & SetAttr.UID:
        changes["uid"] = asked.uid
    if valid & SetAttr.GID:
        changes["gid"] = asked.gid
    if valid & SetAttr.ATIME_NOW:
        changes["atime_now"] = True
    elif valid & SetAttr.ATIME:
        changes["atime_ns"] = _kept(asked.atime * SECOND_NS + asked.atime_ns)
    if valid & SetAttr.MTIME_NOW:
        changes["mtime_now"] = True
    elif valid & SetAttr.MTIME:
        changes["mtime_ns"] = _kept(asked.mtime * SECOND_NS + asked.mtime_ns)
    return changes


def _kept(time_ns: int) -> int:
    """The nearest time that an inode can have, as Linux does it for a file system that cannot keep all (`touch -d 3000-01-01`)."""
    return min(max(time_ns, TIME_NS_MIN), TIME_NS_MAX)


async def _set(fs: FileSystem, view: Acting, place: Place, changes: Changes) -> Stat:
    try:
        stat = await view.set_attributes(place, **changes)
    except PermissionError:
        if changes or not _open_for_writing(fs, place.parent):
            raise
        # Nothing to set: a stranger is about to write, and the kernel takes the set-id bits away before. The bits go with his WRITE,
        # which says so again. chown(2) with -1 and -1 looks the same.
        return await fs.core.stat(place, follow=False)
    fs.advanced(stat.inode, stat.change)
    return stat


async def _truncate(fs: FileSystem, asked: Setattr, view: Acting, place: Place) -> Stat:
    """Set the length. Who has the file open for writing (the kernel has looked) may, whatever its mode says by now."""
    if asked.size >> 63:
        raise OSError(errno.EFBIG, "a length beyond 2**63")
    handle = fs.handles.get(asked.fh) if asked.valid & SetAttr.FH else None
    if isinstance(handle, Handle) and handle.can_write:
        stat = await handle.truncate_with_stat(asked.size)
    elif asked.valid & SetAttr.FH:
        stat = await fs.core.truncate(place, asked.size)
    else:
        stat = await view.truncate(place, asked.size)
    fs.advanced(stat.inode, stat.change)
    return stat


async def _write_out(fs: FileSystem, number: int) -> None:
    """Before times are set: what was written here is sent and settled, or else the close would move them again."""
    inode = fs.core.inodes.get(number)
    if inode is not None and inode.unsettled:
        async with inode.lock:
            await fs.core.flush_inode(inode)
        fs.nodes.followed(number, inode.since, inode.change)


def _open_for_writing(fs: FileSystem, inode: int) -> bool:
    """Whether anybody has it so on this mount."""
    handles = (handle for handle in fs.handles.values() if isinstance(handle, Handle))
    return any(handle.can_write and handle.file.id == inode for handle in handles)


async def lose_set_ids(fs: FileSystem, request: Request, inode: int) -> Stat:
    """Somebody without the right to keep them (CAP_FSETID) has written: set-user-id goes, and set-group-id where it means "run as the
    group" or he is not in that; file capabilities too. The mount does it, since who writes may not be who may change the mode."""
    stat = await fs.core.set_attributes(at(inode))
    caller = fs.callers.view(request).caller
    if stat.mode & SET_GROUP_ID and caller is not None and stat.gid not in (caller.gid, *caller.groups):
        stat = await fs.core.set_attributes(at(inode), mode=stat.mode & ~SET_GROUP_ID)
    if not stat.mode & SET_ID_BITS:
        fs.set_ids.discard(inode)
    fs.nodes.unknown(inode)
    return stat


OPERATIONS: dict[int, Handler] = {
    Opcode.GETATTR: getattr_,
    Opcode.SETATTR: setattr_,
    Opcode.STATX: statx,
    Opcode.ACCESS: access,
    Opcode.STATFS: statfs,
}
