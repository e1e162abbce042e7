"""The records of gensort and the verdict of valsort, one record at a time, straight from their description."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import pairwise

NUMBERS = 1 << 128
PARTS = "f0e8e4e2e1d8d4d2d1cc cac9c6c5c3b8b4b2b1ac aaa9a6a5a39c9a999695 938e8d8b87787472716c 6a696665635c5a595655"
MORE_PARTS = "534e4d4b473c3a393635 332e2d2b271e1d1b170f c8c4c2c1989492918ce0 170f332e2d2b271e1d1b"
CONSTANTS = [0, *(int(part, 16) for part in f"{PARTS} {MORE_PARTS}".split())]


def following(x: int) -> int:
    return (x * 0x2360ED051FC65DA44385DF649FCCF645 + 0x4A696D47726179524950202020202001) % NUMBERS


def binary(x: int) -> bytes:
    """The record that begins at this number."""
    made = b""
    for constant in CONSTANTS:
        made += ((x >> 48) ^ constant).to_bytes(10, "big")
        x = following(x)
    return made


def printable(x: int, record: int) -> bytes:
    upper, lower = divmod(x, 1 << 64)
    key = [upper // 95**i % 95 for i in range(8)] + [lower // 95**i % 95 for i in range(2)]
    filler = "".join(digit * 4 for digit in f"{lower % (1 << 52):013X}")
    return bytes(32 + digit for digit in key) + f"  {record:032X}  {filler}\r\n".encode()


def skewed(x: int, made: bytes, source: bytes) -> bytes:
    """A binary record whose first bits are those of another."""
    bits = (x >> 32) & 63
    if bits > 48:
        return made
    kept = (1 << (80 - bits)) - 1
    key, other = int.from_bytes(made[:10], "big"), int.from_bytes(source[:10], "big")
    return ((key & kept) | (other & ~kept)).to_bytes(10, "big") + made[10:]


def skewed_printable(x: int, made: bytes, source: bytes) -> bytes:
    count = (x >> 32) & 7
    count = 0 if count > 6 else count
    return source[:count] + made[count:]


def verdict(records: Sequence[bytes], fold: bool = False) -> tuple[int, int, int, int]:
    """First unordered record, unordered ones, duplicates, checksum."""
    found = [record[:10].lower() if fold else record[:10] for record in records]
    later = list(pairwise(found))
    unordered = [number + 1 for number, (before, after) in enumerate(later) if after < before]
    duplicates = sum(before == after for before, after in later)
    return (unordered or [0])[0], len(unordered), duplicates, sum(map(zlib.crc32, records))
