"""When to evict and how much. Pure.

The slot of an evicted block comes back with the next checkpoint, up to a second later. Until then it is *retired*: used, but by no block.
So eviction begins while there is still room for what is put meanwhile, and that is about what is put in two checkpoints: the one that runs
and the one that waits for it. How much that is, is seen: `used` grows by what is put, and retired slots become fewer with a checkpoint.
The headroom follows the greatest, and shrinks slowly. (Not the retired bytes themselves: a greater headroom retires more, once.)
"""

from __future__ import annotations

from typing import Final

HEADROOM_PART_MIN: Final = 32  # at least this part of the capacity is kept free,
HEADROOM_BYTES_MIN_MAX: Final = 1 << 30  # but no more than so much, unless the rate of puts asks for it,
HEADROOM_PART_MAX: Final = 4  # and never more than this part
HEADROOM_CHECKPOINTS: Final = 2.5  # two, and what is evicted at once because of the hysteresis
HYSTERESIS_PART: Final = 8  # of the headroom: once evicting, go so far below the high watermark
FORGET_PART: Final = 256  # by which the headroom shrinks with each look


class Watermarks:
    """Of one target. `capacity`: bytes of slots that new blocks may take."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._least = min(capacity // HEADROOM_PART_MIN, HEADROOM_BYTES_MIN_MAX)
        self._most = capacity // HEADROOM_PART_MAX
        self._headroom = self._least
        self._evicting = False
        self._used = 0  # at the last look
        self._retired = 0
        self._put = 0  # bytes since retired slots came back last

    @property
    def high(self) -> int:
        """Bytes of blocks above which eviction begins."""
        return self.capacity - self._headroom

    @property
    def low(self) -> int:
        """Bytes of blocks at which it ends."""
        return self.high - self._headroom // HYSTERESIS_PART

    def excess(self, used: int, retired: int) -> int:
        """How many bytes to evict now; 0: none. To be asked whenever blocks were put or evicted. `used`: bytes of slots, `retired` ones
        included."""
        self._follow(used, retired)
        held = used - retired
        if held > self.high:
            self._evicting = True
        elif held <= self.low:
            self._evicting = False
        return held - self.low if self._evicting else 0

    def _follow(self, used: int, retired: int) -> None:
        if retired < self._retired:
            self._put = max(0, used - retired - (self._used - self._retired))
        elif not retired:
            self._put = 0
        else:
            self._put += max(0, used - self._used)
        self._used, self._retired = used, retired
        wanted = min(int(HEADROOM_CHECKPOINTS * self._put), self._most)
        forgotten = self._headroom - self._headroom // FORGET_PART
        self._headroom = max(wanted, forgotten, self._least)
