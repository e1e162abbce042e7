"""Making things: directories, symlinks, special files and empty files, in batches; `make` is what every creator ends in."""

from __future__ import annotations

from typing import NamedTuple

from ....proto.errors import Status, StatusError, error
from ....proto.gen import meta_pb2
from ....proto.gen.meta_pb2 import NewEntry, Place
from ....proto.layout import CHUNK_BYTES_DEFAULT, STRIPE_MAX, check_chunk_size
from ... import keys
from .. import acl as acls
from .. import dentry as dentries
from .. import extended, inline, path, quota
from .. import inode as inodes
from ..access import EXECUTE, SGID, STICKY, WRITE, Credentials, require
from ..acl import Acl
from ..attempt import Attempt
from ..dentry import Dentry
from ..directories import Directory
from ..happenings import CREATED
from ..inode import Inode
from .stat import check_batch, status_of_entry

TARGET_BYTES_MAX = path.PATH_BYTES_MAX  # of a symlink
KINDS = frozenset((inodes.REGULAR, inodes.DIRECTORY, inodes.SYMLINK)) | inodes.SPECIAL
DEVICES = frozenset((inodes.CHARACTER, inodes.BLOCK))
MKDIR_BITS = 0o777 | STICKY


def inherited(parent: Directory, kind: int, mode: int, caller: Credentials) -> tuple[int, int]:
    """(mode, gid) of something new in this directory. In a setgid directory the group is the directory's, and directories pass the
    bit on; a file does not get it for a group that the caller is not in. mkdir(2) knows no set-id bits."""
    mode &= MKDIR_BITS if kind == inodes.DIRECTORY else inodes.MODE_BITS
    if not parent.mode & SGID:
        return mode, caller.gid
    if kind == inodes.DIRECTORY:
        return mode | SGID, parent.gid
    if mode & SGID and mode & 0o010 and not caller.is_root and not caller.member_of(parent.gid):
        mode &= ~SGID
    return mode, parent.gid


class Recipe(NamedTuple):
    """What is to be made: the part of `NewEntry` that an inode is made of. (Reading it out of the message costs more.)"""

    type: int
    mode: int
    chunk_size: int = 0  # 0: the directory's default
    stripe: int = 0
    target: bytes = b""
    rdev: int = 0
    umask: int = 0
    content: bytes = b""  # of a regular file


async def make(attempt: Attempt, parent: Directory, name: bytes, entry: Recipe) -> Inode:
    """A new inode under a name that was found free. Raises PERMISSION_DENIED, NOT_PERMITTED (devices are root's), UNAVAILABLE (no
    storage for a file)."""
    require(parent, attempt.caller, WRITE | EXECUTE, is_directory=True)
    if entry.type in DEVICES and not attempt.caller.is_root:
        raise error(Status.NOT_PERMITTED, "only root may make device files")
    _, gid = inherited(parent, entry.type, entry.mode, attempt.caller)
    await quota.require(attempt, quota.Owned(attempt.caller.uid, gid, parent.project), 1, len(entry.content))
    inode = await make_inode(attempt, parent, entry, nlink=1)
    quota.appeared(attempt.txn, inode)
    if entry.content:
        inline.put(attempt.txn, inode, entry.content)
        attempt.put(inode)
    dentries.insert(attempt.txn, parent.id, name, Dentry(inode.type, inode.id), attempt.now_ns)
    attempt.tell(CREATED, inode.id, parent.id, name)
    if inode.is_directory:
        attempt.directory_added()
    return inode


async def make_inode(attempt: Attempt, parent: Directory, entry: Recipe, *, nlink: int, flags: int = 0) -> Inode:
    """A new inode without a name, written."""
    kind = entry.type
    mode, gid = inherited(parent, kind, entry.mode, attempt.caller)
    default = parent.default_acl
    if default is None:
        mode &= ~(entry.umask & 0o777)
    namespace, now_ns = attempt.namespace, attempt.now_ns
    number = await namespace.inode_numbers.take()
    inode = Inode(number, kind, flags, mode, attempt.caller.uid, gid, nlink, 0, now_ns, now_ns, now_ns, now_ns, 1, 0)
    inode.project = parent.project
    if kind == inodes.REGULAR:
        chunk_size = entry.chunk_size or parent.chunk_size or CHUNK_BYTES_DEFAULT
        inode.layout = await namespace.new_layout(number, chunk_size, entry.stripe or parent.stripe)
    elif kind == inodes.DIRECTORY:
        inode.parent = parent.id
        inode.chunk_size = entry.chunk_size or parent.chunk_size
        inode.stripe = entry.stripe or parent.stripe
        inode.trash = parent.trash
    elif kind == inodes.SYMLINK:
        inode.mode = 0o777
        inode.target = entry.target
    else:
        inode.rdev = entry.rdev
    if default is not None and kind != inodes.SYMLINK:
        _inherit_acls(attempt, inode, default)
    attempt.put(inode)
    attempt.txn.add(keys.INODES_USED, 1)
    return inode


