"""Callers that were killed while they waited.

On a disk only a signal that kills ends a wait (locks apart): one that the program catches waits for the end of the read or fsync.
INTERRUPT says that there was a signal, the first one, and not which. To end the wait for any would fail what fails on no disk: a page of
a mapping that is not there is a SIGBUS, and what a database hears of its fsync it believes. So /proc is asked whether the caller was
killed. A signal that ends a process (Ctrl-C, too, where it is not caught) shows as SIGKILL pending.

Those that were not may be later, and of an O_DIRECT read or write the kernel tells nothing at all: these are asynchronous to it
(ASYNC_DIO: one read(2) of 8 MiB is eight READs at once; measured, without it such reads are 0.46 times as fast), and whoever waits for
all their parts waits uninterruptibly. While one of these waits, /proc is asked from time to time.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from .callers import status_of
from .protocol import READ_LOCK_OWNER, Opcode
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
        """This one waits, and INTERRUPT says no more of it."""
        self._waiting.add(request.unique)
        if not self._looks:
            self._look_later()

    def _look_later(self) -> None:
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


def is_direct(request: Request) -> bool:
    """Whether a READ or WRITE is an O_DIRECT one."""
    layout = READ_IN if request.opcode == Opcode.READ else WRITE_IN
    return bool(layout.unpack_from(request.body)[5] & os.O_DIRECT)


def is_for_pages(request: Request) -> bool:
    """Whether a READ fills the kernel's pages: for a call that names no owner of locks."""
    return request.opcode == Opcode.READ and not READ_IN.unpack_from(request.body)[3] & READ_LOCK_OWNER


def is_killed(thread: int, *, unseen: bool = False) -> bool:
    """Whether a thread ends as soon as it no longer waits; `unseen` for one of another PID namespace, of which nobody knows."""
    pending = status_of(thread, b"SigPnd")
    return bool(int(pending, 16) & KILLED) if pending else unseen
