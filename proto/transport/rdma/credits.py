"""How many SENDs may be under way: a pure state machine, no device.

Each side has posted so many receives; a SEND that finds none would stall the peer's device (receiver not ready). So a side sends only
while it has credits, one per receive of the peer that is not used. Receives are posted again in groups, and told to the peer with
whatever is sent next, or in a SEND of its own when half of them are owed. One credit is kept for that: were it spent on data, both sides
could wait for each other with everything received, and nobody allowed to say so.

A peer that sends without credits is found out by the first SEND too many, and not served any longer: credits are also what keeps it from
asking for more than it takes in.
"""

from __future__ import annotations

from ...errors import Status, error

RESERVED = 1  # credits that only a SEND without data may use


class Credits:
    """Of one side of one queue pair. `peer`: receives that the peer posted to begin with; `own`: those that this side did."""

    __slots__ = ("_given", "_own", "_peer", "available", "owed")

    def __init__(self, peer: int, own: int) -> None:
        if peer <= RESERVED or own <= RESERVED:
            raise error(Status.PROTOCOL, f"{min(peer, own)} receives: at least {RESERVED + 1} are needed")
        self._peer = peer
        self._own = own
        self._given = own  # SENDs that the peer may send, as far as it has been told
        self.available = peer  # SENDs that may leave
        self.owed = 0  # receives posted again that the peer does not know of

    @property
    def may_send(self) -> bool:
        """Whether data may leave."""
        return self.available > RESERVED

    def sent(self) -> int:
        """One SEND leaves: what it tells the peer of receives posted again."""
        assert self.available > 0, "a SEND without a credit"
        self.available -= 1
        told, self.owed = self.owed, 0
        self._given += told
        return told

    def received(self, told: int) -> None:
        """A SEND of the peer arrived, which tells of so many. Raises PROTOCOL for more than were used, and for a SEND without a credit."""
        self._given -= 1
        if self._given < 0:
            raise error(Status.PROTOCOL, "the peer sent more than it had credits for")
        if self.available + told > self._peer:
            raise error(Status.PROTOCOL, f"the peer gave {told} credits back, {self._peer - self.available} were used")
        self.available += told

    def posted(self, count: int) -> None:
        """So many receives were posted again."""
        self.owed += count
        assert self.owed <= self._own, "more receives than there are"

    @property
    def update_due(self) -> bool:
        """Whether the peer should be told without waiting for data to go with it."""
        return self.owed * 2 >= self._own and self.available > 0
