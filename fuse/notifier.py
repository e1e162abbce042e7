"""The threads that tell the kernel what it must not believe any more.

The kernel waits for locks while it takes an invalidation: for a page's while a READ of it is under way, for a directory's while a
LOOKUP or CREATE in it is. Whoever answers requests must therefore never send one itself, or both wait for ever; a thread of its own
may. One that waits holds up no others: there are up to `THREADS_MAX`, made when all that there are have something to do. So invalidations
may overtake one another, which does no harm. Who needs one done before going on awaits it. What the kernel does not know
(ENOENT) needs no invalidation.

Names have a thread of their own. They wait for a directory's lock, and whoever holds that may be a LOOKUP or CREATE that awaits here
that the pages of an inode are gone: behind a few names of the same directory it would wait for itself.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable

from .protocol import INVAL_EXPIRE_ONLY, Notify
from .replies import notify_delete, notify_inval_entry, notify_inval_inode

THREADS_MAX = 4
WAITING_MAX = 65536  # notifications that nobody awaits; at the limit more are refused

logger = logging.getLogger(__name__)

# The kernel knows no such inode or name; the mount is gone; or a directory is not empty, a name in use.
_FINE = frozenset((0, errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENOTEMPTY, errno.EBUSY, errno.ENOTCONN))

_OF_NAMES = frozenset(code.to_bytes(4, sys.byteorder) for code in (Notify.INVAL_ENTRY, Notify.DELETE))
_CODE = slice(4, 8)  # of a frame

Waiter = asyncio.Future[None]


class _Line:
    """Frames that wait, and the threads that send them."""

    def __init__(self, threads_max: int) -> None:
        self.waiting: deque[tuple[bytes, Waiter | None]] = deque()
        self.some = threading.Condition()
        self.threads_max = threads_max
        self.threads: list[threading.Thread] = []
        self.idle = 0  # of these threads


class Notifier:
    """Every method may be called from the loop's thread only; results of those awaited come there too."""

    def __init__(self, send: Callable[[bytes], int]) -> None:
        """`send` writes a frame to the device and returns an errno; it may block."""
        self._send = send
        self._inodes, self._names = _Line(THREADS_MAX), _Line(1)
        self._counting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.sent = 0
        self.refused = 0  # by the kernel, or at the limit
        self.awaited = 0  # by somebody, and not sent yet
        self.on_awaited: Callable[[], None] | None = None  # is told that it is one more

    # --- what can be said -----------------------------------------------------------------------------------------------------------

    def inode(self, node: int, offset: int = 0, length: int = 0) -> Awaitable[None]:
        """The kernel drops attributes and pages of a range (length 0: to the end; offset -1: the attributes alone). Awaiting it is left
        to the caller: done when no old page can be read any more."""
        return self._put(notify_inval_inode(node, offset, length))

    def entry(self, parent: int, name: bytes, *, expire_only: bool = False) -> Awaitable[None]:
        """The kernel drops a name; with `expire_only` it looks it up again before it uses it, and mounts upon it stay."""
        return self._put(notify_inval_entry(parent, name, INVAL_EXPIRE_ONLY if expire_only else 0))

    def delete(self, parent: int, child: int, name: bytes) -> Awaitable[None]:
        """A name is gone, and who watches the directory hears of it."""
        return self._put(notify_delete(parent, child, name))

    def post(self, frame: bytes) -> bool:
        """Send a frame that nobody awaits. False at the limit: it is not sent."""
        if self._closed or len(self._line(frame).waiting) >= WAITING_MAX:
            self.refused += 1
            return False
        self._append(frame, None)
        return True

    # --- how it is said -------------------------------------------------------------------------------------------------------------

    def _put(self, frame: bytes) -> Waiter:
        self._loop = self._loop or asyncio.get_running_loop()
        waiter: Waiter = self._loop.create_future()
        if self._closed:
            waiter.set_result(None)
            return waiter
        self.awaited += 1
        waiter.add_done_callback(self._came)
        self._append(frame, waiter)
        if self.on_awaited is not None:
            self.on_awaited()
        return waiter

    def _came(self, _: Waiter) -> None:
        self.awaited -= 1

    def _line(self, frame: bytes) -> _Line:
        return self._names if frame[_CODE] in _OF_NAMES else self._inodes

    def _append(self, frame: bytes, waiter: Waiter | None) -> None:
        line = self._line(frame)
        with line.some:
            line.waiting.append((frame, waiter))
            line.some.notify()
            short = line.idle < len(line.waiting) and len(line.threads) < line.threads_max
        if short:
            line.threads.append(threading.Thread(target=self._run, args=(line,), name="emberfs-notifier", daemon=True))
            line.threads[-1].start()

    def _run(self, line: _Line) -> None:
        while True:
            with line.some:
                while not line.waiting:
                    if self._closed:
                        return
                    line.idle += 1
                    line.some.wait()
                    line.idle -= 1
                frame, waiter = line.waiting.popleft()
            self._count(self._send(frame))
            if waiter is not None and self._loop is not None:
                try:
                    self._loop.call_soon_threadsafe(_settle, waiter)
                except RuntimeError:
                    return  # the loop is closed: nobody waits

    def _count(self, failure: int) -> None:
        fine = failure in _FINE
        with self._counting:
            self.sent += fine
            self.refused += not fine
        if not fine:
            logger.warning("the kernel refused a notification with errno %d", failure)

    async def close(self, seconds: float) -> None:
        """Send what waits, and end the threads. Those that the kernel holds for longer than that are left behind: they end with the
        mount."""
        self._closed = True
        for line in (self._inodes, self._names):
            with line.some:
                line.some.notify_all()
        await asyncio.get_running_loop().run_in_executor(None, self._join, time.monotonic() + seconds)

    def _join(self, end: float) -> None:
        for thread in (*self._inodes.threads, *self._names.threads):
            thread.join(max(0.0, end - time.monotonic()))


def _settle(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)
