"""The model: a multi-version engine in memory that does everything the simplest way, to be compared with and to simulate with.

Every version of every key and every write set is kept for as long as a transaction may live. A transaction is the list of
its operations: a read replays them over the snapshot, a commit compares its reads with each newer write set, one by one.
Nothing survives the process.
"""

from __future__ import annotations

import bisect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from . import limits
from .engine import TRANSACTION_BYTES_MAX, TRANSACTION_SECONDS_MAX, Pair, Watcher

Change = Callable[[bytes | None], bytes | None]  # from a key's value to its next one


@dataclass(frozen=True, slots=True)
class _Operation:
    """One write: what it does to each key in begin <= key < end."""

    begin: bytes
    end: bytes
    change: Change
    blind: bool = False  # reads the value that it changes

    def covers(self, key: bytes) -> bool:
        return self.begin <= key < self.end


@dataclass(frozen=True, slots=True)
class _Commit:
    version: int
    time: float  # seconds, of the engine's clock
    ranges: list[Pair]  # what was written


@dataclass(slots=True)
class _Row:
    """A key's values, oldest first, each with the version that wrote it."""

    versions: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)

    def at(self, version: int) -> bytes | None:
        found = bisect.bisect_right(self.versions, version)
        return self.values[found - 1] if found else None


def _only(key: bytes) -> Pair:
    """The range that holds this key alone."""
    return key, key + b"\0"


class MemoryTransaction:
    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine
        self._version = engine.version
        self._began = engine.now()
        self._operations: list[_Operation] = []
        self._of_key: dict[
            bytes, list[_Operation]
        ] = {}  # those of single keys; while there are no others, they are enough
        self._ranges = False  # there are others
        self._stamped: list[tuple[bytes, bytes, bytes]] = []
        self._read: list[Pair] = []
        self._keys_read: set[bytes] = set()  # those of `_read` that are single keys; each counts once
        self._written_too: list[Pair] = []  # by conflict_write
        self._size = 0
        self._spent = False
        self.actor: object = None  # for those who watch commits (`engine.Watched`)

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        await self._engine.pause()
        self._check_age()
        return self._get(key, snapshot)

    async def get_many(self, keys: list[bytes], *, snapshot: bool = False) -> list[bytes | None]:
        await self._engine.pause()
        self._check_age()
        return [self._get(key, snapshot) for key in keys]

    async def scan(
        self, begin: bytes, end: bytes, limit: int, *, reverse: bool = False, snapshot: bool = False
    ) -> list[Pair]:
        await self._engine.pause()
        self._check_age()
        self._refuse(limits.range_refusal(begin, end) or limits.count_refusal(limit))
        if begin >= end or limit == 0:
            return []
        candidates = set(self._engine.keys(begin, end))
        candidates.update(op.begin for op in self._operations if begin <= op.begin < end)
        found: list[Pair] = []
        for key in sorted(candidates, reverse=reverse):
            value = self._value(key)
            if value is not None:
                found.append((key, value))
            if len(found) == limit:
                break
        if not snapshot:
            looked = (begin, end)
            if len(found) == limit:
                last = found[-1][0]
                looked = (last, end) if reverse else (begin, last + b"\0")
            self._read.append(looked)
            self._size += len(begin) + len(end)
        return found

    def put(self, key: bytes, value: bytes) -> None:
        self._refuse(limits.key_refusal(key) or limits.value_refusal(key, value))
        self._write(*_only(key), lambda _: value, len(key) + len(value))

    def delete(self, key: bytes) -> None:
        self._refuse(limits.key_refusal(key))
        self._write(*_only(key), lambda _: None, len(key))

    def delete_range(self, begin: bytes, end: bytes) -> None:
        self._refuse(limits.range_refusal(begin, end))
        self._size += len(begin) + len(end)
        if begin < end:
            self._write(begin, end, lambda _: None, 0)

    def add(self, key: bytes, delta: int) -> None:
        self._refuse(limits.key_refusal(key) or limits.counter_refusal(key, delta))
        self._write(*_only(key), lambda value: limits.added(value, delta), len(key) + 8, blind=True)

    def max(self, key: bytes, value: int) -> None:
        self._refuse(limits.key_refusal(key) or limits.counter_refusal(key, value, 0))
        self._write(*_only(key), lambda old: limits.raised(old, value), len(key) + 8, blind=True)

    def put_versionstamped(self, prefix: bytes, suffix: bytes, value: bytes) -> None:
        key = prefix + bytes(limits.STAMP_BYTES) + suffix
        self._refuse(limits.key_refusal(key) or limits.value_refusal(key, value))
        self._stamped.append((prefix, suffix, value))
        self._size += len(key) + len(value)

    def conflict_read(self, key: bytes) -> None:
        self._refuse(limits.key_refusal(key))
        self._read_key(key)

    def conflict_write(self, key: bytes) -> None:
        self._refuse(limits.key_refusal(key))
        self._written_too.append(_only(key))
        self._size += len(key)

    async def commit(self, *, durable: bool = False) -> int:
        await self._engine.pause()
        self._check_age()
        self._refuse(limits.too_large(self._size) if self._size > TRANSACTION_BYTES_MAX else None)
        self._spent = True
        written = [(op.begin, op.end) for op in self._operations] + self._written_too
        if not written and not self._stamped:
            return self._version
        return self._engine.commit(
            self._version, self._read, written, self._operations, self._stamped, actor=self.actor
        )

    def _get(self, key: bytes, snapshot: bool) -> bytes | None:
        self._refuse(limits.key_refusal(key))
        if not snapshot and not self._is_own(key):
            self._read_key(key)
        return self._value(key)

    def _value(self, key: bytes) -> bytes | None:
        value = self._engine.at(key, self._version)
        for operation in self._covering(key):
            value = operation.change(value)
        return value

    def _covering(self, key: bytes) -> Iterable[_Operation]:
        if not self._ranges:
            return self._of_key.get(key, ())
        return (operation for operation in self._operations if operation.covers(key))

    def _is_own(self, key: bytes) -> bool:
        """Whether a write of this transaction has set the value whatever it was."""
        return any(not op.blind for op in self._covering(key))

    def _read_key(self, key: bytes) -> None:
        if key not in self._keys_read:
            self._keys_read.add(key)
            self._read.append(_only(key))
            self._size += len(key)

    def _write(self, begin: bytes, end: bytes, change: Change, size: int, blind: bool = False) -> None:
        operation = _Operation(begin, end, change, blind)
        self._operations.append(operation)
        if end == begin + b"\0":
            self._of_key.setdefault(begin, []).append(operation)
        else:
            self._ranges = True
        self._size += size

    def _check_age(self) -> None:
        self._refuse(None)
        self._engine.check_open()
        if self._engine.now() - self._began > TRANSACTION_SECONDS_MAX:
            self._refuse(limits.too_old())

    def _refuse(self, refusal: Exception | None) -> None:
        if self._spent:
            raise limits.spent()
        if refusal is not None:
            self._spent = True
            raise refusal


