"""Many blocks gone at once, for a chain of one: what staging and committing a REMOVE of each comes to, without a job for each.

Only for chunks that are blocks and were written once: their rows have one slot, and the version that the caller knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .fresh import unit_for
from .index import Change
from .recovery import VERSION_KEY, pack_number
from .row import CHUNK, COPIES_MAX, INLINE_UNITS, PAGE_UNITS, page_key

if TYPE_CHECKING:
    from .engine import ChunkEngine


class Gone(NamedTuple):
    """A block that is to go."""

    chunk: bytes
    slot: int  # of the engine
    version: int
    length: int  # bytes


def remove_blocks(engine: ChunkEngine, blocks: Sequence[Gone]) -> None:
    """Remove and commit in one index write; the slots come back with the next checkpoint. None of the chunks may have an update under
    way (`is_quiet`). Raises TARGET_OFFLINE."""
    engine._check()
    changes: list[Change] = []
    floor = engine.version_floor
    rows, space, epoch = engine._rows.cached, engine.space, engine.epoch
    for chunk, slot, version, length in blocks:
        changes.append((CHUNK + chunk, None))
        units = -(-length // unit_for(length))
        if units > INLINE_UNITS:
            pages = range(-(-units // PAGE_UNITS))
            changes += [(page_key(chunk, page, copy), None) for page in pages for copy in range(COPIES_MAX + 1)]
        rows.drop(chunk)
        space.retire(slot, epoch)
        floor = max(floor, version + 1)
        engine._content -= length
    engine._chunks -= len(blocks)
    if floor > engine.version_floor:
        engine._version_floor = floor
        changes.append((VERSION_KEY, pack_number(floor)))
    engine._write(changes)


def is_quiet(engine: ChunkEngine, chunk: bytes) -> bool:
    """Whether no update of the chunk is under way."""
    return chunk not in engine._busy and chunk not in engine.pending
