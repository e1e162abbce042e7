"""Many ranges of many files in one plan: one open per file, one request per storage process."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...proto.errors import Status, StatusError
from ...proto.gen import common_pb2
from ...proto.gen.meta_pb2 import OpenRequest, Place
from ...proto.rpc import META
from .columns import Columns, columns_of
from .holes import check_holes
from .inode import Inode
from .namespace import failed, place_or_error, with_path
from .options import O_RDONLY
from .paths import PathLike
from .reads import Fetch

if TYPE_CHECKING:
    from .client import Core

PLAN_BYTES_MAX = 32 << 20  # of one plan in flight
OPENS_IN_FLIGHT_MAX = 256

Range = tuple[PathLike, int | None, int | None]


async def read_ranges(core: Core, ranges: Sequence[Range]) -> list[bytes | StatusError]:
    """Per (path, start, end) its bytes or its error. Positions may be negative or None, as in a slice."""
    paths = list(dict.fromkeys(path for path, _, _ in ranges))
    while True:
        lease = core.lease
        with core.held.opening() as opening:
            files = await _open_all(core, paths)
            if not any(
                isinstance(file, StatusError) and file.status is Status.SESSION_ENDED for file in files.values()
            ):
                opening.opened(file.id for file in files.values() if isinstance(file, Inode))
                if opening.inodes:
                    core.keeper.start()
                return await _read_all(core, ranges, files)
        await core.lose_lease(lease)


async def _read_all(
    core: Core, ranges: Sequence[Range], files: dict[PathLike, Inode | StatusError]
) -> list[bytes | StatusError]:
    """The bytes or the error of each range of files that are open."""
    results: list[bytes | StatusError] = [b""] * len(ranges)
    wanted: list[tuple[int, Inode, int, int]] = []  # (result, file, offset, length)
    limit = min(PLAN_BYTES_MAX, core.options.memory // 8)
    for i, (path, start, end) in enumerate(ranges):
        file = files[path]
        if isinstance(file, StatusError):
            results[i] = file
            continue
        first, last, _ = slice(start, end).indices(file.length)
        shared = core.inodes.get(file.id)
        if shared is not None and (failure := shared.lost_in(first, last)) is not None:
            results[i] = with_path(failure, path)
            continue
        small = await _small(file, path, first, last) if file.inlined else None
        if small is not None:
            results[i] = small
        elif last - first > limit:
            results[i] = await _read_long(core, file, first, last, limit)
        elif first < last:  # in chunks, perhaps only since it was opened
            wanted.append((i, file, first, last - first))
    plan: list[tuple[int, Inode, int, int]] = []
    size = 0
    for row in wanted:
        if plan and size + row[3] > limit:
            await _read_plan(core, plan, results)
            plan, size = [], 0
        plan.append(row)
        size += row[3]
    if plan:
        await _read_plan(core, plan, results)
    return results


async def _read_long(core: Core, file: Inode, first: int, last: int, limit: int) -> bytes | StatusError:
    """The bytes of one range that is longer than a plan may be, or its error."""
    output = io.BytesIO()
    for offset in range(first, last, limit):
        part: list[bytes | StatusError] = [b""]
        await _read_plan(core, [(0, file, offset, min(limit, last - offset))], part)
        if isinstance(part[0], StatusError):
            return part[0]
        output.write(part[0])
    return output.getvalue()


async def _small(file: Inode, path: PathLike, first: int, last: int) -> bytes | StatusError | None:
    """Of a file whose bytes came with its open, as a rule; None where it has grown into chunks meanwhile."""
    try:
        content = await file.small_content()
        return content[first:last] if content is not None else None
    except StatusError as failure:
        return with_path(failure, path)


async def _open_all(core: Core, paths: list[PathLike]) -> dict[PathLike, Inode | StatusError]:
    """A readable inode per path, or why there is none."""
    found: dict[PathLike, Inode | StatusError] = {}
    places: dict[PathLike, Place] = {}
    for path in paths:
        where = place_or_error(path)
        if isinstance(where, StatusError):
            found[path] = where
        else:
            places[path] = where
    left = list(places)
    for begin in range(0, len(left), OPENS_IN_FLIGHT_MAX):
        part = left[begin : begin + OPENS_IN_FLIGHT_MAX]
        requests = [OpenRequest(place=places[path], flags=O_RDONLY) for path in part]
        replies = await core.cluster.meta_many(META.Open, requests)
        for path, reply in zip(part, replies, strict=True):
            found[path] = await _opened(core, path, reply)
    return found


async def _opened(core: Core, path: PathLike, reply: object) -> Inode | StatusError:
    if isinstance(reply, StatusError):
        return with_path(reply, path)
    attributes = reply.attributes  # type: ignore[attr-defined]
    if attributes.type == common_pb2.FILE_TYPE_DIRECTORY:
        return failed(Status.IS_DIRECTORY, path)
    try:
        shared = core.inodes.get(attributes.inode)
        if shared is not None and shared.unsettled:
            async with shared.lock:
                await core.flush_inode(shared)
            attributes = await shared.ask()
        await core.know_table(attributes.layout)
        inode = Inode(core.cluster, attributes, core.epoch)
        inode.capability_read = reply.capability  # type: ignore[attr-defined]
        return inode
    except StatusError as failure:
        return with_path(failure, path)


async def _read_plan(
    core: Core, plan: Sequence[tuple[int, Inode, int, int]], results: list[bytes | StatusError]
) -> None:
    """Read some ranges at once; if that fails, each on its own, so that an error is told where it belongs."""
    try:
        for (result, _, _, _), data in zip(plan, await _read_together(core, plan), strict=True):
            results[result] = data
    except StatusError as failure:
        if len(plan) == 1:
            results[plan[0][0]] = failure
            return
        for row in plan:
            await _read_plan(core, [row], results)


async def _read_together(core: Core, plan: Sequence[tuple[int, Inode, int, int]]) -> list[bytes]:
    files = list({id(file): file for _, file, _, _ in plan}.values())
    places = {id(file): i for i, file in enumerate(files)}
    parts = [columns_of(file, offset, length) for _, file, offset, length in plan]
    counts = [len(part.index) for part in parts]
    columns = Columns(
        files,
        [places[id(row[1])] for row, count in zip(plan, counts, strict=True) for _ in range(count)],
        [i for part in parts for i in part.index],
        [i for part in parts for i in part.offset],
        [i for part in parts for i in part.length],
    )
    fetch = await Fetch(core.cluster, columns).complete()
    try:
        await check_holes(fetch)
        found = _cut(fetch, counts)
        # Behind the end of a file that was cut meanwhile there is nothing, not even zeros.
        return [data[: max(0, file.length - offset)] for data, (_, file, offset, _) in zip(found, plan, strict=True)]
    finally:
        fetch.release()


def _cut(fetch: Fetch, counts: Sequence[int]) -> list[bytes]:
    """The rows of a fetch, joined by ranges."""
    out, row = [], 0
    lengths = fetch.columns.length
    for count in counts:
        if count == 1 and len(fetch.views[row]) == lengths[row]:
            out.append(bytes(fetch.views[row]))
        else:
            buffer = io.BytesIO()
            for i in range(row, row + count):
                buffer.write(fetch.views[i])
                buffer.write(bytes(lengths[i] - len(fetch.views[i])))
            out.append(buffer.getvalue())
        row += count
    return out