async def _no_pause() -> None:
    """Nothing else runs between two steps of a transaction."""


class MemoryEngine:
    """`now` is a clock in seconds. `pause` is awaited before each read and commit: a simulator lets others run there."""

    def __init__(self, now: Callable[[], float], pause: Callable[[], Awaitable[None]] = _no_pause) -> None:
        self.now = now
        self.pause = pause
        self.version = 0
        self.watchers: list[Watcher] = []
        self._rows: dict[bytes, _Row] = {}
        self._sorted: list[bytes] = []  # the keys of `_rows`
        self._commits: list[_Commit] = []  # oldest first
        self._closed = False

    def begin(self) -> MemoryTransaction:
        self.check_open()
        return MemoryTransaction(self)

    async def sync(self) -> None:
        self.check_open()

    async def close(self) -> None:
        self._closed = True

    # For the engine's transactions.

    def check_open(self) -> None:
        """Raises UNAVAILABLE when the engine is closed."""
        if self._closed:
            raise limits.closed("the metadata store in memory")

    def at(self, key: bytes, version: int) -> bytes | None:
        """A key's value as of a version."""
        row = self._rows.get(key)
        return None if row is None else row.at(version)

    def keys(self, begin: bytes, end: bytes) -> list[bytes]:
        """Keys in begin <= key < end that have a value in some version."""
        return self._sorted[bisect.bisect_left(self._sorted, begin) : bisect.bisect_left(self._sorted, end)]

    def commit(
        self,
        snapshot: int,
        read: list[Pair],
        written: list[Pair],
        operations: list[_Operation],
        stamped: list[tuple[bytes, bytes, bytes]],
        actor: object = None,
    ) -> int:
        """Raises CONFLICT when something was written since `snapshot` into what was read."""
        for other in self._commits:
            for begin, end in other.ranges:
                if other.version > snapshot and any(begin < b and a < end for a, b in read):
                    raise limits.overtaken(begin)
        self.version += 1
        touched: list[bytes] = []
        for operation in operations:
            keys = self.keys(operation.begin, operation.end)
            if operation.end == operation.begin + b"\0" and not keys:
                keys = [operation.begin]
            touched += keys
            for key in keys:
                self._set(key, operation.change(self.at(key, self.version)))
        for prefix, suffix, value in stamped:
            key = prefix + limits.stamp(self.version) + suffix
            self._set(key, value)
            touched.append(key)
            written = [*written, _only(key)]
        self._commits.append(_Commit(self.version, self.now(), written))
        self._forget()
        for watcher in self.watchers:
            watcher(actor, touched, [])
        return self.version

    def _set(self, key: bytes, value: bytes | None) -> None:
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = _Row()
            bisect.insort(self._sorted, key)
        if row.versions and row.versions[-1] == self.version:
            row.values[-1] = value
        else:
            row.versions.append(self.version)
            row.values.append(value)

    def _forget(self) -> None:
        """Drop what no transaction may read any more."""
        while self._commits[0].time < self.now() - TRANSACTION_SECONDS_MAX - 1:
            commit = self._commits.pop(0)
            for begin, end in commit.ranges:
                for key in self.keys(begin, end):
                    self._trim(key, self._commits[0].version - 1)

    def _trim(self, key: bytes, version: int) -> None:
        """Forget the values of a key from before what it had at `version`."""
        row = self._rows[key]
        old = bisect.bisect_right(row.versions, version) - 1
        if old > 0:
            del row.versions[:old], row.values[:old]
        if row.values == [None] and row.versions[0] <= version:
            del self._rows[key]
            del self._sorted[bisect.bisect_left(self._sorted, key)]
