"""An open file of the blocking client, as the standard library knows files: what `Client.open` gives.

A thin face like the client itself (blocking.py): each method runs one coroutine of the core's `Handle` to its end, in the caller's
thread. Many threads may use one file at once; reads and writes at the position take turns.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

from ..proto.env import drive
from .core.allocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from .core.attributes import Stat
from .core.file import Handle
from .core.locks import THIS_PROCESS, LockInfo


class File(io.BufferedIOBase):
    """An open file, binary, with buffering of its own: bounded write-back and readahead.

    `read` returns as much as was asked for unless the file ends, `write` takes everything. Errors of data that is written in the
    background come once, from the next `flush`, `fsync` or `close` (or a read of the same bytes). Other clients see what was written
    after `flush`, `fsync` or `close`.
    """

    def __init__(self, handle: Handle, name: str, mode: str) -> None:
        self.handle = handle
        self._name = name
        self._mode = mode

    @property
    def name(self) -> str:
        return self._name

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def size(self) -> int:
        """Bytes, as this client knows it (its own writes included)."""
        return self.handle.size

    def stat(self) -> Stat:
        """The attributes now, after what was written through this client was published."""
        return drive(self.handle.stat())

    # --- at the position --------------------------------------------------------------------------------------------------------------

    def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes from the position on, fewer at the end of the file; all of them for None or a negative size."""
        return drive(self.handle.read(-1 if size is None else size))

    def read1(self, size: int = -1, /) -> bytes:
        """Some bytes, with at most one round trip; for `io.TextIOWrapper`."""
        return drive(self.handle.read1(size))

    def readall(self) -> bytes:
        """Everything from the position to the end."""
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        """Fill a writable buffer from the position on; returns how many bytes, fewer only at the end of the file."""
        return drive(self.handle.readinto(buffer))

    readinto1 = readinto

    def peek(self, size: int = 0, /) -> bytes:
        """At least one byte after the position, if there is one, without moving on."""
        return drive(self.handle.peek(size))

    def write(self, data: Any, /) -> int:
        """Write a whole buffer at the position (in append mode: at the end); returns its length in bytes."""
        return drive(self.handle.write(data))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move the position; returns it. `whence` may be os.SEEK_DATA or os.SEEK_HOLE, too. Raises INVALID for a negative position,
        NO_DEVICE (ENXIO) where no data or hole follows."""
        if whence == os.SEEK_DATA:
            offset, whence = drive(self.handle.data_from(offset)), 0
        elif whence == os.SEEK_HOLE:
            offset, whence = drive(self.handle.hole_from(offset)), 0
        return self.handle.seek(offset, whence)

    def tell(self) -> int:
        return self.handle.tell()

    # --- anywhere -----------------------------------------------------------------------------------------------------------------------

    def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes from `offset`, fewer at the end of the file. The position stays."""
        return drive(self.handle.pread(length, offset))

    def pread_into(self, buffer: Any, offset: int) -> int:
        """Fill a writable buffer from `offset` on; returns how many bytes."""
        return drive(self.handle.pread_into(buffer, offset))

    def preadv_batch(self, ranges: Sequence[tuple[int, int]], buffer: Any = None) -> list[memoryview]:
        """Many (offset, length) ranges in one request per server, for random access: per range a view, shorter at the end of the file.
        The views lie one after the other in `buffer` (writable, at least as long as all lengths), or in a new one."""
        return drive(self.handle.preadv_batch(ranges, buffer))

    def pwrite(self, data: Any, offset: int) -> int:
        """Write a whole buffer at `offset`. The position stays."""
        return drive(self.handle.pwrite(data, offset))

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend the file to `size` bytes (default: the position); returns it."""
        return drive(self.handle.truncate(size))

    # --- locks --------------------------------------------------------------------------------------------------------------------------

    def flock(self, how: str, *, blocking: bool = True) -> None:
        """Lock the whole file as flock(2): `how` is "shared", "exclusive" or "unlock". The lock belongs to this open file, and goes when it
        is closed or its client is gone. Who gets one sees all that its holders before wrote. Raises BlockingIOError if it is taken and
        `blocking` is false."""
        drive(self.handle.flock(how, blocking=blocking))

    def lock(
        self,
        start: int = 0,
        length: int = 0,
        *,
        exclusive: bool = True,
        blocking: bool = True,
        owner: int = THIS_PROCESS,
        pid: int | None = None,
    ) -> None:
        """Lock `length` bytes from `start` (0: to the end, however far the file grows) as fcntl(2): among the clients of the cluster, for
        `owner`, a number of the caller's choice (default: this client as a whole; its locks on the file go when any handle of it is
        closed). Replaces what the owner has in that range. Raises BlockingIOError if it is taken and `blocking` is false, EDEADLK if
        waiting would never end."""
        number = os.getpid() if pid is None else pid
        drive(self.handle.lock_range(start, length, exclusive=exclusive, blocking=blocking, owner=owner, pid=number))

    def unlock(self, start: int = 0, length: int = 0, *, owner: int = THIS_PROCESS) -> None:
        """Give back what the owner has locked in this range; all that was written is there for others first."""
        drive(self.handle.unlock_range(start, length, owner=owner))

    def test_lock(
        self, start: int = 0, length: int = 0, *, exclusive: bool = True, owner: int = THIS_PROCESS
    ) -> LockInfo | None:
        """The lock of another owner that is in the way of this one, or None."""
        return drive(self.handle.test_lock(start, length, exclusive=exclusive, owner=owner))

    def allocate(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        """Make the file at least `offset + length` bytes long, as posix_fallocate: what is new reads as zeros. With `keep_size` only
        see that there is room. Raises NO_SPACE, FILE_TOO_BIG."""
        drive(self.handle.allocate(KEEP_SIZE if keep_size else 0, offset, length))

    def punch(self, offset: int, length: int) -> None:
        """Make a hole: the range reads as zeros and takes no space where it covers whole chunks. The size stays."""
        drive(self.handle.allocate(PUNCH_HOLE | KEEP_SIZE, offset, length))

    def zero_range(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        """Make the range zeros, and the file long enough for it unless it is to keep its size."""
        drive(self.handle.allocate(ZERO_RANGE | (KEEP_SIZE if keep_size else 0), offset, length))

    def copy_from(self, source: File, start: int, offset: int, length: int) -> int:
        """Make `length` bytes from `offset` on what `source` has from `start` on; how many these were. Both positions stay. What falls
        on chunk boundaries in both files is shared instead of copied, if they have one layout (as an empty file will)."""
        return drive(self.handle.copy_from(source.handle, start, offset, length))

    # --- getting it out -----------------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what was written to storage and publish the length to other clients. Not power-loss durable: see `fsync`."""
        drive(self.handle.flush())

    def fsync(self) -> None:
        """`flush`, then make data and length durable on every replica."""
        drive(self.handle.fsync())

    @property
    def closed(self) -> bool:
        return self.handle.closed

    def close(self) -> None:
        """`flush` and give the file back. Raises once what went wrong with earlier writes; the file is closed even then."""
        drive(self.handle.close())

    def discard(self) -> None:
        """Close without writing out what is still buffered; an unnamed file is dropped."""
        drive(self.handle.discard())

    def __del__(self) -> None:
        # The collector may run this in the middle of anything, also where this very thread holds a lock: no work here. The keeper
        # closes the file soon, and the process at its end.
        handle = getattr(self, "handle", None)
        if handle is not None and not handle.closed:
            handle.core.orphans.append(handle)

    def readable(self) -> bool:
        self._check_open()
        return self.handle.can_read

    def writable(self) -> bool:
        self._check_open()
        return self.handle.can_write

    def seekable(self) -> bool:
        self._check_open()
        return True

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def __repr__(self) -> str:
        return f"<emberfs.File {self._name!r} mode={self._mode!r}{', closed' if self.closed else ''}>"
