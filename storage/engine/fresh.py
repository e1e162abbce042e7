"""Many new chunks at once: whole contents that nobody has written before, for a chain of one.

What `prepare`, `run` and `stage` do for any update, this does for the commonest of the KV cache at a fifth of the cost: there is no old
content, no client's number and no truncate version, and nobody comes behind us, so what is written is committed in the same
index write. Slots are allocated together, contents that lie side by side in memory and on disk are one system call.

    fresh = FreshChunks(engine, chunks, ...)    # on the loop: allocates, and keeps other updates of these chunks out
    fresh.run()                                 # compares the bytes with their checksums, writes them: any thread
    fresh.stage()                               # on the loop: one index write; or fresh.abandon()

Bytes in a client's own memory, which may change at any time, are written first: their slots, which nothing refers to yet, are the private
copy. What was written is read back and compared, piece by piece while it is in the processor's cache, which costs less than a copy before.
"""

from __future__ import annotations

import errno
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ...proto.errors import Status, StatusError, error
from ...proto.layout import UNIT_LARGE, UNIT_SMALL
from .checksum import CRC_TYPE, Crcs, crc32c, fold, unit_crcs
from .disk import read_exactly
from .index import Change
from .row import CHUNK, INLINE_UNITS, Row, State, encode_new_block, encode_row, encode_small_blocks
from .slots import CLASS_BYTES

if TYPE_CHECKING:
    from .engine import ChunkEngine


PIECE_BYTES = 256 << 10  # written, read back and compared at once: a multiple of all checksum units

_thread = threading.local()  # memory to read back into


class Bulk:
    """Bytes to be written: what `parts` have, one after the other. `private`: nobody else changes them; otherwise they are read by system
    calls only."""

    def __init__(self, parts: Sequence[memoryview], *, private: bool) -> None:
        self.private = private
        self._parts = parts
        self._starts = [0, *accumulate([part.nbytes for part in parts])]

    def __len__(self) -> int:
        return self._starts[-1]

    def cut(self, begin: int, end: int) -> list[memoryview]:
        """The bytes from `begin` to `end`."""
        parts, starts = self._parts, self._starts
        if len(parts) == 1:
            return [parts[0][begin:end]]
        found = []
        for at in range(bisect_right(starts, begin) - 1, len(parts)):
            start = starts[at]
            if start >= end:
                break
            found.append(parts[at][max(begin - start, 0) : end - start])
        return found

    def release(self) -> None:
        """Views of ours would keep the memory alive."""
        for part in self._parts:
            part.release()
        self._parts, self._starts = (), [0]


