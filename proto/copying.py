"""Payloads as bytes, and copies of them that let other threads work: one of some MiB takes a millisecond, and an assignment to a slice
keeps the interpreter's lock for as long."""

from __future__ import annotations

import ctypes
from typing import Any

ASIDE_BYTES_MIN = 1 << 20  # below, giving the lock away and getting it back may cost more than the copy


def copy(into: memoryview, data: memoryview | bytes) -> None:
    """Make the bytes of `into`, which is writable, those of `data`, which is equally long. They may be parts of one buffer, and neither may
    be given back meanwhile. Raises ValueError for different lengths."""
    if len(data) < ASIDE_BYTES_MIN or isinstance(data, bytes) or data.readonly or len(into) != len(data):
        into[:] = data  # ctypes asks for memory that may be written, on both sides
    else:
        ctypes.memmove(address_of(into), address_of(data), len(data))


def bytes_of(buffer: Any) -> memoryview:
    """The bytes of any buffer in one row. Raises TypeError for what is none, or does not lie in one piece."""
    view = memoryview(buffer)
    # An array of no rows has several dimensions and cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def address_of(view: memoryview) -> int:
    """Where memory lies that may be written. Raises TypeError for other."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
