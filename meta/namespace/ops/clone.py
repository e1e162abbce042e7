"""Clone: two files whose chunks of one index lie on one chain, so that they can share them.

What is shared, and how often, only the targets know (they count references to their slots); to the namespace a clone is a file like
any other. It has the layout of its source, seed included: an empty file that nobody else writes to takes it over. Readers that know the old
layout miss chunks, ask again, and see the new one.
"""

from __future__ import annotations

from ....proto.gen import meta_pb2
from ... import keys
from .. import inode as inodes
from .. import session
from ..attempt import Attempt
from ..inode import Inode
from ..seams import Layout
from ..trim import FinishTrim


async def clone(attempt: Attempt, request: meta_pb2.CloneFileRequest) -> meta_pb2.CloneFileReply:
    """Whether the target can share chunks with the source; if it has another layout and is empty, it takes the source's. The right to read
    the source is storage's to check. Raises STALE_HANDLE, IS_DIRECTORY, INVALID (no regular file), SESSION_ENDED."""
    source, layout = await attempt.regular(request.source)
    target, own = await attempt.regular(request.target)
    await session.require(attempt.txn, target.id, request.session, attempt.client)
    for inode in (source, target):
        if inode.flags & inodes.TRIMMING:
            raise FinishTrim(inode.id)  # what is cut must not be shared, nor come later where something was shared
    if (source.flags | target.flags) & inodes.INLINE:
        shares = False  # what lies beside an inode is copied faster than it would come into a chunk
    else:
        shares = own == layout
        if not shares and not request.keep_layout and await _is_new(attempt, target):
            _take_layout(attempt, target, layout)
            shares = True
    found = (inodes.attributes(source), inodes.attributes(target))
    return meta_pb2.CloneFileReply(shares=shares, source=found[0], target=found[1])


def _take_layout(attempt: Attempt, target: Inode, layout: Layout) -> None:
    target.layout = layout
    target.touched(attempt.now_ns)
    attempt.put(target)


async def _is_new(attempt: Attempt, target: Inode) -> bool:
    """Whether the file is empty, and nobody but the caller can have written what its length does not know yet."""
    if target.length:
        return False
    return len(await attempt.txn.scan(*keys.session_range(target.id), 2)) == 1
