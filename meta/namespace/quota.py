"""Quotas: limits on the bytes and inodes of a user, of a group, or of all that lies below a directory.

What is used is counted always, in blind counters (keys.py, USED), so that nobody waits for anybody: an inode counts from its first name to
its last, with its length, for its owner, its group, and its *project*: the nearest directory above it that had a quota when it was made
or was counted (as in XFS). A project counts only what no project below it counts; what a directory uses is the sum over its own
and those. Limits are few, and known to every server for one value of DIRV.

Limits are looked at where something begins to count or grows: they may be overshot by what is in flight, and by what a writer has
written since the server told him how long the file may become.

A quota that is set on a directory with content takes in what is there in the background, directory by directory (`Counter`). The
boundary of a project is a boundary for directories and hard links: moving a directory across it is CROSS_DEVICE, as between file
systems, and `mv` then copies; a file that moves is counted anew.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ...proto.errors import Status, error
from ...proto.gen.meta_pb2 import QUOTA_KIND_DIRECTORY, QUOTA_KIND_GROUP, QUOTA_KIND_USER
from .. import keys
from ..kv.engine import Transaction

if TYPE_CHECKING:
    from .attempt import Attempt
    from .directories import Directory
    from .inode import Inode

VERSION = 1
QUOTAS_MAX = 4096
DIRECTORY, USER, GROUP = int(QUOTA_KIND_DIRECTORY), int(QUOTA_KIND_USER), int(QUOTA_KIND_GROUP)
_NAMES = {DIRECTORY: "directory", USER: "user", GROUP: "group"}

BYTES, INODES = b"b", b"i"  # columns of USED

_RECORD = struct.Struct(">BQQQB")  # version, bytes_max, inodes_max, parent, counting 1 | ending 2

Scope = tuple[int, int]  # kind, id


class Limits(NamedTuple):
    """What a quota allows; 0: everything."""

    bytes_max: int
    inodes_max: int
    parent: int = 0  # of a directory's: the project around it
    counting: bool = False  # what was there before is still being counted
    ending: bool = False  # it is removed, and what it counts goes back to the project around it

    def pack(self) -> bytes:
        return _RECORD.pack(VERSION, self.bytes_max, self.inodes_max, self.parent, self.counting | self.ending << 1)


def unpack(data: bytes) -> Limits:
    """Raises BAD_FORMAT for a record of a newer version."""
    version, bytes_max, inodes_max, parent, state = _RECORD.unpack(data)
    if version > VERSION:
        raise keys.refused("a quota", version)
    return Limits(bytes_max, inodes_max, parent, bool(state & 1), bool(state & 2))


class Used(NamedTuple):
    bytes: int
    inodes: int


class Quotas:
    """All quotas of one value of DIRV."""

    def __init__(self, limits: dict[Scope, Limits]) -> None:
        self.limits = limits
        self._parts: dict[int, list[int]] = {}  # directory -> its project and those below it
        for kind, number in limits:
            if kind == DIRECTORY:
                for above in self.chain(number):
                    self._parts.setdefault(above, []).append(number)

    def chain(self, project: int) -> list[int]:
        """A project and those around it, innermost first."""
        found: list[int] = []
        while project and (DIRECTORY, project) in self.limits and project not in found:
            found.append(project)
            project = self.limits[DIRECTORY, project].parent
        return found

    def scopes(self, uid: int, gid: int, project: int) -> list[Scope]:
        """Those of an inode that have limits."""
        owners = [scope for scope in ((USER, uid), (GROUP, gid)) if scope in self.limits]
        return owners + [(DIRECTORY, number) for number in self.chain(project)]

    def parts(self, scope: Scope) -> list[Scope]:
        """The counters that make up what a scope uses."""
        kind, number = scope
        return [(DIRECTORY, part) for part in self._parts.get(number, [number])] if kind == DIRECTORY else [scope]


async def quotas(attempt: Attempt) -> Quotas:
    """The quotas that hold for this attempt."""
    view = attempt.view
    if view.quotas is None:
        view.quotas = Quotas(await read_limits(attempt.txn))
    return view.quotas


async def read_limits(txn: Transaction) -> dict[Scope, Limits]:
    """All quotas."""
    rows = await txn.scan(*keys.prefix_range(keys.QUOTA), QUOTAS_MAX, snapshot=True)
    return {keys.split_quota_key(key): unpack(value) for key, value in rows}


async def used(txn: Transaction, known: Quotas, scopes: Iterable[Scope]) -> dict[Scope, Used]:
    """What these scopes use."""
    parts = {scope: known.parts(scope) for scope in scopes}
    asked = [key for each in parts.values() for part in each for key in _used_keys(part)]
    values = iter([keys.counter(value) for value in await txn.get_many(asked, snapshot=True)])
    found = {}
    for scope, each in parts.items():
        counts = [(next(values), next(values)) for _ in each]
        found[scope] = Used(sum(count[0] for count in counts), sum(count[1] for count in counts))
    return found


def _used_keys(scope: Scope) -> tuple[bytes, bytes]:
    return keys.used_key(*scope, BYTES), keys.used_key(*scope, INODES)


# --- counting -----------------------------------------------------------------------------------------------------------------------


def count(txn: Transaction, inode: Inode, inodes: int, length: int) -> None:
    """So many inodes and bytes more (or less) for everybody for whom this inode counts."""
    if inode.project:
        _add(txn, (DIRECTORY, inode.project), inodes, length)
    _add(txn, (USER, inode.uid), inodes, length)
    _add(txn, (GROUP, inode.gid), inodes, length)


def _add(txn: Transaction, scope: Scope, inodes: int, length: int) -> None:
    if length:
        txn.add(keys.used_key(*scope, BYTES), length)
    if inodes:
        txn.add(keys.used_key(*scope, INODES), inodes)


def appeared(txn: Transaction, inode: Inode) -> None:
    """The inode has its first name."""
    count(txn, inode, 1, inode.length)


def vanished(txn: Transaction, inode: Inode) -> None:
    """The inode has lost its last name."""
    count(txn, inode, -1, -inode.length)


def resize(txn: Transaction, inode: Inode, length: int) -> None:
    """Set the length of a regular file; the caller writes the inode."""
    if inode.nlink > 0:
        count(txn, inode, 0, length - inode.length)
    inode.length = length


class Owned(NamedTuple):
    """For whom an inode counts."""

    uid: int
    gid: int
    project: int


def owner_of(inode: Inode) -> Owned:
    return Owned(inode.uid, inode.gid, inode.project)


def changed_hands(txn: Transaction, inode: Inode, before: Owned) -> None:
    """The inode, which has a name, counted for these before."""
    for kind, old, new in (
        (USER, before.uid, inode.uid),
        (GROUP, before.gid, inode.gid),
        (DIRECTORY, before.project, inode.project),
    ):
        if old != new:
            if old or kind != DIRECTORY:
                _add(txn, (kind, old), -1, -inode.length)
            if new or kind != DIRECTORY:
                _add(txn, (kind, new), 1, inode.length)


# --- limits -------------------------------------------------------------------------------------------------------------------------


async def require(attempt: Attempt, owned: Owned, inodes: int, length: int, before: Owned | None = None) -> None:
    """Raise QUOTA_EXCEEDED unless so much more may count for these. For whom it has counted `before`, it is not more."""
    known = await quotas(attempt)
    if not known.limits:
        return
    counting = known.scopes(*before) if before is not None else ()
    scopes = [scope for scope in known.scopes(*owned) if scope not in counting]
    for scope, now in (await used(attempt.txn, known, scopes)).items():
        limits = known.limits[scope]
        if inodes > 0 and limits.inodes_max and now.inodes + inodes > limits.inodes_max:
            raise _exceeded(scope, f"{limits.inodes_max} files and directories")
        if length > 0 and limits.bytes_max and now.bytes + length > limits.bytes_max:
            raise _exceeded(scope, f"{limits.bytes_max} bytes")


def _exceeded(scope: Scope, limit: str) -> Exception:
    kind, number = scope
    owner = "a directory above" if kind == DIRECTORY else f"{_NAMES[kind]} {number}"
    return error(
        Status.QUOTA_EXCEEDED,
        f"the quota of {owner} is {limit}: remove something, or have it raised ('emberfs quota list' shows all)",
    )


async def length_max(attempt: Attempt, inode: Inode) -> int | None:
    """How long quotas let a file become; None: they do not care."""
    known = await quotas(attempt)
    if not known.limits:
        return None
    scopes = [scope for scope in known.scopes(*owner_of(inode)) if known.limits[scope].bytes_max]
    if not scopes:
        return None
    uses = await used(attempt.txn, known, scopes)
    left = min(known.limits[scope].bytes_max - uses[scope].bytes for scope in scopes)
    return inode.length + max(0, left)


# --- boundaries of projects ---------------------------------------------------------------------------------------------------------


async def enter(attempt: Attempt, inode: Inode, parent: Directory) -> None:
    """Something that has a name comes into another directory; the caller writes the inode. Raises CROSS_DEVICE where a directory, or a
    file with several names, would leave its project, and QUOTA_EXCEEDED."""
    around = inode.project
    if inode.is_directory and around:
        limits = (await quotas(attempt)).limits.get((DIRECTORY, around))
        if limits is None:
            around = 0  # that quota was removed while this lay in the trash, where nobody counts anew
        elif around == inode.id:
            around = limits.parent
    if around == parent.project:
        return
    if inode.is_directory or inode.nlink > 1:
        raise error(
            Status.CROSS_DEVICE,
            f"inode {inode.id:x} counts for another directory's quota, and cannot be moved across: copy it (mv does)",
        )
    before = owner_of(inode)
    await require(attempt, Owned(inode.uid, inode.gid, parent.project), 1, inode.length, before)
    inode.project = parent.project
    changed_hands(attempt.txn, inode, before)


def forget(txn: Transaction, directory: Inode) -> None:
    """A directory ceases to exist, and with it a quota that it has. (Its counters stay: of a tree the parts go one by one.)"""
    if directory.project == directory.id:
        txn.delete(keys.quota_key(DIRECTORY, directory.id))
