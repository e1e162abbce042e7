"""Write-back of one inode: small writes gather in chunk-sized buffers, full buffers stream to storage, several requests in flight.

A `Block` is one buffer over an aligned part of the file with one contiguous dirty extent; a write that does not touch the extent
sends the block first. `drain` is the only way to know that everything arrived. All methods that await run under the inode's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ...proto.copying import copy
from ...proto.errors import Status, StatusError
from ...proto.gen.meta_pb2 import InlineWrites
from ...proto.region import Slice
from .budget import Budget
from .channels import Channels
from .inode import Inode
from .lease import Lease
from .writes import Update, WriteBatch

BLOCK_BYTES_MAX = 4 << 20  # a buffer covers a chunk, or this much of a larger one (whose pieces go one at a time)
BLOCK_BYTES_FIRST = 64 << 10  # small files never need more
SEND_BYTES = (
    4 << 20
)  # as much is sent in one request, if the chunks are smaller: each costs every member of a chain the same
STREAM_BYTES = 8 << 20  # in flight within one long write, even if none may stay behind


class Block:
    """One dirty extent [start, end) within the buffer for file bytes [base, base + size)."""

    __slots__ = ("base", "end", "slice", "start")

    def __init__(self, base: int, slice_: Slice, start: int) -> None:
        self.base = base
        self.slice = slice_
        self.start = self.end = start

    def touches(self, start: int, end: int) -> bool:
        return start <= self.end and end >= self.start

    def put(self, start: int, data: memoryview) -> None:
        end = start + len(data)
        copy(self.slice.view[start:end], data)
        self.start, self.end = min(self.start, start), max(self.end, end)

    def update(self, file: Inode) -> Update:
        """The block's extent as an update of its chunk; the buffer goes along."""
        index, offset = divmod(self.base + self.start, file.chunk_size)
        extent = Slice(self.slice.region, self.slice.offset + self.start, self.end - self.start)
        return Update(file, index, offset, extent, self.slice)


