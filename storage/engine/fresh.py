"""Many new chunks at once: whole contents that nobody has written before, for a chain of one.

What `prepare`, `run` and `stage` do for any update, this does for the commonest of the KV cache at a fifth of the cost: there is no old
content, no client's number and no truncate version, and nobody comes behind us, so what is written is committed in the same
index write. Slots are allocated together, contents that lie side by side in memory and on disk are one system call.

    fresh = FreshChunks(engine, chunks, ...)    # on the loop: allocates, and keeps other updates of these chunks out
    fresh.run()                                 # compares the bytes with their checksums, writes them: any thread
    fresh.stage()                               # on the loop: one index write; or fresh.abandon()
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...proto.errors import Status, StatusError, error
from ...proto.layout import UNIT_LARGE, UNIT_SMALL
from .checksum import CRC_TYPE, Crcs, crc32c, unit_crcs
from .index import Change
from .row import CHUNK, INLINE_UNITS, Row, State, encode_new_block, encode_row, encode_small_block
from .slots import CLASS_BYTES

if TYPE_CHECKING:
    from .engine import ChunkEngine


class FreshChunks:
    """`views` are private copies of the contents, `checksums` their CRC32C values as the client says; `failed` names those whose bytes are
    others, which are not written. The chunks must not exist: who asks knows that."""

    def __init__(
        self,
        engine: ChunkEngine,
        chunks: Sequence[bytes],
        views: Sequence[memoryview],
        checksums: Sequence[int],
        chain_version: int,
    ) -> None:
        """Raises BUSY (an update of one of the chunks is under way; or the target is full until the next checkpoint), NO_SPACE,
        TARGET_OFFLINE. All or none."""
        engine._check()
        self._engine = engine
        self.chunks = chunks
        self.views = views
        self.checksums = checksums
        self.chain_version = chain_version
        self.version = engine.version_floor + 1  # a version is never given to other content of a chunk
        self.failed: dict[int, StatusError] = {}
        self._crcs: list[Crcs | None] = []  # None: one, that of the whole
        for chunk in chunks:
            if chunk in engine.pending or chunk in engine._busy:
                raise error(Status.BUSY, f"another update of chunk {chunk.hex()} is under way")
        self.slots = engine.space.allocate_many([len(view) for view in views])
        self.places = [engine.space.place(slot) for slot in self.slots]
        engine._busy.update(chunks)

    @property
    def size(self) -> int:
        return sum([len(view) for view in self.views])

    def run(self) -> None:
        """Raises NO_SPACE, IO_ERROR: nothing of it counts then."""
        try:
            self._verify()
            self._write()
        except OSError as failed:
            if hasattr(failed, "status"):
                raise
            status = Status.NO_SPACE if failed.errno in (errno.ENOSPC, errno.EDQUOT) else Status.IO_ERROR
            raise error(status, f"writing {len(self.chunks)} new chunks: {failed.strerror}") from failed

    def _verify(self) -> None:
        for i, view in enumerate(self.views):
            crc = crc32c(view)
            if crc != self.checksums[i]:
                self.failed[i] = error(
                    Status.CHECKSUM,
                    f"chunk {self.chunks[i].hex()}: the bytes that arrived do not match their checksum",
                )
            length = len(view)
            if length <= UNIT_SMALL:
                self._crcs.append(None)
            else:
                self._crcs.append(array(CRC_TYPE, (crc,)) if length <= UNIT_LARGE else unit_crcs(view, UNIT_LARGE))

    def _write(self) -> None:
        """Runs of neighbours together."""
        places, views, slots = self.places, self.views, self.slots
        begin, count = 0, len(views)
        while begin < count:
            handle, offset = places[begin]
            end, reached = begin, offset
            while end < count and places[end] == (handle, reached):
                size = CLASS_BYTES[slots[end] >> 48]
                reached += size
                end += 1
                if len(views[end - 1]) != size:
                    break  # there is a gap behind it
            self._engine.disk.pwritev(handle, views[begin:end], offset)
            begin = end

    def stage(self, blocks: Sequence[bytes]) -> None:
        """Commit those that did not fail; `blocks`: what each is in the KV cache. It survives kill -9 when this returns. Raises
        TARGET_OFFLINE."""
        engine = self._engine
        engine._check()
        changes: list[Change] = []
        version, chain_version, epoch, failed = self.version, self.chain_version, engine.epoch, self.failed
        columns = zip(self.chunks, self.slots, self.views, self.checksums, self._crcs, blocks, strict=True)
        content = 0
        for i, (chunk, slot, view, whole, crcs, block) in enumerate(columns):
            if i in failed:
                continue
            length = len(view)
            content += length
            where = (slot, version, chain_version, length, whole, epoch)
            if crcs is None:
                row = encode_small_block(*where, block)
            elif len(crcs) <= INLINE_UNITS:
                row = encode_new_block(*where, unit_for(length), crcs, block)
            else:
                row = self._paged(chunk, where, unit_for(length), crcs, block, changes)
            changes.append((CHUNK + chunk, row))
        for i in failed:
            engine.space.release(self.slots[i])
        engine._busy.difference_update(self.chunks)
        engine._dirty.update({handle for handle, _ in self.places})
        engine._chunks += len(self.chunks) - len(failed)
        engine._content += content
        engine._write(changes)

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
