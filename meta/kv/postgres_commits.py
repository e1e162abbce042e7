"""Commits of one process to PostgreSQL: batches, one after the other, each checked against what everybody wrote. See `postgres.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg

from ...proto.errors import Status, StatusError, error
from . import postgres_schema as sql
from .engine import TRANSACTION_BYTES_MAX, Pair
from .overlay import Overlay
from .postgres_connections import Connection, Connections, Statement, is_conflict, is_lost
from .trail import KEEP_SECONDS, Trail, WriteSet, check, merged

BATCH_MAX = 500  # transactions committed as one
ATTEMPTS = 10  # at a batch that the server undid, or did not begin
WRITER_SETTINGS = "SET idle_in_transaction_session_timeout = '2s'"  # for a process that hangs while it has the lock


class Pending(Overlay):
    """A transaction to be committed."""

    __slots__ = ("snapshot",)
    snapshot: int  # version that it has read

    def check_age(self) -> None:
        """Raises CONFLICT (too old), UNAVAILABLE (the engine is closed)."""
        raise NotImplementedError


_Waiting = tuple[Pending, "asyncio.Future[int]"]


class Committer:
    """Takes transactions from the tasks of one event loop. `version` is the newest one that this process knows."""

    def __init__(self, connections: Connections, writer: Connection, version: int, now: Callable[[], float]) -> None:
        self._connections = connections
        self._writer = writer
        self._now = now
        self._trail = Trail(version)
        self._waiting: list[_Waiting] = []
        self._running: asyncio.Task[None] | None = None
        self._sampled = (now(), version)  # a time, and a version that was committed before

    @property
    def version(self) -> int:
        return self._trail.newest

    async def close(self) -> None:
        """What was begun is finished first."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def commit(self, transaction: Pending) -> int:
        """Returns the commit version. Raises CONFLICT, MAYBE_COMMITTED, UNAVAILABLE."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((transaction, done))
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._commit_waiting())
        return await done

    async def _commit_waiting(self) -> None:
        while self._waiting:
            size, count = 0, 0
            while count < min(len(self._waiting), BATCH_MAX) and (not count or size < TRANSACTION_BYTES_MAX):
                size += self._waiting[count][0].size
                count += 1
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            await self._commit_all(batch)

    async def _commit_all(self, batch: list[_Waiting]) -> None:
        """Commit, or say to each why not."""
        failure: Exception
        for _ in range(ATTEMPTS):
            if not batch:
                return
            try:
                await self._commit_batch(batch)
                return
            except psycopg.Error as failed:
                failure = self._connections.explained(failed)
                if not (is_conflict(failed) or is_lost(failed)):
                    break
                # Who was refused has been told so, and may not be let in because the one that was before him is not any more.
                batch = [waiting for waiting in batch if not waiting[1].done()]
            except Exception as failed:
                failure = failed
                break
        batch = [waiting for waiting in batch if not waiting[1].done()]
        if len(batch) > 1 and getattr(failure, "status", None) is Status.TOO_LARGE:
            for waiting in batch:
                await self._commit_all([waiting])
        for _, done in batch:
            _settle(done, failure)

    async def _commit_batch(self, batch: list[_Waiting]) -> None:
        """Raises psycopg.Error when nothing happened."""
        blind = list({key for transaction, _ in batch for key in transaction.blind})
        writer, newest, values = await self._lock(len(batch), blind)
        first, accepted = newest - len(batch) + 1, list[tuple[int, _Waiting]]()
        keys, ranges = set[bytes](), list[Pair]()
        for version, (transaction, done) in enumerate(batch, first):
            try:
                transaction.check_age()
                if transaction.read_keys or transaction.read_ranges:
                    self._trail.check(transaction, transaction.snapshot)
                check(transaction, keys, ranges)
            except StatusError as refusal:
                _settle(done, refusal)
                continue
            written = merged([(transaction, version)])
            keys |= written.writes.keys() | written.blind.keys() | written.extra_writes
            ranges += written.cleared
            accepted.append((version, (transaction, done)))
        if not accepted:
            await writer.run([("ROLLBACK", ())])
            return
        writes = merged((transaction, version) for version, (transaction, _) in accepted)
        await self._write(writer, newest, writes, values, (keys, ranges))
        self._trail.heard(WriteSet(newest, keys, ranges), self._now())
        for version, (_, done) in accepted:
            _settle(done, version)

    async def _lock(self, count: int, blind: list[bytes]) -> tuple[Connection, int, dict[bytes, bytes]]:
        """Begin to commit so many transactions, when it is our turn: the connection, the last one's version, and values of keys."""
        if not self._writer.usable:
            self._writer = await self._connections.connect(WRITER_SETTINGS)
        known = self._trail.newest
        begin: list[Statement] = [(sql.BEGIN_COMMIT, ()), (sql.LOCK, (count,)), (sql.TRAIL, (known,))]
        *_, state, trail, values = await self._writer.run([*begin, (sql.GET, (blind,))])
        newest, floor = state[0]
        for version, keys, begins, ends in trail:
            written = WriteSet(version, frozenset(keys), list(zip(begins, ends, strict=True)))
            self._trail.heard(written, self._now())
        if known < floor:
            self._trail.up_to_date(newest - count, floor)
        return self._writer, newest, dict(values)

    async def _write(
        self,
        writer: Connection,
        version: int,
        writes: Overlay,
        values: dict[bytes, bytes],
        write_set: tuple[set[bytes], list[Pair]],
    ) -> None:
        puts = {key: value for key, value in writes.writes.items() if value is not None}
        puts.update((key, writes.over(key, values.get(key)) or b"") for key in writes.blind)
        gone = [key for key, value in writes.writes.items() if value is None]
        statements: list[Statement] = [(sql.DELETE_RANGE, pair) for pair in writes.cleared]
        if gone:
            statements.append((sql.DELETE, (gone,)))
        if puts:
            statements.append((sql.PUT, (list(puts), list(puts.values()))))
        keys, ranges = write_set
        trail = (version, list(keys), [begin for begin, _ in ranges], [end for _, end in ranges])
        statements.append((sql.PUT_TRAIL, trail))
        statements += self._forget(version)
        try:
            await writer.run([*statements, ("COMMIT", ())])
        except psycopg.Error as failure:
            if not is_lost(failure):
                raise
            message = f"{self._connections.name} was lost in a commit: {failure}"
            raise error(Status.MAYBE_COMMITTED, message) from failure

    def _forget(self, version: int) -> list[Statement]:
        """Now and then: what of the trail is older than any transaction that may still commit."""
        sampled, old = self._sampled
        if self._now() - sampled < KEEP_SECONDS:
            return []
        self._sampled = (self._now(), version)
        return [
            (sql.RAISE_FLOOR, (old, old)),
            (sql.FORGET, (old,)),
        ]


def _settle(done: asyncio.Future[int], outcome: int | Exception) -> None:
    if done.done():
        return  # nobody waits any more
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
