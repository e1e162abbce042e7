"""Memory that bulk bytes move to and from.

A `Region` is one piece of memory: a sealed memfd (any transport; shared with servers on this host), or any buffer of the user's
(`fd` is -1: its bytes travel behind the frame). A `Slice` names part of one. File reads and hedged reads use slices of
the client's own `Pool`, because a slice whose request was never answered must be quarantined: the peer may still move bytes
into it (DECISIONS 5).
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

_ids = itertools.count(1)


@dataclass(eq=False, slots=True)
class Region:
    view: memoryview  # writable, one-dimensional, of bytes
    fd: int = -1  # memfd, or -1
    sealed: bool = False  # cannot shrink
    id: int = field(default_factory=lambda: next(_ids))
    dead: bool = False  # an unanswered request may still write here: register new memory, or wait for its server
    kept: bool = False  # lives until it is unregistered, so that it is worth to be registered with a device; others are for one request

    @property
    def size(self) -> int:
        return self.view.nbytes


class Slice(NamedTuple):
    region: Region
    offset: int
    length: int

    @property
    def view(self) -> memoryview:
        return self.region.view[self.offset : self.offset + self.length]


def joined(slices: Sequence[Slice]) -> list[Slice]:
    """The same memory; slices that follow each other in one region are one."""
    made: list[Slice] = []
    for region, offset, length in slices:
        last = made[-1] if made else None
        if last is not None and last.region is region and last.offset + last.length == offset:
            made[-1] = Slice(region, last.offset, last.length + length)
        else:
            made.append(Slice(region, offset, length))
    return made


def starts_of(slices: Sequence[Slice]) -> list[int]:
    """Where each slice begins in the span that they are together."""
    return list(accumulate([slice_.length for slice_ in slices[:-1]], initial=0))


def parts(slices: Sequence[Slice], position: int, length: int, starts: Sequence[int] = ()) -> list[memoryview]:
    """Where that part of the slices, taken as one span, lies. `starts`: of these slices, where many parts are asked for."""
    starts = starts or starts_of(slices)
    found = []
    for i in range(max(bisect_right(starts, position) - 1, 0), len(slices)):
        region, offset, size = slices[i]
        first, last = max(position - starts[i], 0), min(position + length - starts[i], size)
        if first < last:
            found.append(region.view[offset + first : offset + last])
        elif starts[i] >= position + length:
            break
    return found
