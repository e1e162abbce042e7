"""Paths of directories, for people: found from below, name by name."""

from __future__ import annotations

from ...proto.errors import StatusError
from .. import keys
from . import dentry as dentries
from . import path
from .attempt import Attempt
from .inode import Inode

NAMES_MAX = 4096  # of a directory that are looked through for a name


async def way_to(attempt: Attempt, number: int) -> bytes:
    """The path of a directory for people; where a name is not found among the first NAMES_MAX, its number stands for it."""
    names: list[bytes] = []
    while number != path.ROOT:
        try:
            inode = await attempt.inode(number)
        except StatusError:
            return b"/".join([b"(removed directory %x)" % number, *reversed(names)])
        if not inode.parent:
            return b"/".join([b"(removed directory %x)" % number, *reversed(names)])
        names.append(await _name_of(attempt, inode))
        number = inode.parent
    return b"/" + b"/".join(reversed(names))


async def _name_of(attempt: Attempt, inode: Inode) -> bytes:
    for key, value in await attempt.txn.scan(*keys.dentry_range(inode.parent), NAMES_MAX, snapshot=True):
        if dentries.unpack(value).inode == inode.id:
            return key[keys.DENTRY_NAME_AT :]
    return b"(%x)" % inode.id
