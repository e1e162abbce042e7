"""Path resolution: symlinks, `.` and `..`, trailing slashes, limits, and the right to search every directory on the way."""

from __future__ import annotations

from typing import NamedTuple

from ...proto.errors import Status, StatusError, error
from ...proto.gen.meta_pb2 import Place
from ...proto.ids import ROOT_INODE
from .. import keys
from . import dentry as dentries
from . import inode as inodes
from .access import EXECUTE, require
from .attempt import Attempt
from .dentry import Dentry
from .directories import WALK_BYTES_MAX, Directory
from .inode import Inode

NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 4095
SYMLINKS_MAX = 40  # on the way of one path
DEPTH_MAX = 4096  # directories between any one and the root

ROOT = ROOT_INODE
_DOTS = (b".", b"..")


class Found(NamedTuple):
    """Where a path ends. `entry` is None for a name that does not exist."""

    parent: Directory
    name: bytes  # empty: the path ends in a directory that has no name here ("/", "a/..", an empty path)
    entry: Dentry | None
    slash: bool  # the path ended in '/': it can only mean a directory
    dots: bytes = b""  # "." or ".." where the path ended so, for those that refuse it


def check_path(path: bytes) -> None:
    """Raise INVALID for a NUL, NAME_TOO_LONG for a path over the limit (a name is looked at when the way comes to it)."""
    if b"\0" in path:
        raise error(Status.INVALID, f"path {path[:64]!r} contains a NUL byte")
    if len(path) > PATH_BYTES_MAX:
        raise error(Status.NAME_TOO_LONG, f"a path of {len(path)} bytes: at most {PATH_BYTES_MAX}")


def shown(name: bytes) -> str:
    """A name in quotes, for people."""
    return repr(name.decode("utf-8", "backslashreplace"))


def missing(name: bytes) -> StatusError:
    """The error for a name that does not exist."""
    return error(Status.NOT_FOUND, f"no such file or directory: {shown(name)}")


async def directory(attempt: Attempt, number: int) -> Directory:
    """A directory that can be reached from the root. Raises STALE_HANDLE when it is gone or was removed with a tree above it,
    NOT_DIRECTORY for anything else."""
    view = attempt.view
    known = view.directories.get(number)
    if known is None:
        known = _digest(await attempt.inode(number))
        view.trim()
        view.directories[number] = known
    if number not in view.attached:
        await _check_attached(attempt, known)
    return known


def _digest(inode: Inode) -> Directory:
    if inode.type != inodes.DIRECTORY:
        raise error(Status.NOT_DIRECTORY, f"inode {inode.id:x} is not a directory")
    return Directory(
        inode.id,
        inode.mode,
        inode.uid,
        inode.gid,
        inode.parent,
        inode.chunk_size,
        inode.stripe,
        inode.acl,
        inode.default_acl,
        bool(inode.flags & inodes.EXTENDED),
        inode.trash,
        inode.project,
    )


async def _check_attached(attempt: Attempt, start: Directory) -> None:
    view = attempt.view
    way = [start.id]
    current = start
    while current.id != ROOT and current.parent not in view.attached:
        if not current.parent or len(way) > DEPTH_MAX:
            raise error(Status.STALE_HANDLE, f"directory {start.id:x} was removed; open the path again")
        parent = view.directories.get(current.parent)
        if parent is None:
            parent = view.directories[current.parent] = _digest(await attempt.inode(current.parent))
        way.append(parent.id)
        current = parent
    view.attached.update(way)


async def child(attempt: Attempt, parent: Directory, name: bytes) -> Dentry | None:
    """The entry of a name, or None. Raises NAME_TOO_LONG."""
    if len(name) > NAME_BYTES_MAX:
        raise error(Status.NAME_TOO_LONG, f"a name of {len(name)} bytes ({name[:32]!r}…): at most {NAME_BYTES_MAX}")
    view = attempt.view
    known = view.children.get((parent.id, name))
    if known is not None:
        return Dentry(inodes.DIRECTORY, known)
    data = await attempt.txn.get(keys.dentry_key(parent.id, name), snapshot=attempt.reading)
    if data is None:
        return None
    entry = dentries.unpack(data)
    if entry.type == inodes.DIRECTORY:
        view.trim()
        view.children[parent.id, name] = entry.inode
    return entry


