"""Memory that is used again when the last view of it is gone.

Whoever gets a batch keeps numpy views, tensors over them, slices of those, for as long as they like; each keeps the array alive that the
views were cut from, and the end of that array gives the memory back. The garbage collector may say so in the middle of anything, also where
this very thread holds a lock: so a callback only appends to a deque, and the next read does the work.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pinned import pin

Bytes = NDArray[np.uint8]

KEPT_MAX = 8  # unused pieces of memory of one size


def lent(view: memoryview, give_back: Callable[[Any], object], token: Any) -> Bytes:
    """An array over a view; `give_back(token)` when it and all views of it are gone."""
    array = np.frombuffer(view, np.uint8) if len(view) else np.empty(0, np.uint8)
    weakref.finalize(array, give_back, token).atexit = False
    return array


class Memories:
    """Memory by powers of two: fresh memory costs a page fault for each 4 KiB, more than a read from the page cache. It is private, and not
    shared with children, who read into what they have inherited."""

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: dict[int, list[memoryview]] = {}
        self._returned: deque[memoryview] = deque()

    def take(self, length: int) -> Bytes:
        """An array of so many bytes, with undefined contents."""
        self._sort()
        size = max(mmap.PAGESIZE, 1 << max(0, length - 1).bit_length())
        try:
            piece = self._free[size].pop()
        except LookupError:
            piece = self._made(size)
        return lent(piece[:length], self._returned.append, piece)

    def _sort(self) -> None:
        """Put what came back with its like. Any number of threads may be here at once: each step is one that no other can come between."""
        with suppress(IndexError):
            while True:
                piece = self._returned.popleft()
                kept = self._free.setdefault(len(piece), [])
                if len(kept) < KEPT_MAX:
                    kept.append(piece)

    def _made(self, size: int) -> memoryview:
        piece = memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        if self._pinned:
            pin(piece)
        return piece
