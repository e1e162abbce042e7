"""Private buffers for bulk bytes, used again: fresh memory costs a page fault per 4 KiB, more than moving the bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import StatusError
from ..region import Region, Slice

if TYPE_CHECKING:
    from ..pool import Pool

POOLED_BYTES_MIN = 64 << 10  # smaller ones are made anew
POOLED_BYTES_MAX = 64 << 20  # kept unused, together
REGISTERED_BYTES_MAX = 128 << 20  # for bulk over RDMA, where the server has no pool of its own


class Buffers:
    """Buffers by powers of two. One that somebody still looks into when it is given back is left to the garbage collector.

    `pool`: of the environment in which the server passes bulk on. What comes for handlers through shared memory is put there, so that
    the next server on this machine takes it from where it lies."""

    def __init__(self, pool: Pool | None = None) -> None:
        self._pool = pool
        self._registered = pool  # for `take_registered`: made when needed
        self._free: dict[int, list[bytearray]] = {}
        self._kept = 0

    def take(self, length: int) -> bytearray:
        """At least `length` bytes with undefined contents."""
        if length < POOLED_BYTES_MIN:
            return bytearray(length)
        order = (length - 1).bit_length()
        free = self._free.get(order)
        if free:
            self._kept -= 1 << order
            return free.pop()
        return bytearray(1 << order)

    def take_shared(self, length: int) -> Slice | None:
        """Memory of the pool; None where there is no pool, it is used up, or so few bytes are better copied. Until it is given back
        nobody else writes there: its peers are servers of the cluster, who only read."""
        if self._pool is None or length < POOLED_BYTES_MIN:
            return None
        try:
            return self._pool.take(length)
        except StatusError:
            return None

    def take_registered(self, length: int) -> Slice:
        """Memory that an RDMA device may know: of the pool, or of one made for this. Raises BUSY while it is used up."""
        if self._registered is None:
            from ..pool import Pool

            self._registered = Pool(REGISTERED_BYTES_MAX)
        return self._registered.take(length)

    @property
    def own_region(self) -> Region | None:
        """Of the pool that was made here, if any."""
        return self._registered.region if self._registered is not None and self._registered is not self._pool else None

    def give_shared(self, slice_: Slice) -> None:
        assert self._registered is not None  # the pool, or the one that stands for it
        self._registered.give(slice_)

    def close(self) -> None:
        """Gives up the pool that was made here."""
        if self._registered is not None and self._registered is not self._pool:
            self._registered.close()

    def give(self, buffer: bytearray) -> None:
        """Back for another use."""
        size = len(buffer)
        if size < POOLED_BYTES_MIN or self._kept + size > POOLED_BYTES_MAX:
            return
        try:
            # A bytearray refuses to change its length while a view of it lives: the cheapest way to ask.
            last = buffer.pop()
            buffer.append(last)
        except BufferError:
            return
        self._kept += size
        self._free.setdefault((size - 1).bit_length(), []).append(buffer)
