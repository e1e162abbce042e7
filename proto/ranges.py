"""Byte ranges with a value each: what overlaps is split, what touches and says the same is merged.

Both sides need it for byte-range locks: the metadata server for what every owner holds, the client for what it believes to hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

OFFSET_END = 1 << 63  # the end of a range that has none: it covers a file however far it grows

_Value = TypeVar("_Value")

Piece = tuple[int, int, _Value]  # start, end (exclusive), value


def overlaid(pieces: Iterable[Piece[_Value]], start: int, end: int, value: _Value | None) -> list[Piece[_Value]]:
    """The pieces (disjoint, in order) with [start, end) set to `value`; None: with nothing there."""
    before: list[Piece[_Value]] = []
    after: list[Piece[_Value]] = []
    for first, last, found in pieces:
        if first < start:
            before.append((first, min(last, start), found))
        if last > end:
            after.append((max(first, end), last, found))
    made = before + ([(start, end, value)] if value is not None else []) + after
    merged: list[Piece[_Value]] = []
    for piece in made:
        if merged and merged[-1][1] == piece[0] and merged[-1][2] == piece[2]:
            merged[-1] = (merged[-1][0], piece[1], piece[2])
        else:
            merged.append(piece)
    return merged


def within(pieces: Iterable[Piece[_Value]], start: int, end: int) -> list[Piece[_Value]]:
    """The parts of the pieces that lie in [start, end)."""
    return [(max(first, start), min(last, end), found) for first, last, found in pieces if first < end and last > start]
