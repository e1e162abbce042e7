"""A share of the client's buffers for one purpose, so that no purpose can starve the others."""

from __future__ import annotations

from ...proto.env import Environment
from ...proto.errors import Status, error
from ...proto.region import Slice


class Budget:
    """At most `limit` bytes of the pool at a time. One operation on the dictionary each, so threads need no lock."""

    def __init__(self, env: Environment, limit: int) -> None:
        self._env = env
        self._limit = limit
        self._held: dict[tuple[int, int], int] = {}  # (region, offset) -> bytes

    @property
    def held(self) -> int:
        """Bytes handed out now."""
        return sum(list(self._held.values()))

    def take(self, length: int) -> Slice:
        """A buffer of `length` bytes. Raises BUSY when the share or the pool is used up."""
        if self._held and self.held + length > self._limit:
            raise error(
                Status.BUSY,
                f"the client's buffers are in use ({self._limit >> 20} MiB of this kind); see `memory` of connect",
            )
        slice_ = self._env.pool.take(length)
        self._held[slice_.region.id, slice_.offset] = slice_.length
        return slice_

    def give(self, slice_: Slice) -> None:
        """Back to the pool; more than once is harmless."""
        if self._held.pop((slice_.region.id, slice_.offset), None) is not None:
            self._env.pool.give(slice_)