def _inherit_acls(attempt: Attempt, inode: Inode, default: Acl) -> None:
    inode.mode, access = acls.inherit(default, inode.mode)
    if access is not None:
        extended.put_acl(attempt.txn, inode, access)
    if inode.is_directory:
        extended.put_default_acl(attempt.txn, inode, default)


def check_entry(entry: Recipe) -> None:
    """Raise what is wrong with a new entry whatever the tree looks like: INVALID, NOT_FOUND (an empty symlink target),
    NAME_TOO_LONG."""
    kind = entry.type
    if kind not in KINDS:
        raise error(Status.INVALID, f"file type {kind}: not one of those in common.proto")
    check_defaults(entry.chunk_size, entry.stripe)
    if kind == inodes.SYMLINK:
        if not entry.target:
            raise error(Status.NOT_FOUND, "the target of a symlink must not be empty")
        if len(entry.target) > TARGET_BYTES_MAX:
            raise error(
                Status.NAME_TOO_LONG, f"a symlink target of {len(entry.target)} bytes: at most {TARGET_BYTES_MAX}"
            )
        if b"\0" in entry.target:
            raise error(Status.INVALID, "the target of a symlink contains a NUL byte")


def check_defaults(chunk_size: int, stripe: int) -> None:
    """Raise INVALID for a chunk size or stripe that no layout can have; 0 is "the default"."""
    if chunk_size:
        check_chunk_size(chunk_size)
    if stripe > STRIPE_MAX:
        raise error(Status.INVALID, f"a stripe of {stripe} chains: at most {STRIPE_MAX}")


async def make_parents(attempt: Attempt, place: Place, mode: int, umask: int) -> None:
    """Make the directories that are missing on the way to the last name of a place, with these permissions and the right for their
    owner to go on. What exists must be a directory or lead to one. Raises as `path.locate` and `make`."""
    path.check_path(place.path)
    names = place.path.rstrip(b"/").rpartition(b"/")[0]
    if not names:
        return
    try:
        await path.locate(attempt, Place(parent=place.parent, path=names + b"/."))
        return  # the usual case: they all exist
    except FileNotFoundError:
        pass
    entry = Recipe(inodes.DIRECTORY, mode & 0o777 | 0o300, umask=umask & ~0o300)
    current = place.parent
    for name in names.split(b"/"):
        if name:  # one step at a time: walking from the start again would cost the square of the depth
            found = await path.locate(attempt, Place(parent=current, path=name + b"/"), follow=True)
            if found.entry is None:
                current = (await make(attempt, found.parent, found.name, entry)).id
            else:
                current = found.entry.inode


def mode_of_parents(kind: int, mode: int) -> int:
    """Who may read a file may search the directories made for it."""
    return mode if kind == inodes.DIRECTORY else mode | (mode & 0o444) >> 2


async def create(attempt: Attempt, request: meta_pb2.CreateRequest) -> meta_pb2.CreateReply:
    """Make each entry, in order, in one transaction."""
    check_batch(len(request.entries), "entries")
    reply = meta_pb2.CreateReply()
    for entry in request.entries:
        try:
            inode = await _create_one(attempt, entry, request)
        except StatusError as failure:
            reply.statuses.append(status_of_entry(failure))
            reply.attributes.add()
        else:
            reply.statuses.append(0)
            inodes.fill(reply.attributes.add(), await attempt.visible(inode))
    return reply


async def _create_one(attempt: Attempt, entry: NewEntry, request: meta_pb2.CreateRequest) -> Inode:
    kind = int(entry.type)
    recipe = Recipe(
        kind, entry.mode, entry.chunk_size, entry.stripe, entry.target, entry.rdev, request.umask, entry.content
    )
    check_entry(recipe)
    if entry.content and (kind != inodes.REGULAR or len(entry.content) > attempt.namespace.inline_max()):
        raise error(
            Status.TOO_LARGE,
            f"{len(entry.content)} bytes of content: {attempt.namespace.inline_max()} fit beside an inode",
        )
    if request.parents:
        await make_parents(attempt, entry.place, mode_of_parents(kind, entry.mode), request.umask)
    found = await path.locate(attempt, entry.place)
    if found.entry is None:
        if found.slash and kind != inodes.DIRECTORY:
            raise path.missing(found.name)
        return await make(attempt, found.parent, found.name, recipe)
    if request.exist_ok:
        there = await path.lookup(attempt, entry.place, follow=kind == inodes.DIRECTORY)
        if there.type == kind:
            return there
    raise error(Status.EXISTS, f"{path.shown(found.name or b'/')} exists")