class WriteBack:
    """Dirty blocks and batches in flight of one inode, at most `limit` bytes together (0: every write waits until it has arrived)."""

    def __init__(self, file: Inode, channels: Channels, lease: Lease, budget: Budget, limit: int) -> None:
        self.file = file
        self._cluster = file.cluster
        self._channels = channels
        self._lease = lease
        self._budget = budget
        self._limit = limit
        self._block_bytes = min(file.chunk_size, BLOCK_BYTES_MAX)
        self._blocks: dict[int, Block] = {}  # by base, the oldest first
        self._full: dict[int, Block] = {}  # those of them that reach their end, by base
        self._batches: deque[WriteBatch] = deque()
        self.abandoned = False

    # --- looking (no lock needed) -----------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether anything has not certainly arrived."""
        return bool(self._blocks or self._batches)

    def overlaps(self, offset: int, end: int) -> bool:
        """Whether [offset, end) may hold bytes that have not arrived."""
        if not self.pending:
            return False
        for block in list(self._blocks.values()):
            if offset < block.base + block.end and end > block.base + block.start:
                return True
        return any(
            offset < u.end and end > u.end - u.source.length for batch in list(self._batches) for u in batch.updates
        )

    def clear_end(self, offset: int, end: int) -> int:
        """How far within [offset, end) all bytes have arrived."""
        for block in list(self._blocks.values()):
            if offset < block.base + block.end:
                end = min(end, max(offset, block.base + block.start))
        for batch in list(self._batches):
            for update in batch.updates:
                if offset < update.end:
                    end = min(end, max(offset, update.end - update.source.length))
        return end

    def covering(self, offset: int, end: int) -> memoryview | None:
        """The bytes [offset, end) as they were written here, if all of them lie in one piece that has not arrived yet. Valid until the
        next await, under the inode's lock."""
        for block in self._blocks.values():
            first, last = block.base + block.start, block.base + block.end
            if offset < last and end > first:
                return (
                    block.slice.view[offset - block.base : end - block.base]
                    if first <= offset and end <= last
                    else None
                )
        for batch in reversed(self._batches):
            for update in batch.updates:
                first = update.end - update.source.length
                if offset < update.end and end > first:
                    inside = first <= offset and end <= update.end and not batch.done
                    return update.source.view[offset - first : end - first] if inside else None
        return None

    def dirty_end(self) -> int:
        """Where the last byte that was not sent yet ends in the file."""
        return max((block.base + block.end for block in list(self._blocks.values())), default=0)

    @property
    def small(self) -> bool:
        """Whether what is dirty is kept for the next settlement, which brings it beside the inode instead of into chunks."""
        limit = self.file.inline_max
        if not limit or self._batches or not self._blocks:
            return False
        return all(block.base + block.end <= limit for block in self._blocks.values())

    def small_pieces(self) -> InlineWrites | None:
        """What the settlement takes over; `discard` it then."""
        if not self.small:
            return None
        blocks = [block for block in self._blocks.values() if block.start < block.end]
        return InlineWrites(
            offsets=[block.base + block.start for block in blocks],
            pieces=[bytes(block.slice.view[block.start : block.end]) for block in blocks],
        )

    # --- writing ----------------------------------------------------------------------------------------------------------------------

    async def write(self, data: memoryview, offset: int) -> None:
        """Take over a copy of `data`. Raises BUSY when other files hold all buffers; then it may be called again."""
        for base, start, piece in self._cut(data, offset):
            block = await self._block(base, start, start + len(piece))
            block.put(start, piece)
            if block.end == self._block_bytes:
                # By base: one that is full already and is written again must not be sent twice, its buffer goes with the first.
                self._full[base] = block
                if sum(full.end - full.start for full in self._full.values()) >= SEND_BYTES:
                    await self._send(list(self._full.values()))
                    await self._bound(max(self._limit, STREAM_BYTES))
        await self._bound(self._limit)

    async def _bound(self, limit: int) -> None:
        """Wait for the oldest until at most `limit` bytes have not arrived."""
        while self._in_flight() + self._dirty() > limit and not self.small:
            if not self._batches:
                await self._send(list(self._blocks.values()))
            await self._settle_oldest()

    async def drain(self, *, durable: bool = False) -> set[int]:
        """Send everything and wait until it arrived or failed (the inode's `error` says so); what is `small` stays for the settlement.
        `durable`: where one request will do, it asks for that, too, which saves a round; the chains that became durable so."""
        if not self.pending or self.small:
            return set()
        await self._send(list(self._blocks.values()), durable=durable and not self._batches)
        synced: set[int] = set()
        while self._batches:
            batch = self._batches[0]
            await self._settle_oldest()
            synced |= batch.durable_chains
        return synced

    async def empty(self) -> None:
        """`drain`, and publish what is small. Raises what a settlement raises."""
        await self.drain()
        if self.small:
            await self.file.settle()

    def discard(self) -> None:
        """Drop what was not sent."""
        blocks, self._blocks, self._full = self._blocks, {}, {}
        for block in blocks.values():
            self._free(block.slice)

    def abandon(self) -> None:
        """Drop everything, also what is on its way: this client's session is over."""
        self.abandoned = True
        self.discard()
        while self._batches:
            self._batches.popleft().abandon()

    # --- inside -----------------------------------------------------------------------------------------------------------------------

    def _cut(self, data: memoryview, offset: int) -> Iterator[tuple[int, int, memoryview]]:
        size, position = self._block_bytes, 0
        while position < len(data):
            start = (offset + position) % size
            length = min(size - start, len(data) - position)
            yield offset + position - start, start, data[position : position + length]
            position += length

    async def _block(self, base: int, start: int, end: int) -> Block:
        """The block at `base`, ready to take [start, end)."""
        block = self._blocks.get(base)
        if block is not None and not block.touches(start, end):
            await (self.empty() if self.small else self._send([block]))
            block = None
        if block is not None and end <= block.slice.length:
            return block
        small = block is None and end <= BLOCK_BYTES_FIRST
        buffer = await self._buffer(BLOCK_BYTES_FIRST if small else self._block_bytes)
        old = self._blocks.get(base)  # unless it was sent to get the buffer
        # Complete before it is in its place: an interrupt at any moment must leave the old bytes in one of the two, and no others.
        made = Block(base, buffer, start if old is None else old.start)
        if old is not None:
            made.put(old.start, old.slice.view[old.start : old.end])
        self._blocks[base] = made
        if old is not None:
            self._free(old.slice)
        return made

    async def _buffer(self, length: int) -> Slice:
        """A buffer from the client's share; at the limit our own writes are finished first. Raises BUSY when others hold it all."""
        while True:
            try:
                return self._budget.take(length)
            except StatusError as failure:
                if failure.status is not Status.BUSY or not self.pending:
                    raise
                await self.empty()

    def _free(self, slice_: Slice) -> None:
        self._budget.give(slice_)

    def _in_flight(self) -> int:
        return sum(batch.bytes for batch in self._batches)

    def _dirty(self) -> int:
        return sum(block.end - block.start for block in self._blocks.values())

    async def _send(self, blocks: list[Block], *, durable: bool = False) -> None:
        """Hand blocks over to batches; one update a channel in each. `durable`: if it is only one, for all chains of the file (nobody
        knows what was written to the others before)."""
        self.file.inline_max = 0  # what goes to chunks is not small any more, and never will be
        if self.file.inlined or self.file.inlining:
            await self.file.grow()
        for earlier in list(self._batches):
            await earlier.begin()  # where that was interrupted or cancelled: what is older must not arrive later
        while blocks:
            batch: dict[int, Update] = {}
            sent: dict[int, Block] = {}
            left: list[Block] = []
            for block in blocks:
                if block.start == block.end:  # whoever made it was interrupted
                    self._drop_empty(block)
                    continue
                update = block.update(self.file)
                if update.channel in batch:
                    left.append(block)
                else:
                    batch[update.channel] = update
                    sent[block.base] = block
            blocks = left
            if not batch:
                continue
            updates = list(batch.values())
            durable = durable and not left and {update.chain for update in updates}.issuperset(self.file.chains)
            made = WriteBatch(self._cluster, self._channels, self._lease, self._budget, updates, durable=durable)
            batches = deque((*self._batches, made))
            kept = {base: block for base, block in self._blocks.items() if base not in sent}
            full = {base: block for base, block in self._full.items() if base not in sent}
            # At once, without a call in which an interrupt could come: a block is here, or in a batch, but never in both or in none.
            self._batches, self._blocks, self._full = batches, kept, full
            await made.begin()

    def _drop_empty(self, block: Block) -> None:
        if self._blocks.pop(block.base, None) is not None:
            self._free(block.slice)

    async def _settle_oldest(self) -> None:
        batch = self._batches[0]
        await batch.settle()
        self.file.generation += 1  # what was read ahead of these bytes' arrival is old
        if self._batches and self._batches[0] is batch:  # all may have been abandoned meanwhile
            self._batches.popleft()
