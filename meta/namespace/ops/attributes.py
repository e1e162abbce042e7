"""chmod, chown, utimes, and the defaults that a directory gives to new files."""

from __future__ import annotations

from ....proto.errors import Status, error
from ....proto.gen import meta_pb2
from .. import extended, path, quota
from .. import inode as inodes
from ..access import SGID, SUID, WRITE, permits, require_owner, without_set_ids
from ..attempt import Attempt
from ..happenings import CHANGED
from ..inode import Inode
from . import close
from .create import check_defaults

_WHERE = ("caller", "request_id", "place", "follow")  # the fields that say whose change it is and of what
_DEFAULTS = ("chunk_size", "stripe", "trash")  # of a directory
ID_MAX = (1 << 32) - 2  # 2^32 - 1 means "leave it" to chown(2)


async def set_attributes(attempt: Attempt, request: meta_pb2.SetAttributesRequest) -> meta_pb2.SetAttributesReply:
    """Change what the request names, all of it or nothing. Raises NOT_PERMITTED (not the owner), PERMISSION_DENIED (touch without
    write permission), INVALID."""
    if request.HasField("settle"):
        await close.sync_file(attempt, request.settle)
    inode = await path.lookup(attempt, request.place, follow=request.follow)
    await begin_change(attempt, inode)
    before, owned = _known_of(inode), quota.owner_of(inode)
    _change_owner(attempt, inode, request)
    _change_mode(attempt, inode, request)
    _change_times(attempt, inode, request)
    _change_defaults(attempt, inode, request)
    if quota.owner_of(inode) != owned and (inode.nlink or inode.is_directory):
        await quota.require(attempt, quota.owner_of(inode), 1, inode.length, owned)
        quota.changed_hands(attempt.txn, inode, owned)
    end_change(attempt, inode)
    attempt.tell(CHANGED, inode.id)
    if inode.is_directory and before != _known_of(inode):
        attempt.directory_changed()
    return meta_pb2.SetAttributesReply(attributes=await attempt.visible_attributes(inode))


def _known_of(inode: Inode) -> tuple[int, ...]:
    """What servers remember about a directory (directories.py)."""
    return inode.mode, inode.uid, inode.gid, inode.chunk_size, inode.stripe, inode.trash


async def begin_change(attempt: Attempt, inode: Inode) -> None:
    """Before attributes of an inode change."""
    if inode.is_directory:
        # Times as seen become the record's: from now on the blind counter counts only where it is later (inode.with_counters).
        seen = await attempt.visible(inode)
        inode.mtime_ns, inode.ctime_ns = seen.mtime_ns, seen.ctime_ns


def end_change(attempt: Attempt, inode: Inode) -> None:
    """They have changed: ctime says so, and the record is written."""
    inode.touched(max(attempt.now_ns, inode.ctime_ns) if inode.is_directory else attempt.now_ns)
    attempt.put(inode)


def _change_owner(attempt: Attempt, inode: Inode, request: meta_pb2.SetAttributesRequest) -> None:
    if not request.HasField("uid") and not request.HasField("gid"):
        _change_owner_to_nobody(attempt, inode, request)
        return
    caller = attempt.caller
    uid = request.uid if request.HasField("uid") else inode.uid
    gid = request.gid if request.HasField("gid") else inode.gid
    if uid > ID_MAX or gid > ID_MAX:
        raise error(Status.INVALID, f"user {uid}, group {gid}: at most {ID_MAX}; leave the field out to keep it")
    if uid != inode.uid and not caller.is_root:
        raise error(Status.NOT_PERMITTED, f"only root may give inode {inode.id:x} to user {uid}")
    require_owner(inode, caller, "change its group")
    if gid != inode.gid and not caller.is_root and not caller.member_of(gid):
        raise error(Status.NOT_PERMITTED, f"user {caller.uid} is not in group {gid}")
    if not inode.is_directory:
        extended.lose_capability(attempt.txn, inode)
        member = caller.is_root or (caller.member_of(inode.gid) and caller.member_of(gid))
        inode.mode = without_set_ids(inode.mode, member=member)
    inode.uid, inode.gid = uid, gid


def _change_owner_to_nobody(attempt: Attempt, inode: Inode, request: meta_pb2.SetAttributesRequest) -> None:
    # A request that changes nothing is chown(2) with -1 and -1, which still takes set-id bits away.
    if (
        inode.is_directory
        or not inode.mode & (SUID | SGID)
        or any(f.name not in _WHERE for f, _ in request.ListFields())
    ):
        return
    caller = attempt.caller
    mode = without_set_ids(inode.mode, member=caller.is_root or caller.member_of(inode.gid))
    if mode != inode.mode:
        require_owner(inode, caller, "take its set-id bits away")
        extended.lose_capability(attempt.txn, inode)
        inode.mode = mode


def _change_mode(attempt: Attempt, inode: Inode, request: meta_pb2.SetAttributesRequest) -> None:
    if not request.HasField("mode"):
        return
    if inode.type == inodes.SYMLINK:
        raise error(Status.UNSUPPORTED, "a symlink has no mode of its own")
    require_owner(inode, attempt.caller, "change its mode")
    mode = request.mode & inodes.MODE_BITS
    if mode & SGID and not attempt.caller.is_root and not attempt.caller.member_of(inode.gid):
        mode &= ~SGID
    inode.mode = mode


def _change_times(attempt: Attempt, inode: Inode, request: meta_pb2.SetAttributesRequest) -> None:
    explicit = request.HasField("atime_ns") or request.HasField("mtime_ns")
    if not explicit and not request.atime_now and not request.mtime_now:
        return
    touch = request.atime_now and request.mtime_now and not explicit
    if not (touch and permits(inode, attempt.caller, WRITE, is_directory=inode.is_directory)):
        if touch and attempt.caller.uid not in (0, inode.uid):
            raise error(
                Status.PERMISSION_DENIED, f"inode {inode.id:x}: only its owner, or who may write it, may touch it"
            )
        require_owner(inode, attempt.caller, "set its times")
    if request.atime_now:
        inode.atime_ns = attempt.now_ns
    elif request.HasField("atime_ns"):
        inode.atime_ns = request.atime_ns
    if request.mtime_now:
        inode.mtime_ns = attempt.now_ns
    elif request.HasField("mtime_ns"):
        inode.mtime_ns = request.mtime_ns


def _change_defaults(attempt: Attempt, inode: Inode, request: meta_pb2.SetAttributesRequest) -> None:
    if not any(request.HasField(name) for name in _DEFAULTS):
        return
    if not inode.is_directory:
        raise error(Status.NOT_DIRECTORY, f"inode {inode.id:x}: only a directory has defaults for new files")
    require_owner(inode, attempt.caller, "change its defaults")
    check_defaults(request.chunk_size, request.stripe)
    if request.HasField("chunk_size"):
        inode.chunk_size = request.chunk_size
    if request.HasField("stripe"):
        inode.stripe = request.stripe
    if request.HasField("trash"):
        inode.trash = request.trash
