"""Whose a client's id is. Memory, and the records of leases.

An id is 16 random bytes that every connection of a client names, and it stands for what the client holds: sessions, locks, its lease. So
it belongs to the user who came with it first, and only he and whoever may act for others (`Identity.trusted`) come with it again. Of
clients with a lease the owner is on record, and known after a restart as well.
"""

from __future__ import annotations

from ..proto.errors import Status, error
from ..proto.rpc import Identity

SEEN_MAX = 1 << 17  # clients without a lease whose owners are remembered; the oldest is forgotten


class Owners:
    """Of one metadata server."""

    def __init__(self) -> None:
        self._leased: dict[bytes, int] = {}  # client -> user id
        self._seen: dict[bytes, int] = {}  # the oldest first

    def require(self, client: bytes, user: Identity) -> None:
        """Whoever proved to be this user uses this id. Raises NOT_PERMITTED for another user's; not SESSION_ENDED: a client that has come
        by a way on which it is nobody would throw away what it has written."""
        owner = self._leased.get(client, self._seen.get(client))
        if owner is None:
            if len(self._seen) >= SEEN_MAX:
                del self._seen[next(iter(self._seen))]
            self._seen[client] = user.uid
        elif owner != user.uid and not user.trusted:
            raise error(Status.NOT_PERMITTED, f"this client id is another user's than user {user.uid}'s: connect anew")

    def of(self, client: bytes, default: int) -> int:
        """The user id of a client's owner, where he is known."""
        return self._leased.get(client, self._seen.get(client, default))

    def leased(self, client: bytes, uid: int) -> None:
        """The client has a lease, on record as this user's."""
        self._leased[client] = uid
        self._seen.pop(client, None)

    def ended(self, client: bytes) -> None:
        """Its lease is over, and with it the client."""
        self._leased.pop(client, None)
