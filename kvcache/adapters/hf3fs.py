"""3FS's ring interface (`hf3fs_fuse.io`) over emberfs: what SGLang's `hf3fs` backend and LMCache's `hf3fs://` connector call.

The engines open, truncate and close files of a mount themselves, and name them to a ring by their descriptors. So the bytes go the same
way: each piece of a batch is one `preadv` or `pwritev` on the engine's descriptor, the pieces of a batch in several threads. What the
kernel cached, wrote back or truncated is then seen by everybody in the one order that the mount promises; a second way past it would
see old bytes.

What 3FS's own module leaves open, and the engines rely on, is promised here:

- `wait` answers in the order of `prepare`, whichever piece was done first (engines pair results with pages by position);
- deregistering a descriptor twice does nothing (engines close twice);
- an iovec lets go of its memory when it dies (else the engine's `SharedMemory.close()` raises BufferError);
- nothing lands late: after a time-out, pieces that had not begun never will, and `wait` stays until those that had are done (the mount
  bounds that).

`python -m emberfs.kvcache.adapters.hf3fs` prints the folder to put on PYTHONPATH, so that engines find a package called `hf3fs_fuse`.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

THREADS = 8  # of the process: pieces on their way at once
BYTES_INLINE = 256 << 10  # a batch of less is moved in the caller's thread: handing it over costs more
ENTRIES_MAX = 1 << 16  # of a ring


class SharedMemory(Protocol):
    """What an iovec is made of: `multiprocessing.shared_memory.SharedMemory`, or anything with its buffer."""

    @property
    def buf(self) -> memoryview | None: ...


class Iovec:
    """A span of memory that the engine and we share. `iovec[a:b]` is a piece: its length is what is read or written. A piece that
    `wait` returns has `result`, bytes moved or a negative errno, and the `userdata` it was prepared with."""

    __slots__ = ("__weakref__", "_view", "result", "userdata")

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.result = 0
        self.userdata: Any = None

    def __getitem__(self, part: slice) -> Iovec:
        return Iovec(self._view[part])

    def __len__(self) -> int:
        return len(self._view)

    @property
    def view(self) -> memoryview:
        return self._view

    def __del__(self) -> None:
        self._view.release()


class _Piece:
    """One entry of a ring. `moved` is set once it is on its way in another thread."""

    __slots__ = ("fd", "iovec", "moved", "offset", "read")

    def __init__(self, iovec: Iovec, read: bool, fd: int, offset: int) -> None:
        self.iovec: Iovec | None = iovec
        self.read, self.fd, self.offset = read, fd, offset
        self.moved: Future[None] | None = None

    def move(self, deadline: float | None) -> None:
        """Read or write all of it; less only at the end of the file. Once: it lets go of the iovec, since the pool keeps a piece for a
        moment after `wait` has returned, and the engine may close its memory then."""
        iovec, self.iovec = self.iovec, None
        assert iovec is not None
        if deadline is not None and time.monotonic() > deadline:
            iovec.result = -errno.ETIMEDOUT
            return
        left, offset = iovec.view, self.offset
        try:
            while len(left):
                count = os.preadv(self.fd, [left], offset) if self.read else os.pwritev(self.fd, [left], offset)
                if not count:
                    break
                left, offset = left[count:], offset + count
            iovec.result = offset - self.offset
        except OSError as failure:
            iovec.result = -(failure.errno or errno.EIO)
        finally:
            if left is not iovec.view:
                left.release()


class Ring:
    """A queue of pieces for one direction. One caller at a time, as with 3FS: engines hold a lock for each ring."""

    def __init__(self, entries: int, for_read: bool) -> None:
        if not 0 < entries <= ENTRIES_MAX:
            raise OSError(errno.EINVAL, f"a ring has 1 to {ENTRIES_MAX} entries, not {entries}")
        self.entries, self.for_read = entries, for_read
        self._prepared: list[_Piece] = []
        self._submitted: deque[_Piece] = deque()

    def prepare(self, iov: Iovec, read: bool, fd: int, off: int, userdata: Any = None) -> Ring:
        """Queue a piece. Raises OSError: EAGAIN when the ring is full, EBADF in the wrong direction or for a descriptor that is not
        registered, EINVAL for an offset below 0."""
        if len(self._prepared) + len(self._submitted) >= self.entries:
            raise OSError(errno.EAGAIN, f"all {self.entries} entries of the ring are taken; wait for results first")
        if bool(read) != self.for_read:
            raise OSError(errno.EBADF, f"this ring is for {'reading' if self.for_read else 'writing'}")
        if fd not in _registered:
            raise OSError(errno.EBADF, f"descriptor {fd} is not registered: call register_fd first")
        if off < 0:
            raise OSError(errno.EINVAL, f"offset {off}")
        iov.userdata = userdata
        self._prepared.append(_Piece(iov, self.for_read, fd, off))
        return self

    def submit(self) -> Ring:
        """What was prepared may begin."""
        self._submitted.extend(self._prepared)
        self._prepared.clear()
        return self

    def wait(
        self, *, max_results: int = 0, min_results: int = 0, timeout: timedelta | float | None = None
    ) -> list[Iovec]:
        """The pieces that were submitted, in the order of `prepare`, each with its `result`; at most `max_results` of them (0: all).
        All of these are waited for, which is at least `min_results`. After `timeout` those that have not begun get -ETIMEDOUT."""
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        deadline = None if seconds is None else time.monotonic() + seconds
        count = min(max_results, len(self._submitted)) if max_results > 0 else len(self._submitted)
        pieces = [self._submitted.popleft() for _ in range(count)]
        iovecs = [piece.iovec for piece in pieces if piece.iovec is not None]
        if len(pieces) > 1 and sum(map(len, iovecs)) > BYTES_INLINE:
            pool = _threads()
            for piece in pieces[1:]:
                piece.moved = pool.submit(piece.move, deadline)
        for piece in pieces:
            if piece.moved is None or piece.moved.cancel():  # nobody has begun with it: this thread is as good as any
                piece.move(deadline)
            else:
                piece.moved.result()
                piece.moved = None
        return iovecs


_registered: set[int] = set()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _threads() -> ThreadPoolExecutor:
    global _pool  # noqa: PLW0603  # of the process, made when it is first needed
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(THREADS, "hf3fs")
        return _pool


def _after_fork_in_child() -> None:
    """The parent's threads are not here."""
    global _pool, _lock  # new ones
    _pool, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def make_iovec(shm: SharedMemory, hf3fs_mount_point: str, block_size: int = 0, numa: int = -1) -> Iovec:
    """An iovec over all of `shm`. The caller may unlink its name right away: we keep the mapping. `block_size` and `numa` are 3FS's hints
    for RDMA and are ignored. Raises ValueError for memory that is closed."""
    if shm.buf is None:
        raise ValueError("the shared memory is closed")
    return Iovec(memoryview(shm.buf).cast("B"))


