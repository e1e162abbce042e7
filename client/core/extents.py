"""What of a file is data and what is a hole: asked of the chunks, because only these know.

The unit is the chunk: from its start to its end it is data, zeros that were written included. What was written here and is still on its
way has to arrive first; the callers see to that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from ...proto.errors import Status, error
from ...proto.gen.storage_pb2 import ExtentsRequest
from ...proto.rpc import STORAGE
from .heads import ask_heads
from .inode import Inode, name_of

PAGE_CHUNKS = 1024  # of one chain in one request, at most: a server divides what it lists between the chains


async def chunks_of(file: Inode, first: int, last: int) -> AsyncIterator[tuple[int, int]]:
    """The chunks with first <= index < last that are there, in order: (index, length in bytes). Raises StatusError."""
    while first < last:
        found, first = await _page(file, first, last)
        for chunk in found:
            yield chunk


async def _page(file: Inode, first: int, last: int) -> tuple[list[tuple[int, int]], int]:
    """Chunks in order, and up to where these are all of them."""
    width = len(file.chains)
    asked = {file.chains[index % width] for index in range(first, min(last, first + width))}
    capability = file.capability_read or file.capability_write

    def build(chains: Sequence[int], versions: Sequence[int]) -> ExtentsRequest:
        count = len(chains)
        return ExtentsRequest(
            chain=chains,
            chain_version=versions,
            inode=[file.id] * count,
            first=[first] * count,
            last=[last] * count,
            chunks_max=PAGE_CHUNKS,
            capabilities=[capability],
        )

    async def cure(status: Status) -> bool:
        nonlocal capability
        if status is Status.CAPABILITY_EXPIRED:
            await file.renew_capability(writing=not file.capability_read)
            capability = file.capability_read or file.capability_write
        return status is Status.CAPABILITY_EXPIRED

    answers = await ask_heads(
        file.cluster, STORAGE.Extents, asked, build, f"listing the chunks of {name_of(file.id)} on", cure
    )
    found: list[tuple[int, int]] = []
    end = last
    for reply, row in answers.values():
        begin = sum(reply.chunks[:row])
        indexes = reply.index[begin : begin + reply.chunks[row]]
        found += zip(indexes, reply.length[begin : begin + reply.chunks[row]], strict=True)
        if reply.more[row]:
            # Nothing is known of this chain behind the last one that it named.
            end = min(end, indexes[-1] + 1 if indexes else first)
    if end == first:
        raise error(Status.PROTOCOL, f"the chunks of {name_of(file.id)} are listed without getting on")
    return sorted(chunk for chunk in found if chunk[0] < end), end


async def data_from(file: Inode, offset: int) -> int:
    """Where data begins at or behind `offset`, as SEEK_DATA. Raises NO_DEVICE (ENXIO) where there is none, StatusError."""
    if not 0 <= offset < file.length:
        raise _nothing(file, offset)
    if not file.sparse:
        return offset
    size = file.chunk_size
    async for index, length in chunks_of(file, offset // size, -(-file.length // size)):
        begin = max(index * size, offset)
        if begin < min(index * size + length, file.length):
            return begin
    raise _nothing(file, offset)


async def hole_from(file: Inode, offset: int) -> int:
    """Where a hole begins at or behind `offset`, as SEEK_HOLE; the file's end is one. Raises NO_DEVICE (ENXIO), StatusError."""
    if not 0 <= offset < file.length:
        raise _nothing(file, offset)
    if not file.sparse:
        return file.length
    size = file.chunk_size
    async for index, length in chunks_of(file, offset // size, -(-file.length // size)):
        if index * size > offset:
            break
        offset = max(offset, index * size + length)
        if length < size:
            break
    return min(offset, file.length)


def _nothing(file: Inode, offset: int) -> OSError:
    return error(
        Status.NO_DEVICE, f"{name_of(file.id)}: nothing of it lies at or behind byte {offset} of {file.length}"
    )
