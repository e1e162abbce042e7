"""Leases: blocks that a client has matched stay until it has read them. In memory only, and gone with the process: a lease keeps
eviction away, it is no promise."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

from ...proto.ids import new_u64
from ...proto.rpc import PeerInfo

LEASE_MS_MAX = 600_000
LEASES_MAX = 65_536
BLOCKS_MAX = 1 << 20  # under all leases
CONNECTION_PART = 8  # of both, what one connection may have: 1/8
ENDS_SLACK = 1024  # ends of leases that are no more, before they are forgotten
ATTACHMENT = "storage.blocks.leases"


@dataclass(slots=True)
class Holder:
    """What one connection has on one target."""

    leases: int = 0
    blocks: int = 0


class Lease(NamedTuple):
    until: float  # seconds on the environment's clock
    blocks: Sequence[tuple[int, int]]  # slot of the directory, generation
    holder: Holder


class Leases:
    """Of one target; slots are its directory's."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}  # slot -> leases that hold it
        self._leases: dict[int, Lease] = {}
        self._ends: list[tuple[float, int]] = []  # heap of (until, number); of renewed and released ones, too
        self._blocks = 0

    def holder(self, peer: PeerInfo) -> Holder:
        """What this connection has here. Counted for each, so that one that takes all it can get leaves some to others."""
        holders: WeakKeyDictionary[Leases, Holder] = peer.attachments.setdefault(ATTACHMENT, WeakKeyDictionary())
        return holders.setdefault(self, Holder())

    def take(self, number: int, blocks: Sequence[tuple[int, int]], until: float, holder: Holder) -> bool:
        """Hold these blocks under a number that `new_lease` gave, which has nothing on this target yet, or more of them. Whether that is
        possible: too many may be held already, by all or by this connection."""
        known, more = self._leases.get(number), len(blocks)
        if known is None and (len(self._leases) >= LEASES_MAX or holder.leases >= LEASES_MAX // CONNECTION_PART):
            return False
        if self._blocks + more > BLOCKS_MAX or holder.blocks + more > BLOCKS_MAX // CONNECTION_PART:
            return False
        if known is not None:  # of another run of the same request
            blocks = [*known.blocks, *blocks]
            self.release(number)
        self._leases[number] = Lease(until, blocks, holder)
        self._note_end(until, number)
        self._blocks += len(blocks)
        holder.leases += 1
        holder.blocks += len(blocks)
        for slot, _ in blocks:
            self.held[slot] = self.held.get(slot, 0) + 1
        return True

    def renew(self, number: int, until: float) -> bool:
        """Whether there is such a lease."""
        lease = self._leases.get(number)
        if lease is None:
            return False
        self._leases[number] = lease._replace(until=until)
        return True

    def release(self, number: int) -> bool:
        lease = self._leases.pop(number, None)
        if lease is None:
            return False
        self._blocks -= len(lease.blocks)
        lease.holder.leases -= 1
        lease.holder.blocks -= len(lease.blocks)
        for slot, _ in lease.blocks:
            left = self.held.get(slot, 0) - 1
            if left > 0:
                self.held[slot] = left
            else:
                self.held.pop(slot, None)
        return True

    def expire(self, now: float) -> None:
        """What is over goes. Cheap where nothing is: asked for single blocks, while thousands of leases are held."""
        ends = self._ends
        while ends and ends[0][0] <= now:
            _, number = heapq.heappop(ends)
            lease = self._leases.get(number)
            if lease is None:
                continue
            if lease.until <= now:
                self.release(number)
            else:
                heapq.heappush(ends, (lease.until, number))

    def _note_end(self, until: float, number: int) -> None:
        if len(self._ends) > 2 * len(self._leases) + ENDS_SLACK:  # mostly of leases that were given back early
            self._ends = [(lease.until, known) for known, lease in self._leases.items() if known != number]
            heapq.heapify(self._ends)
        heapq.heappush(self._ends, (until, number))


def new_lease() -> int:
    return new_u64()
