"""Blocks into the caller's memory: whole ones, verified by a checksum that begins with their identity, or parts of them, verified unit by
unit.

A block that does not match is read once more, into memory of our own: the caller may have changed theirs meanwhile. If it is still
wrong, it is -EBADMSG, a miss, and reported: the server repairs it from another replica, or drops it so that somebody may put it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from typing import Any

from ...client.core.verify import crc32c, matches
from ...proto.blocks import BLOCK_BYTES_MAX, KV_TENANT, chunk_of
from ...proto.env import Call
from ...proto.errors import Status, StatusError, error
from ...proto.gen.kvcache_pb2 import GetReply, GetRequest
from ...proto.gen.storage_pb2 import ReportCorruptionRequest
from ...proto.ids import ChunkId
from ...proto.routing import Replica
from ...proto.rpc import KVCACHE, STORAGE
from ..keys import Placement, key_at, key_columns
from ..places import Places, Views
from .batch import Batch, Part
from .statuses import CANCELLED, DAMAGED, MISS

REPORT_SECONDS = 1.0  # a report waits at most so long: the scrubber would find the damage, too. Scaled


@dataclass(eq=False)
class Get(Batch):
    """`places` has a row for each key; `ranges` (offset, length) of each, None for whole blocks."""

    places: Places = field(kw_only=True)
    offsets: list[int] | None = field(default=None, kw_only=True)  # into the blocks; None: whole blocks
    verify: bool = field(default=True, kw_only=True)
    stop_on_miss: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method = KVCACHE.Get
        self._doubtful: set[int] = set()  # rows that did not match once
        self._damaged: list[tuple[Part, int, int]] = []  # whom we asked, of which chain, for which row

    async def run(self, placements: Sequence[Placement]) -> list[int]:
        """`placements`: the newest one, and older ones in which blocks may still lie."""
        wanted, lengths = self.namespace.block_bytes, self.places.lengths
        all_fit = self.offsets is None and wanted > 0 and lengths.count(wanted) == self.count
        rows = self.checked(self.places, all_fit=all_fit)
        for placement in placements:
            await self.carry_out(rows, placement, older=placement is not placements[0])
            rows = [row for row in rows if self.statuses[row] == MISS]
            if not rows or self.stop.wanted:
                break
        if self._damaged:
            await self._report()
        if self.stop_on_miss:
            self._cut()
        return self.statuses

    def fits(self, row: int) -> bool:
        wanted, length = self.namespace.block_bytes, self.places.lengths[row]
        if self.offsets is not None:
            return length > 0 and self.offsets[row] + length <= (wanted or BLOCK_BYTES_MAX)
        return length == wanted if wanted else 0 < length <= BLOCK_BYTES_MAX

    def _cut(self) -> None:
        """Behind the first block that did not come nothing counts."""
        first = next((row for row, status in enumerate(self.statuses) if status < 0), self.count)
        self.settle(range(first + 1, self.count), CANCELLED)

    # The batch.

    def weight(self, row: int) -> int:
        return self.places.lengths[row]

    def weight_of(self, rows: Sequence[int]) -> int:
        return sum(self.places.lengths_of(rows))

    def window_bytes(self, replica: Replica) -> int:
        return self.window_over(replica, self.places)

    def call(self, part: Part) -> Call:
        address, rows = self.address(part), part.rows
        request = GetRequest(**self.head(part))
        if self.offsets is not None or not self.namespace.block_bytes:
            request.length.extend([self.places.lengths[row] for row in rows])
        if self.offsets is not None:
            request.offset.extend([self.offsets[row] for row in rows])
        target = self.bulk(part, self.places, self._doubtful)
        return Call(address, self.method, request, self.seconds(part), target=target)

    def take(self, part: Part, reply: GetReply) -> None:
        if self.offsets is None and not reply.status and self._take_simple(part, reply):
            return
        statuses, count = list(reply.status), len(part.rows)
        if statuses and not self.refused(part, statuses):
            return
        generations, sums = list(reply.generation), self._sums(reply, count)
        if len(generations) != count or len(sums) != count:
            self.failed(part, error(Status.PROTOCOL, f"a reply to Get with columns of other lengths than {count}"))
            return
        units = list(reply.unit) if len(reply.unit) == count else [0] * count
        own, places, pieces = key_columns(self.keys, part.rows), self.places, part.pieces
        for i, row in enumerate(part.rows):
            if statuses and statuses[i]:
                if statuses[i] == Status.CHECKSUM:
                    self._mismatch(row, part)
                continue
            piece = pieces.get(row)
            views = places.views(row) if piece is None else (piece,)
            if self.verify and not self._is_right(row, views, own[i], generations[i], sums[i], units[i]):
                self._mismatch(row, part)
                continue
            if piece is not None:
                copy_into(places.views(row), piece)
            self.statuses[row] = places.lengths[row]

    def _take_simple(self, part: Part, reply: GetReply) -> bool:
        """The hot path: all blocks came, each in one piece, and all are right. Otherwise False, and they are looked at one by one."""
        rows, places = part.rows, self.places
        generations, sums = list(reply.generation), list(reply.checksum)
        pieces = list(part.pieces.values())
        views = pieces if part.piece is not None else places.singles(rows)
        if views is None or not len(views) == len(rows) == len(generations) == len(sums):
            return False
        if self.verify:
            own = key_columns(self.keys, rows)
            identities = [
                key + generation.to_bytes(8, "little") for key, generation in zip(own, generations, strict=True)
            ]
            if list(map(crc32c, views, map(crc32c, identities, repeat(self.namespace.seed)))) != sums:
                return False
        if part.piece is not None:
            self._deliver(rows, pieces)
        lengths = places.lengths
        if isinstance(rows, range):
            self.statuses[rows.start : rows.stop] = lengths[rows.start : rows.stop]
        else:
            for row in rows:
                self.statuses[row] = lengths[row]
        return True

    def _deliver(self, rows: Sequence[int], pieces: Sequence[memoryview]) -> None:
        """Verified bytes go to where they belong."""
        singles = self.places.singles(rows)
        if singles is None:
            for row, piece in zip(rows, pieces, strict=True):
                copy_into(self.places.views(row), piece)
            return
        for view, piece in zip(singles, pieces, strict=True):
            view[:] = piece

    def _sums(self, reply: GetReply, count: int) -> Sequence[Any]:
        """The checksums of each row: one number for a whole block, several for a part of one. Empty if they do not fit."""
        if self.offsets is None:
            return list(reply.checksum)
        counts, flat = list(reply.checksums) or [1] * count, list(reply.checksum)
        ends = list(accumulate(counts))
        if not ends or ends[-1] != len(flat):
            return ()
        return [flat[end - more : end] for more, end in zip(counts, ends, strict=True)]

    def _is_right(self, row: int, views: Views, key: bytes, generation: int, sums: Any, unit: int) -> bool:
        if self.offsets is None:
            found = crc32c(key + generation.to_bytes(8, "little"), self.namespace.seed)
            for view in views:
                found = crc32c(view, found)
            return bool(found == sums)
        view = views[0] if len(views) == 1 else memoryview(b"".join(views))
        return matches(view, sums, unit, self.offsets[row])

    def _mismatch(self, row: int, part: Part) -> None:
        if row in self._doubtful:
            self.statuses[row] = DAMAGED
            self._damaged.append((part, self.chain_of(part, row), row))
            return
        if part.several:
            # The next one asked is another one. This one looks for itself whether its block is damaged.
            self.core.cluster.replicas.refused(part.replica, Status.IO_ERROR)
            self._damaged.append((part, self.chain_of(part, row), row))
        self._doubtful.add(row)
        self._once_more.append(row)
        self.statuses[row] = DAMAGED

    async def _report(self) -> None:
        """Tell the servers what was damaged. Best effort."""
        by_node: dict[int, ReportCorruptionRequest] = {}
        for part, chain, row in self._damaged:
            block = ChunkId.unpack(chunk_of(self.namespace.id, key_at(self.keys, row)))
            target = next((r.target for r in self._serving(chain) if r.node == part.replica.node), 0)
            report = by_node.setdefault(part.replica.node, ReportCorruptionRequest(tenant=KV_TENANT))
            report.chain.append(chain)
            report.target.append(target)
            report.inode.append(block.inode)
            report.index.append(block.index)
        cluster = self.core.cluster
        for node, report in by_node.items():
            with suppress(StatusError):
                timeout = cluster.options.scaled(REPORT_SECONDS)
                await self.core.env.call(Call(cluster.node_address(node), STORAGE.ReportCorruption, report, timeout))

    def _serving(self, chain: int) -> Sequence[Replica]:
        return self.core.cluster.table.route(chain).serving


def copy_into(views: Views, source: memoryview) -> None:
    """Bytes that were verified go to where they belong, part by part."""
    position = 0
    for view in views:
        view[:] = source[position : position + view.nbytes]
        position += view.nbytes
