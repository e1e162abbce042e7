"""An operation that may have to wait: a task for asyncio, but its first step is made at once.

Most operations need not wait at all (a write into the buffer, a read of what was read ahead), or wait once, for a server. A task of
asyncio's own waits for the loop's next turn before it begins; measured, beginning at once saves 4 µs of 13 for the first kind and costs
nothing for the second (Python 3.12 has eager tasks, 3.11 has not). To what it runs, it is a task like others:
`asyncio.current_task` finds it, `asyncio.timeout` and `wait_for` work, a cancellation arrives where it waits.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import (
    _enter_task,
    _leave_task,
)  # for tasks that are not asyncio's: documented in "Extending asyncio"
from collections.abc import Callable, Coroutine
from typing import Any

Finished = Callable[["Operation"], None]


class Operation:
    """A coroutine at work. Made and stepped on the loop's thread."""

    __slots__ = ("_cancels", "_finished", "_loop", "_must_cancel", "_waiting", "_work", "failure", "request", "result")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, request: Any, work: Coroutine[Any, Any, Any], finished: Finished
    ) -> None:
        """`finished` is called once, when `result` or `failure` is there: perhaps within the first `step`."""
        self.request = request
        self.result: Any = None
        self.failure: BaseException | None = None
        self._loop = loop
        self._work = work
        self._finished = finished
        self._waiting: asyncio.Future[Any] | None = None
        self._must_cancel = False
        self._cancels = 0

    def step(self, _: Any = None) -> bool:
        """Go on until it waits (False) or is done (True)."""
        self._waiting = None
        _enter_task(self._loop, self)  # type: ignore[arg-type]  # it only has to behave like one
        try:
            if self._must_cancel:
                self._must_cancel = False
                waiting = self._work.throw(asyncio.CancelledError())
            else:
                waiting = self._work.send(None)
        except StopIteration as done:
            self.result = done.value
        except BaseException as failure:
            self.failure = failure
        else:
            self._wait(waiting)
            return False
        finally:
            _leave_task(self._loop, self)  # type: ignore[arg-type]
        self._finished(self)
        return True

    def _wait(self, future: Any) -> None:
        """Step again when a future is done; a bare yield (asyncio.sleep(0)) gives None."""
        if future is None:
            self._loop.call_soon(self.step)
            return
        future._asyncio_future_blocking = False  # how `await future` and whoever runs it shake hands
        future.add_done_callback(self.step)
        self._waiting = future
        if self._must_cancel and future.cancel():
            self._must_cancel = False

    # --- what asyncio wants of a task -----------------------------------------------------------------------------------------------

    def cancel(self, msg: Any = None) -> bool:
        """Raise CancelledError where it waits. It may take that as it likes, as in any task."""
        self._cancels += 1
        if self._waiting is None or not self._waiting.cancel():
            self._must_cancel = True
        return True

    def cancelling(self) -> int:
        """Cancellations that nobody has taken back."""
        return self._cancels

    def uncancel(self) -> int:
        """Take one back, as `asyncio.timeout` does."""
        if self._cancels:
            self._cancels -= 1
        return self._cancels
