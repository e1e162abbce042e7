"""Bulk that follows its frame: a request's is received into a private buffer, a reply's leaves from one.

Spoken on TCP, and on Unix sockets by callers whose memory is no shared region. The reply carries a table of spans and
only the bytes that the handler filled.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import Status, error
from ..frame import SPAN
from .buffers import Buffers


class Scratch:
    """A private buffer of the server that plays the client's memory until the handler is done."""

    def __init__(self, length: int, buffers: Buffers) -> None:
        self.length = length
        self._buffers = buffers
        self._buffer = buffers.take(length)
        self._view = memoryview(self._buffer)
        self._spans: list[tuple[int, int]] = []

    def buffers(self, position: int, length: int) -> Sequence[memoryview]:
        check_part(position, length, self.length)
        return (self._view[position : position + length],)

    def filled(self, position: int, length: int) -> None:
        check_part(position, length, self.length)
        if not length:
            return
        spans = self._spans
        if spans and spans[-1][0] + spans[-1][1] == position:
            spans[-1] = (spans[-1][0], spans[-1][1] + length)
        else:
            spans.append((position, length))

    def pieces(self) -> list[tuple[int, memoryview]]:
        """(position, bytes) of what was filled."""
        return [(position, self._view[position : position + length]) for position, length in self._spans]

    def release(self) -> None:
        """The bytes have left."""
        self._view.release()
        self._buffers.give(self._buffer)


def check_part(position: int, length: int, whole: int) -> None:
    """Raises INVALID for a part outside the span: a handler's mistake must not touch memory beyond."""
    if position < 0 or length < 0 or position + length > whole:
        raise error(Status.INVALID, f"bytes {position} to {position + length} are outside a bulk of {whole} bytes")


def span_table(pieces: Sequence[tuple[int, memoryview]]) -> bytes:
    return b"".join([SPAN.pack(position, len(data)) for position, data in pieces])
