"""Bulk through shared memory: the server moves bytes to and from a client's region itself.

A client offers a region on a connection of its own, the descriptor beside the hello, and the region lives as long as that
connection. What the kernel says of the descriptor counts, not what the client says:

- sealed against shrinking: the server maps it and gives handlers pieces of the mapping as destinations. It never lets them read
  there: the client may change those bytes at any time.
- anything else is moved by system calls only, which answer with a short count where a mapping would be SIGBUS.

Bytes to the server are copied into a private buffer: through the mapping where the peer is trusted, by `preadv` on the descriptor
otherwise, which takes more than twice as long, but makes a failure of a page that the peer left a hole an error and not a signal. (Who
is trusted on a Unix socket could send us any signal.) The mapping goes when the region is withdrawn and the last view of it is gone:
views keep it alive, so a late move can never hit unmapped memory.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

from ..copying import copy
from ..errors import Status, error
from ..frame import SLICE
from ..rpc import BULK_BYTES_MAX
from .buffers import Buffers
from .tcp import Scratch, check_part

F_ADD_SEALS = 1033
F_GET_SEALS = 1034
F_SEAL_SEAL = 1
F_SEAL_SHRINK = 2
F_SEAL_GROW = 4
F_SEAL_WRITE = 8
F_SEAL_FUTURE_WRITE = 16
REGION_BYTES_MAX = 1 << 44
REGIONS_PER_CLIENT_MAX = 256

INLINE = 0  # the region id of bytes that travel behind the frame


def sealed_memory(name: str, size: int) -> int:
    """A memfd of `size` bytes that can never shrink."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_sealed(descriptor: int) -> bool:
    """Whether the kernel holds this memory against shrinking, and lets it be mapped for writing."""
    try:
        seals = fcntl.fcntl(descriptor, F_GET_SEALS)
    except OSError:
        return False  # no memfd: a tmpfs file, a device
    return bool(seals & F_SEAL_SHRINK) and not seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)


@dataclass(eq=False, slots=True)
class ClientRegion:
    """A client's region as the server holds it. Takes ownership of the descriptor."""

    descriptor: int
    size: int
    view: memoryview | None = None  # of the mapping, if sealed
    _users: int = 0
    _withdrawn: bool = False

    @classmethod
    def accept(cls, descriptor: int, size: int) -> ClientRegion:
        """Check what was offered. Raises INVALID (the descriptor is then closed)."""
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise error(Status.INVALID, "a region must be a memfd or a file on tmpfs")
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
                raise error(Status.INVALID, "a region must be open for reading and writing")
            if not 0 < size <= min(status.st_size, REGION_BYTES_MAX):
                raise error(Status.INVALID, f"a region of {size} bytes was offered, its memory has {status.st_size}")
            view = None
            if is_sealed(descriptor):
                view = memoryview(mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor, size, view)

    def hold(self) -> None:
        """A request moves bytes here: the region stays until `release`."""
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        self._close_if_unused()

    def withdraw(self) -> None:
        """The client is gone or wants it back: no new moves."""
        self._withdrawn = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._withdrawn and not self._users and self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.view = None  # unmapped by the last view that a handler still holds


Piece = tuple[ClientRegion, int, int]  # region, offset, length


@dataclass(slots=True)
class Regions:
    """The regions of one client, shared by all its connections."""

    remote: ClassVar[bool] = False  # their bytes are moved by system calls and through mappings

    by_id: dict[int, ClientRegion] = field(default_factory=dict)
    connections: int = 0

    def resolve(self, table: bytes) -> list[Piece]:
        """The pieces that a request names, held. Raises REGION_DEAD for one that is unknown or too small."""
        pieces: list[Piece] = []
        for number, offset, length in SLICE.iter_unpack(table):
            region = self.by_id.get(number)
            if region is None:
                raise error(
                    Status.REGION_DEAD,
                    f"the server does not know region {number}: its connection was closed; register it anew",
                )
            if offset + length > region.size:
                raise error(
                    Status.REGION_DEAD,
                    f"bytes {offset} to {offset + length} are outside a region of {region.size} bytes",
                )
            pieces.append((region, offset, length))
        if sum(piece[2] for piece in pieces) > BULK_BYTES_MAX:
            raise error(Status.TOO_LARGE, f"more than {BULK_BYTES_MAX} bytes of bulk in one request; send less at once")
        for region, _, _ in pieces:
            region.hold()
        return pieces

    def sink(self, pieces: Sequence[Piece], length: int, buffers: Buffers) -> WrittenSink:
        """The destination of a reply where not all of the pieces are mapped."""
        return WrittenSink(pieces, length, buffers)


