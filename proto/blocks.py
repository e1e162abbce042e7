"""KV blocks as every room sees them: how they are named, where they lie, what their checksums cover.

A block is named by its namespace's number and a key of 32 bytes, which is a hash that the engine made (SHA-256 of the prefix, usually): so
keys are spread evenly already. It lies on the chain that rendezvous hashing picks out of one version of the table of blocks: when
chains come or go, only the keys of those move.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from crc32c import crc32c

from .rendezvous import owner_of

TABLE_OF_FILES = 1
TABLE_OF_BLOCKS = 2
KV_TENANT = 0xFFFE  # of the chunk ids of blocks
KEY_BYTES = 32
KEYS_MAX = 4096  # of one request
BLOCK_BYTES_MAX = 64 << 20
HARD_PIN = 0xFFFFFFFF  # seconds: until it is unpinned
GRACE_SECONDS = 3600  # in which blocks are also looked for where an older version of the table places them

_TENANT = KV_TENANT.to_bytes(2, "big")
_RESERVED = bytes(2)


def chunk_of(namespace: int, key: bytes) -> bytes:
    """The chunk id of a block, 16 bytes, put together as those of files are. Two blocks may share one by an accident of 96 bits: rows
    hold the whole key."""
    return chunks_of(namespace, (key,))[0]


def chunks_of(namespace: int, keys: Iterable[bytes]) -> list[bytes]:
    """The chunk ids of many blocks."""
    prefix = namespace.to_bytes(4, "big")
    digests = [blake2b(prefix + key, digest_size=12).digest() for key in keys]
    return [_TENANT + digest[:8] + _RESERVED + digest[8:] for digest in digests]


def chain_of(key: bytes, chains: Sequence[int]) -> int:
    """The chain that a key belongs to. Raises ValueError without chains."""
    if len(chains) == 1:
        return chains[0]
    return owner_of(int.from_bytes(key[:8], "little"), chains)


def seed_of(digest: bytes, key: bytes, generation: int) -> int:
    """What the checksum of a block's content begins with: the CRC32C of its identity, so that the bytes of another block, or of an
    older one under the same key, never pass for it. `digest` is the namespace's."""
    return crc32c(digest[:16] + key + generation.to_bytes(8, "little"))
