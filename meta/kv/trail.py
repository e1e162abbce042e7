"""What was written lately, against which commits are checked, for engines whose store several processes share. No I/O, no clock.

Unlike `recent.py` it does not know who reads which version: another process's commits are heard of late, and a snapshot may be newer than
all that was heard. So write sets are kept by time, and a reader from before the oldest one counts as too old.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from . import limits
from .engine import TRANSACTION_SECONDS_MAX, Pair
from .overlay import Overlay

KEEP_SECONDS = TRANSACTION_SECONDS_MAX + 1
WRITE_SETS_MAX = 50_000  # kept; beyond that the oldest readers count as too old


class WriteSet(NamedTuple):
    """What the commits of one version wrote."""

    version: int
    keys: AbstractSet[bytes]
    ranges: list[Pair]


class Trail:
    """Every write set after `floor` and up to `newest`."""

    def __init__(self, version: int) -> None:
        self.floor = version  # readers of older versions cannot be checked
        self.newest = version
        self._sets: deque[tuple[float, WriteSet]] = deque()  # with the seconds at which we heard of it; by version

    def heard(self, written: WriteSet, now: float) -> None:
        """The next newer commits."""
        self._sets.append((now, written))
        self.newest = written.version
        while self._sets[0][0] < now - KEEP_SECONDS or len(self._sets) > WRITE_SETS_MAX:
            self.floor = self._sets.popleft()[1].version

    def up_to_date(self, version: int, floor: int) -> None:
        """All up to `version` was heard, except what may have been forgotten by everybody: before `floor`."""
        self.newest = max(self.newest, version)
        self.floor = max(self.floor, floor)

    def check(self, reader: Overlay, version: int) -> None:
        """Raises CONFLICT when something was written after `version` into what was read at it."""
        if version < self.floor:
            raise limits.too_old()
        for _, written in reversed(self._sets):
            if written.version <= version:
                return
            check(reader, written.keys, written.ranges)


def check(reader: Overlay, keys: AbstractSet[bytes], ranges: list[Pair]) -> None:
    """Raises CONFLICT when one of these writes lies in the reader's read set."""
    key = reader.overtaken_by(keys, ranges)
    if key is not None:
        raise limits.overtaken(key)


def merged(overlays: Iterable[tuple[Overlay, int]]) -> Overlay:
    """The writes of several transactions, one after the other, each with its commit version."""
    made = Overlay()
    for overlay, version in overlays:
        for begin, end in overlay.cleared:
            made.delete_range(begin, end)
        for key, value in overlay.writes.items():
            made.writes[key] = value
            made.blind.pop(key, None)
        for key, changes in overlay.blind.items():
            for change in changes:
                made.change(key, change)
        for prefix, suffix, stamped in overlay.stamped:
            made.writes[prefix + limits.stamp(version) + suffix] = stamped
        made.extra_writes |= overlay.extra_writes
    return made
