"""Bulk that follows its frame: a request's is received into a private buffer, a reply's leaves from one.

Spoken on TCP, and on Unix sockets by callers whose memory is no shared region. The reply carries a table of spans and
only the bytes that the handler filled.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import Status, error
from ..frame import SPAN
from .buffers import Buffers


class FilePart(NamedTuple):
    """Bytes of a reply that are in a file."""

    position: int  # in the reply's bulk
    descriptor: int
    offset: int  # in the file
    length: int


class Scratch:
    """A private buffer of the server that plays the client's memory until the handler is done."""

    lends = False
    remote = False  # whether the bytes go into the client's memory by themselves, not behind the reply

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

    def lend(self, position: int, descriptor: int, offset: int, length: int) -> None:
        raise error(Status.INTERNAL, "nothing can be lent to this memory")

    def when_returned(self, release: Callable[[], None]) -> None:
        release()

    def pieces(self) -> list[tuple[int, memoryview]]:
        """(position, bytes) of what was filled."""
        return [(position, self._view[position : position + length]) for position, length in self._spans]

    def move(self, arrived: Callable[[], None]) -> None:
        """Where `remote`: what was filled goes there, ahead of the reply."""
        raise NotImplementedError

    def release(self) -> None:
        """The bytes have left."""
        self._view.release()
        self._buffers.give(self._buffer)


class InlineSink(Scratch):
    """For bulk that follows its frame on a socket: parts that lie in the page cache go from there to the socket, without a copy in
    this process. What the socket does not take at once is copied here, so that a slow peer holds on to nothing of the handler's.

    The kernel keeps pages of the cache in its queue until the peer has them, beyond `give_back`. Where a file's bytes may change
    after that, the peer must be able to see it: chunks bring their checksums, and a wrong one is read once more."""

    lends = True

    def __init__(self, length: int, buffers: Buffers) -> None:
        super().__init__(length, buffers)
        self.lent: dict[int, FilePart] = {}  # by position
        self._returned: list[Callable[[], None]] = []

    def lend(self, position: int, descriptor: int, offset: int, length: int) -> None:
        check_part(position, length, self.length)
        self.lent[position] = FilePart(position, descriptor, offset, length)

    def when_returned(self, release: Callable[[], None]) -> None:
        self._returned.append(release)

    def parts(self) -> list[memoryview | FilePart]:
        """What was filled, in order, from memory or from files."""
        found: list[memoryview | FilePart] = []
        for begin, length in self._spans:
            at, end = begin, begin + length
            for position in sorted(position for position in self.lent if begin <= position < end):
                if at < position:
                    found.append(self._view[at:position])
                found.append(self.lent[position])
                at = position + self.lent[position].length
            if at < end:
                found.append(self._view[at:end])
        return found

    def copied(self, part: FilePart, done: int) -> memoryview:
        """The part without its first `done` bytes, in memory of our own. Raises OSError."""
        rest = self._view[part.position + done : part.position + part.length]
        filled = 0
        while filled < len(rest):
            count = os.preadv(part.descriptor, [rest[filled:]], part.offset + done + filled)
            if not count:
                raise OSError(errno.EIO, "a file ended before the part of it that was lent")
            filled += count
        return rest

    def give_back(self) -> None:
        """Nothing that was lent is needed any more."""
        returned, self._returned = self._returned, []
        for release in returned:
            release()

    def release(self) -> None:
        self.give_back()
        super().release()


def check_part(position: int, length: int, whole: int) -> None:
    """Raises INVALID for a part outside the span: a handler's mistake must not touch memory beyond."""
    if position < 0 or length < 0 or position + length > whole:
        raise error(Status.INVALID, f"bytes {position} to {position + length} are outside a bulk of {whole} bytes")


def span_table(pieces: Sequence[tuple[int, memoryview]]) -> bytes:
    return b"".join([SPAN.pack(position, len(data)) for position, data in pieces])