async def locate(attempt: Attempt, place: Place, *, follow: bool = False, creating: bool = False) -> Found:
    """Resolve a place up to its last name. With `follow` a symlink there is followed too, to the name it points at in the end, which
    need not exist. With `creating`, for a file, a last name with a '/' behind it is refused with IS_DIRECTORY. Raises what is wrong
    on the way: NOT_FOUND, NOT_DIRECTORY, PERMISSION_DENIED, SYMLINK_LOOP, NAME_TOO_LONG…"""
    path = place.path
    start = place.parent or ROOT
    check_path(path)
    head, _, name = path.rpartition(b"/")
    if name and name not in _DOTS:
        # The short way: everything before the last name was walked before for this caller, under the same DIRV.
        remembered = attempt.view.walks.get((attempt.caller, start, head)) if head else start
        if remembered is not None:
            parent = await directory(attempt, remembered)
            require(parent, attempt.caller, EXECUTE, is_directory=True)
            entry = await child(attempt, parent, name)
            if entry is None or entry.type != inodes.SYMLINK or not follow:
                return Found(parent, name, entry, slash=False)
    return await _walk(attempt, await directory(attempt, start), path, follow=follow, creating=creating)


async def _walk(attempt: Attempt, start: Directory, path: bytes, *, follow: bool, creating: bool) -> Found:
    current = start
    slash = path.endswith(b"/")
    head = path.rpartition(b"/")[0]
    stack = [name for name in reversed(path.split(b"/")) if name]
    links = 0
    while stack:
        name = stack.pop()
        require(current, attempt.caller, EXECUTE, is_directory=True)
        if name in _DOTS:
            if name == b"..":
                current = await directory(attempt, current.parent)
            if not stack:
                return _itself(current, slash=slash, dots=name)
            continue
        if not stack and not links and head and not slash and len(head) <= WALK_BYTES_MAX:
            attempt.view.trim()
            attempt.view.walks[attempt.caller, start.id, head] = current.id
        if creating and slash and not stack:
            raise error(Status.IS_DIRECTORY, f"{shown(name)} with a '/' behind it cannot be created as a file")
        entry = await child(attempt, current, name)
        if entry is not None and entry.type == inodes.SYMLINK and (stack or follow):
            links += 1
            if links > SYMLINKS_MAX:
                raise error(Status.SYMLINK_LOOP, f"more than {SYMLINKS_MAX} symlinks on the way of {path[:64]!r}")
            target = (await attempt.inode(entry.inode)).target
            slash = slash or (not stack and target.endswith(b"/"))
            current = await _start_of(attempt, current, target)
            stack.extend(name for name in reversed(target.split(b"/")) if name)
            continue
        if not stack:
            return Found(current, name, entry, slash)
        if entry is None:
            raise missing(name)
        if entry.type != inodes.DIRECTORY:
            raise error(Status.NOT_DIRECTORY, f"{shown(name)} is not a directory")
        current = await directory(attempt, entry.inode)
    return _itself(current, slash=slash)


async def _start_of(attempt: Attempt, current: Directory, target: bytes) -> Directory:
    # Where the target of a symlink starts. An absolute one starts at the root of the file system.
    if not target:
        raise error(Status.NOT_FOUND, f"a symlink in directory {current.id:x} has an empty target")
    check_path(target)
    return await directory(attempt, ROOT) if target.startswith(b"/") else current


def _itself(current: Directory, *, slash: bool, dots: bytes = b"") -> Found:
    return Found(current, b"", Dentry(inodes.DIRECTORY, current.id), slash, dots)


async def lookup(attempt: Attempt, place: Place, *, follow: bool) -> Inode:
    """The inode that a place names. An empty path is the place's inode itself, whatever its type and whether or not it still has a
    name. Raises as `locate` does, and NOT_FOUND."""
    path = place.path
    if not path:
        return await attempt.inode(place.parent or ROOT)
    found = await locate(attempt, place, follow=follow or path.endswith(b"/"))
    return await inode_of(attempt, found)


async def inode_of(attempt: Attempt, found: Found) -> Inode:
    """The inode at the end of a path. Raises NOT_FOUND, and NOT_DIRECTORY for "file/"."""
    if found.entry is None:
        raise missing(found.name)
    if found.slash and not found.entry.is_directory:
        raise error(Status.NOT_DIRECTORY, f"{shown(found.name)} is not a directory, and its path ends in '/'")
    return await attempt.inode(found.entry.inode)
