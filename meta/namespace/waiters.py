"""Requests that wait at this server for somebody else to let go of an inode: its locks, or its append token.

Memory only: what is held is in the engine. Who lets go at this server wakes whom that may help, in the order of their coming. Whoever
lets go elsewhere (another server, or a lease that ran out there) is noticed by a look each second. One worker serves all waiters, and
lives as long as there are any; it also notices who was given up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

from ...proto.errors import Status, error
from .seams import Clock

WAITERS_MAX = 20_000  # of a server; beyond, requests are answered BUSY
WAIT_SECONDS_MAX = 5.0  # that a request is held open, scaled; then the client asks again
LOOK_SECONDS = 1.0  # scaled
TICK_SECONDS = 0.05  # how late it is noticed that a request was given up, scaled
ANSWER_SECONDS = 0.25  # kept of a request's time for the answer, scaled


class Patience(Protocol):
    """What is asked of the context of a request that waits (proto/rpc.py)."""

    @property
    def cancelled(self) -> bool: ...
    @property
    def stopping(self) -> bool: ...
    def remaining(self) -> float: ...


class Waiter:
    """One request that waits for something about `key`. `what` is what it wants, for those who choose whom to wake."""

    __slots__ = ("context", "key", "look_at", "over_at", "turn", "what")

    def __init__(self, key: Hashable, what: Any, context: Patience, turn: Any, over_at: float) -> None:
        self.key = key
        self.what = what
        self.context = context
        self.turn = turn  # a promise
        self.over_at = over_at
        self.look_at = 0.0


class Waiters:
    """All of one kind. `wait` in a loop, until it says that time is up; `leave` in any case."""

    def __init__(self, clock: Clock, scale: float, is_closing: Callable[[], bool]) -> None:
        self._clock = clock
        self._scale = scale
        self._is_closing = is_closing
        self._waiting: dict[Hashable, list[Waiter]] = {}
        self.count = 0  # of all who wait
        self._ticking = False

    def join(self, key: Hashable, what: Any, context: Patience) -> Waiter:
        """Get in line. Raises BUSY when too many wait."""
        if self.count >= WAITERS_MAX:
            raise error(Status.BUSY, f"over {WAITERS_MAX} requests wait at this server; try again later")
        seconds = min(WAIT_SECONDS_MAX * self._scale, context.remaining() - ANSWER_SECONDS * self._scale)
        waiter = Waiter(key, what, context, self._clock.promise(), self._clock.now() + seconds)
        self._waiting.setdefault(key, []).append(waiter)
        self.count += 1
        return waiter

    def leave(self, waiter: Waiter) -> None:
        line = self._waiting[waiter.key]
        line.remove(waiter)
        if not line:
            del self._waiting[waiter.key]
        self.count -= 1

    async def wait(self, waiter: Waiter) -> bool:
        """Until it is worth trying again; False when the request's time is up, or nobody wants the answer any more. Raises UNAVAILABLE
        when this server stops."""
        waiter.look_at = self._clock.now() + LOOK_SECONDS * self._scale
        if not self._ticking:
            self._ticking = True
            self._clock.spawn(self._tick, "waiters")
        await waiter.turn
        waiter.turn = self._clock.promise()
        if waiter.context.stopping or self._is_closing():
            raise error(Status.UNAVAILABLE, "the metadata server stops; ask another one, or again")
        return not waiter.context.cancelled and self._clock.now() < waiter.over_at

    def line(self, key: Hashable) -> list[Waiter]:
        """Who waits, the first first."""
        return self._waiting.get(key, [])

    def wake(self, waiter: Waiter) -> None:
        """Let it try."""
        waiter.turn.set(None)

    async def _tick(self) -> None:
        try:
            while self.count:
                await self._clock.sleep(TICK_SECONDS * self._scale)
                now, closing = self._clock.now(), self._is_closing()
                for line in self._waiting.values():
                    for waiter in line:
                        context = waiter.context
                        if (
                            closing
                            or now >= min(waiter.look_at, waiter.over_at)
                            or context.cancelled
                            or context.stopping
                        ):
                            waiter.turn.set(None)
        finally:
            self._ticking = False
