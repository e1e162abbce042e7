"""Threads for what blocks: a disk that is synced or read.

Each job wakes one thread, the one that has waited for the shortest time, and ends in one call on the loop. The standard library's
executor wakes a second one with each job (a reader of its queue that was woken wakes the next), which then takes the interpreter's
lock away just when the first needs it, and keeps two futures for one result.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Job = Callable[[], None]
Ending = Callable[[Any, BaseException | None], None]


class Workers:
    """At most `count` threads, which are made when they are needed and end with the process, or after `close`. Jobs wait in line for
    them. All of it may be used in any thread, `run` and `start` on a loop's."""

    __slots__ = ("_closed", "_count", "_idle", "_jobs", "_lock", "_name", "_threads")

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._threads = 0
        self._closed = False
        self._lock = threading.Lock()  # for the making and the end of threads
        self._jobs: deque[Job] = deque()
        self._idle: list[threading.Lock] = []  # what those that wait hold; a release wakes the one

    def run(self, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Do it in a thread; a future of the running loop for its result, or what it raises. Who gives up waiting does not stop it. Raises
        RuntimeError where no thread can be made, and there is none."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def settle(result: Any, failure: BaseException | None) -> None:
            if future.done():
                return  # given up
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

        self.start(settle, work, *arguments)
        return future

    def start(self, then: Ending, work: Callable[..., Any], *arguments: Any) -> None:
        """Do it in a thread, and call `then` on the running loop, with the result and None or with None and what was raised."""
        loop = asyncio.get_running_loop()

        def job() -> None:
            result, failure = _outcome(work, arguments)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(then, result, failure)

        self._put(job)

    def beside(self, work: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Begin it, for one who is in a thread himself; what this returns waits for its end, and gives or raises what came of it. What
        nobody has begun by then he does himself."""
        outcome: list[tuple[Any, BaseException | None]] = []
        over = threading.Lock()
        over.acquire()

        def job() -> None:
            outcome.append(_outcome(work, arguments))
            over.release()

        def finished() -> Any:
            # Nobody has come to it: all others are at work, or there are none and the system gives us no more. Then nobody may ever come.
            with suppress(ValueError):
                self._jobs.remove(job)
                job()
            over.acquire()
            result, failure = outcome[0]
            if failure is not None:
                raise failure
            return result

        self._put(job)
        return finished

    def close(self) -> None:
        """Let the threads end when nothing is left to do. What comes later is done all the same."""
        self._closed = True
        while self._idle:
            self._wake()

    def _put(self, job: Job) -> None:
        self._jobs.append(job)  # first: a thread that goes to sleep looks once more after it has said so
        if self._wake():
            return
        try:
            self._make()
        except RuntimeError:  # the system gives us no more
            with self._lock:
                if self._threads:
                    return  # one of them comes to it
                self._jobs.remove(job)  # nobody may do what its caller believes to be given up
            raise

    def _wake(self) -> bool:
        try:
            self._idle.pop().release()
        except IndexError:
            return False
        return True

    def _make(self) -> None:
        with self._lock:
            if self._threads == self._count:
                return
            threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
            self._threads += 1

    def _work(self) -> None:
        jobs, idle, mine = self._jobs, self._idle, threading.Lock()
        mine.acquire()
        while True:
            try:
                job = jobs.popleft()
            except IndexError:
                if self._ends():
                    return
                idle.append(mine)
                if (jobs or self._closed) and _taken(idle, mine):
                    continue
                mine.acquire()
            else:
                job()
                del job  # and what it holds

    def _ends(self) -> bool:
        with self._lock:  # whoever brings a job now finds one thread less, and makes it
            if not self._closed or self._jobs:
                return False
            self._threads -= 1
        return True


def _outcome(work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    try:
        return work(*arguments), None
    except BaseException as failure:
        return None, failure


def _taken(idle: list[threading.Lock], mine: threading.Lock) -> bool:
    """Take back that a thread sleeps, unless somebody is waking it."""
    try:
        idle.remove(mine)
    except ValueError:
        return False
    return True
