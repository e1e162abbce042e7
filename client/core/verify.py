"""Checksums of what arrived, as ReadReply documents them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import crc32c as _package

from ...proto.gen.storage_pb2 import ReadReply
from .columns import cut

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


def are_units(memory: memoryview, reply: ReadReply, offsets: Iterable[int], lengths: Sequence[int]) -> bool:
    """Whether a reply to reads of these offsets and lengths is nothing but whole units of one size, which lie one after the other in
    `memory`, and all of them are right."""
    unit = reply.unit[0] if reply.unit else 0
    if not unit or len(reply.checksum) * unit != sum(lengths) or any(set(reply.unit) - {unit}):
        return False
    if any(offset % unit for offset in offsets) or any(length % unit for length in lengths):
        return False
    if reply.checksums != [length // unit for length in lengths]:
        return False
    return list(map(crc32c, cut(memory, [unit] * len(reply.checksum)))) == list(reply.checksum)
