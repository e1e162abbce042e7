"""Forwards that come late or twice: what was sent and not answered may lie in the socket of a stopped process for a while.

A write of a chunk that comes after the chunk's remove would bring it back, for a chunk that is gone has no version to compare with. So
every forward has a session and a number. An answer that stays away raises the session, and the receiver, which takes nothing from
before the newest session that it has seen, lets the late one pass by. Within a session it takes each number once. A refusal raises the
session, too, where the receiver has not looked at the number (without a lease, under another version of the chain): what was refused is
sent again under a new one, and the old one would be a gap that a second copy could fill. A chain's new version begins both anew; what
is older names the old version.
"""

from __future__ import annotations

PER_SECOND = 1_000_000  # sessions: a restarted process begins above all that it can have used before
LATER_MAX = 8192  # numbers remembered behind a gap: more than forwards can be on their way at once


class Sending:
    """The sender's side."""

    __slots__ = ("number", "session")

    def __init__(self) -> None:
        self.session = 0
        self.number = 0

    def begin(self, now: float) -> None:
        """Under a new chain version. `now` in seconds, of a clock that a restart of the process does not set back."""
        self._raise(max(self.session + 1, int(now * PER_SECOND)))

    def next(self) -> tuple[int, int]:
        self.number += 1
        return self.session, self.number

    def not_taken(self, session: int) -> None:
        """A forward of this session had no answer, or was refused before the receiver looked at its number."""
        if session == self.session:
            self._raise(session + 1)

    def _raise(self, session: int) -> None:
        self.session = session
        self.number = 0


class Receiving:
    """The receiver's side, under one chain version."""

    __slots__ = ("_later", "_session", "_through")

    def __init__(self) -> None:
        self._session = 0
        self._through = 0  # every number up to this one has come
        self._later: set[int] = set()  # and these

    def takes(self, session: int, number: int) -> bool:
        """Whether this one is neither late nor here for the second time."""
        if session < self._session:
            return False
        if session > self._session:
            self._session, self._through = session, 0
            self._later.clear()
        if number <= self._through or number in self._later:
            return False
        self._later.add(number)
        if len(self._later) > LATER_MAX:
            self._close_gaps()
        while self._through + 1 in self._later:
            self._through += 1
            self._later.discard(self._through)
        return True

    def _close_gaps(self) -> None:
        """A forward of this session that was refused before it was counted leaves a gap, as long as nothing comes from the next one. Who
        comes with one of those numbers after all is sent away, and comes again with another one."""
        self._through = sorted(self._later)[len(self._later) // 2]
        self._later = {number for number in self._later if number > self._through}
