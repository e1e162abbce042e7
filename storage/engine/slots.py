"""Size classes and slot ids: pure arithmetic, part of the on-disk format.

A slot is a piece of a block file of one of the sizes in `CLASS_BYTES`: four per power of two, each a multiple of 4 KiB. A slot id is a
u64: class (16 bits) | block file (32) | position in the file (16). `NO_SLOT` stands where there are no bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

BLOCK_BYTES = 4 << 10  # all slots start and end on such a boundary
SLOT_BYTES_MAX = 64 << 20
SLOTS_PER_FILE = 8192
NO_SLOT = (1 << 64) - 1


def _classes() -> tuple[int, ...]:
    sizes = {BLOCK_BYTES}
    base = BLOCK_BYTES
    while base < SLOT_BYTES_MAX:
        sizes.update(size for k in (5, 6, 7, 8) if (size := base * k // 4) % BLOCK_BYTES == 0)
        base *= 2
    return tuple(sorted(sizes))


CLASS_BYTES = _classes()


def class_for(length: int) -> int:
    """The smallest class whose slots hold `length` bytes (at most SLOT_BYTES_MAX)."""
    return bisect_left(CLASS_BYTES, length)


def pack_slot(size_class: int, file: int, position: int) -> int:
    return size_class << 48 | file << 16 | position


class Place(NamedTuple):
    """A slot id, taken apart."""

    size_class: int
    file: int
    position: int


def unpack_slot(slot: int) -> Place:
    return Place(slot >> 48, slot >> 16 & 0xFFFFFFFF, slot & 0xFFFF)


def slot_bytes(slot: int) -> int:
    """How many bytes the slot holds; 0 for NO_SLOT."""
    return CLASS_BYTES[slot >> 48] if slot != NO_SLOT else 0


def file_name(size_class: int, file: int) -> str:
    """The name of a block file says what is in it: "00001000.000000" holds slots of 0x1000 bytes."""
    return f"{CLASS_BYTES[size_class]:08x}.{file:06d}"


def parse_file_name(name: str) -> tuple[int, int] | None:
    """(class, file number), or None when it is no block file of ours."""
    size, dot, number = name.partition(".")
    if not dot or len(size) != 8 or not number.isdecimal():
        return None
    try:
        return CLASS_BYTES.index(int(size, 16)), int(number)
    except ValueError:
        return None
