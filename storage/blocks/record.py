"""What the row of a block says besides place and checksums: `Update.block`, and the `block` of a state in the engine.

    version u8 | namespace u32 | key (32 bytes) | depth u32 | expiry u32 | pin u32 | generation u64

A record belongs to a version of the chunk. Where a pin or a time to live is changed, a new version says so of the same bytes, and keeps
the generation under which they were put: `generation` names it, 0 where it is the version's own number.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from ...proto.blocks import HARD_PIN, KEY_BYTES
from ...proto.errors import Status, error

RECORD_VERSION = 1
SECONDS_MAX = HARD_PIN - 1  # the last second, since the epoch, that a record can name

_RECORD = struct.Struct(f"<BI{KEY_BYTES}sIIIQ")
RECORD_BYTES = _RECORD.size


class Record(NamedTuple):
    """A block, as its row knows it."""

    namespace: int
    key: bytes
    depth: int = 0  # blocks before it in its prefix
    expiry: int = 0  # when it is over, seconds since the epoch; 0: never
    pin: int = 0  # until when it is not evicted, seconds since the epoch; HARD_PIN: until it is unpinned
    generation: int = 0  # under which its bytes were put; 0: the number of the row's version


def pack_record(
    namespace: int, key: bytes, depth: int = 0, expiry: int = 0, pin: int = 0, generation: int = 0
) -> bytes:
    """The bytes of a record, without building one (hot path)."""
    return _RECORD.pack(RECORD_VERSION, namespace, key, depth, expiry, pin, generation)


def pack_records(
    namespace: int, keys: Sequence[bytes], depths: Sequence[int], expiries: Sequence[int], pin: int
) -> list[bytes]:
    """Of blocks that are put together."""
    pack = _RECORD.pack
    columns = zip(keys, depths, expiries, strict=True)
    return [pack(RECORD_VERSION, namespace, key, depth, expiry, pin, 0) for key, depth, expiry in columns]


def unpack_record(data: bytes) -> Record:
    """Raises BAD_FORMAT for a record of another version."""
    if len(data) != RECORD_BYTES or data[0] != RECORD_VERSION:
        version = data[0] if data else 0
        raise error(
            Status.BAD_FORMAT,
            f"record of a block, version {version}, {len(data)} bytes; this emberfs reads version {RECORD_VERSION}",
        )
    return Record(*_RECORD.unpack(data)[1:])


def moment(now: float, seconds: int) -> int:
    """The second, since the epoch, in so many seconds from `now`; 0 for none, HARD_PIN for ever."""
    if not seconds or seconds == HARD_PIN:
        return seconds
    return min(int(now) + seconds, SECONDS_MAX)
