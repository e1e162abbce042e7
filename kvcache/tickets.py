"""Batches in the background, for engines that poll: `submit_*` gives a `Ticket`, `KVCache.completed()` those that are done, and an eventfd
is readable while there are some.

A few threads of the cache do the work, each with connections of its own; gets and matches go before puts that wait, and one thread does
nothing else. A ticket never raises what happened to blocks: its result is the statuses that the blocking call would have given.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from ..proto.blocks import KEY_BYTES
from ..proto.env import drive
from ..proto.settings import time_scale
from .core.batch import Stop
from .core.core import KvCore
from .core.results import Match
from .core.statuses import AGAIN, CANCELLED, as_array
from .keys import packed
from .places import places_of

WORKERS_MAX = 4  # threads
PUTTERS_MAX = WORKERS_MAX - 1  # of them that put: a get finds a thread also while as many puts wait as there are
SUBMITTED_MAX = 1024  # tickets that wait for a thread; beyond, they are answered with -EAGAIN at once
CLOSE_SECONDS = 10.0  # that closing waits for what is on its way: a stopped server may never be done with it. Scaled
_EVENT_FLAGS = os.EFD_CLOEXEC | os.EFD_NONBLOCK

Operation = Callable[..., Coroutine[Any, Any, Any]]
_Entry = tuple["Ticket", Callable[[], Any], bool]  # what to do, and whether it is a put


class Ticket:
    """A batch that was submitted."""

    def __init__(self, count: int, is_match: bool, finished: Callable[[Ticket], None]) -> None:
        self.count = count  # of keys
        self.is_match = is_match
        self.stop = Stop()
        self._finished = finished
        self._settled = threading.Event()
        self._lock = threading.Lock()
        self._result: Any = None
        self._failure: BaseException | None = None
        self._event = -1

    def done(self) -> bool:
        """Whether `result` would not wait. Never waits."""
        return self._settled.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """Statuses of a get or put, the `Match` of a match. Raises TimeoutError when it is not there within so many seconds."""
        if not self._settled.wait(timeout):
            raise TimeoutError(f"not done within {timeout} s; ask again, or cancel it")
        if self._failure is not None:
            raise self._failure
        return self._result

    def cancel(self) -> None:
        """What was not sent yet stays unsent: -ECANCELED. What is on its way is waited for, so that its memory is nobody else's."""
        self.stop.wanted = True

    def fileno(self) -> int:
        """An eventfd that is readable once this ticket is done. It is closed with the ticket."""
        with self._lock:
            if self._event < 0:
                self._event = os.eventfd(int(self.done()), _EVENT_FLAGS)
            return self._event

    def settle(self, result: Any, failure: BaseException | None = None) -> None:
        """Done. The first counts."""
        with self._lock:
            if self.done():
                return
            self._result, self._failure = result, failure
            self._settled.set()
            if self._event >= 0:
                os.eventfd_write(self._event, 1)
        self._finished(self)

    def __del__(self) -> None:
        if self._event >= 0:
            with suppress(OSError):
                os.close(self._event)


