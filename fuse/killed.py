"""Callers that were killed where the kernel cannot say so.

An O_DIRECT read or write is asynchronous to the kernel (ASYNC_DIO: one read(2) of 8 MiB is eight READs at once; measured, without it such
reads are 0.46 times as fast), and whoever waits for all its parts waits uninterruptibly: no INTERRUPT comes. So while such a request
waits, /proc is asked from time to time whether its caller has been killed. A signal that ends a process (Ctrl-C, too, where it is not
caught) shows as SIGKILL pending; one that is caught waits for the end of the read, as on a local disk.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from .callers import status_of
from .protocol import Opcode
from .structs import READ_IN, WRITE_IN

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from .session import Request

LOOK_SECONDS = 0.5  # between looks, and before the first one
KILLED = 1 << signal.SIGKILL - 1


class Killed:
    """Those of the requests in flight (by number). `interrupt` is called for each whose caller was killed."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, inflight: dict[int, Request], interrupt: Callable[[Request], None]
    ) -> None:
        self._loop = loop
        self._inflight = inflight
        self._interrupt = interrupt
        self._waiting: set[int] = set()
        self._looks = False

    def waits(self, request: Request) -> None:
        """A READ or WRITE waits: is it one of those?"""
        layout = READ_IN if request.opcode == Opcode.READ else WRITE_IN
        if layout.unpack_from(request.body)[5] & os.O_DIRECT:
            self._waiting.add(request.unique)
            self._look_later()

    def _look_later(self) -> None:
        if not self._looks:
            self._looks = True
            self._loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looks = False
        found = [self._inflight[number] for number in self._waiting & self._inflight.keys()]
        waiting = [request for request in found if not request.interrupted]
        dead = {pid for pid in {request.pid for request in waiting} if is_killed(pid)}
        self._waiting = {request.unique for request in waiting if request.pid not in dead}
        for request in waiting:
            if request.pid in dead:
                self._interrupt(request)
        if self._waiting:
            self._look_later()


def is_killed(thread: int) -> bool:
    """Whether a thread ends as soon as it no longer waits. False for one of another PID namespace."""
    return bool(int(status_of(thread, b"SigPnd") or b"0", 16) & KILLED)
