"""What threads of the blocking environment wait for: calls, locks and promises, in coroutines that never suspend."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager
from typing import Any

from ..errors import StatusError
from .calls import Pending
from .connection import Connection


class Ticket:
    """A started call with a connection of its own."""

    __slots__ = ("connection", "failure", "local", "pending")

    def __init__(
        self, connection: Connection | None, pending: Pending | None, failure: StatusError | None = None
    ) -> None:
        self.connection = connection
        self.pending = pending
        self.failure = failure
        self.local: Any = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        pending = self.pending
        return pending is None or pending.frame is not None or pending.failure is not None


class BlockingLock(AbstractAsyncContextManager[None]):
    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class BlockingPromise:
    """Awaiting it blocks the thread until another one settles it, or the environment closes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._failure: BaseException | None = None
        self._value: Any = None

    @property
    def done(self) -> bool:
        return self._settled.is_set()

    def set(self, value: Any) -> None:
        with self._lock:
            if not self.done:
                self._value = value
                self._settled.set()

    def fail(self, failure: BaseException) -> None:
        with self._lock:
            if not self.done:
                self._failure = failure
                self._settled.set()

    def __await__(self) -> Generator[Any, Any, Any]:
        self._settled.wait()
        if self._failure is not None:
            raise self._failure
        return self._value
        yield  # a generator, as __await__ has to be, which never suspends