class Submitter:
    """Of one cache. Thread-safe; in a forked child it begins anew."""

    def __init__(self, core: KvCore) -> None:
        self._core = core
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._more = threading.Condition(self._lock)  # something to do, or closed
        self._reads: deque[_Entry] = deque()  # go first: engines wait for them
        self._puts: deque[_Entry] = deque()
        self._workers: list[threading.Thread] = []
        self._idle = self._putting = 0  # threads
        self._running: set[Ticket] = set()
        # Until somebody asks for what is done nobody may ever do.
        self._done: deque[Ticket] = deque(maxlen=SUBMITTED_MAX)
        self._event = -1
        self._closed = False

    def submit(self, operation: Operation, namespace: Any, keys: Any, how: dict[str, Any], *memory: Any) -> Ticket:
        """Do it in the background. Raises TypeError, ValueError for what can never be done."""
        self._follow_fork()
        joined = packed(keys)
        count = len(joined) // KEY_BYTES
        if memory:  # wrong arguments are the caller's, here and now
            places_of(memory[0], count, self._core.registry, writable=operation == self._core.get_into)
        ticket = Ticket(count, operation == self._core.match, self._finished)
        is_put = operation == self._core.put_from

        def work() -> Any:
            found = drive(operation(namespace, joined, *memory, stop=ticket.stop, **how))
            return found if ticket.is_match else as_array(found)

        with self._lock:
            waiting = len(self._reads) + len(self._puts)
            refused = CANCELLED if self._closed else AGAIN if waiting >= SUBMITTED_MAX else 0
            if not refused:
                (self._puts if is_put else self._reads).append((ticket, work, is_put))
                if self._idle <= waiting and len(self._workers) < WORKERS_MAX:  # idle ones have those before to do
                    self._start()
                self._more.notify()
        if refused:  # decided above: closed a moment later, it may be under way
            ticket.settle(_nothing(ticket, refused))
        return ticket

    def completed(self) -> list[Ticket]:
        """Those that are done since the last time; before the first time, the last SUBMITTED_MAX."""
        self._follow_fork()
        self._keep_all()
        with self._lock:  # what is done and what the event says go together
            if self._event >= 0:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._event)
            found = list(self._done)
            self._done.clear()
        return found

    def fileno(self) -> int:
        """An eventfd that is readable while `completed` has something."""
        self._follow_fork()
        self._keep_all()
        with self._lock:
            if self._event < 0:
                self._event = os.eventfd(len(self._done), _EVENT_FLAGS)
            return self._event

    def _keep_all(self) -> None:
        if self._done.maxlen is not None:
            with self._lock:
                self._done = deque(self._done)

    def _finished(self, ticket: Ticket) -> None:
        with self._lock:
            self._done.append(ticket)
            if self._event >= 0:
                with suppress(OSError):
                    os.eventfd_write(self._event, 1)

    def _start(self) -> None:
        worker = threading.Thread(target=self._run, name="emberfs-kvcache", daemon=True)
        self._workers.append(worker)
        worker.start()

    def _run(self) -> None:
        while (entry := self._take()) is not None:
            ticket, work, is_put = entry
            try:
                ticket.settle(work())
            except BaseException as failure:  # whoever waits gets it, whatever it is
                ticket.settle(None, failure)
            with self._lock:
                self._running.discard(ticket)
                self._putting -= is_put
            del entry, ticket, work  # an idle thread holds nobody's buffers

    def _take(self) -> _Entry | None:
        """The next to be done, waited for; None: closed."""
        with self._lock:
            self._idle += 1
            while (entry := self._next()) is None and not self._closed:
                self._more.wait()
            self._idle -= 1
            if entry is not None:
                self._running.add(entry[0])
                self._putting += entry[2]
            return entry

    def _next(self) -> _Entry | None:
        if self._reads:
            return self._reads.popleft()
        return self._puts.popleft() if self._puts and self._putting < PUTTERS_MAX else None

    def _follow_fork(self) -> None:
        if self._process != os.getpid():
            if self._event >= 0:
                os.close(self._event)
            self._begin()

    def stop(self) -> None:
        """What waits for a thread is cancelled, of the rest nothing more is sent."""
        self._follow_fork()
        with self._lock:
            self._closed = True
            waiting = [*self._reads, *self._puts]
            self._reads.clear()
            self._puts.clear()
            running = list(self._running)
            self._more.notify_all()
        for ticket in running:
            ticket.cancel()
        for ticket, _, _ in waiting:
            ticket.cancel()
            ticket.settle(_nothing(ticket, CANCELLED))

    def close(self) -> None:
        """`stop`, and wait until nothing moves any more in the memory of what was on its way. Doing it twice is no harm."""
        self.stop()
        end = time.monotonic() + CLOSE_SECONDS * time_scale()
        for worker in self._workers:
            if worker is not threading.current_thread():
                worker.join(max(0.0, end - time.monotonic()))
        with self._lock:
            if self._event >= 0:
                os.close(self._event)
                self._event = -1


def _nothing(ticket: Ticket, code: int) -> Any:
    """The result of a batch that was never begun."""
    statuses = [code] * ticket.count
    return Match.of(statuses) if ticket.is_match else as_array(statuses)
