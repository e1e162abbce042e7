"""Index rows: what is known of a chunk, in memory and in bytes.

The key space of a target's index:

    C + chunk id (16 bytes)                 -> head row: the states of one chunk
    P + chunk id + page u8 + copy u8        -> 256 CRCs (u32, little-endian), for states with more than INLINE_UNITS units
    T + tenant u16 + inode u64              -> truncate version u32: older writes to this file are refused
    D + client (16 bytes) + channel u16     -> sequence u64, version u64, chunk length u32: the channel's last update
    M + name                                -> the target's own records: session, checkpoint, version floor, lost

A pending state that a client numbered carries its receipt in the row, behind the states.

A head row holds up to four states of its chunk: the committed one, a pending one, and the `fallbacks`: what the chunk was at the last
checkpoints, needed when power is lost before the newest bytes reached the disk. Every state names its epoch, the number of the
checkpoint that makes it durable; one whose checkpoint has passed can be trusted, and needs no fallback.

CRC pages are never overwritten while a state needs them: a page has up to four copies, and a state says which one is its own. So
an update writes one or two pages of 1 KiB and the small head row, a commit the head row only. Small chunks carry their CRCs in
the head row: measured, 256 bytes more cost 0.5 µs a write, a key more 4 µs; 1 KiB more costs 3 µs at each of stage and commit.

A row of version 2 says behind the fixed part of every state how long its `block` is, and the block itself behind the state: what the
chunk is in the KV cache (storage/blocks/record.py), which means nothing here. Rows of chunks that are no blocks stay version 1.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...proto.errors import Status, error
from ...proto.layout import UNIT_SMALL
from .checksum import CRC_TYPE, Crcs
from .records import Receipt
from .slots import NO_SLOT

ROW_VERSION = 1
ROW_VERSION_BLOCK = 2  # of rows with a state that is a block
BLOCK_BYTES_MAX = 1024  # of what is said of a block
INLINE_UNITS = 64  # states with more units keep their CRCs in pages
PAGE_UNITS = 256
COPIES_MAX = 4  # of a page: committed, two fallbacks and the one being written
PATCHES_MAX = 32  # a byte of the row counts them

CHUNK, PAGE, FLOOR, CHANNEL, TARGET = b"C", b"P", b"T", b"D", b"M"

_HEAD = struct.Struct("<BBBBB")  # version, flags, fallbacks, pages ever, copies ever
_STATE = struct.Struct("<QQIIIIIIBBB")
_PATCH = struct.Struct("<QII")
_RECEIPT = struct.Struct("<16sHQQI")
_BLOCK = struct.Struct("<H")  # bytes of the block
_NEW_BLOCK = struct.Struct(_HEAD.format + _STATE.format[1:])
_SMALL_BLOCK = struct.Struct(_NEW_BLOCK.format + "I" + _BLOCK.format[1:])
_SMALL_SHIFT = UNIT_SMALL.bit_length() - 1
_COMMITTED, _PENDING, _NUMBERED = 1, 2, 4


@dataclass(slots=True, eq=False)
class Patch:
    """Newer bytes for a part of the chunk, in a slot of their own. `start` is a multiple of the checksum unit."""

    slot: int
    start: int  # bytes into the chunk
    length: int  # bytes
    packed: bytes = b""  # as the row has it, once that was asked: it is written again with every later patch

    def pack(self) -> bytes:
        self.packed = self.packed or _PATCH.pack(self.slot, self.start, self.length)
        return self.packed


@dataclass(slots=True, eq=False)
class State:
    """The content of a chunk under one version. Immutable, except that CRC pages are loaded when first needed."""

    version: int
    chain_version: int  # under which the version was given
    truncate_version: int
    length: int  # bytes
    high: int  # bytes of the slot that some state may refer to: only beyond it may be written in place
    whole: int  # CRC32C of the content
    epoch: int  # the checkpoint that makes it durable
    unit: int  # bytes per checksum
    slot: int  # NO_SLOT: removed
    patches: tuple[Patch, ...] = ()  # oldest first
    copies: bytes = b""  # per page, which copy; empty: the CRCs are inline
    crcs: list[Crcs | None] = field(default_factory=list)  # per page; None: not loaded yet
    place: tuple[int, int] | None = None  # handle and offset of the slot, once looked up
    block: bytes = b""  # what this chunk is in the KV cache; empty: none of its blocks

    @property
    def units(self) -> int:
        return -(-self.length // self.unit)

    @property
    def removed(self) -> bool:
        return self.slot == NO_SLOT

    def slots(self) -> list[int]:
        """Every slot that this state needs."""
        if self.slot == NO_SLOT:
            return []
        return [self.slot, *(patch.slot for patch in self.patches)]


@dataclass(slots=True, eq=False)
class Row:
    committed: State | None = None
    pending: State | None = None
    fallbacks: tuple[State, ...] = ()  # newest first
    pages: int = 0  # how many pages, and how many copies of each, were ever written: what a remove has to delete
    copies: int = 0
    receipt: Receipt | None = None  # of the pending update, if a client numbered it: it travels with it down the chain

    def states(self) -> list[State]:
        return [s for s in (self.committed, self.pending, *self.fallbacks) if s is not None]


def _encode_state(state: State, with_block: bool) -> bytes:
    inline = b"" if state.copies else b"".join(page.tobytes() for page in state.crcs if page is not None)
    return b"".join(
        (
            _STATE.pack(
                state.slot,
                state.version,
                state.chain_version,
                state.truncate_version,
                state.length,
                state.high,
                state.whole,
                state.epoch,
                state.unit.bit_length() - 1,
                len(state.patches),
                len(state.copies),
            ),
            *[patch.pack() for patch in state.patches],
            state.copies or inline,
            _BLOCK.pack(len(state.block)) + state.block if with_block else b"",
        )
    )


def _decode_state(data: bytes, at: int, with_block: bool) -> tuple[State, int]:
    slot, version, chain, truncate, length, high, whole, epoch, shift, patches, pages = _STATE.unpack_from(data, at)
    at += _STATE.size
    found: tuple[Patch, ...] = ()
    if patches:
        found = tuple(Patch(*_PATCH.unpack_from(data, at + k * _PATCH.size)) for k in range(patches))
        at += patches * _PATCH.size
    unit = 1 << shift
    copies = b""
    crcs: list[Crcs | None]
    if pages:
        copies, at = data[at : at + pages], at + pages
        crcs = [None] * pages
    else:
        end = at + -(-length // unit) * 4
        crcs, at = [array(CRC_TYPE, data[at:end])], end
    block = b""
    if with_block:
        (size,) = _BLOCK.unpack_from(data, at)
        at += _BLOCK.size
        block, at = data[at : at + size], at + size
    return State(version, chain, truncate, length, high, whole, epoch, unit, slot, found, copies, crcs, None, block), at


def encode_row(row: Row) -> bytes:
    flags = (_COMMITTED if row.committed else 0) | (_PENDING if row.pending else 0)
    numbered = b""
    if row.receipt is not None:
        flags |= _NUMBERED
        numbered = _RECEIPT.pack(*row.receipt)
    states = row.states()
    blocks = [state.block for state in states]
    with_block = any(blocks)
    version = ROW_VERSION_BLOCK if with_block else ROW_VERSION
    head = _HEAD.pack(version, flags, len(row.fallbacks), row.pages, row.copies)
    return head + b"".join([_encode_state(state, with_block) for state in states]) + numbered


def encode_new_block(
    slot: int,
    version: int,
    chain_version: int,
    length: int,
    whole: int,
    epoch: int,
    unit: int,
    crcs: Crcs,
    block: bytes,
) -> bytes:
    """The row of a block that was just written, committed, with inline checksums: what `encode_row` would make of it (hot path)."""
    return b"%b%b%b%b" % (
        _NEW_BLOCK.pack(
            ROW_VERSION_BLOCK,
            _COMMITTED,
            0,
            0,
            0,
            slot,
            version,
            chain_version,
            0,
            length,
            length,
            whole,
            epoch,
            unit.bit_length() - 1,
            0,
            0,
        ),
        crcs.tobytes(),
        _BLOCK.pack(len(block)),
        block,
    )


def encode_small_blocks(
    slots: Sequence[int],
    lengths: Sequence[int],
    checksums: Sequence[int],
    blocks: Sequence[bytes],
    version: int,
    chain_version: int,
    epoch: int,
) -> list[bytes]:
    """As `encode_new_block`, of many that have one small checksum unit each: one call for each of the commonest rows."""
    pack, fixed = _SMALL_BLOCK.pack, (ROW_VERSION_BLOCK, _COMMITTED, 0, 0, 0)
    return [
        pack(
            *fixed, slot, version, chain_version, 0, length, length, whole, epoch, _SMALL_SHIFT, 0, 0, whole, len(block)
        )
        + block
        for slot, length, whole, block in zip(slots, lengths, checksums, blocks, strict=True)
    ]


def decode_row(data: bytes) -> Row:
    """Raises BAD_FORMAT for a row of another version or a damaged one."""
    try:
        version, flags, fallbacks, pages, copies = _HEAD.unpack_from(data)
        if version not in (ROW_VERSION, ROW_VERSION_BLOCK):
            raise error(
                Status.BAD_FORMAT, f"index row of version {version}; this emberfs reads up to {ROW_VERSION_BLOCK}"
            )
        states, at = [], _HEAD.size
        for _ in range(bool(flags & _COMMITTED) + bool(flags & _PENDING) + fallbacks):
            state, at = _decode_state(data, at, version == ROW_VERSION_BLOCK)
            states.append(state)
        receipt = Receipt(*_RECEIPT.unpack_from(data, at)) if flags & _NUMBERED else None
        at += _RECEIPT.size if flags & _NUMBERED else 0
    except (struct.error, ValueError) as bad:
        raise error(Status.BAD_FORMAT, f"damaged index row of {len(data)} bytes") from bad
    if at != len(data):
        raise error(Status.BAD_FORMAT, f"damaged index row: {len(data)} bytes where {at} were expected")
    committed = states.pop(0) if flags & _COMMITTED else None
    pending = states.pop(0) if flags & _PENDING else None
    return Row(committed, pending, tuple(states), pages, copies, receipt)


def page_key(chunk: bytes, page: int, copy: int) -> bytes:
    return b"P%b%c%c" % (chunk, page, copy)


def free_copy(row: Row, page: int) -> int:
    """A copy of this page that no state of the row needs."""
    taken = {state.copies[page] for state in row.states() if page < len(state.copies)}
    return next(copy for copy in range(COPIES_MAX + 1) if copy not in taken)
