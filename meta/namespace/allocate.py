"""Numbers out of ranges: inode ids, which are never used twice, and the round-robin over the chain table."""

from __future__ import annotations

from ...proto.env import Promise
from .. import keys
from ..kv import retry
from ..kv.engine import Engine, Transaction
from .seams import Clock

INODES_PER_RANGE = 1 << 16  # one synced commit per so many new files
PLACES_PER_RANGE = 1 << 10


class RangeAllocator:
    """Hands out rising numbers; takes a range of them from the engine in one transaction of its own when it has none left.

    What is left of a range when the process stops is lost, never given out again: a number is used at most once even if the
    transactions that used it were lost in a power failure, because the range itself was synced before its first use.
    """

    def __init__(
        self, engine: Engine, clock: Clock, name: bytes, size: int, *, first: int = 0, durable: bool = True
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._key = keys.NEXT + name
        self._size = size
        self._first = first
        self._durable = durable
        self._next = 0
        self._end = 0
        self._reserving = False
        self._waiting: list[Promise[None]] = []  # those who want a number while a range is on its way

    async def take(self) -> int:
        """A number that nobody else gets."""
        while self._next >= self._end:
            if self._reserving:  # one asks for all: several would only conflict with each other
                arrival: Promise[None] = self._clock.promise()
                self._waiting.append(arrival)
                await arrival
            else:
                await self._refill()
        number = self._next
        self._next = number + 1
        return number

    async def _refill(self) -> None:
        self._reserving = True
        try:
            begin = await self.reserve()
            self._next, self._end = begin, begin + self._size
        finally:
            self._reserving = False
            waiting, self._waiting = self._waiting, []
            for arrival in waiting:  # after a failure one of them asks again
                arrival.set(None)

    async def reserve(self) -> int:
        """Take a range out of the engine for good; its first number."""

        async def work(txn: Transaction) -> int:
            begin = max(keys.counter(await txn.get(self._key)), self._first)
            txn.put(self._key, keys.counter_value(begin + self._size))
            return begin

        return await retry.run(self._engine, work, self._clock, durable=self._durable)
