"""Who may do what: the permission rules of POSIX, decided from an owner, a mode and an access ACL. Pure functions."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ...proto.errors import Status, error
from ...proto.hello import NOBODY
from . import acl as acls
from .acl import Acl

READ = 4
WRITE = 2
EXECUTE = 1

SUID = 0o4000
SGID = 0o2000
STICKY = 0o1000


class Credentials(NamedTuple):
    """Whom an operation acts for."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    def member_of(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups


ROOT = Credentials(0, 0)


class Owned(Protocol):
    """An inode or a cached directory."""

    @property
    def id(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def acl(self) -> Acl | None: ...


def permits(node: Owned, caller: Credentials, want: int, *, is_directory: bool = False) -> bool:
    """Whether mode and ACL grant every right in `want`. The first class that fits the caller decides, as POSIX says: an owner without
    the bit is refused even where the group has it. Root lacks only the right to execute what nobody may execute. An ACL whose mask
    grants nothing is not asked, as in Linux: then even a user whom it names is one of the others."""
    mode = node.mode
    if caller.uid == 0:
        return not want & EXECUTE or is_directory or bool(mode & 0o111)
    if caller.uid == node.uid:
        return mode >> 6 & want == want
    if node.acl is not None and mode & 0o070:
        return acls.permits(node.acl, mode, node.gid, caller.uid, (caller.gid, *caller.groups), want)
    if caller.gid == node.gid or node.gid in caller.groups:
        return mode >> 3 & want == want
    return mode & want == want


_NAMES = {READ: "read", WRITE: "write", EXECUTE: "search", READ | WRITE: "read and write", WRITE | EXECUTE: "change"}


def require(node: Owned, caller: Credentials, want: int, *, is_directory: bool = False, what: str = "") -> None:
    """Raise PERMISSION_DENIED unless the mode grants `want`. `what` names the thing for people."""
    if not permits(node, caller, want, is_directory=is_directory):
        who = "nobody (as root is over TCP)" if caller.uid == NOBODY else f"user {caller.uid}"
        raise error(
            Status.PERMISSION_DENIED,
            f"permission denied: the mode {node.mode:04o} of {what or f'inode {node.id:x}'}, which belongs to {node.uid}:{node.gid}, "
            f"does not let {who} {_NAMES.get(want, 'use')} it",
        )


def require_owner(node: Owned, caller: Credentials, what: str) -> None:
    """Raise NOT_PERMITTED unless the caller owns the inode or is root."""
    if caller.uid not in (0, node.uid):
        raise error(Status.NOT_PERMITTED, f"only user {node.uid}, who owns inode {node.id:x}, or root may {what}")


def require_removable(directory: Owned, entry_uid: int, caller: Credentials, name: bytes) -> None:
    """Raise PERMISSION_DENIED or NOT_PERMITTED unless the caller may take this name out of the directory: write and search there, and
    in a sticky directory only the owner of the entry or of the directory."""
    require(directory, caller, WRITE | EXECUTE, is_directory=True)
    if directory.mode & STICKY and caller.uid not in (0, entry_uid, directory.uid):
        raise error(
            Status.NOT_PERMITTED, f"{name!r} belongs to user {entry_uid} in a sticky directory of user {directory.uid}"
        )


def require_linkable(node: Owned, caller: Credentials, *, is_regular: bool) -> None:
    """Raise NOT_PERMITTED unless the caller may make another name for it, as Linux does by default (fs.protected_hardlinks): its owner
    may, and others only for a plain file that they may read and write and that runs as nobody else. Or else whoever can make names
    anywhere could keep, for a day when it is of use, what its owner has removed."""
    if caller.uid in (0, node.uid):
        return
    harmless = is_regular and not node.mode & SUID and node.mode & 0o2010 != 0o2010
    if not harmless or not permits(node, caller, READ | WRITE):
        raise error(
            Status.NOT_PERMITTED,
            f"inode {node.id:x} belongs to user {node.uid}: user {caller.uid} may not make another name for it",
        )


def without_set_ids(mode: int, *, member: bool = True) -> int:
    """The mode after somebody wrote to the file, or changed its owner: no suid; no sgid where it means "run as the group", or where he
    is no `member` of the group (root is of all)."""
    return mode & ~SUID & ~(SGID if mode & 0o010 or not member else 0)
