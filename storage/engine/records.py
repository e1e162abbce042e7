"""What the engine is asked with and answers: small records, without behaviour."""

from __future__ import annotations

from typing import NamedTuple

Read = tuple[bytes, int, int]  # chunk id, offset, length


class Receipt(NamedTuple):
    """The last update of a client's channel: what makes a retry exactly-once."""

    client: bytes  # 16 bytes
    channel: int
    sequence: int
    version: int  # of the chunk after the update
    length: int  # of the chunk after it, bytes


class Records(NamedTuple):
    """A page of what a target keeps besides its chunks: what travels in a resync."""

    receipts: list[Receipt]
    floors: list[tuple[bytes, int]]  # (tenant and inode, truncate version)
    after: bytes | None  # where the next page begins; None: this was the last


class ChunkInfo(NamedTuple):
    """What a row says of its chunk."""

    chunk: bytes
    version: int  # committed; 0: nothing is committed yet
    length: int  # bytes
    chain_version: int
    truncate_version: int
    checksum: int  # CRC32C of the committed content
    pending: int = 0  # version of the pending update, or 0
    pending_chain_version: int = 0
    pending_length: int = 0
    pending_removes: bool = False
    patches: int = 0  # of the committed content: a fold makes one slot of them
    unit: int = 0  # bytes per checksum of the committed content
    block: bytes = b""  # what the committed content is in the KV cache


class LastChunk(NamedTuple):
    """The answer to "how long is this file, on this target?"."""

    found: bool
    chunk_index: int = 0  # of the last chunk
    length: int = 0  # of that chunk, bytes
    chunks: int = 0
    content: int = 0  # bytes in them


class SpaceInfo(NamedTuple):
    capacity: int  # bytes
    used: int  # bytes in slots, those included that wait for a checkpoint
    reclaimable: int  # part of `used` that waits
    chunks: int
    content: int  # bytes in chunks
