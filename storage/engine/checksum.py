"""CRC32C arithmetic: the checksums of units, and what can be said of a whole without reading its parts again.

A CRC is linear: with `shift(c, n)` as the effect of n more zero bytes on the CRC register, crc(A + B) = shift(crc(A), len B) ^
crc(B), and when the same number of bytes inside a whole changes, the whole's CRC changes by the shifted difference of the parts'
CRCs. So an overwrite of 4 KiB in a chunk of 64 MiB keeps the CRC of all 64 MiB without touching them. A shift by 2^k bytes is four
table look-ups."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from crc32c import crc32c

_POLYNOMIAL = 0x82F63B78  # CRC32C, reflected
_ALL = 0xFFFFFFFF
SHIFTS_MAX = 64  # lengths whose tables are kept: 40 KB each
CRC_TYPE = "I"  # array typecode: 4 bytes each
assert array(CRC_TYPE).itemsize == 4

if TYPE_CHECKING:
    Crcs = array[int]  # of CRC_TYPE, one per unit
else:
    Crcs = array  # cannot be subscripted before Python 3.12

_Table = tuple[list[int], list[int], list[int], list[int]]


def _times(matrix: Sequence[int], vector: int) -> int:
    total = 0
    for column in matrix:
        if not vector:
            break
        if vector & 1:
            total ^= column
        vector >>= 1
    return total


@cache
def _matrix(power: int) -> tuple[int, ...]:
    """The 32 columns of the operator "2^power zero bytes follow"."""
    if power == 0:
        bit = (_POLYNOMIAL, *(1 << k for k in range(31)))
        two = tuple(_times(bit, column) for column in bit)
        four = tuple(_times(two, column) for column in two)
        return tuple(_times(four, column) for column in four)
    half = _matrix(power - 1)
    return tuple(_times(half, column) for column in half)


@cache
def _table(power: int) -> _Table:
    matrix = _matrix(power)
    return tuple([_times(matrix[8 * k : 8 * k + 8], byte) for byte in range(256)] for k in range(4))  # type: ignore[return-value]


def shift(crc: int, length: int) -> int:
    """The effect of `length` zero bytes on the register."""
    power = 0
    while length:
        if length & 1:
            a, b, c, d = _table(power)
            crc = a[crc & 255] ^ b[crc >> 8 & 255] ^ c[crc >> 16 & 255] ^ d[crc >> 24]
        length >>= 1
        power += 1
    return crc


@lru_cache(SHIFTS_MAX)
def shift_for(length: int) -> Callable[[int], int]:
    """`shift` by one length, for who does it often: four table look-ups, whatever the length."""
    columns = [shift(1 << bit, length) for bit in range(32)]
    a, b, c, d = ([_times(columns[8 * k : 8 * k + 8], byte) for byte in range(256)] for k in range(4))

    def shifted(crc: int) -> int:
        return a[crc & 255] ^ b[crc >> 8 & 255] ^ c[crc >> 16 & 255] ^ d[crc >> 24]

    return shifted


def combine(first: int, second: int, second_length: int) -> int:
    """The CRC of A + B from those of A and B."""
    return shift(first, second_length) ^ second


def zeros(length: int) -> int:
    """The CRC of that many zero bytes."""
    return shift(_ALL, length) ^ _ALL


def fold(crcs: Iterable[int], unit: int, length: int) -> int:
    """The CRC of the whole from the CRCs of its units; the last one may be short."""
    whole, left, by_unit = 0, length, shift_for(unit)
    for crc in crcs:
        whole = (by_unit(whole) if left >= unit else shift(whole, left)) ^ crc
        left -= unit
    return whole


def unit_crcs(view: memoryview, unit: int) -> array[int]:
    """One CRC per unit of `view`, which starts on a unit boundary; the last may be short."""
    return array(CRC_TYPE, [crc32c(view[i : i + unit]) for i in range(0, view.nbytes, unit)])


def crc_of(parts: Iterable[Any], value: int = 0) -> int:
    """The CRC of several buffers, one after the other, continued from `value`."""
    for part in parts:
        value = crc32c(part, value)
    return value


__all__ = ["CRC_TYPE", "Crcs", "combine", "crc32c", "crc_of", "fold", "shift", "unit_crcs", "zeros"]
