"""What valsort finds out about sorted records, and its summary files: parts are summarised by themselves, and summaries put together."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import keys
from .generator import KEY_BYTES, RECORD_BYTES

if TYPE_CHECKING:
    from .generator import Bytes

# Five numbers of 128 bits (each upper half first), then two records; as gensort's C structure lies in memory.
_LAYOUT = struct.Struct(f"<10Q{RECORD_BYTES}s{RECORD_BYTES}s")
SUMMARY_BYTES = _LAYOUT.size
CHECKSUM_RECORDS = 4096  # at a time
NUMBERS = 1 << 128


@dataclass(frozen=True)
class Summary:
    """Of at least one record. `first_unordered` is the number of the first record whose key is less than the one before (0: none)."""

    first_unordered: int
    unordered: int
    records: int
    duplicates: int  # keys that are equal to the one before
    checksum: int  # the sum of the records' CRC-32, modulo 2**128
    first: bytes
    last: bytes

    def pack(self) -> bytes:
        """As in a summary file (SUMMARY_BYTES)."""
        numbers = (self.first_unordered, self.unordered, self.records, self.duplicates, self.checksum)
        halves = [half for value in numbers for half in (value >> 64, value & ((1 << 64) - 1))]
        return _LAYOUT.pack(*halves, self.first, self.last)

    @property
    def ordered(self) -> bool:
        return not self.unordered

    def lines(self) -> list[str]:
        """What valsort says."""
        verdict = (
            [f"Duplicate keys: {self.duplicates}", "SUCCESS - all records are in order"]
            if self.ordered
            else [f"ERROR - there are {self.unordered} unordered records"]
        )
        first = [] if self.ordered else [f"First unordered record is record {self.first_unordered}"]
        return [*first, f"Records: {self.records}", f"Checksum: {self.checksum:x}", *verdict]


def unpack(data: bytes) -> list[Summary]:
    """The summaries of a file. Raises ValueError if the last is not whole."""
    if len(data) % SUMMARY_BYTES:
        raise ValueError("partial partition summary found at end")
    found = []
    for *halves, first, last in _LAYOUT.iter_unpack(data):
        first_unordered, unordered, records, duplicates, total = (
            upper << 64 | lower for upper, lower in zip(halves[::2], halves[1::2], strict=True)
        )
        found.append(Summary(first_unordered, unordered, records, duplicates, total, first, last))
    return found


def checksum(records: Bytes) -> int:
    """The sum of the CRC-32 of each record."""
    # A C loop over a list (zlib.crc32 of 100 bytes takes 0.16 µs): tables in numpy, a look-up a byte, take longer.
    whole = records.reshape(-1).view(f"V{RECORD_BYTES}")
    blocks = (whole[at : at + CHECKSUM_RECORDS] for at in range(0, len(whole), CHECKSUM_RECORDS))
    return sum(sum(map(zlib.crc32, block.tolist())) for block in blocks)


def summarize(records: Bytes, *, ignore_case: bool = False) -> Summary:
    """Of an array of at least one record, as it lies. `ignore_case`: ASCII letters of keys are equal to their capitals."""
    compared = _lowered(records) if ignore_case else records
    upper, lower = keys.split(compared)
    same = upper[1:] == upper[:-1]
    less = (upper[1:] < upper[:-1]) | (same & (lower[1:] < lower[:-1]))
    equal = same & (lower[1:] == lower[:-1])
    unordered = int(np.count_nonzero(less))
    return Summary(
        first_unordered=int(np.argmax(less)) + 1 if unordered else 0,
        unordered=unordered,
        records=len(records),
        duplicates=int(np.count_nonzero(equal)),
        checksum=checksum(records),
        first=records[0].tobytes(),
        last=records[-1].tobytes(),
    )


def _lowered(records: Bytes) -> Bytes:
    """A copy whose keys are in small letters."""
    copy = records.copy()
    key = copy[:, :KEY_BYTES]
    key += ((key >= ord("A")) & (key <= ord("Z"))).astype(np.uint8) * np.uint8(32)
    return copy


def combine(parts: Iterable[Summary], *, ignore_case: bool = False) -> Summary:
    """Of all parts one after the other. Raises ValueError if there is none."""
    whole: Summary | None = None
    for part in parts:
        whole = _joined(whole, part, ignore_case) if whole else part
    if whole is None:
        raise ValueError("there must be at least one record to be validated")
    return whole


def _joined(left: Summary, right: Summary, ignore_case: bool) -> Summary:
    before, after = left.last[:KEY_BYTES], right.first[:KEY_BYTES]
    if ignore_case:
        before, after = before.lower(), after.lower()
    less, equal = after < before, after == before
    first = left.first_unordered
    if not first and less:
        first = left.records
    if not first and right.first_unordered:
        first = left.records + right.first_unordered
    return Summary(
        first_unordered=first,
        unordered=left.unordered + right.unordered + less,
        records=left.records + right.records,
        duplicates=left.duplicates + right.duplicates + equal,
        checksum=(left.checksum + right.checksum) % NUMBERS,
        first=left.first,
        last=right.last,
    )
