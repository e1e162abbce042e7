"""The engine over PostgreSQL (psycopg 3), CockroachDB or YugabyteDB: for several metadata servers over one namespace.

Reads run in a REPEATABLE READ, READ ONLY transaction, whose snapshot the first read takes; the version of that snapshot comes with it. A
commit is checked by optimistic concurrency control of our own, as in the embedded engine, and not by SERIALIZABLE of the server:
PostgreSQL locks *pages* of an index for what is absent, so two clients that create files in one directory, or one client whose requests'
records lie side by side, undo each other again and again; and a commit there is no point in one order of all, which versionstamps need.

**Commits are one after the other**, each batch in one READ COMMITTED transaction (any stronger level will do) of two round trips:
1. raise the version in the one row of `emberfs_state`, which locks it; fetch what others wrote since our last commit (`emberfs_trail`)
   and the values of counters that are changed blindly;
2. of those transactions whose read sets are untouched: write everything, our write set into the trail, and commit.
What comes while one batch is under way is the next one, so the rate is not that of the log's disk. Nothing ever deadlocks, `add` and `max`
never conflict, versionstamps are commit versions, and no snapshot has an entry without having all that are below it: the server makes
commits visible in the order in which they had the row's lock. A process that dies with the lock loses it with its connection; one that
hangs, after two seconds. When the connection breaks in step 2 the outcome is MAYBE_COMMITTED; whoever repeats the request waits for
the row, then finds in the trail that somebody has written his idempotency record.

Every commit is durable. Keys that cannot be compressed below 2,704 bytes are refused by PostgreSQL's index (TOO_LARGE).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg

from ...proto.errors import StatusError
from . import limits
from . import postgres_schema as sql
from .engine import TRANSACTION_SECONDS_MAX, Pair
from .overlay import Unknown
from .postgres_commits import WRITER_SETTINGS, Committer, Pending
from .postgres_connections import Connection, Connections, Rows, Statement, is_lost


class PostgresTransaction(Pending):
    """A transaction of `PostgresEngine`; what it inherits are its writes and conflict sets."""

    __slots__ = ("_began", "_connection", "_engine")

    def __init__(self, engine: PostgresEngine, snapshot: int, began: float) -> None:
        super().__init__()
        self.snapshot = snapshot  # version; until the first read, one that is not newer than its
        self._engine = engine
        self._connection: Connection | None = None
        self._began = began

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        return (await self.get_many([key], snapshot=snapshot))[0]

    async def get_many(self, keys: list[bytes], *, snapshot: bool = False) -> list[bytes | None]:
        self._check_usable()
        own = [self.look(key, snapshot) for key in keys]
        asked = [key for key, value in zip(keys, own, strict=True) if isinstance(value, Unknown)]
        stored: dict[bytes, bytes] = dict(await self._read((sql.GET, (asked,)))) if asked else {}
        return [
            self.over(key, stored.get(key)) if isinstance(value, Unknown) else value
            for key, value in zip(keys, own, strict=True)
        ]

    async def scan(
        self, begin: bytes, end: bytes, limit: int, *, reverse: bool = False, snapshot: bool = False
    ) -> list[Pair]:
        self._check_usable()
        self.look_range(begin, end, limit)
        if begin >= end or not limit:
            return []
        # Own deletions hide as many pairs at most; what lies in cleared ranges is left out by the server.
        hidden = sum(value is None and begin <= key < end for key, value in self.writes.items())
        cleared = [pair for pair in self.cleared if pair[0] < end and begin < pair[1]]
        query = sql.SCAN + sql.EXCEPT * len(cleared) + (sql.DOWN if reverse else sql.UP)
        bounds = [bound for pair in cleared for bound in pair]
        pairs: list[Pair] = await self._read((query, [begin, end, *bounds, limit + hidden]))
        found = list(self.merge(pairs, begin, end, reverse))[:limit] if self.touches(begin, end) else pairs
        if not snapshot:
            last = found[-1][0] if len(found) == limit else None
            if last is None:
                self.read_range(begin, end)
            else:
                self.read_range(*((last, end) if reverse else (begin, last + b"\0")))
        return found

    async def commit(self, *, durable: bool = False) -> int:
        self._check_usable()
        if self.is_read_only() and self._connection is None:
            await self.get(b"", snapshot=True)  # which version is it?
        self.spend()
        self._leave()
        if self.is_read_only():
            return self.snapshot
        return await (await self._engine.committer()).commit(self)

    def check_age(self) -> None:
        self._engine.check_open()
        if self._engine.now() - self._began > TRANSACTION_SECONDS_MAX:
            self.spent = True
            self._leave()
            raise limits.too_old()

    def _check_usable(self) -> None:
        if self.spent:
            raise limits.spent()
        self.check_age()

    async def _read(self, query: Statement) -> Rows:
        try:
            if self._connection is None:
                self._connection, self.snapshot, rows = await self._engine.open_snapshot(query)
                return rows
            return (await self._connection.run([query]))[0]
        except (psycopg.Error, StatusError) as failure:
            self.spent = True
            self._leave()
            raise self._engine.explained(failure) from failure

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._engine.connections.give(connection)

    def __del__(self) -> None:  # a transaction that only read, or whose operation failed, is just dropped
        if (connection := getattr(self, "_connection", None)) is not None and not self._engine.is_closed:
            self._engine.connections.dropped(connection)


class PostgresEngine:
    """The tables `emberfs_…` of one database. `now` is a monotonic clock in seconds. Nothing is connected before the first use."""

    def __init__(self, url: str, now: Callable[[], float]) -> None:
        self.now = now
        self.connections = Connections(url)
        self.is_closed = False
        self._opening = asyncio.Lock()
        self._committer: Committer | None = None  # once connected

    def begin(self) -> PostgresTransaction:
        self.check_open()
        return PostgresTransaction(self, self._committer.version if self._committer else 0, self.now())

    async def sync(self) -> None:
        self.check_open()  # every commit is durable

    async def close(self) -> None:
        self.is_closed = True
        if self._committer is not None:
            await self._committer.close()
        await self.connections.close()

    # For the engine's transactions.

    def check_open(self) -> None:
        """Raises UNAVAILABLE when the engine is closed."""
        if self.is_closed:
            raise limits.closed(self.connections.name)

    def explained(self, failure: psycopg.Error | StatusError) -> StatusError:
        return failure if isinstance(failure, StatusError) else self.connections.explained(failure)

    async def committer(self) -> Committer:
        """Connects first, and makes the tables in a new database. Raises BAD_FORMAT for those of a newer emberfs, UNAVAILABLE."""
        if self._committer is None:
            async with self._opening:
                if self._committer is None:
                    connection = await self.connections.connect(WRITER_SETTINGS)
                    try:
                        version = await sql.opened(connection, self.connections.name)
                    except psycopg.Error as failure:
                        raise self.explained(failure) from failure
                    self._committer = Committer(self.connections, connection, version, self.now)
        return self._committer

    async def open_snapshot(self, query: Statement) -> tuple[Connection, int, Rows]:
        """A connection in a new transaction, the version that this one sees, and the rows of its first query."""
        if asyncio.current_task() is None:
            await asyncio.sleep(
                0
            )  # a request's first step is run by the server itself; it goes on in a task, which others need
        await self.committer()
        while True:
            connection = await self.connections.take()
            reused = connection.spoken
            try:
                before: list[Statement] = [("COMMIT", ())] if reused else []
                connection.spoken = True
                *_, version, rows = await connection.run([*before, (sql.BEGIN, ()), (sql.STATE, ()), query])
            except BaseException as failure:
                self.connections.give(connection)
                if not (reused and isinstance(failure, psycopg.Error) and is_lost(failure)):
                    raise
                continue  # the server closed it while nobody used it
            return connection, version[0][0], rows
