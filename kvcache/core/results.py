"""What operations answer with, apart from statuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ...proto.blocks import KEY_BYTES
from ...proto.gen.cluster_pb2 import KvNamespace
from ...proto.gen.kvcache_pb2 import BlockEventsReply, ListBlocksReply, UsageReply
from ..namespace import Namespace
from .statuses import MISS, as_array, as_bools


@dataclass(frozen=True, slots=True)
class Lease:
    """Blocks that are not evicted or deleted for a while. `parts`: storage node and what it granted."""

    namespace: Namespace
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """How much of a prefix is there. `n`: blocks from the first one on that are; with `trailing`, the longest prefix of which the last so
    many are."""

    n: int
    statuses: list[int]  # of each key: bytes, or a negative errno (-ENOENT: not there)
    lease: Lease | None = None

    @classmethod
    def of(cls, statuses: list[int], *, trailing: int = 0, lease: Lease | None = None) -> Match:
        return cls(_prefix(statuses, trailing), statuses, lease)

    @property
    def total(self) -> int:
        """Blocks that are there, wherever in the prefix."""
        return sum([status >= 0 for status in self.statuses])

    @property
    def present(self) -> Any:
        """Which are there: an array of bools."""
        return as_bools(bytes([status >= 0 for status in self.statuses]))

    @property
    def lengths(self) -> Any:
        """Bytes of each block, 0 of those not there: an array of int32."""
        return as_array([max(status, 0) for status in self.statuses])

    def __len__(self) -> int:
        return self.n


def _prefix(statuses: Sequence[int], trailing: int) -> int:
    if trailing <= 0:
        return next((row for row, status in enumerate(statuses) if status < 0), len(statuses))
    run = best = 0
    for row, status in enumerate(statuses):
        run = run + 1 if status >= 0 else 0
        if run >= min(trailing, row + 1):
            best = row + 1
    return best


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """A block, as a list of them shows it."""

    key: bytes
    length: int
    generation: int
    depth: int
    ttl_s: int  # left; 0: it lives until it is evicted
    pinned: bool

    @classmethod
    def of(cls, reply: ListBlocksReply, block_bytes: int) -> list[BlockInfo]:
        count = len(reply.keys) // KEY_BYTES
        keys = [reply.keys[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i in range(count)]
        columns = (
            list(reply.length) or [block_bytes] * count,
            list(reply.generation) or [0] * count,
            list(reply.depth) or [0] * count,
            list(reply.ttl_s) or [0] * count,
            list(reply.pinned) or [False] * count,
        )
        return [cls(*row) for row in zip(keys, *columns, strict=True)]


@dataclass(frozen=True, slots=True)
class BlockEvent:
    """A block that came or went."""

    key: bytes
    stored: bool
    depth: int  # how many blocks stand before it in its prefix; 0 where it went

    @classmethod
    def of(cls, reply: BlockEventsReply) -> list[BlockEvent]:
        count = len(reply.keys) // KEY_BYTES
        keys = [reply.keys[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i in range(count)]
        return [cls(*row) for row in zip(keys, map(bool, reply.stored), reply.depth, strict=True)]


@dataclass(slots=True)
class NamespaceUsage:
    """Of one namespace, all its storage servers together: `bytes` counts every replica."""

    blocks: int = 0
    bytes: int = 0
    pinned_bytes: int = 0
    hits: int = 0
    misses: int = 0
    puts: int = 0
    puts_existing: int = 0
    puts_refused: int = 0
    evictions: int = 0
    expired: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def add(self, other: NamespaceUsage) -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass(slots=True)
class Usage:
    """What the storage servers hold, and have done since they were started."""

    namespaces: dict[int, NamespaceUsage] = field(default_factory=dict)  # by number
    tenants: dict[str, NamespaceUsage] = field(default_factory=dict)
    quotas: dict[str, int] = field(default_factory=dict)  # bytes
    capacity: int = 0  # bytes for blocks
    used: int = 0
    memory_budget: int = 0  # of the tier in memory
    memory_used: int = 0
    servers: int = 0
    servers_silent: int = 0  # that did not answer: the sums lack them


def usage_of(
    replies: Sequence[UsageReply], namespaces: Mapping[int, KvNamespace], quotas: Mapping[str, int], servers: int
) -> Usage:
    """The sums over all servers."""
    found = Usage(quotas=dict(quotas), servers=servers, servers_silent=servers - len(replies))
    columns = [one.name for one in fields(NamespaceUsage)]
    for reply in replies:
        for name in ("capacity", "used", "memory_budget", "memory_used"):
            setattr(found, name, getattr(found, name) + getattr(reply, name))
        for i, number in enumerate(reply.namespace):
            row = NamespaceUsage(**{name: _at(getattr(reply, name), i) for name in columns})
            found.namespaces.setdefault(number, NamespaceUsage()).add(row)
            tenant = namespaces[number].tenant if number in namespaces else ""
            found.tenants.setdefault(tenant, NamespaceUsage()).add(row)
    return found


def _at(column: Sequence[int], i: int) -> int:
    return column[i] if i < len(column) else 0


@dataclass(slots=True)
class Counters:
    """What this client has done."""

    hits: int = 0
    misses: int = 0
    failures: int = 0  # of gets: neither there nor a plain miss
    bytes_read: int = 0
    puts: int = 0  # blocks that were not there before
    puts_existing: int = 0
    puts_refused: int = 0
    bytes_written: int = 0

    def got(self, statuses: Sequence[int]) -> None:
        came = [status for status in statuses if status >= 0]
        missed = statuses.count(MISS)
        self.hits += len(came)
        self.misses += missed
        self.failures += len(statuses) - len(came) - missed
        self.bytes_read += sum(came)

    def put(self, statuses: Sequence[int], stored: int, existed: int) -> None:
        self.puts += stored
        self.puts_existing += existed
        self.puts_refused += sum([status < 0 for status in statuses])
        self.bytes_written += sum([status for status in statuses if status > 0])
