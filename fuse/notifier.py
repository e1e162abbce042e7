"""The threads that tell the kernel what it must not believe any more.

The kernel waits for locks while it takes an invalidation: for a page's while a READ of it is under way, for a directory's while a
LOOKUP or CREATE in it is. Whoever answers requests must therefore never send one itself, or both wait for ever; a thread of its own
may. One that waits holds up no others: there are up to `THREADS_MAX`, made when all that there are have something to do. So invalidations
may overtake one another, which does no harm. Who needs one done before going on awaits it. What the kernel does not know
(ENOENT) needs no invalidation.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable

from .protocol import INVAL_EXPIRE_ONLY
from .replies import notify_delete, notify_inval_entry, notify_inval_inode

THREADS_MAX = 4
WAITING_MAX = 65536  # notifications that nobody awaits; at the limit more are refused

logger = logging.getLogger(__name__)

# The kernel knows no such inode or name; the mount is gone; or a directory is not empty, a name in use.
_FINE = frozenset((0, errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENOTEMPTY, errno.EBUSY, errno.ENOTCONN))

Waiter = asyncio.Future[None]


class Notifier:
    """Every method may be called from the loop's thread only; results of those awaited come there too."""

    def __init__(self, send: Callable[[bytes], int]) -> None:
        """`send` writes a frame to the device and returns an errno; it may block."""
        self._send = send
        self._waiting: deque[tuple[bytes, Waiter | None]] = deque()
        self._some = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0  # of these threads
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.sent = 0
        self.refused = 0  # by the kernel, or at the limit

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
        if self._closed or len(self._waiting) >= WAITING_MAX:
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
        else:
            self._append(frame, waiter)
        return waiter

    def _append(self, frame: bytes, waiter: Waiter | None) -> None:
        with self._some:
            self._waiting.append((frame, waiter))
            self._some.notify()
            short = self._idle < len(self._waiting) and len(self._threads) < THREADS_MAX
        if short:
            self._threads.append(threading.Thread(target=self._run, name="emberfs-notifier", daemon=True))
            self._threads[-1].start()

    def _run(self) -> None:
        while True:
            with self._some:
                while not self._waiting:
                    if self._closed:
                        return
                    self._idle += 1
                    self._some.wait()
                    self._idle -= 1
                frame, waiter = self._waiting.popleft()
            self._count(self._send(frame))
            if waiter is not None and self._loop is not None:
                try:
                    self._loop.call_soon_threadsafe(_settle, waiter)
                except RuntimeError:
                    return  # the loop is closed: nobody waits

    def _count(self, failure: int) -> None:
        fine = failure in _FINE
        with self._some:
            self.sent += fine
            self.refused += not fine
        if not fine:
            logger.warning("the kernel refused a notification with errno %d", failure)

    async def close(self, seconds: float) -> None:
        """Send what waits, and end the threads. Those that the kernel holds for longer than that are left behind: they end with the
        mount."""
        self._closed = True
        with self._some:
            self._some.notify_all()
        await asyncio.get_running_loop().run_in_executor(None, self._join, time.monotonic() + seconds)

    def _join(self, end: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))


def _settle(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)
