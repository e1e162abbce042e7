"""Blocks out of the caller's memory. What is there already costs nothing but the question, and is a success.

The checksum of a block covers its bytes as they leave: of memory that the server reads itself they may change before it does, and then it
refuses them (-EBADMSG) instead of keeping what nobody meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...client.core.verify import crc32c
from ...proto.blocks import BLOCK_BYTES_MAX
from ...proto.env import Call
from ...proto.errors import Status, error
from ...proto.gen.kvcache_pb2 import PutReply, PutRequest
from ...proto.routing import Replica
from ...proto.rpc import KVCACHE
from ..keys import Placement, key_columns
from ..places import Places
from .batch import Batch, Part
from .statuses import AGAIN, CANCELLED


@dataclass(eq=False)
class Put(Batch):
    """`places` has a row for each key, `depths` says how many blocks stand before each in its prefix."""

    places: Places = field(kw_only=True)
    depths: Sequence[int] = field(kw_only=True)
    ttl_s: int = field(default=0, kw_only=True)
    pin_s: int = field(default=0, kw_only=True)
    durable: bool = field(default=False, kw_only=True)
    reading = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method = KVCACHE.Put
        self.stored: list[int] = []  # rows that were not there before
        self.existed = 0  # rows that were

    async def run(self, placements: Sequence[Placement]) -> list[int]:
        """Put them where the newest of the placements says."""
        wanted, lengths = self.namespace.block_bytes, self.places.lengths
        all_fit = wanted > 0 and lengths.count(wanted) == self.count
        rows, doubles = self._distinct(self.checked(self.places, all_fit=all_fit))
        await self.carry_out(rows, placements[0])
        for row, first in doubles.items():
            self.statuses[row] = self.statuses[first]
        if self.stop.wanted:
            self.settle([row for row in rows if self.statuses[row] == AGAIN], CANCELLED)
        return self.statuses

    def fits(self, row: int) -> bool:
        wanted, length = self.namespace.block_bytes, self.places.lengths[row]
        return length == wanted if wanted else 0 < length <= BLOCK_BYTES_MAX

    def _distinct(self, rows: Sequence[int]) -> tuple[Sequence[int], dict[int, int]]:
        """A key is sent once: of several rows with the same, the others get its status."""
        firsts: dict[bytes, int] = {}
        for row, key in zip(rows, key_columns(self.keys, rows), strict=True):
            firsts.setdefault(key, row)
        if len(firsts) == len(rows):
            return rows, {}
        keys = dict(zip(rows, key_columns(self.keys, rows), strict=True))
        return list(firsts.values()), {row: firsts[key] for row, key in keys.items() if firsts[key] != row}

    # The batch.

    def weight(self, row: int) -> int:
        return self.places.lengths[row]

    def weight_of(self, rows: Sequence[int]) -> int:
        return sum(self.places.lengths_of(rows))

    def window_bytes(self, replica: Replica) -> int:
        return self.window_over(replica, self.places)

    def call(self, part: Part) -> Call:
        address, rows, places = self.address(part), part.rows, self.places
        request = PutRequest(**self.head(part), pin_s=self.pin_s, durable=self.durable)
        if not self.namespace.block_bytes:
            request.length.extend([places.lengths[row] for row in rows])
        request.depth.extend([self.depths[row] for row in rows])
        if self.ttl_s:
            request.ttl_s.extend([self.ttl_s] * len(rows))
        source = self.bulk(part, places)
        for row, piece in part.pieces.items():
            _fill(piece, places.views(row))
        views = places.singles(rows) if part.piece is None else list(part.pieces.values())
        if views is not None and len(views) != len(rows):
            views = None
        request.checksum.extend(map(crc32c, views) if views is not None else [self._sum(row, part) for row in rows])
        return Call(address, self.method, request, self.seconds(part), source=source)

    def _sum(self, row: int, part: Part) -> int:
        piece = part.pieces.get(row)
        found = 0
        for view in self.places.views(row) if piece is None else (piece,):
            found = crc32c(view, found)
        return found

    def take(self, part: Part, reply: PutReply) -> None:
        statuses, count = list(reply.status), len(part.rows)
        if statuses and not self.refused(part, statuses):
            return
        if reply.existed and len(reply.existed) != count:
            self.failed(part, error(Status.PROTOCOL, f"a reply to Put with columns of other lengths than {count}"))
            return
        existed = reply.existed or bytes(count)
        for i, row in enumerate(part.rows):
            if statuses and statuses[i]:
                continue
            self.statuses[row] = self.places.lengths[row]
            if existed[i]:
                self.existed += 1
            else:
                self.stored.append(row)


def _fill(piece: memoryview, views: Sequence[memoryview]) -> None:
    if len(views) == 1:
        piece[:] = views[0]
        return
    position = 0
    for view in views:
        piece[position : position + view.nbytes] = view
        position += view.nbytes
