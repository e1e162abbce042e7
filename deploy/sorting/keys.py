"""Records by their keys, for any number at once. Keys are compared as 10 bytes, most significant first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .generator import KEY_BYTES, RECORD_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .generator import Bytes, Words

_KEY = np.dtype([("upper", ">u8"), ("lower", ">u2"), ("rest", f"V{RECORD_BYTES - KEY_BYTES}")])


def as_records(buffer: Any) -> Bytes:
    """The array (records, RECORD_BYTES) over a buffer of whole records."""
    return np.frombuffer(buffer, np.uint8).reshape(-1, RECORD_BYTES)


def split(records: Bytes) -> tuple[Words, NDArray[np.uint16]]:
    """The keys: their first eight bytes, and the two that follow, as numbers."""
    fields = records.reshape(-1).view(_KEY)
    return fields["upper"].astype(np.uint64), fields["lower"].astype(np.uint16)


def prefixes(records: Bytes) -> Words:
    """The first eight bytes of the keys, as numbers."""
    return records.reshape(-1).view(_KEY)["upper"].astype(np.uint64)


def order(records: Bytes) -> NDArray[np.intp]:
    """The positions of the records in the order of their keys.

    Sorted by the first eight bytes, which decide nearly always and can be sorted by vector instructions; only where some are equal do the
    other two count.
    """
    upper, lower = split(records)
    by = np.argsort(upper)
    ordered = upper[by]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.zeros(len(by), bool)
        tied[1:] |= same
        tied[:-1] |= same
        places = np.flatnonzero(tied)
        chosen = by[places]
        by[places] = chosen[np.lexsort((lower[chosen], upper[chosen]))]
    return by


def gathered(records: Bytes, positions: NDArray[np.intp]) -> Bytes:
    """The records at these positions, in that order."""
    whole = records.reshape(-1).view(f"V{RECORD_BYTES}")
    return np.take(whole, positions).view(np.uint8).reshape(-1, RECORD_BYTES)
