"""Directories in pages, with or without the attributes of what is in them."""

from __future__ import annotations

from ....proto.errors import Status, error
from ....proto.gen import meta_pb2
from ... import keys
from .. import dentry as dentries
from .. import inode as inodes
from .. import path
from ..access import EXECUTE, READ, require
from ..attempt import Attempt
from ..inode import Inode

ENTRIES_MAX = 8192  # of one page
ENTRIES_DEFAULT = 1024
TARGETS_BYTES_MAX = 8 << 20  # of symlinks, in one page with attributes: with the rest it has to fit a message


async def read_directory(attempt: Attempt, request: meta_pb2.ReadDirectoryRequest) -> meta_pb2.ReadDirectoryReply:
    """A page of entries after the cookie, in the order of names. A cookie is the last name seen, so it stays good whatever happens
    to the directory meanwhile: no entry that exists throughout is skipped or told twice. Raises NOT_DIRECTORY, PERMISSION_DENIED."""
    node = await path.lookup(attempt, request.place, follow=True)
    if not node.is_directory:
        raise error(Status.NOT_DIRECTORY, f"inode {node.id:x} is not a directory")
    if not node.parent:
        raise error(Status.STALE_HANDLE, f"directory {node.id:x} was removed; open the path again")
    require(node, attempt.caller, READ | (EXECUTE if request.attributes else 0), is_directory=True)
    limit = min(request.entries_max or ENTRIES_DEFAULT, ENTRIES_MAX)
    begin, end = keys.dentry_range(node.id)
    if request.cookie:
        begin = keys.dentry_key(node.id, request.cookie) + b"\0"
    rows = await attempt.txn.scan(begin, end, limit, snapshot=True)
    end_reached = len(rows) < limit
    names = [key[keys.DENTRY_NAME_AT :] for key, _ in rows]
    entries = [dentries.unpack(value) for _, value in rows]
    found: list[Inode] = []
    if request.attributes:
        found = await load_many(attempt, [entry.inode for entry in entries])
        if (count := fitting(found)) < len(found):
            names, entries, found, end_reached = names[:count], entries[:count], found[:count], False
    reply = meta_pb2.ReadDirectoryReply(
        names=names,
        inodes=[entry.inode for entry in entries],
        types=[entry.type for entry in entries],  # type: ignore[misc]
        cookie=names[-1] if names else request.cookie,
        end=end_reached,
    )
    for inode in found:
        inodes.fill(reply.attributes.add(), inode)
    if not request.cookie:
        reply.directory.CopyFrom(await attempt.visible_attributes(node))
    return reply


def fitting(found: list[Inode]) -> int:
    """How many of these a reply holds: as many as the targets of symlinks let in, and one at least."""
    if sum([len(inode.target) for inode in found]) <= TARGETS_BYTES_MAX:
        return len(found)
    room = TARGETS_BYTES_MAX
    for place, inode in enumerate(found):
        room -= len(inode.target)
        if room < 0:
            return max(place, 1)
    return len(found)


async def load_many(attempt: Attempt, numbers: list[int]) -> list[Inode]:
    """The inodes of names that one snapshot showed, as their readers see them. Raises BAD_FORMAT for a name without inode."""
    records = await attempt.txn.get_many([keys.inode_key(number) for number in numbers], snapshot=True)
    found = []
    for number, record in zip(numbers, records, strict=True):
        if record is None:
            raise error(Status.BAD_FORMAT, f"inode {number:x} has a name and does not exist: run 'emberfs fsck'")
        found.append(inodes.unpack(number, record))
    return await attempt.visible_many(found)
