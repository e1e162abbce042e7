"""When files were read, by the rule of relatime: a time is written only where it tells something new.

Reading commits nothing, so nobody waits for it: an open says whether the time is due, the client collects what was then read, and
tells it in batches with the renewals of its lease. A client that dies loses a few of these times, as a power failure does locally.
"""

from __future__ import annotations

from ....proto.gen import meta_pb2
from ... import keys
from .. import extended
from .. import inode as inodes
from ..access import READ, permits
from ..attempt import Attempt
from ..inode import Inode
from .stat import check_batch

DAY_NS = 86_400_000_000_000


def is_due(inode: Inode, now_ns: int) -> bool:
    """Whether reading the file now would move its atime: it was not read since its last change, or not for a day."""
    return inode.atime_ns <= max(inode.mtime_ns, inode.ctime_ns) or now_ns - inode.atime_ns >= DAY_NS


async def read_times(attempt: Attempt, request: meta_pb2.ReadTimesRequest) -> meta_pb2.ReadTimesReply:
    """The atime of each file becomes now, where that is due. Neither ctime nor `change` moves."""
    check_batch(len(request.inodes), "files")
    numbers = sorted(set(request.inodes))
    records = await attempt.txn.get_many([keys.inode_key(number) for number in numbers])
    for number, record in zip(numbers, records, strict=True):
        if record is None:
            continue
        inode = inodes.unpack(number, record)
        if inode.flags & inodes.ANY_ACL:
            await extended.load_acls(attempt.txn, inode, snapshot=False)
        if inode.layout is not None and is_due(inode, attempt.now_ns) and permits(inode, attempt.caller, READ):
            inode.atime_ns = attempt.now_ns
            attempt.put(inode)
    return meta_pb2.ReadTimesReply()