class FreshChunks:
    """Contents that lie at `starts` of `data`, with these lengths; `checksums` are their CRC32C values as the client says. `failed` names
    those whose bytes are others, which are not kept. The chunks must not exist: who asks knows that."""

    def __init__(
        self,
        engine: ChunkEngine,
        chunks: Sequence[bytes],
        data: Bulk,
        starts: Sequence[int],
        lengths: Sequence[int],
        checksums: Sequence[int],
        chain_version: int,
    ) -> None:
        """Raises BUSY (an update of one of the chunks is under way; or the target is full until the next checkpoint), NO_SPACE,
        TARGET_OFFLINE. All or none."""
        engine._check()
        self._engine = engine
        self._data = data
        self._starts = starts
        self.chunks = chunks
        self.lengths = lengths
        self.checksums = checksums
        self.chain_version = chain_version
        self.version = engine.version_floor + 1  # a version is never given to other content of a chunk
        self.failed: dict[int, StatusError] = {}
        self._crcs: list[Crcs | None] = []  # None: one, that of the whole
        if not (engine.pending.isdisjoint(chunks) and engine._busy.isdisjoint(chunks)):
            raise error(Status.BUSY, "another update of a chunk is under way")
        self.slots = engine.space.allocate_many(lengths)
        self.places: list[tuple[int, int]] = []  # handle, offset in the file
        self._runs = self._neighbours()
        engine._busy.update(chunks)

    def _neighbours(self) -> list[tuple[int, int]]:
        """Find the places, and the runs (first, behind the last) of slots that lie side by side and that are filled to their ends."""
        slots, lengths, places = self.slots, self.lengths, self.places
        runs, begin, count = [], 0, len(slots)
        while begin < count:
            slot, end = slots[begin], begin + 1
            size = CLASS_BYTES[slot >> 48]
            while end < count and slots[end] == slot + end - begin and lengths[end - 1] == size:
                end += 1
            handle, offset = self._engine.space.place(slot)
            places += [(handle, offset + n * size) for n in range(end - begin)]
            runs.append((begin, end))
            begin = end
        return runs

    def run(self) -> None:
        """Raises NO_SPACE, IO_ERROR, REGION_DEAD (the client's memory is not there): nothing of it counts then."""
        try:
            if self._data.private:
                self._verify()
                self._write()
            else:
                self._write_and_verify()
        except OSError as failed:
            if hasattr(failed, "status"):
                raise
            if failed.errno == errno.EFAULT:
                raise error(Status.REGION_DEAD, "the client's memory cannot be read") from failed
            status = Status.NO_SPACE if failed.errno in (errno.ENOSPC, errno.EDQUOT) else Status.IO_ERROR
            raise error(status, f"writing {len(self.chunks)} new chunks: {failed.strerror}") from failed

    def _verify(self) -> None:
        (data,) = self._data.cut(0, len(self._data))
        for i, (start, length) in enumerate(zip(self._starts, self.lengths, strict=True)):
            self._compare(i, length, data[start : start + length])

    def _compare(self, i: int, length: int, content: memoryview) -> None:
        if length <= UNIT_LARGE:
            crc = crc32c(content)
            self._note(i, crc, None if length <= UNIT_SMALL else array(CRC_TYPE, (crc,)))
        else:
            crcs = unit_crcs(content, UNIT_LARGE)
            self._note(i, fold(crcs, UNIT_LARGE, length), crcs)

    def _note(self, i: int, crc: int, crcs: Crcs | None) -> None:
        self._crcs.append(crcs)
        if crc != self.checksums[i]:
            self.failed[i] = error(
                Status.CHECKSUM, f"chunk {self.chunks[i].hex()}: the bytes that arrived do not match their checksum"
            )

    def _write(self) -> None:
        write = self._engine.disk.pwritev
        for begin, end in self._runs:
            handle, offset = self.places[begin]
            write(handle, self._views(begin, end), offset)

    def _views(self, begin: int, end: int) -> list[memoryview]:
        """The contents of neighbours."""
        data, starts, lengths = self._data, self._starts, self.lengths
        first, behind = starts[begin], starts[end - 1] + lengths[end - 1]
        if behind - first == sum(lengths[begin:end]):
            return data.cut(first, behind)  # side by side in memory, too
        return [view for i in range(begin, end) for view in data.cut(starts[i], starts[i] + lengths[i])]

    def _write_and_verify(self) -> None:
        for begin, end in self._groups():
            if end - begin > 1 or self.lengths[begin] <= PIECE_BYTES:
                handle, offset = self.places[begin]
                back, at = self._write_piece(handle, self._views(begin, end), offset), 0
                for i in range(begin, end):
                    length = self.lengths[i]
                    self._compare(i, length, back[at : at + length])
                    at += length
            else:
                self._write_large(begin)

    def _write_large(self, i: int) -> None:
        (handle, offset), start, length = self.places[i], self._starts[i], self.lengths[i]
        crcs = array(CRC_TYPE)
        for at in range(0, length, PIECE_BYTES):
            views = self._data.cut(start + at, start + min(at + PIECE_BYTES, length))
            crcs += unit_crcs(self._write_piece(handle, views, offset + at), UNIT_LARGE)
        self._note(i, fold(crcs, UNIT_LARGE, length), crcs)

    def _write_piece(self, handle: int, views: Sequence[memoryview], offset: int) -> memoryview:
        """Write it, and what is there then."""
        disk, size = self._engine.disk, sum([view.nbytes for view in views])
        back: memoryview | None = getattr(_thread, "memory", None)
        if back is None:
            back = _thread.memory = memoryview(bytearray(PIECE_BYTES))
        disk.pwritev(handle, views, offset)
        read_exactly(disk, handle, [back[:size]], offset, size, wait=True)
        return back[:size]

    def _groups(self) -> Iterator[tuple[int, int]]:
        """The runs, in parts of no more than PIECE_BYTES, or one chunk."""
        lengths = self.lengths
        for begin, end in self._runs:
            first, size = begin, 0
            for i in range(begin, end):
                if i > first and size + lengths[i] > PIECE_BYTES:
                    yield first, i
                    first, size = i, 0
                size += lengths[i]
            yield first, end

    def stage(self, blocks: Sequence[bytes]) -> None:
        """Commit those that did not fail; `blocks`: what each is in the KV cache. It survives kill -9 when this returns. Raises
        TARGET_OFFLINE."""
        engine, failed = self._engine, self.failed
        engine._check()
        changes: list[Change] = []
        if failed or any(self._crcs):
            self._describe(blocks, changes)
        else:
            names = (self.version, self.chain_version, engine.epoch)
            rows = encode_small_blocks(self.slots, self.lengths, self.checksums, blocks, *names)
            changes += [(CHUNK + chunk, row) for chunk, row in zip(self.chunks, rows, strict=True)]
        for i in failed:
            engine.space.release(self.slots[i])
        engine._busy.difference_update(self.chunks)
        engine._dirty.update({self.places[begin][0] for begin, _ in self._runs})
        engine._chunks += len(self.chunks) - len(failed)
        engine._content += sum(self.lengths) - sum([self.lengths[i] for i in failed])
        engine._write(changes)

    def _describe(self, blocks: Sequence[bytes], changes: list[Change]) -> None:
        """The rows of chunks of any length."""
        columns = zip(self.chunks, self.slots, self.lengths, self.checksums, self._crcs, blocks, strict=True)
        for i, (chunk, slot, length, whole, found, block) in enumerate(columns):
            if i in self.failed:
                continue
            where = (slot, self.version, self.chain_version, length, whole, self._engine.epoch)
            crcs = array(CRC_TYPE, (whole,)) if found is None else found
            if len(crcs) <= INLINE_UNITS:
                row = encode_new_block(*where, unit_for(length), crcs, block)
            else:
                row = self._paged(chunk, where, unit_for(length), crcs, block, changes)
            changes.append((CHUNK + chunk, row))

    def _paged(
        self,
        chunk: bytes,
        where: tuple[int, int, int, int, int, int],
        unit: int,
        crcs: Crcs,
        block: bytes,
        changes: list[Change],
    ) -> bytes:
        """The row of a chunk whose checksums are in pages, which go to the changes."""
        slot, version, chain_version, length, whole, epoch = where
        state = State(version, chain_version, 0, length, length, whole, epoch, unit, slot, (), b"", [crcs], None, block)
        row = Row(state)
        self._engine._rows.place_pages(chunk, row, state, None, (0, len(crcs)), changes)
        return encode_row(row)

    def abandon(self) -> None:
        """Nothing of it was ever there. Not while it runs."""
        for slot in self.slots:
            self._engine.space.release(slot)
        self._engine._busy.difference_update(self.chunks)


def unit_for(length: int) -> int:
    """Bytes per checksum of a new block: one checksum for small ones, few for large ones."""
    return UNIT_SMALL if length <= UNIT_SMALL else UNIT_LARGE
