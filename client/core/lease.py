"""The one lease of a client: while it is good, its sessions and locks are its own.

It counts from the moment the renewal was sent, on a clock that goes on while the machine sleeps, less a tenth for clocks that drift. A
client that was stopped for longer finds its lease over before it sends anything: its sessions may have been settled and its
locks given away meanwhile, and a late write would destroy the work of a successor.
"""

from __future__ import annotations

from ...proto.env import Environment
from ...proto.errors import Status, StatusError, error
from ...proto.settings import client_lease, time_scale

RENEWALS_PER_LEASE = 6
DRIFT = 0.9


class Lease:
    """`check` before each send of dirty data. Before the first open for writing there is nothing to lose, and no lease."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self.epoch = 0  # of the client's session at the manager; 0: not told yet
        self.expires = float("inf")

    def begin(self, sent: float) -> None:
        """A session begins with a request sent at `sent`: from now on a lease is needed."""
        if self.expires == float("inf"):
            self.expires = sent + client_lease() * time_scale() * DRIFT  # until the first renewal tells better

    def renewed(self, sent: float, lease_ms: int, epoch: int) -> bool:
        """A renewal that was sent at `sent` was granted. False when it belongs to another session: ours was over."""
        same = self.epoch in (0, epoch)
        self.epoch = epoch
        self.expires = sent + lease_ms / 1000 * DRIFT
        return same

    @property
    def over(self) -> bool:
        return self._env.now() >= self.expires

    def check(self) -> None:
        """Raise SESSION_ENDED when the lease has run out."""
        if self.over:
            raise self.ended_error()

    def end(self) -> None:
        """A server says that it is over."""
        self.expires = 0.0

    @staticmethod
    def ended_error() -> StatusError:
        return error(
            Status.SESSION_ENDED,
            "this client was silent for longer than its lease; what it had not written out is lost, check the file",
        )
