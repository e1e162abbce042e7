"""Leases of clients: who has to be heard of until when. Pure; time is handed in (seconds on CLOCK_BOOTTIME).

The manager counts from the moment it received a renewal, the client from the moment it sent it: the client always stops first.
"""

from __future__ import annotations

from collections import OrderedDict


class Leases:
    """All leases have one length, so they stand in the order in which they run out."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, client: bytes) -> bool:
        return client in self._ends

    def renew(self, client: bytes, now: float) -> None:
        self._ends[client] = now + self.seconds
        self._ends.move_to_end(client)

    def forget(self, client: bytes) -> None:
        self._ends.pop(client, None)

    def is_over(self, client: bytes, now: float) -> bool:
        """Whether a client's lease has run out, or there is none."""
        return self._ends.get(client, now) <= now

    def expired(self, now: float) -> list[bytes]:
        """Clients whose lease has run out, longest ago first."""
        found = []
        for client, end in self._ends.items():
            if end > now:
                break
            found.append(client)
        return found
