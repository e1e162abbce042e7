"""Updates: how a change of a chunk becomes bytes in slots. A `Job` is decided on the owner's loop and does its I/O anywhere.

Shapes of a change, cheapest first:

    NONE     nothing is written: a remove, a cut at a place that needs no move, a new truncate version, a clone
    APPEND   new bytes go behind the committed ones, in place; a gap is filled with zeros
    PATCH    the touched units go to a small slot of their own, which lies over the base slot (less than 1/4 of the chunk, at most 32;
             one that is overwritten as a whole goes)
    COPY     everything goes to a new slot: fresh chunks, full and large overwrites, growth into a larger class, one patch too many

No byte that a committed, pending or fallback state refers to is ever overwritten: an append begins beyond `State.high`, the rest
writes slots that no state knows yet. Until the job is staged nobody knows its bytes; abandoned, they never were. A clone refers to the
slots of its source. While several rows refer to a slot nothing is appended to it in place: both would go behind the same end.
"""

from __future__ import annotations

import enum
import errno
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from ...proto.errors import Status, error
from ...proto.layout import checksum_unit
from .checksum import CRC_TYPE, Crcs, combine, crc32c, fold, shift, unit_crcs, zeros
from .disk import Disk
from .reads import read_content
from .records import Receipt
from .row import BLOCK_BYTES_MAX, PATCHES_MAX, Patch, State
from .slots import NO_SLOT, SLOT_BYTES_MAX, class_for, slot_bytes
from .space import Space

PATCH_PART = 4  # an overwrite of less than 1/4 of the chunk is patched
PATCHED_TIMES = 2  # what the chunk's patches take together is at most twice its length
SHRINK_PART = 4  # a cut to less than 1/4 of the slot moves the chunk to a smaller one
_ZEROS = memoryview(bytes(1 << 20))


class Kind(enum.IntEnum):
    """What an update does to its chunk."""

    WRITE = 1  # the payload at `offset`; a gap behind the old end is zeros
    TRUNCATE = 2  # to `offset` bytes, cut or extended with zeros; to 0 removes it, and a missing chunk stays missing
    REMOVE = 3
    REPLACE = 4  # the payload is the whole content, under the given version, whatever was there (resync)
    CLONE = 5  # the committed content of another chunk, `offset` bytes of it at most; without one (or of no bytes) it is a remove


class Update(NamedTuple):
    """One change of one chunk."""

    kind: Kind
    chunk: bytes  # packed id, 16 bytes
    offset: int = 0  # bytes
    payload: Any = b""  # a contiguous buffer that nobody changes until the job has run
    checksum: int = 0  # CRC32C of the payload, which the caller has verified
    chunk_size: int = 1 << 20  # bytes that the chunk may grow to; chooses the checksum unit
    truncate_version: int = 0
    chain_version: int = 0
    version: int = 0  # of the chunk after the update; 0: the next one
    units: bytes = b""  # of a REPLACE with damaged content: the CRC32C that every unit should have, u32 little-endian
    decided: bool = False  # by the head of a chain: refusing it helps nobody, so a new chunk may use the reserve
    source: bytes = b""  # of a CLONE: the other chunk; empty: there is none
    cold: bool = False  # nobody is expected to read it soon: it need not stay in memory
    block: bytes = b""  # what the chunk is in the KV cache, kept in its row; empty: as it was, and of a clone nothing


class Shape(enum.Enum):
    NONE = 0
    APPEND = 1
    PATCH = 2
    COPY = 3


