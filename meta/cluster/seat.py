"""The manager's seat in a process that is one of several over one KV engine: empty until the process is elected, and again when its term
is over. Every term begins with a new `Manager`, loaded from what the store holds by then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from ...proto.errors import StatusError
from ...proto.gen.cluster_pb2 import Routing
from .election import Candidate, Term
from .manager import Clock, Manager
from .routing import Book

_log = structlog.get_logger("emberfs.manager")


class Seat:
    """`begin(term)` opens and starts a manager for the term; `run` is a background worker."""

    def __init__(self, candidate: Candidate, clock: Clock, begin: Callable[[Term], Awaitable[Manager]]) -> None:
        self._candidate = candidate
        self._clock = clock
        self._begin = begin
        self._manager: Manager | None = None

    @property
    def leading(self) -> Manager:
        """The manager, while this process leads. Raises NOT_PRIMARY, with the addresses of the one that does."""
        if self._manager is None:
            raise self._candidate.refusal()
        return self._manager.leading

    @property
    def taken(self) -> bool:
        """Whether this process leads, and its manager has begun."""
        return self._manager is not None and self._manager.leads

    @property
    def book(self) -> Book:
        return self.leading.book

    def routing(self, since: int = 0, *, server: bool = False) -> Routing | None:
        return self.leading.routing(since, server=server)

    async def run(self) -> None:
        """Take part in every election."""
        while True:
            term = await self._candidate.campaign()
            _log.info("this manager leads", term=term.number)
            self._clock.spawn(lambda term=term: self._take(term), "elected manager")  # type: ignore[misc]
            await self._candidate.keep()
            self._manager = None
            _log.warning("this manager does not lead any more", term=term.number)

    async def _take(self, term: Term) -> None:
        # Beside the renewals: loading a large cluster may take longer than a lease.
        try:
            manager = await self._begin(term)
        except StatusError as failed:
            _log.error("cannot take over; others may", term=term.number, error=failed.strerror)
            with suppress(StatusError):
                await self._candidate.resign()
            return
        if term.holds:
            self._manager = manager
