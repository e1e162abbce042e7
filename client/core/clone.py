"""Clones: ranges of files that share chunks instead of being copied. Those of whole files are in whole.py.

Chunks can be shared where both files have the same layout and the range starts at the same place of a stripe in both: then chunk k of the
one lies on the chain of chunk j of the other. An empty file takes the layout of the source. What does not fall on chunk boundaries at
its ends is copied through this client; a last chunk that ends with the source, and behind which the target has nothing, is shared, too.

A clone is atomic per chunk, not per file: who writes to the source meanwhile may find his write in it or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ...proto.env import Call
from ...proto.errors import Status, StatusError, error
from ...proto.gen.meta_pb2 import CloneFileRequest
from ...proto.gen.storage_pb2 import CloneRequest
from ...proto.rpc import META, STORAGE
from .batches import ChunkUpdate, Part, UpdateBatch
from .extents import chunks_of
from .inode import Inode

if TYPE_CHECKING:
    from .client import Core
    from .file import Handle
    from .reading import Reader

BATCH_CLONES = 256  # in one batch
BATCHES_MAX = 4  # in flight
WINDOW_CHUNKS = 4096  # are listed, and then cloned, at a time
COPY_BYTES = 4 << 20  # moved at once where nothing can be shared

Progress = Callable[[int], None]  # told how many bytes more are there


@dataclass(slots=True)
class ChunkClone(ChunkUpdate):
    """A chunk that becomes what another one is; without a source, a hole."""

    source: Inode | None = None
    source_index: int = 0
    length: int = 0  # bytes of the source, at most
    source_truncate_version: int = 0


class CloneBatch(UpdateBatch[ChunkClone]):
    """Clones of chunks; none is named twice, as source or as what is made."""

    __slots__ = ()

    def stamp(self, update: ChunkClone) -> None:
        update.truncate_version = update.file.truncate_version
        if update.source is not None:
            update.source_truncate_version = update.source.truncate_version

    def call(self, part: Part[ChunkClone]) -> Call:
        return self.cluster.head_call(part.node, STORAGE.Clone, self._request(part.updates), part.chains)

    def _request(self, updates: Sequence[ChunkClone]) -> CloneRequest:
        table = self.cluster.table
        writes: dict[bytes, int] = {}
        reads: dict[bytes, int] = {}
        capability = [writes.setdefault(u.file.capability_write, len(writes)) for u in updates]
        shown = [u.source.capability_read if u.source is not None else b"" for u in updates]
        source_capability = [reads.setdefault(c, len(reads)) for c in shown]
        return CloneRequest(
            chain=[u.chain for u in updates],
            chain_version=[table.route(u.chain).version for u in updates],
            source_inode=[u.source.id if u.source is not None else 0 for u in updates],
            source_index=[u.source_index for u in updates],
            source_truncate_version=[u.source_truncate_version for u in updates],
            inode=[u.file.id for u in updates],
            index=[u.index for u in updates],
            length=[u.length for u in updates],
            channel=[u.channel for u in updates],
            sequence=[u.sequence for u in updates],
            truncate_version=[u.truncate_version for u in updates],
            chunk_size=[u.file.chunk_size for u in updates],
            capabilities=list(writes),
            capability=capability,
            source_capabilities=list(reads),
            source_capability=source_capability,
        )

    def succeeded(self, update: ChunkClone, reply: Any, row: int) -> None:
        if reply.chunk_length[row]:
            end = update.index * update.file.chunk_size + reply.chunk_length[row]
            update.file.arrived_end = max(update.file.arrived_end, end)

    async def look_again(self, update: ChunkClone) -> None:
        await super().look_again(update)
        if update.source is not None:
            update.source_truncate_version = (await update.source.ask()).truncate_version
            if update.truncate_version != update.file.truncate_version:
                end = update.index * update.file.chunk_size + update.length
                update.file.came_after(update.truncate_version, end)

    async def renew_capability(self, update: ChunkClone) -> None:
        await super().renew_capability(update)
        if update.source is not None:
            await update.source.renew_capability(writing=False)


async def run_clones(core: Core, file: Inode, updates: Sequence[ChunkClone]) -> None:
    """Carry out clones of chunks of one file. Under its lock. Raises why one failed; others may be done."""
    before = file.failed, file.failure, file.failures
    flying: deque[CloneBatch] = deque()
    try:
        for part in _distinct(updates):
            batch = CloneBatch(core.cluster, core.channels, core.lease, part)
            flying.append(batch)
            await batch.begin()
            if len(flying) >= BATCHES_MAX:
                await flying[0].settle()
                flying.popleft()
        while flying:
            await flying[0].settle()
            flying.popleft()
    except BaseException:
        for batch in flying:
            batch.abandon()
        raise
    finally:
        file.generation += 1  # what was read ahead is old
        file.synced = False
    if (failure := file.take_error()) is not None:
        if file.epoch == core.epoch:  # else all that this client wrote is lost, too
            # Whoever asked hears of it now: no bytes that were written are lost.
            file.failed, file.failure, file.failures = before
        raise failure


def _distinct(updates: Sequence[ChunkClone]) -> Iterator[list[ChunkClone]]:
    """Cut into batches in which no channel and no chunk comes twice."""
    left = list(updates)
    while left:
        taken: list[ChunkClone] = []
        later: list[ChunkClone] = []
        names: set[Any] = set()
        for update in left:
            mine = {update.channel, (update.file.id, update.index)}
            if update.source is not None:
                mine.add((update.source.id, update.source_index))
            if len(taken) == BATCH_CLONES or names & mine:
                later.append(update)
            else:
                names |= mine
                taken.append(update)
        yield taken
        left = later


# --- ranges ---------------------------------------------------------------------------------------------------------------------------


class _Range(NamedTuple):
    """`length` bytes of the source from `start` on, and where they go."""

    source: Inode
    start: int
    target: Inode
    begin: int
    length: int

    @property
    def shift(self) -> int:
        """Chunks by which the target's index is ahead of the source's."""
        return (self.begin - self.start) // self.source.chunk_size

    def chunks(self) -> tuple[int, int]:
        """The chunks [first, last) of the source that can be shared; an empty range where none can."""
        size, width = self.source.chunk_size, len(self.source.chains)
        if (self.begin - self.start) % size or self.shift % width:
            return 0, 0
        end = self.start + self.length
        first, last = -(-self.start // size), end // size
        if end % size and end == self.source.length and self.begin + self.length >= self.target.length:
            last += 1
        return (first, last) if first < last else (0, 0)


async def copy_range(
    source: Reader,
    start: int,
    target: Handle,
    begin: int,
    length: int,
    progress: Progress | None = None,
    *,
    any_layout: bool = False,
) -> int:
    """Make `length` bytes from `begin` on of the target what the source has from `start` on, as copy_file_range(2); how many there were.
    An empty target takes the source's layout if that has the chunk size and stripe that were chosen for the target, or `any_layout`.
    Raises INVALID (ranges of one file that overlap), BAD_HANDLE (an append handle), StatusError."""
    await source._ready(reading=True)
    await target._ready(writing=True)
    if target.append:
        raise error(Status.BAD_HANDLE, f"{target.name} is open for appending: nothing can be copied to a place in it")
    if min(start, begin, length) < 0:
        raise error(Status.INVALID, f"copying {length} bytes from {start} to {begin}: none may be negative")
    if source.file.unsettled:
        async with source.file.lock:
            await source.core.flush_inode(source.file)
        source._raise_error()
    count = min(length, max(0, source.file.length - start))
    if source.file is target.file and start < begin + count and begin < start + count:
        raise error(Status.INVALID, f"{target.name}: the ranges overlap")
    if not count:
        return 0
    wanted = _Range(source.file, start, target.file, begin, count)
    tell = progress or (lambda count: None)
    try:
        shared = await _share(source, target, wanted, tell, any_layout)
    except StatusError as failure:
        if failure.status is not Status.UNSUPPORTED:  # a server of before there were clones
            raise
        shared = None
    if not shared:
        return await _copy(source, start, target, begin, count, tell)
    low, high = shared
    head = await _copy(source, start, target, begin, low - start, tell)
    if head < low - start:
        return head  # it was cut meanwhile
    done = high - start
    return done + await _copy(source, high, target, begin + done, count - done, tell)


async def _share(
    source: Reader, target: Handle, wanted: _Range, tell: Progress, any_layout: bool
) -> tuple[int, int] | None:
    """Share what chunks can be shared of a range: which bytes of the source these were; None where nothing was."""
    first, last = wanted.chunks()
    if first == last:
        return None
    core, file, origin = target.core, target.file, source.file
    size = origin.chunk_size
    low, high = max(first * size, wanted.start), min(last * size, wanted.start + wanted.length)
    async with file.lock:
        await core.flush_inode(file)
        file.inline_max = 0  # chunks come to it
        target._raise_error()
        await file.hear()
        if not await _agree(target, origin, any_layout):
            return None
        for begin in range(first, last, WINDOW_CHUNKS):
            end = min(begin + WINDOW_CHUNKS, last)
            found = await _clones(wanted, begin, end, high)
            if found is None:
                return None
            updates, holes = found
            if holes and not file.sparse:
                file.wrote(0, 0)
                file.sparse = True
                await file.settle()  # a hole is allowed before it is made
            if not file.unsettled:
                file.wrote(0, 0)  # should some of it fail, the server hears that there may be chunks
            await run_clones(core, file, updates)
            at = min(end * size, high)
            file.wrote(wanted.begin + max(begin * size, low) - wanted.start, wanted.begin + at - wanted.start)
            tell(at - max(begin * size, low))
    return low, high


async def _agree(target: Handle, origin: Inode, any_layout: bool) -> bool:
    """Whether the chunks of both files lie on the same chains, perhaps after an empty target has taken the source's layout. Both are known
    as the server has them afterwards."""
    file, core = target.file, target.core
    chosen, other = file.layout, origin.layout
    alike = (chosen.chunk_size, chosen.stripe) == (other.chunk_size, other.stripe)
    request = CloneFileRequest(source=origin.id, target=file.id, session=target.session)
    request.keep_layout = bool(file.length) or not (alike or any_layout)
    reply = await core.cluster.change(META.Clone, request)
    await core.know_table(reply.target.layout)
    origin.take(reply.source)
    file.take(reply.target)
    # Different layouts may come to the same chains, where there are few.
    same = file.chunk_size == origin.chunk_size and list(file.chains) == list(origin.chains)
    return bool(reply.shares) or (same and not (reply.source.inlined or reply.target.inlined))


async def _clones(wanted: _Range, first: int, last: int, high: int) -> tuple[list[ChunkClone], bool] | None:
    """The clones that make the target's chunks what the source's are, up to byte `high` of the source, and whether it has holes there.
    None where they had better be copied: the source lacks what it should have (who reads it hears of that), or the target has
    more in the last chunk than is to be replaced, which another client has just written."""
    origin, file, shift = wanted.source, wanted.target, wanted.shift
    size = origin.chunk_size
    there = {index: length async for index, length in chunks_of(origin, first, last)}
    limits = {index: min(size, high - index * size) for index in range(first, last)}
    holes = any(there.get(index, 0) < limit for index, limit in limits.items())
    if holes and not origin.sparse:
        return None
    updates = [ChunkClone(file, index + shift, origin, index, limits[index]) for index in sorted(there)]
    async for found, length in chunks_of(file, first + shift, last + shift):
        if length > limits[found - shift]:
            return None
        if found - shift not in there:
            updates.append(ChunkClone(file, found))
    return updates, holes


async def _copy(source: Reader, start: int, target: Handle, begin: int, count: int, tell: Progress) -> int:
    """Through this client, holes as holes where the target has nothing yet; how many bytes there were."""
    if not source.file.sparse or begin < target.file.length:
        return await _move(source, start, target, begin, count, tell)
    at, end = start, start + count
    while at < end:
        data, hole = await _piece(source, at, end)
        tell(data - at)
        got = await _move(source, data, target, begin + data - start, hole - data, tell)
        if data + got < hole:
            return data + got - start  # it was cut meanwhile
        at = hole
    if target.file.length < begin + count:
        await target.truncate(begin + count)  # it ends with a hole
    return count


async def _piece(source: Reader, at: int, end: int) -> tuple[int, int]:
    """The next piece of data [start, end) at or behind `at`, empty at the end where there is none."""
    try:
        data = await source.data_from(at)
    except StatusError as failure:
        if failure.status is not Status.NO_DEVICE:
            raise
        return end, end
    return min(data, end), min(await source.hole_from(data), end)


async def _move(source: Reader, start: int, target: Handle, begin: int, count: int, tell: Progress) -> int:
    """Read and write; how many bytes there were."""
    done = 0
    buffer = memoryview(bytearray(min(COPY_BYTES, count)))
    while done < count:
        got = await source.pread_into(buffer[: min(len(buffer), count - done)], start + done)
        if not got:
            break
        await target._write(buffer[:got], begin + done)
        done += got
        tell(got)
    return done
