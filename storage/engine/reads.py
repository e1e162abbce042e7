"""Reads: from a state to places in block files and checksums, and from there into memory.

A piece is read straight into its destination. Its checksums are the stored ones where it covers whole units (one value when it
is the whole chunk). The unit at an edge that is not aligned is read a second time, into scratch, verified there, and answered with
the CRC of the part that was asked for. The destination is never read: it may be memory that the client can change.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...proto.errors import Status, error
from .checksum import crc32c
from .disk import Disk, FileEnds, read_exactly
from .row import State
from .space import Space

Segment = tuple[int, int, int]  # a run of bytes in a block file: handle, offset in the file, length


class Edge(NamedTuple):
    """A unit of which only a part was asked for."""

    part: int  # which of the plan's checksums it settles
    segments: tuple[Segment, ...]  # of the whole unit
    unit_length: int  # bytes, of the whole unit
    checksum: int  # stored, of the whole unit
    start: int  # bytes of the unit before the part
    length: int  # of the part


@dataclass(slots=True, eq=False)
class ReadPlan:
    """What one read needs. `checksums` is complete once `read_into` returned True (at once, when `edges` is empty)."""

    status: Status
    length: int = 0  # bytes that there are to read: less than wanted at the end of the chunk
    version: int = 0
    unit: int = 0  # bytes between checksums
    segments: Sequence[Segment] = ()
    checksums: Sequence[int] = ()
    edges: Sequence[Edge] = ()
    chunk: bytes = b""

    def read_once(self, disk: Disk, buffers: Sequence[Any]) -> None:
        """As `read_into`, where blocking is allowed, for who reads all that there is and comes back to nothing: what is not in memory is
        read around it, so that what others come back to stays there."""
        is_cached = all(disk.is_cached(handle, offset, length) for handle, offset, length in self.segments)
        self.read_into(disk, buffers, True, cold=not is_cached)

    def read_into(self, disk: Disk, buffers: Sequence[Any], wait: bool, cold: bool = False) -> bool:
        """Fill `buffers` (`length` bytes together) and settle the edges' checksums. May run in any thread.

        Without `wait` it answers False when the bytes are not in memory: call it again with `wait` where blocking is allowed.
        Raises CHECKSUM when an edge is damaged, IO_ERROR when the disk is, REGION_DEAD when the destination went away."""
        try:
            if len(self.segments) == 1:
                ((handle, offset, length),) = self.segments
                if cold or disk.preadv(handle, buffers, offset, wait) != length:
                    read_exactly(disk, handle, buffers, offset, length, wait, cold)
            else:
                _scatter(disk, self.segments, buffers, wait, cold)
            if self.edges:
                self._settle_edges(disk, wait)
        except BlockingIOError:
            return False
        except OSError as failed:
            if hasattr(failed, "status"):
                raise
            # EFAULT: the destination shrank under us; that is its owner's fault, not the disk's.
            status = Status.REGION_DEAD if failed.errno == errno.EFAULT else Status.IO_ERROR
            raise error(status, f"reading chunk {self.chunk.hex()}: {failed.strerror}") from failed
        return True

    def _settle_edges(self, disk: Disk, wait: bool) -> None:
        settled = list(self.checksums)
        for edge in self.edges:
            scratch = memoryview(bytearray(edge.unit_length))
            _scatter(disk, edge.segments, (scratch,), wait)
            if crc32c(scratch) != edge.checksum:
                raise error(Status.CHECKSUM, f"chunk {self.chunk.hex()}: the bytes on disk do not match their checksum")
            settled[edge.part] = crc32c(scratch[edge.start : edge.start + edge.length])
        self.checksums = settled


def _scatter(disk: Disk, segments: Sequence[Segment], buffers: Sequence[Any], wait: bool, cold: bool = False) -> None:
    """Fill the buffers, one after the other, from the segments, one after the other."""
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    for handle, offset, length in segments:
        taken: list[memoryview] = []
        left = length
        while left:
            view = views[0]
            taken.append(view[:left])
            if view.nbytes > left:
                views[0] = view[left:]
                left = 0
            else:
                views.pop(0)
                left -= view.nbytes
        read_exactly(disk, handle, taken, offset, length, wait, cold)


def segments_of(state: State, space: Space, start: int, end: int) -> list[Segment]:
    """Where the bytes [start, end) of this content lie: newest patches first, then the base slot."""
    if not state.patches:
        if state.place is None:
            state.place = space.place(state.slot)
        handle, offset = state.place
        return [(handle, offset + start, end - start)]
    pieces: list[tuple[int, Segment]] = []
    gaps = [(start, end)]
    for patch in reversed(
        [patch for patch in state.patches if patch.start < end and patch.start + patch.length > start]
    ):
        gaps = _cover(gaps, patch.start, patch.start + patch.length, space.place(patch.slot), pieces)
    handle, offset = space.place(state.slot)
    pieces += [(low, (handle, offset + low, high - low)) for low, high in gaps]
    return [segment for _, segment in sorted(pieces)]


def _cover(
    gaps: list[tuple[int, int]], start: int, end: int, place: tuple[int, int], pieces: list[tuple[int, Segment]]
) -> list[tuple[int, int]]:
    handle, offset = place
    left: list[tuple[int, int]] = []
    for low, high in gaps:
        first, last = max(low, start), min(high, end)
        if first >= last:
            left.append((low, high))
            continue
        pieces.append((first, (handle, offset + first - start, last - first)))
        if low < first:
            left.append((low, first))
        if last < high:
            left.append((last, high))
    return left


def read_content(state: State, space: Space, disk: Disk, start: int, end: int) -> memoryview:
    """The bytes [start, end) of this content in memory of our own, not verified. Blocks. Raises OSError."""
    scratch = memoryview(bytearray(end - start))
    if end > start:
        _scatter(disk, segments_of(state, space, start, end), (scratch,), True)
    return scratch


def is_intact(state: State, space: Space, disk: Disk) -> bool:
    """Whether the bytes on disk are those of this state. Raises OSError where the disk does not say."""
    if not all(space.has(slot) for slot in state.slots()):
        return False
    try:
        return state.removed or crc32c(read_content(state, space, disk, 0, state.length)) == state.whole
    except FileEnds:
        return False


def verify(plan: ReadPlan, offset: int, data: memoryview) -> None:
    """Compare bytes that were read from `offset` of the chunk on with a plan's checksums, as a client does. Raises CHECKSUM."""
    position = 0
    for checksum in plan.checksums:
        size = plan.length
        if len(plan.checksums) > 1:
            size = min(plan.unit - (offset + position) % plan.unit, plan.length - position)
        if crc32c(data[position : position + size]) != checksum:
            raise error(
                Status.CHECKSUM,
                f"chunk {plan.chunk.hex()}: the bytes at {offset + position} do not match their checksum",
            )
        position += size
