"""Hit ratios of eviction policies on a trace, without servers: ours, ideal LRU, S3-FIFO as published, Belady's bound.

What counts are *prefix hits*: the blocks that are there from the start of a request up to the first that is not, as an engine can use no
others. Afterwards all blocks of the request are there: the missing ones were computed and put, in the order of the prefix.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Protocol

from ...storage.blocks.policy import Policy
from .kv_traces import Request
from .measure import row

CAPACITIES = (1_000, 5_000, 10_000, 20_000, 50_000)  # blocks
CAPACITY_OF_AIM = 10_000
AIM_POINTS = 1.0  # above ideal LRU


class Cache(Protocol):
    def __contains__(self, block: object) -> bool: ...

    def take(self, blocks: Sequence[int]) -> None:
        """A request for these blocks has been served: those that were here were hit, the others were put."""


def hit_ratio(cache: Cache, trace: Sequence[Request]) -> float:
    """The part of all blocks of all requests that were prefix hits."""
    hits = references = 0
    for request in trace:
        references += len(request.blocks)
        for block in request.blocks:
            if block not in cache:
                break
            hits += 1
        cache.take(request.blocks)
    return hits / references if references else 0.0


class Ours:
    """What storage servers do (storage/blocks/policy.py), with blocks of one byte."""

    def __init__(self, capacity: int) -> None:
        self.policy = Policy(capacity)
        self._capacity = capacity
        self._slots: dict[int, int] = {}  # block -> slot of the directory
        self._blocks: dict[int, int] = {}
        self._free: list[int] = []

    def __contains__(self, block: object) -> bool:
        return block in self._slots

    def take(self, blocks: Sequence[int]) -> None:
        for depth, block in enumerate(blocks):
            slot = self._slots.get(block)
            if slot is not None:
                self.policy.touched(slot)
                continue
            slot = self._free.pop() if self._free else len(self._blocks)
            self._slots[block] = slot
            self._blocks[slot] = block
            self.policy.inserted(slot, key_of(block), 1, depth, 0)
        while len(self._slots) > self._capacity:
            for slot in self.policy.victims(len(self._slots) - self._capacity, lambda _: False):
                self.policy.removed(slot)
                del self._slots[self._blocks.pop(slot)]
                self._free.append(slot)


def key_of(block: int) -> bytes:
    """A key of 32 bytes for a block's id in a trace, as evenly spread as an engine's."""
    return blake2b(block.to_bytes(8, "little"), digest_size=32).digest()


class IdealLRU:
    """Least recently used, every block by itself."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, block: object) -> bool:
        return block in self._blocks

    def take(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
            if len(self._blocks) > self._capacity:
                self._blocks.popitem(last=False)


class PublishedS3Fifo:
    """As in the paper (SOSP 2023): a tenth is the small queue, as many ghosts as blocks; nothing is known of prefixes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._small: OrderedDict[int, None] = OrderedDict()
        self._main: OrderedDict[int, None] = OrderedDict()
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        self._hits: dict[int, int] = {}

    def __contains__(self, block: object) -> bool:
        return block in self._hits

    def take(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if block in self._hits:
                self._hits[block] = min(3, self._hits[block] + 1)
                continue
            while len(self._hits) >= self._capacity:
                self._evict()
            if block in self._ghosts:
                del self._ghosts[block]
                self._main[block] = None
            else:
                self._small[block] = None
            self._hits[block] = 0

    def _evict(self) -> None:
        """One step; not every step makes room."""
        if len(self._small) >= max(1, self._capacity // 10) or not self._main:
            block, _ = self._small.popitem(last=False)
            if self._hits[block]:
                self._hits[block] = 0
                self._main[block] = None
                return
            self._ghosts[block] = None
            if len(self._ghosts) > self._capacity:
                self._ghosts.popitem(last=False)
        else:
            block, _ = self._main.popitem(last=False)
            if self._hits[block]:
                self._hits[block] -= 1
                self._main[block] = None
                return
        del self._hits[block]


class Belady:
    """Evicts what is needed last, the deepest of those; it knows the trace, so nobody can do better."""

    def __init__(self, capacity: int, trace: Sequence[Request]) -> None:
        self._capacity = capacity
        self._next_uses = _next_uses(trace)
        self._position = 0
        self._blocks: dict[int, int] = {}  # -> its next use
        self._order: list[
            tuple[int, int, int]
        ] = []  # (-next use, -depth, block), with entries that do not hold any more

    def __contains__(self, block: object) -> bool:
        return block in self._blocks

    def take(self, blocks: Sequence[int]) -> None:
        for depth, (block, use) in enumerate(zip(blocks, self._next_uses[self._position], strict=True)):
            self._blocks[block] = use
            heapq.heappush(self._order, (-use, -depth, block))
        self._position += 1
        while len(self._blocks) > self._capacity:
            use, _, block = heapq.heappop(self._order)
            if self._blocks.get(block) == -use:
                del self._blocks[block]


def _next_uses(trace: Sequence[Request]) -> list[list[int]]:
    """For each request and block: the number of the next request that has it, or the trace's length."""
    found: dict[int, int] = {}
    uses: list[list[int]] = []
    for number in range(len(trace) - 1, -1, -1):
        uses.append([found.get(block, len(trace)) for block in trace[number].blocks])
        found.update(dict.fromkeys(trace[number].blocks, number))
    uses.reverse()
    return uses


def rows(trace: Sequence[Request], capacities: Sequence[int] = CAPACITIES) -> list[dict[str, Any]]:
    """One for each capacity: ours beside the others, in per cent."""
    made = []
    for capacity in capacities:
        ways: dict[str, Callable[[int], Cache]] = {
            "ours": Ours,
            "lru": IdealLRU,
            "s3_fifo": PublishedS3Fifo,
            "belady": lambda blocks: Belady(blocks, trace),
        }
        ratios = {name: round(100 * hit_ratio(make(capacity), trace), 2) for name, make in ways.items()}
        ours, lru = ratios["ours"], ratios["lru"]
        one = row(f"prefix hits, {capacity:,} blocks, against ideal LRU", ours, "%", lru) | ratios
        if capacity == CAPACITY_OF_AIM:
            one |= {"aim": f"≥ LRU + {AIM_POINTS:g} point", "met": ours >= lru + AIM_POINTS}
        made.append(one)
    return made
