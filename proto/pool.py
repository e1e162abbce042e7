"""The client's own registered memory: one sealed memfd, handed out in slices of bounded total size.

Blocks are powers of two of pages, cut from larger ones as needed and put together again when a large one is missing (a
buddy allocator that merges late, since most blocks are asked for again in the same size). A block that an unanswered request may
still move bytes into is held: given back, it stays aside until the hold is released.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterable

from .copying import address_of
from .errors import Status, error
from .region import Region, Slice
from .transport.shm import sealed_memory

PAGE = 4096
POOL_BYTES = 256 << 20  # address space; memory is used as slices are touched

Hold = list[int]  # offsets of the blocks held


class Pool:
    """Thread-safe. The region is made with the first `take`."""

    def __init__(self, size: int = POOL_BYTES, reclaim: Callable[[], None] | None = None) -> None:
        if size < PAGE or size & (size - 1):
            raise error(Status.INVALID, f"a pool of {size} bytes: must be a power of two, at least {PAGE}")
        self.size = size
        self._top = (size // PAGE).bit_length() - 1
        self._reclaim = reclaim  # asked once when memory is short: looks whether holds can be released
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._region: Region | None = None
        self._base = 0  # address of the region
        self._free: list[list[int]] = [[] for _ in range(self._top + 1)]
        self._free[self._top].append(0)
        self._taken: dict[int, int] = {}  # offset of a block -> its order
        self._held: dict[int, int] = {}  # offset -> holds
        self._aside: set[int] = set()  # given back while held

    @property
    def region(self) -> Region | None:
        """The memory behind the slices, once there are any."""
        return self._region

    @property
    def used(self) -> int:
        """Bytes in blocks that are taken or held."""
        with self._lock:
            return sum(PAGE << order for order in self._taken.values())

    @property
    def held(self) -> int:
        """Bytes in blocks under quarantine."""
        with self._lock:
            return sum(PAGE << self._taken[offset] for offset in self._held)

    def reclaim(self) -> None:
        """Look whether servers have stopped moving into memory that is held, or dead."""
        if self._reclaim is not None:
            self._reclaim()

    def take(self, length: int) -> Slice:
        """`length` bytes, page-aligned, with undefined contents. Raises BUSY while the pool is used up, TOO_LARGE if it never fits."""
        if not 0 < length <= self.size:
            raise error(Status.TOO_LARGE, f"{length} bytes from a pool of {self.size}; ask for less at once")
        order = ((length - 1) // PAGE).bit_length()
        with self._lock:
            free = self._free[order]
            offset = free.pop() if free else self._cut(order)
            if offset is not None:
                self._taken[offset] = order
                region = self._region or self._make()
                return Slice(region, offset, length)
        if self._reclaim is None:
            raise self._short(length)
        self._reclaim()
        with self._lock:
            offset = self._cut(order)
            if offset is None:
                raise self._short(length)
            self._taken[offset] = order
            return Slice(self._region or self._make(), offset, length)

    def _short(self, length: int) -> Exception:
        return error(
            Status.BUSY, f"no {length} bytes left in the client's memory pool of {self.size}; give slices back first"
        )

    def give(self, slice_: Slice) -> None:
        """Back to the pool; a slice of a region that is not the pool's (one from before a fork) is ignored."""
        with self._lock:
            if slice_.region is not self._region:
                return
            offset = slice_.offset
            if offset not in self._taken or offset in self._aside:
                raise error(Status.INVALID, f"the slice at {offset} was given back twice")
            if offset in self._held:
                self._aside.add(offset)
                return
            self._free[self._taken.pop(offset)].append(offset)

    def find(self, view: memoryview) -> Slice | None:
        """What part of the pool a view is; None when it is other memory."""
        region = self._region
        if region is None or view.readonly or not len(view):
            return None
        offset = address_of(view) - self._base
        return Slice(region, offset, len(view)) if 0 <= offset <= self.size - len(view) else None

    def hold(self, slices: Iterable[Slice]) -> Hold:
        """Keep the blocks of these slices from being used again until `release`. Slices of other regions do not matter."""
        with self._lock:
            found: set[int] = set()
            for slice_ in slices:
                if slice_.region is not self._region:
                    continue
                end = slice_.offset + slice_.length
                found |= {at for at, order in self._taken.items() if at < end and slice_.offset < at + (PAGE << order)}
            for offset in found:
                self._held[offset] = self._held.get(offset, 0) + 1
            return list(found)

    def release(self, hold: Hold) -> None:
        """The peer can no longer move into them."""
        with self._lock:
            for offset in hold:
                count = self._held.get(offset, 0) - 1
                if count > 0:
                    self._held[offset] = count
                    continue
                self._held.pop(offset, None)
                if offset in self._aside:
                    self._aside.discard(offset)
                    self._free[self._taken.pop(offset)].append(offset)

    def _cut(self, order: int) -> int | None:
        """A block of this order out of a larger one; None if there is none even after merging."""
        for merged in (False, True):
            if merged:
                self._merge()
            for larger in range(order, self._top + 1):
                if self._free[larger]:
                    offset = self._free[larger].pop()
                    for half in range(larger - 1, order - 1, -1):
                        self._free[half].append(offset + (PAGE << half))
                    return offset
        return None

    def _merge(self) -> None:
        for order in range(self._top):
            size = PAGE << order
            blocks = set(self._free[order])
            alone = []
            for offset in blocks:
                buddy = offset ^ size
                if buddy not in blocks:
                    alone.append(offset)
                elif offset < buddy:
                    self._free[order + 1].append(offset)
            self._free[order] = alone

    def _make(self) -> Region:
        descriptor = sealed_memory("emberfs-pool", self.size)
        try:
            view = memoryview(mmap.mmap(descriptor, self.size))
        except BaseException:
            os.close(descriptor)
            raise
        self._region = Region(view, descriptor, sealed=True, kept=True)
        self._base = address_of(view)
        return self._region

    # The lock must not be in another thread's hands at the moment of a fork.

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Start over with memory of its own. The old mapping stays: slices of it may be alive, and a view without memory crashes."""
        region = self._region
        self._reset()
        if region is not None:
            os.close(region.fd)
            region.fd = -1

    def close(self) -> None:
        """The descriptor is closed; the mapping goes with the last view."""
        with self._lock:
            region, self._region = self._region, None
            if region is not None:
                os.close(region.fd)
                region.fd = -1
