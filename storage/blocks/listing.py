"""Listings of a namespace's blocks on one chain, page by page in the order of their keys.

What is listed is the keys that were there when the listing began: they are spread over buckets by their first byte, each of which is
sorted when its turn comes. So a page costs what is on it, however many blocks there are, and nothing holds the interpreter for as
long as it takes to sort millions of keys. Blocks that have gone meanwhile are left out; those that came meanwhile may be.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...proto.env import Environment

if TYPE_CHECKING:
    from .directory import Shelf

LISTINGS_MAX = 16  # under way; of more the one that was asked for longest ago begins anew
LISTING_SECONDS = 60.0  # without a question, after which one is forgotten
BUCKETS = 256

Name = tuple[bytes, int, int]  # client, namespace, chain
Blocking = Callable[..., Awaitable[Any]]  # run in a thread: (function, arguments)


@dataclass(slots=True, eq=False)
class _Listing:
    buckets: list[list[bytes]]
    asked: float = 0.0  # last, on the environment's clock
    in_order: set[int] = field(default_factory=set)  # buckets

    def page(self, after: bytes, limit: int) -> list[bytes]:
        found: list[bytes] = []
        for number in range(after[0] if after else 0, BUCKETS):
            bucket = self.buckets[number]
            if number not in self.in_order:
                bucket.sort()
                self.in_order.add(number)
            begin = bisect_right(bucket, after) if after else 0
            found += bucket[begin : begin + limit - len(found)]
            if len(found) == limit:
                break
        return found


class Listings:
    """Of one storage process."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._listings: dict[Name, _Listing] = {}  # asked for longest ago first
        self._forgetting = False

    async def page(self, name: Name, after: bytes, limit: int, shelf: Shelf, blocking: Blocking) -> list[bytes]:
        """Up to `limit` keys behind `after`, of those that were on the shelf when the listing began: with an empty `after`, or now if it
        was forgotten."""
        listing = self._listings.pop(name, None) if after else None
        if listing is None:
            listing = _Listing(await blocking(_spread, list(shelf.slots)))
        listing.asked = self._env.now()
        found = listing.page(after, limit)
        self._listings.pop(name, None)
        if len(found) == limit:
            self._keep(name, listing)
        return found

    def _keep(self, name: Name, listing: _Listing) -> None:
        self._listings[name] = listing
        while len(self._listings) > LISTINGS_MAX:
            del self._listings[next(iter(self._listings))]
        if not self._forgetting:
            self._forgetting = True
            self._env.spawn(self._forget, "listings")

    async def _forget(self) -> None:
        """Those that nobody goes on with."""
        while self._listings:
            await self._env.sleep(LISTING_SECONDS)
            over = self._env.now() - LISTING_SECONDS
            self._listings = {name: listing for name, listing in self._listings.items() if listing.asked > over}
        self._forgetting = False


def _spread(keys: Iterable[bytes]) -> list[list[bytes]]:
    """In any thread: keys are many."""
    buckets: list[list[bytes]] = [[] for _ in range(BUCKETS)]
    for key in keys:
        buckets[key[0]].append(key)
    return buckets
