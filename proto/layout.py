"""Layout arithmetic: a range of a file -> pieces of chunks -> chains. Pure functions.

Chunk `i` of a file lies on chain `order[i mod stripe]`, where `order` is the stripe's part of the chain table
(`base … base + stripe`, wrapping around the table) shuffled by `shuffle(…, seed)`. The shuffle is part of the on-disk format and must
stay bit-exact for ever: Fisher-Yates from the last element down, with SplitMix64 (Steele, Lea, Flood 2014) as the generator
and `next() mod (i + 1)` as the choice; `tests/proto/test_layout.py` holds the test vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from .errors import Status, error
from .ids import CHUNK_INDEX_MAX

KIB = 1 << 10
MIB = 1 << 20

CHUNK_BYTES_MIN = 64 * KIB
CHUNK_BYTES_MAX = 64 * MIB
CHUNK_BYTES_DEFAULT = MIB
STRIPE_MAX = 4096

UNIT_SMALL = 4 * KIB  # checksum unit in chunks up to 1 MiB
UNIT_LARGE = 16 * KIB  # above

_MASK = (1 << 64) - 1
_Item = TypeVar("_Item")


class Piece(NamedTuple):
    """A part of a file range that lies in one chunk."""

    index: int  # type: ignore[assignment]  # of the chunk in the file; hides tuple.index
    offset: int  # bytes into the chunk
    length: int  # bytes
    position: int  # bytes from the start of the requested range


def checksum_unit(chunk_size: int) -> int:
    """Bytes covered by one stored checksum in chunks of this size."""
    return UNIT_SMALL if chunk_size <= MIB else UNIT_LARGE


def check_chunk_size(chunk_size: int) -> None:
    """Raise INVALID unless `chunk_size` is a power of two from 64 KiB to 64 MiB."""
    if not CHUNK_BYTES_MIN <= chunk_size <= CHUNK_BYTES_MAX or chunk_size & (chunk_size - 1):
        raise error(Status.INVALID, f"chunk size {chunk_size}: must be a power of two from 64 KiB to 64 MiB")


def file_bytes_max(chunk_size: int) -> int:
    """The longest file that this chunk size can hold, in bytes (bounded by what a signed 64-bit offset can say)."""
    return min((CHUNK_INDEX_MAX + 1) * chunk_size, (1 << 63) - 1)


def pieces(offset: int, length: int, chunk_size: int) -> Iterator[Piece]:
    """The pieces of the byte range [offset, offset + length), in order."""
    position = 0
    while position < length:
        index, start = divmod(offset + position, chunk_size)
        size = min(chunk_size - start, length - position)
        yield Piece(index, start, size, position)
        position += size


def chunk_count(length: int, chunk_size: int) -> int:
    """How many chunks a file of `length` bytes spans."""
    return (length + chunk_size - 1) // chunk_size


def shuffle(items: Sequence[_Item], seed: int) -> list[_Item]:
    """A permutation of `items`, the same for ever for the same seed (see the module's docstring)."""
    order = list(items)
    state = seed & _MASK
    for i in range(len(order) - 1, 0, -1):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
        j = z % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def stripe_chains(table: Sequence[int], base: int, stripe: int, seed: int) -> list[int]:
    """The chain ids of a layout's stripe, in striping order: chunk i is on element `i mod stripe`."""
    if not table:
        raise error(Status.STALE_ROUTING, "the chain table is empty; is a storage server registered?")
    return shuffle([table[(base + k) % len(table)] for k in range(min(stripe, len(table)))], seed)
