"""Where a chunk has fewer bytes than the file's length says: a hole that reads as zeros, a file that was cut, or lost data.

Only an inode that says `sparse` has holes. In any other a missing or short chunk below the length is data that was lost, and reading zeros
there would be the worst answer of all. Unless another client has cut the file since we looked: then the file ends there, and what was
read is shorter.

What was written here and had not arrived when it was read is no loss either. No read asks for such bytes, but while it is on its way the
file may be cut here and written anew.
"""

from __future__ import annotations

from ...proto.errors import Status, error
from .damage import report_damage
from .inode import Inode, name_of
from .reads import Fetch


async def check_holes(fetch: Fetch) -> None:
    """Let short rows of a finished fetch pass if they are holes, or lie behind the end of the file, which the inode knows afterwards.
    Raises LOST_DATA, with the chunk and its targets, and reports it."""
    generations: dict[int, int] = {}  # by row: the file's, when it was read again because of what was written here
    while again := [row for row in _short(fetch) if await _was_written_since(fetch, row, generations)]:
        await fetch.again(again)


def _short(fetch: Fetch) -> list[int]:
    views, lengths = fetch.views, fetch.columns.length
    if fetch.whole is not None:
        return []
    return [row for row, view in enumerate(views) if len(view) < lengths[row] and not fetch.columns.inode(row).sparse]


async def _was_written_since(fetch: Fetch, row: int, generations: dict[int, int]) -> bool:
    """Ask the server. True if the file was cut and has grown again, or was empty and has taken another layout: what was read is neither the
    old nor the new file. True also if what is missing was written here, and has arrived by now."""
    columns, cluster = fetch.columns, fetch.cluster
    file, index = columns.inode(row), columns.index[row]
    known = (file.truncate_version, file.layout)
    attributes = await file.ask()
    async with file.lock:
        file.take(attributes)
    missing = index * file.chunk_size + columns.offset[row] + len(fetch.views[row])
    if file.inlined and (content := await file.small_content()) is not None:
        # It was emptied, and what was written then lies beside its inode.
        start = index * file.chunk_size + columns.offset[row]
        fetch.views[row] = memoryview(content)[start : start + columns.length[row]]
        return False
    if attributes.sparse or (missing >= attributes.length and not file.unsettled):
        return False
    if (attributes.truncate_version, attributes.layout) != known:
        return not file.unsettled
    if missing >= attributes.length and await _has_arrived(file, row, missing, generations):
        return True
    chain = columns.chain(row)
    targets = [replica.target for replica in cluster.table.route(chain).serving]
    for target in targets:
        await report_damage(cluster, columns, row, target)
    raise error(
        Status.LOST_DATA,
        f"{name_of(file.id)}: chunk {columns.chunk(row)} ends before the file does (from byte {missing} on) on chain {chain}, "
        f"targets {', '.join(map(str, targets))}: restore the file from a copy",
    )


async def _has_arrived(file: Inode, row: int, missing: int, generations: dict[int, int]) -> bool:
    """Wait until what was written here arrives; whether anything may have since this row was read. Raises why something did not."""
    if file.write_back is not None and file.write_back.overlaps(missing, file.length):
        async with file.lock:
            await file.write_back.empty()
        if file.error is not None:
            raise file.error
    if generations.get(row) == file.generation:
        return False
    generations[row] = file.generation
    return True