class Job:
    """One update on its way: made by `ChunkEngine.prepare`, then `run`, then staged or abandoned.

    `version` and `length` say what the chunk will be. `fresh` slots were allocated for it, `shared` ones are another chunk's, too.
    `state` is complete after `run`."""

    __slots__ = (
        "_space",
        "before",
        "chunk",
        "damaged",
        "disk",
        "fresh",
        "kind",
        "length",
        "old",
        "ran",
        "receipt",
        "shape",
        "shared",
        "source",
        "state",
        "touched",
        "update",
        "version",
    )

    def __init__(
        self,
        update: Update,
        old: State | None,
        version: int,
        space: Space,
        disk: Disk,
        source: State | None = None,
    ) -> None:
        self.update = update
        self.chunk = update.chunk
        self.kind = update.kind
        self.version = version
        self.disk = disk
        self.fresh: list[int] = []
        self.shared: list[int] = []
        self.source = source  # of a CLONE: what the other chunk has committed
        self.before: State | None = None  # what a REPLACE with damaged content finds here
        self.damaged = False  # some of the content is not what it should be, as its checksums will show
        self.touched = (0, 0)  # units whose checksum changes: [first, last)
        self.ran = False
        self.receipt: Receipt | None = None  # of the client's update that this is, persisted with it
        self.old = old if old is not None and not old.removed else None
        self._space = space
        self.length, self.shape, self.state = self._decide()

    # --- decisions: no I/O ---

    def _decide(self) -> tuple[int, Shape, State]:
        update, old = self.update, self.old
        size = memoryview(update.payload).nbytes
        end = update.offset + size
        if len(update.block) > BLOCK_BYTES_MAX:
            raise error(Status.INVALID, f"{len(update.block)} bytes about a block: at most {BLOCK_BYTES_MAX}")
        if update.kind is Kind.REMOVE or (update.kind is Kind.TRUNCATE and (old is None or update.offset == 0)):
            return 0, Shape.NONE, self._new_state(0, NO_SLOT)
        if update.kind is Kind.CLONE:
            return self._decide_clone()
        if not 0 <= update.offset <= end <= min(update.chunk_size, SLOT_BYTES_MAX):
            raise error(Status.INVALID, f"bytes {update.offset} to {end} of a chunk of {update.chunk_size}")
        if update.kind is Kind.REPLACE:
            self.before = old if update.units else None
            self.old = old = None
        if old is not None and old.unit != checksum_unit(update.chunk_size):
            raise error(Status.INVALID, f"chunk size {update.chunk_size}: the chunk was written with another one")
        if update.kind is Kind.TRUNCATE:
            return self._decide_truncate(update.offset)
        if not size:
            raise error(Status.INVALID, "a write of no bytes")
        return self._decide_write(update.offset, end)

    def _decide_write(self, start: int, end: int) -> tuple[int, Shape, State]:
        old, unit = self.old, checksum_unit(self.update.chunk_size)
        if old is None:
            self.touched = (0, -(-end // unit))
            return end, Shape.COPY, self._copy_state(end, end)
        length = max(old.length, end)
        first = min(start, old.length) // unit
        self.touched = (first, -(-end // unit))
        if start >= old.length >= old.high and end <= slot_bytes(old.slot) and not self._space.is_shared(old.slot):
            state = self._new_state(length, old.slot, old.patches)
            return length, Shape.APPEND, state
        low, high = first * unit, min(self.touched[1] * unit, length)
        if (high - low) * PATCH_PART < length and end <= slot_bytes(old.slot):
            kept = [patch for patch in old.patches if patch.start < low or patch.start + patch.length > high]
            patched = sum([patch.length for patch in kept]) + high - low
            if len(kept) < PATCHES_MAX and patched <= PATCHED_TIMES * length:
                self.fresh.append(self._space.allocate(high - low, new=False))
                patches = (*kept, Patch(self.fresh[0], low, high - low))
                return length, Shape.PATCH, self._new_state(length, old.slot, patches)
        # A chunk that grows gets room to go on growing in place.
        room = min(2 * length, max(self.update.chunk_size, length)) if length > old.length and start else length
        return length, Shape.COPY, self._copy_state(length, room)

    def _decide_truncate(self, length: int) -> tuple[int, Shape, State]:
        old = self.old
        assert old is not None
        if length > old.length:
            return self._decide_write(length, length)
        self.touched = (length // old.unit, -(-length // old.unit))
        room = slot_bytes(old.slot)
        shrinks = class_for(length) != class_for(room) and length * SHRINK_PART < room
        if shrinks and not self._space.is_shared(old.slot):  # a shared slot would stay, and one more would be taken
            return length, Shape.COPY, self._copy_state(length, length)
        patches = tuple(patch for patch in old.patches if patch.start < length)
        return length, Shape.NONE, self._new_state(length, old.slot, patches)

    def _decide_clone(self) -> tuple[int, Shape, State]:
        update, source, old = self.update, self.source, self.old
        self.old = None  # what was there does not matter
        length = min(source.length, update.offset) if source is not None else 0
        if source is None or length <= 0:
            return 0, Shape.NONE, self._new_state(0, NO_SLOT)
        if source.unit != checksum_unit(update.chunk_size) or length > update.chunk_size:
            raise error(Status.INVALID, f"chunk size {update.chunk_size}: the source was written with another one")
        self.touched = (0, -(-length // source.unit))
        patches = tuple(patch for patch in source.patches if patch.start < length)
        state = self._new_state(length, source.slot, patches)
        state.high = source.high
        held = old.slots() if old is not None else []
        self.shared = [slot for slot in state.slots() if slot not in held]
        for slot in self.shared:
            self._space.share(slot)
        return length, Shape.NONE, state

    def _copy_state(self, length: int, room: int) -> State:
        self.fresh.append(self._space.allocate(room, new=self.old is None and not self.update.decided))
        return self._new_state(length, self.fresh[0])

    def _new_state(self, length: int, slot: int, patches: tuple[Patch, ...] = ()) -> State:
        update, old = self.update, self.old
        same = old is not None and old.slot == slot
        return State(
            version=self.version,
            chain_version=update.chain_version,
            truncate_version=max(update.truncate_version, old.truncate_version if old else 0),
            length=length,
            high=max(length, old.high) if same and old else length,
            whole=0,
            epoch=0,
            unit=checksum_unit(update.chunk_size),
            slot=slot,
            patches=patches,
            block=update.block or (old.block if old is not None and slot != NO_SLOT else b""),
        )

    # --- I/O: blocking, in any thread; only the job's own slots are written ---

    @property
    def bytes_moved(self) -> int:
        """About how many bytes `run` reads and writes: small jobs may run on the loop."""
        if self.shape is Shape.NONE:
            return 0
        return self.length if self.shape is Shape.COPY else memoryview(self.update.payload).nbytes

    @property
    def cuts_source(self) -> bool:
        """Whether `run` reads a unit of the chunk that it clones, for the checksum of a part of it."""
        source = self.source
        return source is not None and self.length < source.length and self.length % source.unit > 0

    def run(self) -> None:
        """Write the bytes and compute their checksums. Raises CHECKSUM when old bytes that must be merged are damaged or cannot be read,
        NO_SPACE, and IO_ERROR when the disk does not take the new ones."""
        try:
            if self.state.slot != NO_SLOT:
                self._run()
        except OSError as failed:
            if hasattr(failed, "status"):
                raise
            status = Status.NO_SPACE if failed.errno in (errno.ENOSPC, errno.EDQUOT) else Status.IO_ERROR
            raise error(status, f"writing chunk {self.chunk.hex()}: {failed.strerror}") from failed
        self.ran = True

    def _run(self) -> None:
        old, update = self.old, self.update
        payload = memoryview(update.payload).cast("B")
        if self.source is not None:
            self._run_clone(self.source)
        elif update.units:
            self._run_damaged(payload)
        elif old is None and update.offset == 0:
            self._write(self.state.slot, 0, [payload])
            self._settle(unit_crcs(payload, self.state.unit), update.checksum)
        elif old is None:
            parts = [*_zero_parts(update.offset), payload]
            self._write(self.state.slot, 0, parts)
            crcs = self._unit_crcs(parts, 0, 0)
            self._settle(crcs, fold(crcs, self.state.unit, self.length))
        elif self.kind is Kind.TRUNCATE and self.length <= old.length:
            self._run_cut(old)
        elif self.shape is Shape.APPEND:
            self._run_append(old, payload)
        else:
            self._run_merge(old, payload)

    def _run_damaged(self, payload: memoryview) -> None:
        """Content that was damaged where it comes from. With the checksums that it should have, what is damaged stays recognisable; a unit
        of what is here that has the right one takes its place. Raises CHECKSUM."""
        unit, crcs = self.state.unit, array(CRC_TYPE, self.update.units)
        if len(crcs) != self.state.units or fold(crcs, unit, self.length) != self.update.checksum:
            raise error(Status.CHECKSUM, f"chunk {self.chunk.hex()}: checksums that do not belong to it")
        content = bytearray(payload)
        for number, (crc, right) in enumerate(zip(unit_crcs(payload, unit), crcs, strict=True)):
            if crc == right:
                continue
            start = number * unit
            piece = self._read_before(start, min(start + unit, self.length))
            if crc32c(piece) == right:
                content[start : start + len(piece)] = piece
            else:
                self.damaged = True
        self._write(self.state.slot, 0, [memoryview(content)])
        self._settle(crcs, self.update.checksum)

    def _read_before(self, start: int, end: int) -> memoryview:
        """These bytes of what is here now; none where it has not all of them, or its disk does not give them."""
        if self.before is None or self.before.removed or self.before.length < end:
            return _ZEROS[:0]
        try:
            return read_content(self.before, self._space, self.disk, start, end)
        except OSError:
            return _ZEROS[:0]

    def _run_append(self, old: State, payload: memoryview) -> None:
        gap = self.update.offset - old.length
        parts = [*_zero_parts(gap), payload]
        self._write(self.state.slot, old.length, parts)
        inside = old.length % old.unit
        begun = _old_crcs(old)[old.length // old.unit] if inside else 0
        crcs = _old_crcs(old)[: old.length // old.unit]
        crcs.extend(self._unit_crcs(parts, inside, begun))
        whole = combine(combine(old.whole, zeros(gap), gap), self.update.checksum, payload.nbytes)
        self._settle(crcs, whole)

    def _run_merge(self, old: State, payload: memoryview) -> None:
        """PATCH, and COPY over old content: [low, high) goes to the fresh slot, old bytes around the new ones included."""
        update, unit = self.update, old.unit
        start, end = update.offset, update.offset + payload.nbytes
        low, high = (0, self.length) if self.shape is Shape.COPY else (self.touched[0] * unit, self._touched_end())
        kept = min(start, old.length)
        left = self._read_old(
            old, low, min(-(-kept // unit) * unit, old.length) if low < kept else low, edge=-1 if kept % unit else None
        )
        right_start = end // unit * unit
        right = (
            self._read_old(old, right_start, min(high, old.length), edge=0 if end % unit else None)
            if end < old.length
            else _ZEROS[:0]
        )
        parts = [left[: kept - low], *_zero_parts(start - kept), payload, right[end - right_start :]]
        self._write(self.fresh[0], 0, [part for part in parts if part.nbytes])
        first = self.touched[0] * unit
        fresh = self._unit_crcs(_clip(parts, first - low, self._touched_end() - low), 0, 0)
        before = _old_crcs(old)
        crcs = before[: self.touched[0]]
        crcs.extend(fresh)
        crcs.extend(before[self.touched[1] :])
        full = start == 0 and end >= old.length
        self._settle(crcs, update.checksum if full else self._whole(old, before, fresh))

    def _run_clone(self, source: State) -> None:
        if self.length < source.length:
            self._run_cut(source)
        else:
            self._settle(_old_crcs(source)[:], source.whole)

    def _run_cut(self, old: State) -> None:
        unit, length = old.unit, self.length
        crcs = _old_crcs(old)[: length // unit]
        if self.shape is Shape.COPY:
            content = self._read_old(
                old, 0, min(-(-length // unit) * unit, old.length), edge=-1 if length % unit else None
            )
            self._write(self.fresh[0], 0, [content[:length]])
        if length % unit:
            start = length // unit * unit
            last = self._read_old(old, start, min(start + unit, old.length), edge=0)
            crcs.append(crc32c(last[: length - start]))
        self._settle(crcs, fold(crcs, unit, length))

    def _touched_end(self) -> int:
        return min(self.touched[1] * self.state.unit, self.length)

    def _read_old(self, old: State, start: int, end: int, edge: int | None) -> memoryview:
        """Old bytes from a unit boundary on; the first (0) or last (-1) unit is verified, because it gets a new checksum. The others keep
        theirs, and with it the proof of whatever happened to them. Raises CHECKSUM, also where the disk does not give them: this chunk is
        damaged then, and may be repaired, but the disk takes what is written."""
        try:
            content = read_content(old, self._space, self.disk, start, end)
        except OSError as failed:
            raise error(
                Status.CHECKSUM,
                f"chunk {self.chunk.hex()}: the bytes from {start} on cannot be read: {failed.strerror}",
            ) from failed
        if edge is not None and end > start:
            position = start if edge == 0 else (end - 1) // old.unit * old.unit
            piece = content[position - start : min(position + old.unit, old.length) - start]
            if crc32c(piece) != _old_crcs(old)[position // old.unit]:
                raise error(
                    Status.CHECKSUM, f"chunk {self.chunk.hex()}: the bytes at {position} do not match their checksum"
                )
        return content

    def _whole(self, old: State, before: Crcs, fresh: Crcs) -> int:
        """The content's CRC after the touched units changed, by differences: both contents as if they were as long as the new one."""
        unit, first = old.unit, self.touched[0]
        grown = self.length - old.length
        difference, position = 0, first * unit
        for number, crc in enumerate(fresh, first):
            size = min(unit, self.length - position)
            known = min(max(old.length - position, 0), size)
            was = before[number] if known else 0
            if known < size:
                was = combine(was, zeros(size - known), size - known)
            difference = shift(difference, size) ^ was ^ crc
            position += size
        return combine(old.whole, zeros(grown), grown) ^ shift(difference, self.length - position)

    def _unit_crcs(self, parts: Sequence[memoryview], inside: int, begun: int) -> Crcs:
        """CRCs of the units that the parts fill one after the other; the first unit has `inside` bytes already, whose CRC is `begun`."""
        unit, crcs = self.state.unit, array(CRC_TYPE)
        crc, filled = begun, inside
        for part in parts:
            at = 0
            while at < part.nbytes:
                if not filled and part.nbytes - at >= unit:
                    end = part.nbytes - (part.nbytes - at) % unit
                    crcs.extend(unit_crcs(part[at:end], unit))
                    at = end
                    continue
                step = min(unit - filled, part.nbytes - at)
                crc = crc32c(part[at : at + step], crc)
                at += step
                filled += step
                if filled == unit:
                    crcs.append(crc)
                    crc = filled = 0
        if filled:
            crcs.append(crc)
        return crcs

    def _write(self, slot: int, offset: int, parts: list[memoryview]) -> None:
        handle, base = self._space.place(slot)
        self.disk.pwritev(handle, parts, base + offset, self.update.cold)

    def _settle(self, crcs: Crcs, whole: int) -> None:
        self.state.crcs = [crcs]  # in one piece; the engine cuts it into pages
        self.state.whole = whole


def _old_crcs(state: State) -> Crcs:
    """All checksums; the engine has loaded the pages before the job was made."""
    if len(state.crcs) == 1:
        page = state.crcs[0]
        assert page is not None
        return page
    joined = array(CRC_TYPE)
    for page in state.crcs:
        assert page is not None
        joined.extend(page)
    return joined


def _zero_parts(length: int) -> list[memoryview]:
    return [_ZEROS[: min(_ZEROS.nbytes, length - at)] for at in range(0, length, _ZEROS.nbytes)]


def _clip(parts: Sequence[memoryview], start: int, end: int) -> list[memoryview]:
    """The bytes [start, end) of the parts put one after the other."""
    clipped, at = [], 0
    for part in parts:
        low, high = max(start - at, 0), min(end - at, part.nbytes)
        if low < high:
            clipped.append(part[low:high])
        at += part.nbytes
    return clipped
