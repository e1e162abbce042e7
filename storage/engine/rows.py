"""The rows of a target, through a bounded cache; with them, what the index keeps per client and per file."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence

from ...proto.errors import Status, error
from .cache import Cache
from .checksum import CRC_TYPE, Crcs
from .index import Change, Lookups
from .records import ChunkInfo, Receipt
from .row import CHANNEL, CHUNK, FLOOR, INLINE_UNITS, PAGE_UNITS, Row, State, decode_row, free_copy, page_key

ROW_COST = 900  # bytes of memory that a row with one state takes, measured
PATCH_COST = 250
PAGE_COST = 1200
RECEIPTS_CACHED_BYTES = 4 << 20
RECEIPT_COST = 300
FLOORS_CACHED_BYTES = 1 << 20
FLOOR_COST = 150

_RECEIPT = struct.Struct("<QQI")
_FLOOR = struct.Struct("<I")


class Rows:
    """Look-ups. A row that is found is the one object for its chunk until the index was written: changes are made in place."""

    def __init__(self, index: Lookups, cache_bytes: int) -> None:
        self.index = index
        self.cached: Cache[Row] = Cache(cache_bytes)

    def get(self, chunk: bytes) -> Row | None:
        row = self.cached.young.get(chunk) or self.cached.get(chunk, ROW_COST)
        if row is None and (value := self.index.get(CHUNK + chunk)) is not None:
            row = self.put(chunk, decode_row(value))
        return row

    def put(self, chunk: bytes, row: Row) -> Row:
        patches = len(row.committed.patches) if row.committed is not None else 0
        self.cached.put(chunk, row, ROW_COST + PATCH_COST * patches)
        return row

    def get_many(self, chunks: Sequence[bytes]) -> dict[bytes, Row]:
        """Those that exist, in one look-up of the index for all that are not cached."""
        found: dict[bytes, Row] = {}
        absent = []
        for chunk in chunks:
            row = self.cached.get(chunk, ROW_COST)
            if row is not None:
                found[chunk] = row
            else:
                absent.append(chunk)
        if absent:
            values = self.index.get_many([CHUNK + chunk for chunk in absent])
            for chunk, value in zip(absent, values, strict=True):
                if value is not None and chunk not in found:
                    found[chunk] = self.put(chunk, decode_row(value))
        return found

    def scan(self, first: bytes, last: bytes, *, reverse: bool = False) -> Iterator[ChunkInfo]:
        """The chunks with first <= id < last."""
        for key, value in self.index.scan(CHUNK + first, CHUNK + last, reverse=reverse):
            yield chunk_info(key[1:], decode_row(value))

    # --- pages of checksums ---

    def page(self, chunk: bytes, state: State, page: int) -> Crcs:
        """A page that is not in memory yet. Raises BAD_FORMAT when the index does not have it."""
        value = self.index.get(page_key(chunk, page, state.copies[page]))
        if value is None:
            raise error(Status.BAD_FORMAT, f"chunk {chunk.hex()}: its page {page} of checksums is missing in the index")
        units = min(PAGE_UNITS, state.units - page * PAGE_UNITS)
        crcs = array(CRC_TYPE, value[: 4 * units])
        state.crcs[page] = crcs
        self.cached.charge(PAGE_COST)
        return crcs

    def load_pages(self, chunk: bytes, state: State) -> None:
        for page, crcs in enumerate(state.crcs):
            if crcs is None:
                self.page(chunk, state, page)

    def place_pages(
        self, chunk: bytes, row: Row, state: State, old: State | None, touched: tuple[int, int], changes: list[Change]
    ) -> None:
        """Cut a new state's checksums into pages, and write those that changed (the units [first, last) did, or all where
        there is no old state) as copies that no state of the row needs."""
        if state.units <= INLINE_UNITS:
            return
        crcs = state.crcs[0]
        assert crcs is not None
        first, last = touched
        copies = bytearray()
        pages: list[Crcs | None] = []
        for page in range(-(-state.units // PAGE_UNITS)):
            low, high = page * PAGE_UNITS, (page + 1) * PAGE_UNITS
            pages.append(crcs[low:high])
            if old is not None and page < len(old.copies) and (last <= low or first >= high):
                copies.append(old.copies[page])
                continue
            copy = free_copy(row, page)
            copies.append(copy)
            row.copies = max(row.copies, copy + 1)
            changes.append((page_key(chunk, page, copy), crcs[low:high].tobytes()))
        row.pages = max(row.pages, len(pages))
        state.copies, state.crcs = bytes(copies), pages
        self.cached.charge(PAGE_COST * len(pages))


def chunk_info(chunk: bytes, row: Row) -> ChunkInfo:
    committed, pending = row.committed, row.pending
    known, shape, block = (0, 0, 0, 0, 0), (0, 0), b""
    if committed is not None:
        known = (
            committed.version,
            committed.length,
            committed.chain_version,
            committed.truncate_version,
            committed.whole,
        )
        shape, block = (len(committed.patches), committed.unit), committed.block
    if pending is None:
        return ChunkInfo(chunk, *known, 0, 0, 0, False, *shape, block)
    waiting = (pending.version, pending.chain_version, pending.length, pending.removed)
    return ChunkInfo(chunk, *known, *waiting, *shape, block)


class Receipts:
    """The last update of every client's channels."""

    def __init__(self, index: Lookups) -> None:
        self._index = index
        self._cached: Cache[Receipt] = Cache(RECEIPTS_CACHED_BYTES)

    def get(self, client: bytes, channel: int) -> Receipt | None:
        key = CHANNEL + client + channel.to_bytes(2, "big")
        found = self._cached.get(key, RECEIPT_COST)
        if found is None and (value := self._index.get(key)) is not None:
            found = Receipt(client, channel, *_RECEIPT.unpack(value))
            self._cached.put(key, found, RECEIPT_COST)
        return found

    def scan(self, client: bytes, first: bytes = b"") -> Iterator[Receipt]:
        """One client's, or everybody's (empty), from (client, channel) on."""
        for key, value in self._index.scan(CHANNEL + max(client, first), successor(CHANNEL + client)):
            yield Receipt(key[1:17], int.from_bytes(key[17:], "big"), *_RECEIPT.unpack(value))

    def add(self, receipts: Iterable[Receipt], changes: list[Change]) -> None:
        for receipt in receipts:
            client, channel, sequence, version, length = receipt
            key = CHANNEL + client + channel.to_bytes(2, "big")
            changes.append((key, _RECEIPT.pack(sequence, version, length)))
            self._cached.put(key, receipt, RECEIPT_COST)

    def rise(self, receipts: Iterable[Receipt], changes: list[Change]) -> None:
        """Take over those that are newer than ours."""
        ours = ((receipt, self.get(receipt.client, receipt.channel)) for receipt in receipts)
        self.add([new for new, old in ours if old is None or old.sequence < new.sequence], changes)

    def forget(self, receipts: Iterable[Receipt]) -> list[Change]:
        keys = [CHANNEL + receipt.client + receipt.channel.to_bytes(2, "big") for receipt in receipts]
        for key in keys:
            self._cached.drop(key)
        return [(key, None) for key in keys]


