"""Syncing a write-ahead log in a thread, so that the event loop never waits for the disk.

One sync runs at a time and covers all that was committed before it began, so those who wait together share the next one: that is
the group commit. What nobody waits for is synced within a second. A sync that fails is never repeated, because the kernel may have
dropped the pages and would call the second one a success.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ...proto.drivers.aio import AioPromise
from ...proto.drivers.workers import Workers
from ...proto.errors import Status, error

SYNC_DELAY_SECONDS = 0.5  # after an unsynced commit; with the sync itself it is durable within a second

_Result = TypeVar("_Result")


class LogSync:
    """`sync` makes durable what was written before it was called; `failed` is told of the exception when it raises."""

    def __init__(self, sync: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        self._sync = sync
        self._failed = failed
        self._written = 0  # newest version in the log
        self._durable = 0  # version that the last sync covered
        self._failure: BaseException | None = None
        self._thread = Workers(1, "kv-sync")
        self._running: AioPromise | None = None  # kept when a sync has ended, well or not
        self._timer: asyncio.TimerHandle | None = None

    def written(self, version: int) -> None:
        """The log has this version now; it will be durable within a second."""
        self._written = version
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SYNC_DELAY_SECONDS, self._due)

    async def wait(self, version: int) -> None:
        """Until this version is durable. Raises MAYBE_COMMITTED when a sync fails."""
        self._written = max(self._written, version)
        while self._durable < version:
            if self._failure is not None:
                raise error(Status.MAYBE_COMMITTED, f"it is written, but not durable: the sync failed: {self._failure}")
            await (self._running or self._start())  # not cancelled with the one who waits

    async def close(self, last: Callable[[], None]) -> None:
        """Sync what is left, unless a sync has failed, and do `last` in the thread. Raises what `last` does."""
        while self._durable < self._written and self._failure is None:
            await (self._running or self._start())
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._thread.run(last)
        finally:
            self._thread.close()

    def _due(self) -> None:
        self._timer = None
        if self._running is None and self._durable < self._written and self._failure is None:
            self._start()

    def _start(self) -> AioPromise:
        running, covered = AioPromise(), self._written

        def done(_: None, failure: BaseException | None) -> None:
            self._running = None
            self._failure = failure
            if failure is not None:
                self._failed(failure)
            else:
                self._durable = covered
                if self._timer is None:  # it ran out meanwhile
                    self._due()
            running.set(None)

        self._thread.start(done, self._sync)
        self._running = running
        return running
