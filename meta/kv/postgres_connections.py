"""Connections to a PostgreSQL server, their statements, and what their errors mean. For the tasks of one event loop."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg
from psycopg import errors

from ...proto.errors import Status, StatusError, error

READERS_MAX = 24  # transactions that read at the same time; a server of PostgreSQL's default size has 100 connections
WAIT_SECONDS_MAX = 4.0  # for one of them: less than a transaction may take
IDLE_SECONDS = (
    0.2  # after which the snapshot of a connection that nobody uses is let go: it holds up the server's vacuum
)
CONNECT_SECONDS = 5
CONNECT_PAUSES = (0.05, 0.2, 0.5)  # seconds between attempts
DEAD_PEER_MILLISECONDS = 10_000  # without an acknowledgement by the other machine

Statement = tuple[LiteralString, Sequence[Any]]
Rows = list[tuple[Any, ...]]

# Another transaction came first, or we were silent for so long in the middle that the server gave us up.
_AGAIN = (errors.SerializationFailure, errors.DeadlockDetected, errors.IdleInTransactionSessionTimeout)


class Connection:
    """One connection; `spoken` while it has a transaction that is to be ended before the next one."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self.spoken = False
        self.holder: object = None  # the task that it is lent to

    @property
    def usable(self) -> bool:
        return not self._connection.closed

    async def run(self, statements: Sequence[Statement]) -> list[Rows]:
        """All of them in one round trip, each with its rows (none for those that return none). Raises psycopg.Error; an interrupted
        connection is closed, because what it would answer next belongs to somebody else."""
        try:
            if len(statements) == 1:  # a pipeline of one costs half as much again
                cursors = [await self._execute(*statements[0])]
            else:
                async with self._connection.pipeline():
                    cursors = [await self._execute(*statement) for statement in statements]
            return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]
        except BaseException as failure:
            if not isinstance(failure, psycopg.Error) or isinstance(
                failure, psycopg.OperationalError | psycopg.InterfaceError
            ):
                await self.close()
            elif self.usable:
                await self._connection.rollback()
            raise

    async def _execute(self, query: LiteralString, parameters: Sequence[Any]) -> psycopg.AsyncCursor[Any]:
        return await self._connection.execute(query, parameters, binary=True)

    async def close(self) -> None:
        await self._connection.close()


def is_conflict(failure: psycopg.Error) -> bool:
    """Whether the server has undone the transaction, and trying again helps."""
    return isinstance(failure, _AGAIN)


def is_lost(failure: psycopg.Error) -> bool:
    """Whether the connection is gone, so that nobody says what the server did."""
    return isinstance(failure, psycopg.InterfaceError) or (
        isinstance(failure, psycopg.OperationalError)
        and (failure.sqlstate is None or failure.sqlstate[:2] in {"57", "08"})
    )


class Connections:
    """Makes connections, and lends those that read. Raises UNAVAILABLE when the server does not answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        self.name = (
            f"the metadata store at {parts.hostname or 'the local PostgreSQL'}{parts.path}"  # without a password
        )
        self._idle: deque[Connection] = deque()  # the most lately used last
        self._all: set[Connection] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._lent = 0
        self._holders: Counter[object] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None  # on which they are made and used
        self._sweep: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def connect(self, settings: LiteralString) -> Connection:
        """A new one. `settings`: a statement that is run first."""
        self._loop = asyncio.get_running_loop()
        for pause in (*CONNECT_PAUSES, None):
            try:
                made = await psycopg.AsyncConnection.connect(
                    self._url, autocommit=True, connect_timeout=CONNECT_SECONDS, tcp_user_timeout=DEAD_PEER_MILLISECONDS
                )
                await made.execute(settings)
            except psycopg.OperationalError as failure:
                if pause is None:
                    raise self.explained(failure) from failure
                await asyncio.sleep(pause)
            else:
                connection = Connection(made)
                self._all.add(connection)
                return connection
        raise AssertionError

    async def take(self) -> Connection:
        """One for reading. Raises CONFLICT when none comes free for a while. A task that has one already, and needs the result of another
        transaction to finish, does not wait: that might be for itself."""
        holder = asyncio.current_task()
        if self._lent >= READERS_MAX and holder not in self._holders:
            await self._wait()
        self._lent += 1
        self._holders[holder] += 1
        try:
            connection = self._unused() or await self.connect("SET idle_in_transaction_session_timeout = '15s'")
        except BaseException:
            self._free(holder)
            raise
        connection.holder = holder
        return connection

    def _unused(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            self._all.discard(connection)
        return None

    def give(self, connection: Connection) -> None:
        """Back; its transaction may still be open."""
        if connection.usable:
            self._idle.append(connection)
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._begin_sweep)
        else:
            self._all.discard(connection)
        holder, connection.holder = connection.holder, None
        self._free(holder)

    def dropped(self, connection: Connection) -> None:
        """`give`, from wherever the garbage collector has come upon its transaction: in another thread, or while the loop stands."""
        assert self._loop is not None
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self.give(connection)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.give, connection)

    async def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        if self._sweeping is not None:
            await asyncio.wait([self._sweeping])
        for connection in self._all:
            await connection.close()
        self._all.clear()
        self._idle.clear()

    def explained(self, failure: psycopg.Error) -> StatusError:
        """Our error for one of the server's."""
        if is_conflict(failure):
            return error(Status.CONFLICT, f"{self.name} put another transaction first: {_text(failure)}")
        if isinstance(failure, errors.ProgramLimitExceeded):
            return error(Status.TOO_LARGE, f"{self.name} refuses a key as too long: {_text(failure)}")
        if isinstance(failure, errors.DiskFull):
            return error(Status.NO_SPACE, f"{self.name}: {_text(failure)}")
        if isinstance(failure, psycopg.OperationalError | psycopg.InterfaceError):
            return error(Status.UNAVAILABLE, f"{self.name} does not answer: {_text(failure)}")
        return error(Status.IO_ERROR, f"{self.name}: {_text(failure)}")

    async def _wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait_for(turn, WAIT_SECONDS_MAX)
        except TimeoutError:
            raise error(
                Status.CONFLICT, f"{self.name}: {READERS_MAX} transactions read at the same time; try again"
            ) from None
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def _free(self, holder: object) -> None:
        self._lent -= 1
        self._holders[holder] -= 1
        if not self._holders[holder]:
            del self._holders[holder]
        while self._waiting and self._lent < READERS_MAX:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _begin_sweep(self) -> None:
        self._sweep = None
        self._sweeping = asyncio.ensure_future(self._end_transactions())

    async def _end_transactions(self) -> None:
        """Of those that nobody uses."""
        for _ in range(len(self._idle)):
            if not self._idle:
                return
            connection = self._idle.popleft()
            if connection.spoken:
                try:
                    await connection.run([("COMMIT", ())])
                    connection.spoken = False
                except psycopg.Error:
                    await connection.close()
            if connection.usable:
                self._idle.appendleft(connection)
                self._idle.rotate(-1)
            else:
                self._all.discard(connection)


def _text(failure: psycopg.Error) -> str:
    return " ".join(str(failure).split()) or type(failure).__name__
