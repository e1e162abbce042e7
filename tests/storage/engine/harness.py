"""A target in memory beside a model of what it promises."""

from __future__ import annotations

import random
from collections import Counter

from emberfs.proto.ids import chunk_key
from emberfs.storage.engine import planner, rows
from emberfs.storage.engine.checksum import crc32c, unit_crcs
from emberfs.storage.engine.engine import ChunkEngine, Job, Kind, Update
from emberfs.storage.engine.reads import read_content
from emberfs.storage.engine.row import CHUNK, State, decode_row
from emberfs.storage.engine.simulated import Faults, SimulatedDisk, SimulatedIndex
from emberfs.storage.engine.slots import CLASS_BYTES

CHUNK_SIZE = 64 << 10
CAPACITY = 64 << 20


def key(index: int, inode: int = 1024) -> bytes:
    return chunk_key(inode, index)


def write(chunk: bytes, offset: int, data: bytes, **more: int) -> Update:
    return Update(Kind.WRITE, chunk, offset, data, crc32c(data), **{"chunk_size": CHUNK_SIZE, **more})


def clone(source: bytes | None, chunk: bytes, limit: int = CHUNK_SIZE, **more: int) -> Update:
    return Update(Kind.CLONE, chunk, limit, source=source or b"", **{"chunk_size": CHUNK_SIZE, **more})


def small_pages(monkeypatch) -> None:
    """Pages of 4 checksums, so that small chunks have several of them."""
    for module in (rows, planner):
        monkeypatch.setattr(module, "PAGE_UNITS", 4)
    monkeypatch.setattr(rows, "INLINE_UNITS", 2)


def written(content: bytes | None, update: Update, source: bytes | None = None) -> bytes | None:
    """What an update makes of a content: the model. None: there is no chunk. `source`: the content that is cloned."""
    if update.kind is Kind.REMOVE:
        return None
    if update.kind is Kind.CLONE:
        return (source or b"")[: update.offset] or None
    if update.kind is Kind.REPLACE:
        return bytes(update.payload)
    if update.kind is Kind.TRUNCATE:
        if content is None or update.offset == 0:
            return None
        return content[: update.offset] + bytes(max(0, update.offset - len(content)))
    old = bytearray(content or b"")
    old.extend(bytes(max(0, update.offset - len(old))))
    old[update.offset : update.offset + len(update.payload)] = update.payload
    return bytes(old)


class Target:
    """One simulated target over several lives of its process."""

    def __init__(self, faults: Faults | None = None, capacity: int = CAPACITY, cache_bytes: int = 1 << 20) -> None:
        self.faults = faults or Faults()
        self.disk = SimulatedDisk(self.faults)
        self.index = SimulatedIndex(self.faults)
        self.capacity = capacity
        self.cache_bytes = cache_bytes
        self.boot = 0
        self.engine: ChunkEngine = None  # type: ignore[assignment]

    def open(self) -> ChunkEngine:
        self.engine = ChunkEngine(
            self.disk, self.index, capacity=self.capacity, boot=f"boot {self.boot}", cache_bytes=self.cache_bytes
        )
        return self.engine

    def kill(self) -> None:
        """The process is gone; what it gave to the kernel is there."""
        self.disk.close()

    def power_loss(self, choice: random.Random) -> None:
        self.disk.power_loss(choice)
        self.index.power_loss(choice)
        self.boot += 1


def content(engine: ChunkEngine, chunk: bytes) -> bytes | None:
    """The committed bytes, verified; None when there is no committed chunk."""
    info = engine.info(chunk)
    if info is None or not info.version:
        return None
    data = engine.read(chunk)
    assert len(data) == info.length
    return bytes(data)


def check_invariants(engine: ChunkEngine, jobs: list[Job] = ()) -> None:  # type: ignore[assignment]
    """Allocation: every slot has as many references as rows, jobs and retired ones say, used = those that have any, the books are right.
    Content: every checksum is."""
    holders: Counter[int] = Counter()
    chunks = total = 0
    for name, value in engine.index.scan(CHUNK, b"D"):
        row = decode_row(value)
        held = set()
        for state in (row.committed, row.pending):
            if state is not None:
                held |= set(state.slots())
                check_state(engine, name[1:], state)
        holders.update(held)
        if row.committed is not None:
            chunks += 1
            total += row.committed.length
    retired = Counter(engine.space.retired_slots())
    begun = Counter([slot for job in jobs for slot in (*job.fresh, *job.shared)])
    expected = holders + retired + begun
    used = list(engine.space.used_slots())
    assert sorted(used) == sorted(expected), "used slots are not those that somebody refers to"
    assert {slot: engine.space.references(slot) for slot in used} == expected, (
        "references were lost, or are kept for nobody"
    )
    free_soon = [slot for slot in retired if not holders[slot] and not begun[slot]]
    info = engine.space_info()
    assert info.used == sum(CLASS_BYTES[slot >> 48] for slot in used)
    assert info.reclaimable == sum(CLASS_BYTES[slot >> 48] for slot in free_soon)
    assert (info.chunks, info.content) == (chunks, total)


def check_state(engine: ChunkEngine, chunk: bytes, state: State) -> None:
    if state.removed:
        return
    data = read_content(state, engine.space, engine.disk, 0, state.length)
    assert crc32c(data) == state.whole, "the whole-content checksum is wrong"
    for page in range(len(state.crcs)):
        if state.crcs[page] is None:
            engine._rows.page(chunk, state, page)
    stored = [crc for page in state.crcs if page is not None for crc in page]
    assert stored == list(unit_crcs(data, state.unit)), "a unit's checksum is wrong"
