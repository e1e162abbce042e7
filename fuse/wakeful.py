"""A loop that stays awake for a moment: to be put to sleep and woken costs more than most requests need.

A program that works on files asks one thing after the other, and each answer of ours is followed by its next request some microseconds
later; so is what we ask a server by its answer. Waking a process on another processor takes 30 to 60 µs in a virtual machine. So
while something comes every now and then, the loop goes on turning between two events, for `LOOK_SECONDS_MAX` at most, and looks at all that
it waits for in each turn. Where that finds nothing, or where others need this processor, it does so ever more rarely (`Luck`). Who is idle
pays nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ..proto.transport.readiness import LOOK_SECONDS_MAX, Luck


class Wakeful:
    """Of one loop. `event` is called for all that had to be waited for."""

    __slots__ = ("_began", "_found", "_loop", "_luck", "_now", "_worked", "_worked_before", "awake", "looks", "lucky")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        """`worked` gives the processor time of this thread, as `now` in seconds."""
        self._loop = loop
        self._now = now
        self._worked = worked
        self._luck = Luck()
        self._found = False
        self._began = 0.0  # when this look did; 0: none is under way
        self._worked_before = 0.0
        self.awake = False  # the loop turns, and does not sleep
        self.looks = 0
        self.lucky = 0  # of these: something came

    def event(self) -> None:
        """Something came. It is served in this turn; the look begins with the next one."""
        self._found = True
        if not self.awake:
            self.awake = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        now = self._now()
        if self._found:
            if self._began:
                self._looked(now, found=True)
            self._found = False
            if not self._luck.may_look():
                self.awake = False
                return
            self._began, self._worked_before = now, self._worked()
        elif now - self._began > LOOK_SECONDS_MAX:
            self._looked(now, found=False)
            self.awake = False
            return
        self._loop.call_soon(self._turn)

    def _looked(self, now: float, *, found: bool) -> None:
        # Who was put aside meanwhile stood in somebody's way, perhaps of the very one that he waits for: no luck.
        here = self._worked() - self._worked_before > (now - self._began) / 2
        self._began = 0.0
        self.looks += 1
        self.lucky += found and here
        self._luck.looked(found and here)
