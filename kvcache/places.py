"""Where the bytes of a batch's blocks are, or are to go: what callers give as `dsts` and `srcs`, in one form.

- a list with a buffer for each key: anything with the buffer protocol, CPU tensors, registered `Buffer`s or parts of them;
- a list with a list of buffers for each key: the parts of a block (K and V, layers), one behind the other in the block;
- a tuple `(base, offsets, length)`: slots of one big pool. `length` is one number for all, or one for each; `offsets` has one number for
  each key, or a row of them: the parts of the block, each `length` bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import eq
from typing import Any

from ..proto.copying import address_of
from ..proto.region import Region, Slice
from .buffers import Buffer, Registry, memory_of, view_on

Views = Sequence[memoryview]

_PLAIN = {int}


class Places:
    """Of a whole batch. `lengths`: bytes of each block."""

    lengths: list[int]

    def lengths_of(self, rows: Sequence[int]) -> list[int]:
        """Those of some of the blocks."""
        whole = isinstance(rows, range) and len(rows) == len(self.lengths)
        return self.lengths if whole else [self.lengths[row] for row in rows]

    def views(self, row: int) -> Views:
        """The memory of a row, part by part."""
        raise NotImplementedError

    def slices(self, row: int, shared: bool) -> Sequence[Slice] | None:
        """The same as part of regions. `shared`: of such that the server reaches itself, otherwise None."""
        raise NotImplementedError

    def singles(self, rows: Sequence[int]) -> list[memoryview] | None:
        """One view for each row; None where blocks have parts."""
        raise NotImplementedError

    def all_slices(self, rows: Sequence[int], shared: bool) -> list[Slice] | None:
        """The slices of all rows in one go; None where it takes a look at each."""
        return None

    @property
    def is_private(self) -> bool:
        """Whether the server reaches none of it."""
        return False

    def dead_rows(self, rows: Sequence[int]) -> Sequence[int]:
        """Those of them where bytes of an earlier request may still arrive."""
        raise NotImplementedError


class Slots(Places):
    """Slots of one pool."""

    def __init__(self, base: Buffer, offsets: list[Any], lengths: list[int]) -> None:
        self._base = base
        self._view = base.view
        self._offsets = offsets
        self._parts = bool(offsets) and isinstance(offsets[0], list)
        self._part_lengths = lengths
        self.lengths = [
            length * len(parts) for length, parts in zip(lengths, offsets, strict=True)
        ] if self._parts else lengths  # fmt: skip
        self._check()

    def _check(self) -> None:
        size = self._view.nbytes
        if not self._parts and min(self._offsets, default=0) >= 0 <= size - self._end():
            return
        for offset, length in zip(self._offsets, self._part_lengths, strict=True):
            first, last = (min(offset, default=0), max(offset, default=0)) if self._parts else (offset, offset)
            if first < 0 or last + length > size:
                raise ValueError(
                    f"{length} bytes at offset {last if first >= 0 else first} of a buffer of {size} bytes"
                )

    def _end(self) -> int:
        """No slot reaches behind this."""
        return max(self._offsets, default=0) + max(self._part_lengths, default=0)

    def views(self, row: int) -> Views:
        view, length = self._view, self._part_lengths[row]
        if self._parts:
            return [view[offset : offset + length] for offset in self._offsets[row]]
        offset = self._offsets[row]
        return (view[offset : offset + length],)

    def slices(self, row: int, shared: bool) -> Sequence[Slice] | None:
        region, start, length = self._base.region, self._base.start, self._part_lengths[row]
        if shared and region.fd < 0:
            return None
        if self._parts:
            return [Slice(region, start + offset, length) for offset in self._offsets[row]]
        return (Slice(region, start + self._offsets[row], length),)

    def singles(self, rows: Sequence[int]) -> list[memoryview] | None:
        if self._parts:
            return None
        view, offsets, lengths = self._view, self._offsets, self._part_lengths
        return [view[offsets[row] : offsets[row] + lengths[row]] for row in rows]

    def all_slices(self, rows: Sequence[int], shared: bool) -> list[Slice] | None:
        region, start, offsets, lengths = self._base.region, self._base.start, self._offsets, self._part_lengths
        if self._parts or (shared and region.fd < 0):
            return None
        first = offsets[rows[0]]
        ends = accumulate([lengths[row] for row in rows], initial=first)
        if all(map(eq, [offsets[row] for row in rows], ends)):  # slots side by side are one piece
            return [Slice(region, start + first, sum([lengths[row] for row in rows]))]
        return [Slice(region, start + offsets[row], lengths[row]) for row in rows]

    @property
    def is_private(self) -> bool:
        return self._base.region.fd < 0

    def dead_rows(self, rows: Sequence[int]) -> Sequence[int]:
        return rows if self._base.region.dead else ()


class Listed(Places):
    """A buffer, or several, for each key."""

    def __init__(self, rows: list[list[memoryview]], registry: Registry) -> None:
        self._rows = rows
        self._registry = registry
        self._lists = any(len(row) != 1 for row in rows)
        if self._lists:
            self.lengths = [sum([part.nbytes for part in row]) for row in rows]
        else:
            self.lengths = [row[0].nbytes for row in rows]

    def views(self, row: int) -> Views:
        return self._rows[row]

    def singles(self, rows: Sequence[int]) -> list[memoryview] | None:
        if self._lists:
            return None
        return [self._rows[row][0] for row in rows]

    @property
    def is_private(self) -> bool:
        return not self._registry

    def slices(self, row: int, shared: bool) -> Sequence[Slice] | None:
        if not shared:  # each a region of its own, and as dead as what was registered there
            doubtful = any(buffer.dead for buffer in self._registry.buffers)
            return [
                Slice(Region(part, dead=doubtful and self._is_dead(part)), 0, part.nbytes) for part in self._rows[row]
            ]
        found = []
        for part in self._rows[row]:
            buffer = self._buffer_of(part)
            if buffer is None or not buffer.shared:
                return None
            found.append(Slice(buffer.region, buffer.start + address_of(part) - buffer.address, part.nbytes))
        return found

    def dead_rows(self, rows: Sequence[int]) -> Sequence[int]:
        if not any(buffer.dead for buffer in self._registry.buffers):
            return ()
        return [row for row in rows if any(self._is_dead(part) for part in self._rows[row])]

    def _is_dead(self, part: memoryview) -> bool:
        buffer = self._buffer_of(part)
        return buffer is not None and buffer.dead

    def _buffer_of(self, part: memoryview) -> Buffer | None:
        if not self._registry or part.readonly or not part.nbytes:
            return None
        return self._registry.find(address_of(part), part.nbytes)


def cut(view: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """One piece for each length, one behind the other."""
    ends = list(accumulate(lengths))
    return [view[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def places_of(memory: Any, count: int, registry: Registry, *, writable: bool) -> Places:
    """What a caller gave for `count` keys. Raises TypeError, ValueError: nothing was sent then."""
    if isinstance(memory, tuple):
        return _slots(memory, count, registry, writable=writable)
    if not isinstance(memory, list):
        raise TypeError("give a list with a buffer for each key, or (base, offsets, length)")
    if len(memory) != count:
        raise ValueError(f"{len(memory)} buffers for {count} keys")
    one = _writable if writable else view_on
    return Listed([[*map(one, row)] if type(row) is list else [one(row)] for row in memory], registry)


def _writable(obj: Any) -> memoryview:
    view = view_on(obj)
    if view.readonly and view.nbytes:
        raise ValueError("a destination is read-only")
    return view


def _slots(memory: tuple[Any, ...], count: int, registry: Registry, *, writable: bool) -> Slots:
    if len(memory) != 3:
        raise TypeError("a tuple is (base, offsets, length); several buffers are given as a list")
    base, offsets, length = memory
    if not isinstance(base, Buffer):
        base = _buffer_over(base, registry, writable=writable)
    numbers = offsets.tolist() if hasattr(offsets, "tolist") else list(offsets)
    if set(map(type, numbers)) != _PLAIN:
        numbers = [_row(offset) for offset in numbers]
    lengths = [length] * count if isinstance(length, int) else [int(one) for one in _sequence(length, count)]
    if not len(numbers) == len(lengths) == count:
        raise ValueError(f"{len(numbers)} offsets and {len(lengths)} lengths for {count} keys")
    if min(lengths, default=0) < 0:
        raise ValueError("a length is negative")
    return Slots(base, numbers, lengths)


def _row(offset: Any) -> Any:
    return [int(part) for part in offset] if hasattr(offset, "__len__") else int(offset)


def _sequence(length: Any, count: int) -> Any:
    return length if hasattr(length, "__len__") else [length] * count


def _buffer_over(obj: Any, registry: Registry, *, writable: bool) -> Buffer:
    """A base that was not registered itself: part of registered memory, or any other."""
    if not writable and (view := view_on(obj)).readonly:
        return Buffer(view, 0, Region(view), 0, obj)
    view, address = memory_of(obj)
    known = registry.find(address, view.nbytes)
    if known is None:
        return Buffer(view, address, Region(view), 0, obj)
    return Buffer(view, address, known.region, known.start + address - known.address, obj)