def make_ioring(
    hf3fs_mount_point: str,
    entries: int,
    for_read: bool = True,
    io_depth: int = 0,
    priority: Any = None,
    timeout: Any = None,
    numa: int = -1,
    flags: int = 0,
) -> Ring:
    """A ring of `entries` pieces. `io_depth`, `priority`, `timeout` (of 3FS's daemon), `numa` and `flags` are hints that we do not need."""
    return Ring(entries, bool(for_read))


def register_fd(fd: int, flags: int = 0) -> None:
    """Let rings use an open descriptor. Raises OSError (EBADF) if it is not open."""
    os.fstat(fd)
    _registered.add(fd)


def deregister_fd(fd: int) -> None:
    """No more. A second time it does nothing."""
    _registered.discard(fd)


def extract_mount_point(path: str | os.PathLike[str]) -> str:
    """Where the file system begins that `path` lies in (or would, if it is still to be made). A mount point is its own."""
    place = os.path.realpath(os.fspath(path))
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return place


def folder() -> str:
    """What to put on PYTHONPATH, so that `import hf3fs_fuse.io` finds this module's names. Not on the path by itself: where 3FS is
    installed too, its package keeps its name."""
    return str(Path(__file__).parent / "dropin")


if __name__ == "__main__":
    sys.stdout.write(folder() + "\n")
