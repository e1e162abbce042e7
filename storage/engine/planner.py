"""Planning reads: from (chunk, offset, length) to places and checksums, many at once, without I/O but look-ups of rows that are not cached.

This is the hot path of small reads: one batch is one call, a chunk that is cached costs one dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from ...proto.errors import Status
from .checksum import Crcs
from .reads import Edge, ReadPlan, segments_of
from .records import Read
from .row import PAGE_UNITS, Row, State
from .rows import Rows
from .space import Space

PAGE_SHIFT, PAGE_MASK = PAGE_UNITS.bit_length() - 1, PAGE_UNITS - 1
assert PAGE_UNITS == 1 << PAGE_SHIFT

_OK = Status.OK  # looked up once


class ReadBatch:
    """The plans of one batch, in order, and the pin on everything they refer to. Release it when the last byte has arrived; a
    `with` does."""

    __slots__ = ("_space", "_ticket", "plans")

    def __init__(self, plans: list[ReadPlan], space: Space, ticket: int) -> None:
        self.plans = plans
        self._space = space
        self._ticket = ticket

    def release(self) -> None:
        """The bytes may be used again. A second call does nothing."""
        if self._ticket >= 0:
            self._space.leave(self._ticket)
            self._ticket = -1

    def __enter__(self) -> list[ReadPlan]:
        return self.plans

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Units(NamedTuple):
    """Where whole units lie, in columns: what the commonest small reads need, without an object for each."""

    places: list[tuple[int, int]]  # handle, offset in the file
    checksums: list[int]
    versions: list[int]


class Planner:
    def __init__(self, rows: Rows, space: Space) -> None:
        self._rows = rows
        self._space = space

    def plan(self, reads: Sequence[Read], versions: dict[bytes, int] | None) -> ReadBatch:
        """See ChunkEngine.plan."""
        ticket = self._space.enter()
        try:
            young = self._rows.cached.young
            missing = [chunk for chunk, _, _ in reads if chunk not in young]
            if not missing:
                plans = (
                    self._cached(young, reads)
                    if versions is None
                    else [self._one(young[chunk], chunk, offset, length, versions) for chunk, offset, length in reads]
                )
            else:
                found = self._rows.get_many(missing)
                plans = [
                    self._one(young.get(chunk) or found.get(chunk), chunk, offset, length, versions)
                    for chunk, offset, length in reads
                ]
        except BaseException:
            self._space.leave(ticket)
            raise
        return ReadBatch(plans, self._space, ticket)

    def units(self, chunks: Sequence[bytes], offsets: Sequence[int], length: int) -> Units | None:
        """See ChunkEngine.units."""
        young = self._rows.cached.young
        places: list[tuple[int, int]] = []
        checksums: list[int] = []
        versions: list[int] = []
        shift, inside = length.bit_length() - 1, length - 1
        if length & inside or not length:
            return None
        for chunk, offset in zip(chunks, offsets, strict=True):
            row = young.get(chunk)
            if row is None or (state := row.committed) is None or state.unit != length or state.patches:
                return None
            if offset & inside or not 0 <= offset <= state.length - length:
                return None
            number = offset >> shift
            if (crcs := state.crcs[number >> PAGE_SHIFT]) is None:
                return None
            if (place := state.place) is None:
                place = state.place = self._space.place(state.slot)
            places.append((place[0], place[1] + offset))
            checksums.append(crcs[number & PAGE_MASK])
            versions.append(state.version)
        return Units(places, checksums, versions)

    def _cached(self, young: dict[bytes, Row], reads: Sequence[Read]) -> list[ReadPlan]:
        """All rows are in memory: the commonest small read, one unit of one slot, is decided here; others by `_one`."""
        plans = []
        for chunk, offset, length in reads:
            row = young[chunk]
            state = row.committed
            if (
                state is not None
                and length == state.unit
                and offset % length == 0
                and 0 <= offset <= state.length - length
            ):
                page, position = divmod(offset // length, PAGE_UNITS)
                place, crcs = state.place, state.crcs[page]
                if place is not None and crcs is not None and not state.patches:
                    segments = ((place[0], place[1] + offset, length),)
                    plans.append(ReadPlan(_OK, length, state.version, length, segments, (crcs[position],), (), chunk))
                    continue
            plans.append(self._one(row, chunk, offset, length, None))
        return plans

    def _one(
        self, row: Row | None, chunk: bytes, offset: int, length: int, versions: dict[bytes, int] | None
    ) -> ReadPlan:
        state = row.committed if row is not None else None
        if versions and row is not None and (wanted := versions.get(chunk)) is not None:
            state = next((s for s in (row.committed, row.pending) if s is not None and s.version == wanted), None)
            if state is None:
                return ReadPlan(Status.NOT_COMMITTED, chunk=chunk)
        if state is None or state.removed:
            return ReadPlan(Status.CHUNK_NOT_FOUND, chunk=chunk)
        if offset < 0 or length < 0:
            return ReadPlan(Status.INVALID, chunk=chunk)
        unit, size = state.unit, state.length
        end = min(offset + length, size)
        if offset >= end:
            return ReadPlan(Status.OK, 0, state.version, unit, chunk=chunk)
        segments = segments_of(state, self._space, offset, end)
        if offset == 0 and end == size:
            return ReadPlan(Status.OK, end, state.version, unit, segments, (state.whole,), (), chunk)
        first, inside = divmod(offset, unit)
        checksums = self._checksums(chunk, state, first, -(-end // unit))
        edges: tuple[Edge, ...] = ()
        if inside or (end % unit and end != size):
            edges = self._edges(state, offset, end, checksums)
        return ReadPlan(Status.OK, end - offset, state.version, unit, segments, checksums, edges, chunk)

    def _checksums(self, chunk: bytes, state: State, first: int, last: int) -> Crcs:
        """Stored checksums of the units [first, last)."""
        page, low = divmod(first, PAGE_UNITS)
        crcs = state.crcs[page] or self._rows.page(chunk, state, page)
        if last <= (page + 1) * PAGE_UNITS:
            return crcs[low : low + last - first]
        found = crcs[low:]
        while len(found) < last - first:
            page += 1
            crcs = state.crcs[page] or self._rows.page(chunk, state, page)
            found.extend(crcs[: last - first - len(found)])
        return found

    def _edges(self, state: State, start: int, end: int, checksums: Crcs) -> tuple[Edge, ...]:
        """The first and last unit, where only a part of them is wanted."""
        unit = state.unit
        edges = []
        for number in {start // unit, (end - 1) // unit}:
            low, high = number * unit, min((number + 1) * unit, state.length)
            first, last = max(low, start), min(high, end)
            if (first, last) != (low, high):
                part = number - start // unit
                segments = tuple(segments_of(state, self._space, low, high))
                edges.append(Edge(part, segments, high - low, checksums[part], first - low, last - first))
        return tuple(edges)
