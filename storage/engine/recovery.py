"""Opening a target: what happened to it, which rows hold, which slots are used.

The session record says which boot of the machine wrote last, and whether it closed cleanly.
- Closed cleanly: every row is covered by a checkpoint.
- Same boot, not closed: the process was killed. The page cache has every byte that was written; all rows hold.
- Another boot, not closed: power was lost; or no boot, because a sync had failed (`doubted`), after which the page cache shows bytes that
  the disk does not have and no later sync fails: it is emptied first. The index is a beginning of what was written, and contains at least
  what the last checkpoint contained; the block files hold any part of what was written since. A state of a later epoch is compared with its
  checksum; where its bytes are missing the chunk falls back to what it was at the last checkpoint that it has a trusted state of, or is
  gone if it has none.
In the last two cases a checkpoint is taken before anything is allocated: until then nothing that a fallback needs may be overwritten,
and killed in the middle of opening, the next open decides the same again.
"""

from __future__ import annotations

import contextlib
import enum
import struct
from dataclasses import dataclass, field

from ...proto.errors import Status, error
from .disk import Disk
from .index import Change, Index
from .reads import is_intact
from .row import CHUNK, TARGET, Row, State, decode_row, encode_row, page_key
from .space import Space

SESSION_VERSION = 1
SESSION_KEY = TARGET + b"session"
CHECKPOINT_KEY = TARGET + b"checkpoint"
VERSION_KEY = TARGET + b"version"
VERSIONS_SKIPPED = 1 << 32  # after a power loss: more than a chunk had between two checkpoints
LOST_KEY = TARGET + b"lost"
POWER_KEY = TARGET + b"power"  # how often it was lost
_U64 = struct.Struct("<Q")


class Opened(enum.Enum):
    """How the target was found."""

    NEW = "new"
    CLEAN = "clean"
    KILLED = "killed"  # nothing acknowledged is lost
    POWER_LOSS = "power loss"  # or a sync that failed: what was not synced may be lost


@dataclass
class Found:
    """What the scan of the index found."""

    opened: Opened
    checkpoint: int = 0  # the last one that passed
    epoch: int = 0  # the highest of any state
    version_floor: int = 0  # the highest version of a removed chunk
    chunks: int = 0
    content_bytes: int = 0
    pending: list[bytes] = field(default_factory=list)  # chunks
    fell_back: list[bytes] = field(default_factory=list)  # chunks that lost their newest state, or are gone
    lost: bool = False  # the index is another one than before, and what it named is not here any more
    power_losses: int = 0  # until now, this time included


def number(value: bytes | None) -> int:
    return int(_U64.unpack(value)[0]) if value is not None else 0


def pack_number(value: int) -> bytes:
    return _U64.pack(value)


def session_record(boot: str, *, clean: bool) -> Change:
    return SESSION_KEY, bytes((SESSION_VERSION, clean)) + boot.encode()


def doubted(index: Index) -> None:
    """A sync failed: let the next process take what was not synced before for lost. As far as the disk still takes that."""
    with contextlib.suppress(Exception):  # rocksdict raises bare ones, and the failure itself has been told
        index.write([session_record("", clean=False)], sync=True)


def how_opened(index: Index, boot: str) -> Opened:
    record = index.get(SESSION_KEY)
    if record is None:
        return Opened.NEW
    if record[0] != SESSION_VERSION:
        raise error(
            Status.BAD_FORMAT, f"session record of version {record[0]}; this emberfs reads version {SESSION_VERSION}"
        )
    if record[1]:
        return Opened.CLEAN
    return Opened.KILLED if record[2:].decode() == boot else Opened.POWER_LOSS


def recover(index: Index, disk: Disk, space: Space, boot: str, *, known: bool = False) -> Found:
    """Scan the rows, mark their slots as used, and leave the target with a checkpoint of all that holds. `known`: the target was formatted
    before, so an empty index is one that was lost."""
    found = Found(how_opened(index, boot), number(index.get(CHECKPOINT_KEY)), 0, number(index.get(VERSION_KEY)))
    found.epoch = found.checkpoint
    found.lost = index.get(LOST_KEY) is not None or (known and found.opened is Opened.NEW)
    changes: list[Change] = [(LOST_KEY, b"1")] if found.lost else []
    found.power_losses = number(index.get(POWER_KEY))
    if found.opened is Opened.POWER_LOSS:
        found.power_losses += 1
        changes.append((POWER_KEY, pack_number(found.power_losses)))
        for handle in space.handles():
            disk.advise(handle, 0, 0, False)  # what is compared below is what the disk has
    for key, value in index.scan(CHUNK, _after(CHUNK)):
        row = decode_row(value)
        found.epoch = max(found.epoch, *(state.epoch for state in row.states()), 0)
        if found.opened is Opened.POWER_LOSS and _fall_back(row, found.checkpoint, space, disk):
            found.fell_back.append(key[1:])
            changes += row_changes(key[1:], row)
        _adopt(key[1:], row, space, found)
    space.adopted()
    if found.opened is Opened.POWER_LOSS:
        # Removes and what was written after them may be forgotten, but not by those who read it: what comes now has other versions.
        found.version_floor += VERSIONS_SKIPPED
        changes.append((VERSION_KEY, pack_number(found.version_floor)))
    if found.opened not in (Opened.NEW, Opened.CLEAN):
        try:
            for handle in space.handles():
                disk.fdatasync(handle)
            disk.sync_names()
        except OSError:
            doubted(index)
            raise
        found.epoch += 1
        found.checkpoint = found.epoch
        changes.append((CHECKPOINT_KEY, pack_number(found.checkpoint)))
    index.write([*changes, session_record(boot, clean=False)], sync=True)
    return found


def _adopt(chunk: bytes, row: Row, space: Space, found: Found) -> None:
    if row.committed is not None:
        found.chunks += 1
        found.content_bytes += row.committed.length
    held = row.committed.slots() if row.committed is not None else []
    if row.pending is not None:
        found.pending.append(chunk)
        held += [slot for slot in row.pending.slots() if slot not in held]
    for slot in held:
        space.adopt(slot)


def _fall_back(row: Row, checkpoint: int, space: Space, disk: Disk) -> bool:
    """Keep of a row what can be trusted or proven. Returns whether something had to go."""

    def holds(state: State) -> bool:
        if state.epoch <= checkpoint:
            return True
        try:
            return is_intact(state, space, disk)
        except OSError:
            # The disk cannot be asked. The one checkpoint that the index does not say has passed may have been answered: what it covers
            # is kept, and is a damaged chunk if the bytes are not there. What is newer was never called durable.
            return state.epoch == checkpoint + 1

    changed = False
    if row.pending is not None and not holds(row.pending):
        row.pending = row.receipt = None
        changed = True
    if row.committed is not None and not holds(row.committed):
        row.committed = next((state for state in row.fallbacks if holds(state)), None)
        changed = True
    row.fallbacks = ()
    return changed


def row_changes(chunk: bytes, row: Row) -> list[Change]:
    """The index changes that store a row, or delete it with its pages when no state is left."""
    if row.committed is not None or row.pending is not None:
        return [(CHUNK + chunk, encode_row(row))]
    changes: list[Change] = [(CHUNK + chunk, None)]
    for page in range(row.pages):
        changes += [(page_key(chunk, page, copy), None) for copy in range(row.copies)]
    return changes


def _after(prefix: bytes) -> bytes:
    return bytes((prefix[0] + 1,))
