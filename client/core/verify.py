"""Checksums of what arrived, as ReadReply documents them."""

from __future__ import annotations

from collections.abc import Sequence

import crc32c as _package

crc32c = _package.crc32c  # CRC32C (Castagnoli) of any buffer, about 40 µs a MiB


def matches(piece: memoryview, sums: Sequence[int], unit: int, offset: int) -> bool:
    """Whether the bytes of `piece`, read from `offset` bytes into a chunk, have these checksums.

    One value covers all of the piece; more cover the parts between multiples of `unit` bytes of the chunk. No value at all covers
    nothing, so it matches only an empty piece.
    """
    length = len(piece)
    if len(sums) == 1:
        return crc32c(piece) == sums[0]
    if not length:
        return not sums
    if unit <= 0 or len(sums) != (offset + length - 1) // unit - offset // unit + 1:
        return False
    begin = 0
    for expected in sums:
        end = min(length, ((offset + begin) // unit + 1) * unit - offset)
        if crc32c(piece[begin:end]) != expected:
            return False
        begin = end
    return True
