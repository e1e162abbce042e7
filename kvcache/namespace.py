"""Namespaces: everything that decides what the bytes of a block mean, as one hashed descriptor.

Two engines that differ in any field never see each other's blocks: their namespaces have different numbers, their blocks different ids,
and the checksum of a block begins with the digest of its namespace. So a forgotten `revision` or `dtype` is a cache that misses, and
never an answer from another model's attention.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import blake2b

from crc32c import crc32c

from ..proto.blocks import BLOCK_BYTES_MAX
from ..proto.gen.cluster_pb2 import KvNamespace

DESCRIPTOR_VERSION = 1  # of the canonical form: whatever changes it changes all digests
DIGEST_BYTES = 32
MODE_DEFAULT = 0o600
TTL_SECONDS_MAX = (1 << 32) - 1
FIELD_CHARACTERS_MAX = 1024

Range = tuple[int, int]  # first, and behind the last


@dataclass(frozen=True, slots=True)
class NamespaceSpec:
    """What an engine says of its blocks. Raises ValueError for values that describe nothing.

    `engine` and `layout` say who arranged the bytes and how ("sglang", "page_first"); `dtype` is that of the cache, not of the weights;
    `layers` and `heads` are the ranges that one block holds (None: all), so ranks that hold different ones have different
    namespaces, and ranks that hold the same share one. `object_bytes`: of every block (None: they may have any length). `salt`: whatever
    else must keep caches apart. `tenant`: whose quota the blocks count against.
    """

    engine: str
    model: str
    revision: str
    dtype: str
    page_tokens: int
    layout: str
    layers: Range | None = None
    heads: Range | None = None
    object_bytes: int | None = None
    salt: str = ""
    tenant: str = ""

    def __post_init__(self) -> None:
        for name in ("engine", "model", "revision", "dtype", "layout", "salt", "tenant"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > FIELD_CHARACTERS_MAX:
                raise ValueError(f"{name}={value!r}: must be a string of at most {FIELD_CHARACTERS_MAX} characters")
        for name in ("engine", "model", "dtype", "layout"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: blocks of different ones would be taken for each other")
        if "/" in self.tenant or "\0" in self.tenant:
            raise ValueError(f"tenant={self.tenant!r}: must not contain '/' or NUL")
        if not isinstance(self.page_tokens, int) or self.page_tokens < 1:
            raise ValueError(f"page_tokens={self.page_tokens!r}: must be a positive number of tokens")
        if self.object_bytes is not None and not 0 < self.object_bytes <= BLOCK_BYTES_MAX:
            raise ValueError(f"object_bytes={self.object_bytes!r}: must be 1 to {BLOCK_BYTES_MAX}")
        for name in ("layers", "heads"):
            _check_range(name, getattr(self, name))

    @property
    def descriptor(self) -> str:
        """Canonical JSON: keys sorted, no spaces, ASCII only."""
        fields = asdict(self)
        for name in ("layers", "heads"):
            fields[name] = None if fields[name] is None else list(fields[name])
        fields["version"] = DESCRIPTOR_VERSION
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def digest(self) -> bytes:
        return digest_of(self.descriptor)

    @property
    def name(self) -> str:
        """For people, and unique."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.tenant or 'default'}/{self.model}{revision}/{self.digest.hex()[:12]}"

    @classmethod
    def of(cls, descriptor: str) -> NamespaceSpec:
        """The spec that a descriptor was made from. Raises ValueError for another version's."""
        fields = json.loads(descriptor)
        if fields.pop("version", None) != DESCRIPTOR_VERSION:
            raise ValueError(f"a descriptor of another version than {DESCRIPTOR_VERSION}: {descriptor[:80]}")
        for name in ("layers", "heads"):
            fields[name] = tuple(fields[name]) if fields.get(name) is not None else None
        return cls(**fields)


def _check_range(name: str, value: Range | None) -> None:
    if value is None:
        return
    if not isinstance(value, tuple) or len(value) != 2 or not 0 <= value[0] < value[1]:
        raise ValueError(f"{name}={value!r}: must be (first, behind the last)")


def digest_of(descriptor: str) -> bytes:
    return blake2b(descriptor.encode(), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Namespace:
    """A registered namespace. The same for everybody with the same spec; made by `KVCache.namespace`."""

    id: int
    digest: bytes
    block_bytes: int  # of every block; 0: they have any length
    name: str
    tenant: str
    ttl_s: int  # of blocks that are put without a time; 0: they live until they are evicted
    spec: NamespaceSpec | None = field(default=None, compare=False)  # None: registered by an engine of another version
    seed: int = field(default=0, compare=False, repr=False)  # CRC32C that every block's checksum begins with

    @classmethod
    def from_message(cls, message: KvNamespace, spec: NamespaceSpec | None = None) -> Namespace:
        return cls(
            message.id,
            message.digest,
            message.block_bytes,
            message.name,
            message.tenant,
            message.ttl_s,
            spec,
            crc32c(message.digest[:16]),
        )
