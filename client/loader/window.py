"""A piece of memory that is read as a file: for the libraries that take samples apart, which want files."""

from __future__ import annotations

import io
from typing import Any


class Window(io.RawIOBase):
    """Bytes [base, base + len(view)) of a file; what lies before them is not there. Reads copy: it is for what is small beside the payload,
    or is decoded anyway."""

    def __init__(self, view: memoryview, base: int = 0) -> None:
        self._view = view
        self._base = base
        self._position = 0

    def readinto(self, buffer: Any) -> int:
        begin = self._position - self._base
        piece = self._view[begin : begin + len(buffer)] if begin >= 0 else b""
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + (0, self._position, self._base + len(self._view))[whence]
        if position < 0:
            raise ValueError(f"position {position} of a file")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
