"""fallocate(2): what the namespace does of it (length, the right to have holes), then the holes, made by this client.

A hole takes whole chunks away; at its ends, where chunks are covered in part, zeros are written. Both are updates with numbers of this
client, in order with its writes; so nothing that comes late can take away what was written afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...proto.errors import Status, error
from ...proto.gen.meta_pb2 import AllocateRequest
from ...proto.rpc import META
from .clone import ChunkClone, run_clones
from .extents import chunks_of

if TYPE_CHECKING:
    from .file import Handle

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
WINDOW_CHUNKS = 4096  # are listed, and then removed, at a time
ZERO_BYTES = 1 << 20  # written at once

_ZEROS = memoryview(bytes(ZERO_BYTES))


async def allocate(handle: Handle, mode: int, offset: int, length: int) -> None:
    """Carry out fallocate(2) with this mode. Raises UNSUPPORTED (modes that move data), INVALID, FILE_TOO_BIG, NO_SPACE, StatusError."""
    if offset < 0 or length <= 0 or offset + length >= 1 << 63:
        raise error(Status.INVALID, f"{handle.name}: cannot allocate {length} bytes from {offset} on")
    await handle._ready(writing=True)
    file = handle.file
    edges: list[tuple[int, int]] = []
    async with file.lock:
        await handle.core.flush_inode(file)
        handle._raise_error()
        await file.hear()
        request = AllocateRequest(inode=file.id, session=handle.session, mode=mode, offset=offset, length=length)
        file.take_own((await handle.core.cluster.change(META.Allocate, request)).attributes)
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            edges = await _make_holes(handle, offset, min(offset + length, _chunk_end(handle)))
    for start, end in edges:
        for at in range(start, end, ZERO_BYTES):
            await handle._write(_ZEROS[: end - at], at, exact=True)
    if edges:
        async with file.lock:
            if file.write_back is not None:
                await file.write_back.empty()
        handle._raise_error()


def _chunk_end(handle: Handle) -> int:
    """Where the chunk of the file's last byte ends."""
    return -(-handle.file.length // handle.file.chunk_size) * handle.file.chunk_size


async def _make_holes(handle: Handle, start: int, end: int) -> list[tuple[int, int]]:
    """Remove the chunks that lie in the range [start, end) as a whole; what is left of it to be zeroed, below the file's end."""
    file = handle.file
    chunk = file.chunk_size
    first, last = start // chunk, -(-end // chunk)
    edges: list[tuple[int, int]] = []
    for begin in range(first, last, WINDOW_CHUNKS):
        holes: list[ChunkClone] = []
        async for index, length in chunks_of(file, begin, min(begin + WINDOW_CHUNKS, last)):
            base = index * chunk
            if start <= base and base + chunk <= end:
                holes.append(ChunkClone(file, index))
            elif (low := max(start, base)) < (high := min(end, base + length, file.length)):
                edges.append((low, high))
        await run_clones(handle.core, file, holes)
    return edges
