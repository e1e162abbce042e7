"""This process's lease on its places in replicated chains.

The manager gives a node's places away only when its lease is over by the manager's own clock. The holder counts from the moment at which it
sent the renewal, so it always stops first; a part of the lease is kept back for clocks that run at different speeds. A chain of
one member needs no lease: there is nobody to hand its place to.
"""

from __future__ import annotations

from ..proto.settings import time_scale

LEASE_SECONDS_DEFAULT = 5.0  # until the manager has said how long one is; scaled
DRIFT_PART = 0.1  # of a lease: two clocks differ by less over its length


class Lease:
    """One per process. Time is seconds on CLOCK_BOOTTIME, which counts while a machine sleeps."""

    __slots__ = ("seconds", "until")

    def __init__(self) -> None:
        self.until = float("-inf")  # when it is over, by the holder's count
        self.seconds = LEASE_SECONDS_DEFAULT * time_scale()  # that it was granted for the last time

    def renewed(self, sent: float, seconds: float) -> None:
        """A renewal that was sent at `sent` has been granted for `seconds`."""
        self.until = max(self.until, sent + seconds * (1 - DRIFT_PART))
        self.seconds = seconds

    def lost(self) -> None:
        """Another process has our place."""
        self.until = float("-inf")

    def holds(self, now: float) -> bool:
        return now < self.until
