"""An engine's own host memory, registered where it is.

Engines keep one or a few large pools of pinned memory and name blocks by addresses in them. What of it is a memfd or a file on tmpfs is
shared with the servers of this host, which then read and write it in place; other memory is reached through the client's own
buffers, with one copy. Either way nothing is allocated for each block.
"""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .settings import logger


@lru_cache(maxsize=64)
def _bytes_type(nbytes: int) -> type[ctypes.Array[ctypes.c_char]]:
    """One type for each length: ctypes never frees the types that it makes."""
    return ctypes.c_char * nbytes


def view_of(address: int, nbytes: int) -> memoryview:
    """Memory of this process by its address. Valid only as long as its owner keeps it."""
    return memoryview(_bytes_type(nbytes).from_address(address)).cast("B")


def _rows(pieces: list[Any], parts: int) -> list[Any]:
    """One entry for each block: a piece, or a list of them."""
    return pieces if parts == 1 else [pieces[i : i + parts] for i in range(0, len(pieces), parts)]


def _files(address: int, nbytes: int) -> list[tuple[int, int]]:
    """The parts of a span that are one file each: an engine may map several behind each other, as one pool. (address, bytes)"""
    parts: list[tuple[int, int]] = []
    before = ""
    with open("/proc/self/maps", errors="surrogateescape") as lines:
        for line in lines:
            place, _, _, device, inode, *_ = line.split(None, 5)
            first, last = (int(number, 16) for number in place.split("-"))
            start, end = max(first, address), min(last, address + nbytes)
            if start >= end:
                continue
            file = f"{device} {inode}"
            if parts and file == before and sum(parts[-1]) == start:
                parts[-1] = (parts[-1][0], end - parts[-1][0])
            else:
                parts.append((start, end - start))
            before = file
    return parts or [(address, nbytes)]


class Arena:
    """Spans of memory, each registered once with a KVCache, found again by address. Spans are added by one thread, before any is used."""

    def __init__(self, kv: Any) -> None:
        self._kv = kv
        self._starts: list[int] = []
        self._buffers: list[Any] = []
        self._sizes: list[int] = []

    def add(self, address: int, nbytes: int, owner: str) -> bool:
        """Register a span, once; whether servers on this host move bytes in place there. Says so loudly where they cannot."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at >= 0 and address + nbytes <= self._starts[at] + self._sizes[at]:
            return bool(self._buffers[at].shared)
        shared = True
        for start, length in _files(address, nbytes):
            buffer = self._kv.register((start, length))
            at = bisect.bisect_right(self._starts, start)
            self._starts.insert(at, start)
            self._buffers.insert(at, buffer)
            self._sizes.insert(at, length)
            shared = shared and buffer.shared
        if not shared:
            logger.warning(
                "%s: %.1f GB cannot be shared with storage servers; each block is copied once more on its way", owner, nbytes / 1e9
            )  # fmt: skip
        return shared

    @property
    def spans(self) -> list[tuple[int, int, bool]]:
        """Of each span its address, its length and whether it is shared."""
        return [
            (start, size, bool(b.shared))
            for start, size, b in zip(self._starts, self._sizes, self._buffers, strict=True)
        ]

    def places(self, addresses: Sequence[int], lengths: Sequence[int], parts: int) -> Any:
        """Where blocks lie, as KVCache's `dsts` and `srcs`: `parts` pieces of memory for each block, one block after the other. Equal
        pieces of one span go as (buffer, offsets, length), which costs nothing for each piece."""
        if not addresses:
            return []
        first = bisect.bisect_right(self._starts, min(addresses)) - 1
        if first >= 0 and len(set(lengths)) == 1:
            start, end = self._starts[first], self._starts[first] + self._sizes[first]
            if max(addresses) + lengths[0] <= end:
                return self._buffers[first], _rows([address - start for address in addresses], parts), lengths[0]
        views = [view_of(address, length) for address, length in zip(addresses, lengths, strict=True)]
        return _rows(views, parts)

    def close(self) -> None:
        """Forget everything: servers may not touch this memory any more."""
        for buffer in self._buffers:
            self._kv.unregister(buffer)
        self._starts, self._buffers, self._sizes = [], [], []