class Floors:
    """Per file, the truncate version under which writes are refused."""

    def __init__(self, index: Lookups) -> None:
        self._index = index
        self._cached: Cache[int] = Cache(FLOORS_CACHED_BYTES)

    def get(self, chunk: bytes) -> int:
        key = FLOOR + chunk[:10]
        found = self._cached.get(key, FLOOR_COST)
        if found is None:
            value = self._index.get(key)
            found = int(_FLOOR.unpack(value)[0]) if value is not None else 0
            self._cached.put(key, found, FLOOR_COST)
        return found

    def rise(self, chunk: bytes, truncate_version: int, changes: list[Change]) -> None:
        if truncate_version > self.get(chunk):
            key = FLOOR + chunk[:10]
            changes.append((key, _FLOOR.pack(truncate_version)))
            self._cached.put(key, truncate_version, FLOOR_COST)

    def scan(self, first: bytes) -> Iterator[tuple[bytes, int]]:
        """(tenant and inode, truncate version), from a file on."""
        for key, value in self._index.scan(FLOOR + first, successor(FLOOR)):
            yield key[1:], int(_FLOOR.unpack(value)[0])

    def forget(self, chunk: bytes, changes: list[Change]) -> None:
        if self.get(chunk):
            key = FLOOR + chunk[:10]
            changes.append((key, None))
            self._cached.put(key, 0, FLOOR_COST)  # not dropped: until the changes are written the index still has it


def successor(prefix: bytes) -> bytes:
    """The smallest key after all keys with this prefix."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,)) if trimmed else b"\xff" * 32
