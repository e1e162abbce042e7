"""Who was evicted lately: fingerprints of keys in one column, each for as long as its queue remembers. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

WAYS: Final = 4  # places that a fingerprint may take
ENTRIES_MIN: Final = 1024

_STAMP_BITS: Final = 31
_STAMPS: Final = (1 << _STAMP_BITS) - 1
_TAG: Final = 0xFFFFFFFF  # of a fingerprint: what is kept of it; its higher half says where


class Ghosts:
    """A set-associative table of 8 bytes an entry: tag (32 bits), whether of main (1 bit), when (31 bits, counted in evictions). Where the
    places of an entry are taken, the oldest there is overwritten; a wrong hit has a chance of one in a billion."""

    def __init__(self, blocks: int) -> None:
        """For a cache of so many blocks: about as many are remembered."""
        entries = ENTRIES_MIN
        while entries < 2 * blocks:
            entries *= 2
        self._entries = array("Q", bytes(8 * entries))
        self._buckets = entries // WAYS
        self._evictions = 0

    def add(self, fingerprint: int, *, of_main: bool) -> None:
        """Who has this fingerprint was evicted."""
        now = self._evictions = (self._evictions % _STAMPS) + 1
        entry = (fingerprint & _TAG) << 32 | of_main << _STAMP_BITS | now
        entries = self._entries
        first = (fingerprint >> 32) % self._buckets * WAYS
        oldest, age_max = first, -1
        for place in range(first, first + WAYS):
            there = entries[place]
            if not there:
                oldest = place
                break
            age = (now - there) & _STAMPS
            if age > age_max:
                oldest, age_max = place, age
        entries[oldest] = entry

    def may_know(self, fingerprints: Sequence[int]) -> bool:
        """Whether one of these may be a ghost, young or old. Quick."""
        if not self._evictions:
            return False
        entries, buckets = self._entries, self._buckets
        for fingerprint in fingerprints:
            first, tag = (fingerprint >> 32) % buckets * WAYS, fingerprint & _TAG
            if (
                entries[first] >> 32 == tag
                or entries[first + 1] >> 32 == tag
                or entries[first + 2] >> 32 == tag
                or entries[first + 3] >> 32 == tag
            ):
                return True
        return False

    def take(self, fingerprint: int, evictions_max: int) -> tuple[bool, bool]:
        """(whether it was evicted, with no more than so many evictions since; whether from main). It is forgotten."""
        entries = self._entries
        first = (fingerprint >> 32) % self._buckets * WAYS
        tag = fingerprint & _TAG
        for place in range(first, first + WAYS):
            entry = entries[place]
            if entry and entry >> 32 == tag:
                entries[place] = 0
                age = (self._evictions - entry) & _STAMPS
                return age <= evictions_max, bool(entry >> _STAMP_BITS & 1)
        return False, False

    @property
    def bytes(self) -> int:
        """Of memory."""
        return len(self._entries) * self._entries.itemsize
