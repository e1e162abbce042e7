"""Where a chunk has fewer bytes than the file's length says: a hole that reads as zeros, or lost data.

Only an inode that says `sparse` has holes. In any other a missing or short chunk below the length is data that was lost, and reading zeros
there would be the worst answer of all.
"""

from __future__ import annotations

from ...proto.errors import Status, error
from .inode import name_of
from .reads import Fetch, report_damage


async def check_holes(fetch: Fetch) -> None:
    """Let short rows of a finished fetch pass if they are holes. Raises LOST_DATA, with the chunk and its targets, and reports it."""
    views, lengths = fetch.views, fetch.columns.length
    for row, view in enumerate(views):
        if len(view) < lengths[row] and not fetch.columns.inode(row).sparse:
            await _ask(fetch, row)


async def _ask(fetch: Fetch, row: int) -> None:
    columns, cluster = fetch.columns, fetch.cluster
    file, index = columns.inode(row), columns.index[row]
    # Another client may have punched, extended or cut the file since we looked: the server knows.
    attributes = await file.ask()
    if attributes.sparse:
        file.sparse = True
        return
    missing = index * file.chunk_size + columns.offset[row] + len(fetch.views[row])
    if attributes.truncate_version != file.truncate_version or (missing >= attributes.length and not file.unsettled):
        return  # it was truncated: there is nothing any more
    chain = columns.chain(row)
    targets = [replica.target for replica in cluster.table.route(chain).serving]
    for target in targets:
        await report_damage(cluster, columns, row, target)
    raise error(
        Status.LOST_DATA,
        f"{name_of(file.id)}: chunk {columns.chunk(row)} ends before the file does (from byte {missing} on) on chain {chain}, "
        f"targets {', '.join(map(str, targets))}: restore the file from a copy",
    )
