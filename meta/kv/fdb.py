"""The engine over FoundationDB, with its own binding (`foundationdb`, API version 710). Experimental: its conformance tests run only where
`FDB_CLUSTER_FILE` names a cluster.

A transaction is one of FoundationDB's. Own writes are kept on our side (`overlay.py`) and sent with the commit, so reads are snapshot
reads and the conflict ranges are said explicitly; what a transaction has put under a versionstamp would otherwise make its range
unreadable to it. `add` and `max` are the atomic operations of the same names, versionstamps are its own, every commit is durable. The
commit version is that of its batch: two transactions of one batch share it, and differ in the last two bytes of the stamp.

The binding calls back in its own thread; results cross into the event loop by `call_soon_threadsafe`. It has no public asynchronous
way to read a range, so scans wait in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ...proto.errors import Status, StatusError, error
from . import limits
from .engine import TRANSACTION_SECONDS_MAX, Pair
from .overlay import Overlay, Unknown

API_VERSION = 710
TIMEOUT_MILLISECONDS = 10_000  # of everything that a transaction waits for: a cluster that is away answers nothing
_INSTALL = (
    "install the `foundationdb` package (pip install 'emberfs[fdb]') and FoundationDB's client library "
    "(foundationdb-clients from github.com/apple/foundationdb/releases), of the same release as the cluster"
)

# Codes of FoundationDB (flow/error_definitions.h).
_TOO_OLD = 1007
_UNKNOWN_RESULT = 1021  # commit_unknown_result
_CANCELLED = 1025  # the transaction was cancelled, which may leave a commit under way
_TIMED_OUT = 1031
_TOO_LARGE = frozenset({2101, 2102, 2103})  # transaction, key, value


def _binding() -> Any:
    """The module `fdb`. Raises UNSUPPORTED with what to install."""
    try:
        import fdb

        fdb.api_version(API_VERSION)
    except Exception as missing:  # the binding raises bare exceptions where its C library is missing or too old
        raise error(Status.UNSUPPORTED, f"FoundationDB cannot be used here: {missing}; {_INSTALL}") from missing
    return fdb


class FoundationTransaction(Overlay):
    """A transaction of `FoundationEngine`; what it inherits are its writes and conflict sets."""

    __slots__ = ("_began", "_engine", "_prefix", "_transaction")

    def __init__(self, engine: FoundationEngine, transaction: Any, began: float) -> None:
        super().__init__()
        self._engine = engine
        self._prefix = engine.prefix
        self._transaction = transaction
        self._began = began

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        return (await self.get_many([key], snapshot=snapshot))[0]

    async def get_many(self, keys: list[bytes], *, snapshot: bool = False) -> list[bytes | None]:
        self._check_usable()
        own = [self.look(key, snapshot) for key in keys]
        asked = {
            key: self._transaction.snapshot.get(self._prefix + key)  # sent at once; the answers come together
            for key, value in zip(keys, own, strict=True)
            if isinstance(value, Unknown)
        }
        for future in asked.values():
            await self._ready(future)
        return [
            self.over(key, asked[key].value) if isinstance(value, Unknown) else value
            for key, value in zip(keys, own, strict=True)
        ]

    async def scan(
        self, begin: bytes, end: bytes, limit: int, *, reverse: bool = False, snapshot: bool = False
    ) -> list[Pair]:
        self._check_usable()
        self.look_range(begin, end, limit)
        if begin >= end or not limit:
            return []
        found = list(self.merge(await self._stored(begin, end, limit, reverse), begin, end, reverse))[:limit]
        if not snapshot:
            last = found[-1][0] if len(found) == limit else None
            if last is None:
                self.read_range(begin, end)
            else:
                self.read_range(*((last, end) if reverse else (begin, last + b"\0")))
        return found

    async def commit(self, *, durable: bool = False) -> int:
        self._check_usable()
        self.spend()
        transaction = self._transaction
        if self.is_read_only():
            version = transaction.get_read_version()
            await self._ready(version)
            return int(version.wait())
        self._send()
        await self._ready(transaction.commit(), committing=True)
        return int(transaction.get_committed_version())

    async def _stored(self, begin: bytes, end: bytes, limit: int, reverse: bool) -> list[Pair]:
        """The engine's pairs of a range that lie outside cleared ranges, as many as own deletions cannot make too few."""
        wanted = limit + sum(value is None and begin <= key < end for key, value in self.writes.items())
        found: list[Pair] = []
        pieces = self._pieces(begin, end)
        for first, last in reversed(pieces) if reverse else pieces:
            reading = self._transaction.snapshot.get_range(
                self._prefix + first, self._prefix + last, limit=wanted - len(found), reverse=reverse
            )
            try:
                rows = await asyncio.to_thread(reading.to_list)
            except Exception as failure:
                raise self._explained(failure) from failure
            found += [(row.key[len(self._prefix) :], row.value) for row in rows]
            if len(found) == wanted:
                break
        return found

    def _pieces(self, begin: bytes, end: bytes) -> list[Pair]:
        """What of a range this transaction has not cleared, in order."""
        pieces = [(begin, end)]
        for cleared_begin, cleared_end in self.cleared:
            pieces = [
                piece
                for first, last in pieces
                for piece in ((first, min(last, cleared_begin)), (max(first, cleared_end), last))
                if piece[0] < piece[1]
            ]
        return pieces

    def _send(self) -> None:
        """Conflict ranges, then writes: FoundationDB leaves out of the read set what was written before."""
        transaction, prefix = self._transaction, self._prefix
        for key in self.read_keys:
            transaction.add_read_conflict_key(prefix + key)
        for begin, end in self.read_ranges:
            transaction.add_read_conflict_range(prefix + begin, prefix + end)
        for key in self.extra_writes:
            transaction.add_write_conflict_key(prefix + key)
        for begin, end in self.cleared:
            transaction.clear_range(prefix + begin, prefix + end)
        for key, value in self.writes.items():
            if value is None:
                transaction.clear(prefix + key)
            else:
                transaction.set(prefix + key, value)
        for key, changes in self.blind.items():
            for is_max, number in changes:
                change = transaction.max if is_max else transaction.add
                change(prefix + key, number.to_bytes(8, "little", signed=True))
        for begin, suffix, value in self.stamped:
            place = len(prefix + begin).to_bytes(4, "little")
            key = prefix + begin + bytes(limits.STAMP_BYTES) + suffix
            transaction.set_versionstamped_key(key + place, value)

    async def _ready(self, future: Any, *, committing: bool = False) -> None:
        """Wait without blocking the loop. Raises our error for FoundationDB's."""
        if not future.is_ready():
            loop = asyncio.get_running_loop()
            ready = loop.create_future()

            def wake() -> None:
                if not ready.done():
                    ready.set_result(None)

            def tell(_: Any) -> None:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(wake)

            future.on_ready(tell)
            await ready
        try:
            future.wait()
        except Exception as failure:
            raise self._explained(failure, committing) from failure

    def _explained(self, failure: Exception, committing: bool = False) -> StatusError:
        self.spent = True
        return self._engine.explained(failure, committing)

    def _check_usable(self) -> None:
        """Raises INVALID (spent), CONFLICT (too old), UNAVAILABLE (the engine is closed)."""
        if self.spent:
            raise limits.spent()
        self._engine.check_open()
        if self._engine.now() - self._began > TRANSACTION_SECONDS_MAX:
            self.spent = True
            raise limits.too_old()