class MappedSink:
    """The client's own memory: what the handler reads into these buffers is where it belongs."""

    __slots__ = ("_parts", "_starts", "length")
    lends = False

    def __init__(self, pieces: Sequence[Piece], length: int) -> None:
        self.length = length
        self._parts: list[memoryview] = []
        self._starts: list[int] = []
        start = 0
        for region, offset, size in pieces:
            assert region.view is not None
            self._parts.append(region.view[offset : offset + size])
            self._starts.append(start)
            start += size

    def buffers(self, position: int, length: int) -> Sequence[memoryview]:
        check_part(position, length, self.length)
        parts, starts = self._parts, self._starts
        if len(parts) == 1:
            return (parts[0][position : position + length],)
        found = []
        end = position + length
        # A batch may have thousands of pieces, and asks for one after the other.
        for i in range(max(bisect_right(starts, position) - 1, 0), len(parts)):
            start = starts[i]
            if start >= end:
                break
            first, last = max(position - start, 0), min(end - start, len(parts[i]))
            if first < last:
                found.append(parts[i][first:last])
        return found

    def filled(self, position: int, length: int) -> None:
        """They are there already."""

    def lend(self, position: int, descriptor: int, offset: int, length: int) -> None:
        raise error(Status.INTERNAL, "shared memory is filled, nothing is lent to it")

    def when_returned(self, release: Callable[[], None]) -> None:
        release()

    def finish(self) -> None:
        self._parts.clear()


class WrittenSink(Scratch):
    """For memory that could shrink: a private buffer, written to the region by system calls when the handler is done."""

    def __init__(self, pieces: Sequence[Piece], length: int, buffers: Buffers) -> None:
        super().__init__(length, buffers)
        self._targets = pieces

    def finish(self) -> None:
        """Move what was filled. Raises REGION_DEAD."""
        starts = list(accumulate([size for _, _, size in self._targets], initial=0))
        for position, data in self.pieces():
            for i in range(bisect_right(starts, position) - 1, len(self._targets)):
                (region, offset, size), start = self._targets[i], starts[i]
                first, last = max(position - start, 0), min(position + len(data) - start, size)
                if first < last:
                    begin = start + first - position
                    _write(region.descriptor, data[begin : begin + last - first], offset + first)
                elif start >= position + len(data):
                    break


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    if offset + len(data) > os.fstat(descriptor).st_size:
        raise error(Status.REGION_DEAD, "the region is smaller than it was when it was offered; register it anew")
    try:
        while len(data):
            count = os.pwrite(descriptor, data, offset)
            data, offset = data[count:], offset + count
    except OSError as bad:
        raise error(Status.REGION_DEAD, f"the region cannot be written: {bad.strerror}; register it anew") from bad


def pull_mapped(pieces: Sequence[Piece], into: memoryview) -> None:
    """Copy the pieces of sealed regions, one after the other, into private memory."""
    start = 0
    for region, offset, length in pieces:
        assert region.view is not None
        copy(into[start : start + length], region.view[offset : offset + length])
        start += length


def pull(pieces: Sequence[Piece], into: memoryview) -> None:
    """Copy the pieces, one after the other, into private memory. Raises REGION_DEAD if one is not there any more."""
    start = 0
    for region, offset, length in pieces:
        done = 0
        while done < length:
            try:
                count = os.preadv(region.descriptor, [into[start + done : start + length]], offset + done)
            except OSError as bad:
                raise error(Status.REGION_DEAD, f"the region cannot be read: {bad.strerror}; register it anew") from bad
            if not count:
                raise error(
                    Status.REGION_DEAD, "the region is smaller than it was when it was offered; register it anew"
                )
            done += count
        start += length
