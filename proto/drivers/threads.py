"""What the blocking environment gives besides calls: time, locks, promises and workers, which end with it."""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from ..env import drive
from ..errors import Status, StatusError, error
from ..weakly import living
from .waiting import BlockingLock, BlockingPromise

JOIN_SECONDS = 2.0  # for workers to end at close


class Threads:
    """Any thread may call any method."""

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._workers: list[threading.Thread] = []
        self._promises: weakref.WeakSet[BlockingPromise] = weakref.WeakSet()

    async def sleep(self, seconds: float) -> None:
        if self._closing.wait(max(seconds, 0.0)):
            raise error(Status.CANCELLED, "the client was closed")

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        return time.time_ns()

    def random(self) -> float:
        return random.random()  # noqa: S311 - jitter

    def lock(self) -> AbstractAsyncContextManager[None]:
        return BlockingLock()

    def promise(self) -> BlockingPromise:
        promise = BlockingPromise()
        self._promises.add(promise)
        if self._closing.is_set():
            promise.fail(error(Status.CANCELLED, "the client was closed"))
        return promise

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> threading.Thread:
        def run() -> None:
            try:
                drive(work())
            except StatusError:
                if not self._closing.is_set():
                    raise

        self._workers = [worker for worker in self._workers if worker.is_alive()]
        thread = threading.Thread(target=run, name=f"emberfs-{name}", daemon=True)
        self._workers.append(thread)
        thread.start()
        return thread

    def _say_closing(self) -> None:
        """Who sleeps or waits for a promise is told."""
        self._closing.set()
        for promise in living(self._promises):
            promise.fail(error(Status.CANCELLED, "the client was closed"))

    def _join_workers(self) -> None:
        for worker in self._workers:
            if worker is not threading.current_thread():
                worker.join(JOIN_SECONDS)

    def _begin_anew(self) -> None:
        """In a forked child: the threads and what they wait for are the parent's."""
        closed = self._closing.is_set()
        Threads.__init__(self)
        if closed:
            self._closing.set()