class FoundationEngine:
    """The keys under `prefix` of the cluster that a file names. `now` is a monotonic clock in seconds.

    Raises UNSUPPORTED where the binding or its C library is missing, UNAVAILABLE for a file that names no cluster.
    """

    def __init__(self, cluster_file: str, now: Callable[[], float], prefix: bytes = b"") -> None:
        self.now = now
        self.prefix = prefix
        self._name = f"the metadata store in the FoundationDB cluster of {cluster_file}"
        self._binding = _binding()
        self._closed = False
        try:
            self._database = self._binding.open(cluster_file)
        except Exception as failure:
            raise error(Status.UNAVAILABLE, f"{self._name} cannot be opened: {failure}") from failure

    def begin(self) -> FoundationTransaction:
        self.check_open()
        transaction = self._database.create_transaction()
        transaction.options.set_timeout(TIMEOUT_MILLISECONDS)
        return FoundationTransaction(self, transaction, self.now())

    async def sync(self) -> None:
        self.check_open()  # every commit is durable

    async def close(self) -> None:
        self._closed = True  # the binding shares one database among all who open it, and ends it with the process

    # For the engine's transactions.

    def check_open(self) -> None:
        """Raises UNAVAILABLE when the engine is closed."""
        if self._closed:
            raise limits.closed(self._name)

    def explained(self, failure: Exception, committing: bool) -> StatusError:
        """Our error for one of FoundationDB's; `committing`: the commit was on its way."""
        code = getattr(failure, "code", None)
        if code is None:
            return error(Status.INTERNAL, f"{self._name}: {type(failure).__name__}: {failure}")
        text = f"{self._name}: {failure}"
        if code == _TOO_OLD:
            return limits.too_old()
        if committing and code in {_UNKNOWN_RESULT, _CANCELLED, _TIMED_OUT}:
            return error(Status.MAYBE_COMMITTED, text)
        if code in _TOO_LARGE:
            return error(Status.TOO_LARGE, text)
        if code == _TIMED_OUT:
            return error(Status.UNAVAILABLE, text)
        if self._binding.predicates.retryable_not_committed(failure):
            return error(Status.CONFLICT, text)
        if self._binding.predicates.maybe_committed(failure):
            return error(Status.MAYBE_COMMITTED if committing else Status.UNAVAILABLE, text)
        return error(Status.IO_ERROR, text)
