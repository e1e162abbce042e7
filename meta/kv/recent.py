"""The recent write sets against which a commit is checked, for engines that do this themselves. No I/O, no clock.

Transactions that begin at one version share an `Epoch`. A write set is kept while a transaction of an older epoch lives, for at most the
seconds that a transaction may take: with nobody else under way nothing is kept at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from . import limits
from .engine import TRANSACTION_SECONDS_MAX, Pair
from .overlay import Overlay

WRITE_SETS_MAX = 50_000  # kept; beyond that the oldest transactions count as too old

_Snapshot = TypeVar("_Snapshot")


class Epoch(Generic[_Snapshot]):
    """One version while transactions read it."""

    __slots__ = ("began", "live", "lost", "snapshot", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.snapshot: _Snapshot | None = None  # None: it is the newest version, which needs none
        self.lost = False  # all its transactions are over, or too old
        self.live = 0  # transactions
        self.began = 0.0  # when the youngest of them did

    def lose(self) -> None:
        self.lost = True
        self.snapshot = None


class _WriteSet:
    __slots__ = ("keys", "ranges", "version", "wiped")

    def __init__(self, version: int, keys: frozenset[bytes], ranges: list[Pair], wiped: list[Pair]) -> None:
        self.version, self.keys, self.ranges, self.wiped = version, keys, ranges, wiped


class Recent(Generic[_Snapshot]):
    """Who reads which version, and what was written since."""

    def __init__(self, version: int) -> None:
        self.version = version  # newest that was committed
        self._newest: Epoch[_Snapshot] | None = None  # that of `version`, once somebody reads it
        self._epochs: deque[Epoch[_Snapshot]] = deque()  # by version
        self._write_sets: deque[_WriteSet] = deque()  # by version: all that the first epoch has not seen

    def join(self, now: float) -> Epoch[_Snapshot]:
        """A transaction begins at the newest version."""
        epoch = self._newest
        if epoch is None:
            epoch = self._newest = Epoch(self.version)
            self._epochs.append(epoch)
        epoch.live += 1
        epoch.began = now
        return epoch

    def leave(self, epoch: Epoch[_Snapshot]) -> None:
        """A transaction is over."""
        epoch.live -= 1
        if not epoch.live and epoch is not self._newest:
            epoch.lose()

    def check(self, reader: Overlay, version: int) -> None:
        """Raises CONFLICT when a commit newer than `version` wrote into the reader's read set."""
        for written in reversed(self._write_sets):
            if written.version <= version:
                return
            key = reader.overtaken_by(written.keys, written.ranges)
            if key is not None:
                raise limits.overtaken(key)

    def keep_snapshot(self, take: Callable[[], _Snapshot]) -> None:
        """A commit is about to change the newest version; who reads it needs a snapshot from now on."""
        newest, self._newest = self._newest, None
        if newest is not None:
            if newest.live:
                newest.snapshot = take()
            else:
                newest.lose()

    def committed(self, version: int, writer: Overlay, others: Iterable[bytes], wiped: list[Pair], now: float) -> None:
        """A commit was made. `others` are keys that it wrote beside those that `writer` names: versionstamped, or found in a
        cleared range; `wiped` are the cleared ranges whose keys are not named."""
        self.version = version
        self._forget(now - TRANSACTION_SECONDS_MAX)
        if self._epochs:
            keys = frozenset(writer.writes).union(writer.blind, writer.extra_writes, others)
            self._write_sets.append(_WriteSet(version, keys, writer.cleared, wiped))

    def written_since(self, version: int, begin: bytes, end: bytes) -> set[bytes]:
        """The keys of a range that were written after `version`. Raises CONFLICT where they are too many to be named."""
        found: set[bytes] = set()
        for written in reversed(self._write_sets):
            if written.version <= version:
                break
            for a, b in written.wiped:
                if a < end and begin < b:
                    raise limits.overtaken(a)
            found.update(key for key in written.keys if begin <= key < end)
        return found

    def release(self) -> None:
        """Every snapshot goes: the store is being closed."""
        for epoch in self._epochs:
            epoch.lose()

    def _forget(self, too_old: float) -> None:
        epochs, write_sets = self._epochs, self._write_sets
        while epochs and (not epochs[0].live or epochs[0].began < too_old or len(write_sets) >= WRITE_SETS_MAX):
            epochs.popleft().lose()
            seen = epochs[0].version if epochs else self.version
            while write_sets and write_sets[0].version <= seen:
                write_sets.popleft()
