"""Waiting for bytes on sockets: to look for a moment before one sleeps.

To sleep and to be woken costs 30-60 µs in virtual machines, more than client or server need for a small request. So both look at their
sockets again and again for a moment before they sleep, as long as that finds something. Where it does not, because the other side is
slow, or where others need this CPU, looks become rare. Who is idle pays nothing.

Who waits for an answer of many while the server has more to do for it naps instead: it sleeps for a moment by the clock, and looks. Linux
moves whom a sender wakes to the sender's CPU (in virtual machines even where its own is idle, since a CPU that halts counts as preempted).
There both stay and take turns, at half the speed. A nap ends where it began, and the server has nobody to wake.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .rdma.socket import RdmaSocket

LOOK_SECONDS_MAX = (
    200e-6  # of CPU time, before one sleeps; a small answer of a server that has to be woken takes 100-150 µs
)
NAP_SECONDS = 50e-6  # and the kernel's slack, another 50
NAPS_MAX = 8  # then one sleeps, to be woken
WAITS_SKIPPED_MAX = 63  # between two looks that found nothing: 3 µs of CPU time for each wait

_now = time.monotonic
_nap = time.sleep
_worked = time.thread_time
_looking: list[int] = []  # threads that look now: one of a process is enough


class Luck:
    """Whether to look: after each look in vain twice as many waits pass without one, after each that found something half as many."""

    __slots__ = ("_pause", "_skip")

    def __init__(self) -> None:
        self._pause = 0  # waits without a look after the next one
        self._skip = 0  # of them, how many are left
        if len(os.sched_getaffinity(0)) < 2:
            self._skip = 1 << 62  # nobody could send while we look

    def may_look(self) -> bool:
        if self._skip:
            self._skip -= 1
            return False
        return True

    def looked(self, found: bool) -> None:
        self._pause = self._pause >> 1 if found else min(2 * self._pause + 1, WAITS_SKIPPED_MAX)
        self._skip = self._pause


class Readiness:
    """One socket, waited for by one thread at a time. The thread sleeps in poll(2), never in recv(2): the kernel wakes who waits in
    recv also when the peer takes in what was sent to it."""

    __slots__ = ("_luck", "_poll")

    def __init__(self, sock: socket.socket | RdmaSocket) -> None:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        self._poll = poll.poll
        self._luck = Luck()

    def wait(self, seconds: float, *, patient: bool = False) -> bool:
        """Until there is something to receive, the end of the stream included. False after `seconds`. `patient`: it may be 0.1 ms late."""
        if self._poll(0) or (self._naps(seconds) if patient else self._luck.may_look() and self._look()):
            return True
        return bool(self._poll(max(seconds, 0.0) * 1000 + 1))

    def _naps(self, seconds: float) -> bool:
        if seconds < NAPS_MAX * NAP_SECONDS:
            return False
        for _ in range(NAPS_MAX):
            _nap(NAP_SECONDS)
            if self._poll(0):
                return True
        return False

    def _look(self) -> bool:
        if _looking:
            return False
        _looking.append(threading.get_ident())
        try:
            return _look(partial(self._poll, 0), self._luck)
        finally:
            _looking.pop()


class Idleness:
    """The time of a server's loop between its last reply and the next request, on whichever connection that comes."""

    __slots__ = ("_luck", "_poll", "_sockets")

    def __init__(self) -> None:
        self._sockets = select.epoll()
        self._poll = partial(self._sockets.poll, 0, 1)  # is any of them ready?
        self._luck = Luck()

    def watch(self, sock: socket.socket | RdmaSocket) -> None:
        """Look at this socket too. It is forgotten when it is closed."""
        self._sockets.register(sock, select.EPOLLIN)

    def begin(self) -> None:
        """Everything is answered: look for a moment whether more comes, then it is for the loop to sleep."""
        if self._luck.may_look():
            _look(self._poll, self._luck)

    def close(self) -> None:
        self._sockets.close()


def _look(poll: Callable[[], object], luck: Luck) -> bool:
    begin, worked = _now(), _worked()
    end = begin + LOOK_SECONDS_MAX
    while not (found := bool(poll())):
        if _now() > end:
            break
    # Who was put aside meanwhile stood in somebody's way, perhaps of the very one that he waits for: no luck.
    luck.looked(found and _worked() - worked > (_now() - begin) / 2)
    return found


os.register_at_fork(after_in_child=_looking.clear)  # they are the parent's
