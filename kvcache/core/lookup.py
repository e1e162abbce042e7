"""What moves no blocks: which are there, and what is said about them (touched, pinned, deleted, fetched into memory)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...proto.env import Call
from ...proto.errors import Status, error
from ...proto.gen.kvcache_pb2 import (
    DeleteReply,
    DeleteRequest,
    MatchReply,
    MatchRequest,
    TouchReply,
    TouchRequest,
)
from ...proto.rpc import KVCACHE
from ..keys import Placement
from .batch import Batch, Part
from .statuses import AGAIN, MISS


@dataclass(eq=False)
class Lookup(Batch):
    """Which blocks are there: a status of their length, or -ENOENT. `leases`: what was granted, by storage node."""

    lease_ms: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method = KVCACHE.Match
        self.reading = not self.lease_ms  # a lease is the head's to give, which evicts
        self.leases: list[tuple[int, int]] = []  # storage node, lease

    async def run(self, placements: Sequence[Placement]) -> list[int]:
        rows: Sequence[int] = range(self.count)
        for placement in placements:
            await self.carry_out(rows, placement, older=placement is not placements[0])
            rows = [row for row in rows if self.statuses[row] == MISS] if len(placements) > 1 else ()
            if not rows or self.stop.wanted:
                break
        return self.statuses

    def call(self, part: Part) -> Call:
        request = MatchRequest(**self.head(part), lease_ms=self.lease_ms)
        return Call(self.address(part), self.method, request, self.seconds(part))

    def take(self, part: Part, reply: MatchReply) -> None:
        count, present = len(part.rows), reply.present
        if reply.lease:
            self.leases.append((part.replica.node, reply.lease))
        refused: Sequence[int] = ()
        if any(reply.run_status):
            if len(reply.run_status) != len(part.counts):
                self.failed(part, error(Status.PROTOCOL, "a reply to Match with statuses of other runs"))
                return
            refused = [code for code, run in zip(reply.run_status, part.counts, strict=True) for _ in range(run)]
            self.refused(part, refused)
        if len(present) != count or len(reply.length) not in (0, count):
            self.failed(part, error(Status.PROTOCOL, f"a reply to Match with columns of other lengths than {count}"))
            return
        lengths = list(reply.length) or [self.namespace.block_bytes] * count
        if not refused and isinstance(part.rows, range) and part.rows.step == 1:
            found = [length if here else MISS for here, length in zip(present, lengths, strict=True)]
            self.statuses[part.rows.start : part.rows.stop] = found
            return
        for i, row in enumerate(part.rows):
            if not (refused and refused[i]):
                self.statuses[row] = lengths[i] if present[i] else MISS


@dataclass(eq=False)
class Touch(Batch):
    """Something said about blocks: 0 where they are there, -ENOENT otherwise."""

    reading = False

    action: TouchRequest.Action = field(kw_only=True)
    seconds_wanted: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method = KVCACHE.Touch

    async def run(self, placements: Sequence[Placement]) -> list[int]:
        rows: Sequence[int] = range(self.count)
        for placement in placements:
            await self.carry_out(rows, placement, older=placement is not placements[0])
            rows = [row for row in rows if self.statuses[row] == MISS]
            if not rows or self.stop.wanted:
                break
        return self.statuses

    def call(self, part: Part) -> Call:
        request = TouchRequest(**self.head(part), action=self.action, seconds=self.seconds_wanted)
        return Call(self.address(part), self.method, request, self.seconds(part))

    def take(self, part: Part, reply: TouchReply) -> None:
        _take_statuses(self, part, reply.status)


@dataclass(eq=False)
class Delete(Batch):
    """Blocks deleted wherever a version of the table may have placed them: 0, or -ENOENT where there was none."""

    reading = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method = KVCACHE.Delete

    async def run(self, placements: Sequence[Placement]) -> list[int]:
        """`placements`: all that the namespace ever had."""
        best = [MISS] * self.count
        for placement in placements:
            self.statuses = [AGAIN] * self.count
            await self.carry_out(range(self.count), placement)
            best = [_both(one, other) for one, other in zip(best, self.statuses, strict=True)]
        self.statuses = best
        return best

    def call(self, part: Part) -> Call:
        return Call(self.address(part), self.method, DeleteRequest(**self.head(part)), self.seconds(part))

    def take(self, part: Part, reply: DeleteReply) -> None:
        _take_statuses(self, part, reply.status)


def _both(one: int, other: int) -> int:
    """What to say of a block that was deleted in two places: a failure of either, else whether it was anywhere."""
    failures = [code for code in (one, other) if code < 0 and code != MISS]
    return failures[0] if failures else max(one, other)


def _take_statuses(batch: Batch, part: Part, statuses: Sequence[int]) -> None:
    """A reply that has nothing but statuses."""
    if not statuses:
        batch.settle(part.rows, 0)
    elif batch.refused(part, list(statuses)):
        batch.settle([row for row, code in zip(part.rows, statuses, strict=True) if not code], 0)
