"""The one seam under the namespace: a transactional, ordered key-value engine.

Promise: strict serializability. A transaction reads a snapshot, taken when it begins or, where that costs a round trip, by its first
read; what it read (unless `snapshot=True`) and what it wrote are its
conflict sets; `commit` fails with CONFLICT when another transaction committed a write into its read set after its
snapshot. `add` and `max` are blind: they commute and read nothing, so that any number of transactions may raise one counter at once;
only a transaction that has read the counter itself (not as a `snapshot` read) conflicts with them. The limits below are those of
the smallest engine (FoundationDB); every engine enforces them, the in-memory model in every test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

TRANSACTION_SECONDS_MAX = 5.0  # older transactions fail with CONFLICT
TRANSACTION_BYTES_MAX = 10_000_000  # keys and values written, and keys of the read set
VALUE_BYTES_MAX = 100_000
KEY_BYTES_MAX = 10_000
KEYS_END = b"\xff"  # keys are below it; what follows belongs to the engines
COUNTER_BYTES = 8

Pair = tuple[bytes, bytes]


class Transaction(Protocol):
    """Used by one task. After `commit` or an error it is spent: what follows is refused with INVALID.

    Reads and `commit` raise CONFLICT when the transaction has become too old; writes raise TOO_LARGE or INVALID for a key or
    value outside the limits. A key that this transaction itself put or deleted is not read by reading it.
    """

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        """The value as of the snapshot with this transaction's own writes applied; None if absent."""

    async def get_many(self, keys: list[bytes], *, snapshot: bool = False) -> list[bytes | None]:
        """Several keys in one round trip, in order."""

    async def scan(
        self, begin: bytes, end: bytes, limit: int, *, reverse: bool = False, snapshot: bool = False
    ) -> list[Pair]:
        """At most `limit` pairs with begin <= key < end, in order (own writes applied). The part of the range that was
        looked at is read: all of it, or with `limit` pairs found, as far as the last of them."""

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None: ...

    def delete_range(self, begin: bytes, end: bytes) -> None:
        """Whatever lies in begin <= key < end when the transaction commits."""

    def add(self, key: bytes, delta: int) -> None:
        """Add to a counter (8 bytes, little-endian, two's complement, wraps; absent is 0). Blind: no conflict."""

    def max(self, key: bytes, value: int) -> None:
        """Raise a counter to at least `value`, which is not negative. Blind. Nothing may make such a counter negative."""

    def put_versionstamped(self, prefix: bytes, suffix: bytes, value: bytes) -> None:
        """Put under prefix + 10 bytes that rise with the commit order + suffix. Its key is known only after the commit,
        and this transaction does not see it. All of one transaction have the same 10 bytes: tell them apart by the rest."""

    def conflict_read(self, key: bytes) -> None:
        """Put a key into the read set without reading it."""

    def conflict_write(self, key: bytes) -> None:
        """Put a key into the write set without writing it."""

    async def commit(self, *, durable: bool = False) -> int:
        """Make it so, and return the commit version (rising). It survives kill -9 when this returns, power loss within a
        second, or at once with `durable` (then also what it has read is durable). A transaction that wrote nothing
        returns the version of its snapshot. Raises CONFLICT (nothing happened), MAYBE_COMMITTED, TOO_LARGE."""


class Engine(Protocol):
    def begin(self) -> Transaction:
        """A transaction on a snapshot that has everything that was committed before this call."""

    async def sync(self) -> None:
        """Everything committed before is durable when this returns."""

    async def close(self) -> None: ...


Watcher = Callable[
    [object, Sequence[bytes], Sequence[Pair]], None
]  # actor of the transaction, keys written, ranges cleared


class WatchedTransaction(Transaction, Protocol):
    actor: object  # whose it is, as watchers are told; None: nobody has said


@runtime_checkable
class Watched(Protocol):
    """An engine all of whose commits are made in this process."""

    watchers: list[
        Watcher
    ]  # called within each commit that has succeeded, before anything else runs; they must not fail
