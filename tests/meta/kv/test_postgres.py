"""What only the engine over PostgreSQL has: several processes, lost connections, a server that restarts, what is forgotten."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg")

from emberfs.meta.kv import postgres_connections, retry
from emberfs.meta.kv.engine import Engine, Transaction
from emberfs.meta.kv.postgres import PostgresEngine
from emberfs.meta.kv.postgres_connections import READERS_MAX
from emberfs.meta.kv.trail import KEEP_SECONDS
from emberfs.proto.errors import Status, StatusError

from .conftest import Clock
from .test_conformance import everything, number, reading, refuses, store

Open = Callable[[], PostgresEngine]


@pytest.fixture
async def another(postgres_url: str, clock: Clock) -> AsyncIterator[Open]:
    """One more engine over the same tables, as another server would have it."""
    made: list[PostgresEngine] = []

    def engine() -> PostgresEngine:
        made.append(PostgresEngine(postgres_url, clock.now))
        return made[-1]

    yield engine
    for each in made:
        await each.close()


async def query(url: str, statement: str) -> list[Any]:
    import psycopg

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(statement)  # type: ignore[call-overload]
        return await cursor.fetchall() if cursor.description else []


async def test_several_open_a_new_database_at_the_same_moment(another: Open) -> None:
    engines = [another() for _ in range(6)]
    await asyncio.gather(*(store(engine, **{f"k{i}": b""}) for i, engine in enumerate(engines)))
    for engine in engines:
        assert len(await everything(engine)) == 6


async def test_what_one_wrote_the_other_sees_and_conflicts_with(another: Open) -> None:
    first, second = another(), another()
    await store(first, a=b"1")
    assert await everything(second) == {b"a": b"1"}
    reader = await reading(second)
    assert await reader.get(b"a") == b"1"
    assert await reader.scan(b"m", b"n", 5) == []
    reader.put(b"b", b"")
    cleaner = first.begin()
    cleaner.delete_range(b"ma", b"mb")
    await cleaner.commit()
    with refuses(Status.CONFLICT):
        await reader.commit()
    assert await everything(first) == {b"a": b"1"}


async def test_counters_and_stamps_of_several_engines(another: Open) -> None:
    engines = [another() for _ in range(3)]

    async def work(engine: Engine, who: int) -> None:
        for i in range(20):
            transaction = engine.begin()
            transaction.add(b"count", 1)
            transaction.max(b"time", who * 100 + i)
            transaction.put_versionstamped(b"log/", b"", b"%d/%d" % (who, i))
            await transaction.commit()

    await asyncio.gather(*(work(engine, who) for who, engine in enumerate(engines)))
    found = await everything(engines[0])
    assert (found[b"count"], found[b"time"]) == (number(60), number(219))
    log = [value for key, value in found.items() if key.startswith(b"log/")]
    for who in range(3):
        assert [value for value in log if value.startswith(b"%d/" % who)] == [b"%d/%d" % (who, i) for i in range(20)]


async def test_no_entry_appears_below_a_mark(another: Open) -> None:
    """A queue's reader goes on behind the last entry that it saw, and misses none."""
    writers, reader = [another() for _ in range(2)], another()
    running = [asyncio.ensure_future(_append(engine, 40)) for engine in writers]
    seen: list[bytes] = []
    mark = b"q/"
    while not all(task.done() for task in running) or len(seen) < 80 * 2:
        page = await reader.begin().scan(mark, b"q0", 5)
        seen += [key for key, _ in page]
        mark = seen[-1] + b"\0" if seen else mark
    assert seen == sorted(key for key in await everything(reader))
    await asyncio.gather(*running)


async def _append(engine: Engine, count: int) -> None:
    async def one() -> None:
        transaction = engine.begin()
        for piece in (b"a", b"b"):
            transaction.put_versionstamped(b"q/", piece, b"")
        await transaction.commit()

    for _ in range(count // 4):
        await asyncio.gather(*(one() for _ in range(4)))


async def test_who_was_silent_for_long_can_commit(another: Open, clock: Clock, postgres_url: str) -> None:
    """The others' write sets of that time are forgotten; only what began before that is refused."""
    busy, silent = another(), another()
    await store(silent, a=b"1")
    old = await reading(silent)
    await old.get(b"x")
    old.put(b"y", b"")
    for i in range(20):
        await store(busy, **{f"b{i}": b""})
        clock.time += KEEP_SECONDS / 4
    [(trail,)] = await query(postgres_url, "SELECT count(*) FROM emberfs_trail")
    assert trail < 12
    blind = silent.begin()
    blind.put(b"c", b"")
    await blind.commit()
    with refuses(Status.CONFLICT):
        await old.commit()
    reader = silent.begin()
    assert await reader.get(b"b19") == b""
    reader.put(b"d", b"")
    await reader.commit()


async def test_a_reader_from_before_what_was_forgotten_is_too_old(
    another: Open, clock: Clock, postgres_url: str
) -> None:
    """Whatever the clocks say: its process may have been stopped."""
    engine = another()
    await store(engine, a=b"1")
    reader = await reading(engine)
    assert await reader.get(b"x") is None
    reader.put(b"y", b"")
    await query(postgres_url, "UPDATE emberfs_state SET version = version + 7, floor = version + 5")
    with refuses(Status.CONFLICT):
        await reader.commit()


async def test_many_transactions_at_once_share_connections_and_commits(another: Open, postgres_url: str) -> None:
    [(begin,)] = await query(postgres_url, "SELECT now()::text")  # connections of earlier tests may be ending still
    engine = another()

    async def increment(transaction: Transaction) -> None:
        value = await transaction.get(b"n%d" % (id(transaction) % 7)) or number(0)
        transaction.put(b"n%d" % (id(transaction) % 7), number(int.from_bytes(value, "little") + 1))

    await asyncio.gather(*(retry.run(engine, increment, attempts_max=100) for _ in range(4 * READERS_MAX)))
    total = sum(int.from_bytes(value, "little") for value in (await everything(engine)).values())
    assert total == 4 * READERS_MAX
    counted = f"SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%emberfs%' AND backend_start > '{begin}'"
    async with asyncio.timeout(60):  # what was closed is still listed until its server process has ended
        while (await query(postgres_url, counted))[0][0] > READERS_MAX + 2:
            await asyncio.sleep(0.05)


async def test_a_transaction_that_is_dropped_anywhere_gives_its_connection_back(another: Open) -> None:
    """The garbage collector runs in any thread."""
    engine = another()
    for _ in range(2 * READERS_MAX):
        dropped = [await reading(engine)]
        await dropped[0].get(b"a")
        await asyncio.to_thread(dropped.clear)
    await asyncio.sleep(0)
    assert not engine.connections._lent


async def test_whoever_waits_too_long_for_a_connection_is_refused(
    another: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connections, "WAIT_SECONDS_MAX", 0.2)
    engine = another()
    held = [await reading(engine) for _ in range(READERS_MAX)]
    with refuses(Status.CONFLICT):
        await asyncio.create_task(engine.begin().get(b"a"))  # type: ignore[arg-type]
    await held.pop().commit()
    assert await asyncio.create_task(engine.begin().get(b"a")) is None  # type: ignore[arg-type]


async def test_a_task_that_needs_a_second_transaction_does_not_wait_for_itself(another: Open) -> None:
    engine = another()

    async def nested(number: int) -> None:
        outer = await reading(engine)
        inner = engine.begin()
        await inner.get(b"n")
        inner.add(b"n", 1)
        with suppress(StatusError):  # each has read what the others change
            await inner.commit()
        outer.put(b"%d" % number, b"")
        await outer.commit()

    await asyncio.gather(*(nested(number) for number in range(3 * READERS_MAX)))
    assert len(await everything(engine)) == 3 * READERS_MAX + 1


async def _kill_backends(url: str, which: str) -> int:
    [(count,)] = await query(
        url,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        f"WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND {which}",
    )
    return int(count)


async def test_connections_that_were_lost_are_made_anew(another: Open, postgres_url: str) -> None:
    engine = another()
    await store(engine, a=b"1")
    assert await everything(engine) == {b"a": b"1"}
    reader = await reading(engine)
    assert await _kill_backends(postgres_url, "true") >= 2
    with refuses(Status.UNAVAILABLE):
        await reader.get(b"a")  # its snapshot is gone
    assert await everything(engine) == {b"a": b"1"}
    await store(engine, a=b"2")  # the lock was not asked for yet: done again on a new connection
    assert await everything(engine) == {b"a": b"2"}


async def test_a_connection_lost_in_a_commit_leaves_it_open_what_happened(another: Open, postgres_url: str) -> None:
    engine = another()
    await store(engine, a=b"1")
    # The server waits for a lock in the middle of our second round trip, and is killed there.
    import psycopg

    async with await psycopg.AsyncConnection.connect(postgres_url) as blocker:
        await blocker.execute("LOCK TABLE emberfs_trail IN SHARE ROW EXCLUSIVE MODE")
        writer = engine.begin()
        writer.put(b"a", b"2")
        committing = asyncio.ensure_future(writer.commit())
        while not await _kill_backends(postgres_url, "wait_event_type = 'Lock'"):
            assert not committing.done()
            await asyncio.sleep(0)
        with refuses(Status.MAYBE_COMMITTED):
            await committing
        await blocker.rollback()
    assert await everything(engine) == {b"a": b"1"}
    await store(engine, a=b"3")
    assert await everything(engine) == {b"a": b"3"}


async def test_whoever_hangs_in_a_commit_does_not_hold_up_the_others_for_ever(another: Open, postgres_url: str) -> None:
    engine = another()
    await store(engine, a=b"1")
    import psycopg

    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as hung:
        # As every committing connection has one.
        await hung.execute("SET idle_in_transaction_session_timeout = '200ms'")
        await hung.execute("BEGIN; UPDATE emberfs_state SET version = version + 1")
        await asyncio.wait_for(store(engine, a=b"2"), 60)
        with pytest.raises(psycopg.Error):
            await hung.execute("SELECT 1")
        await hung.close()
    assert await everything(engine) == {b"a": b"2"}


async def test_a_server_that_restarts(postgres_server: Any, another: Open) -> None:
    engine = another()
    await store(engine, a=b"1")
    assert await everything(engine) == {b"a": b"1"}
    postgres_server.stop(signal.SIGQUIT)
    try:
        with refuses(Status.UNAVAILABLE):
            await everything(engine)
        with refuses(Status.UNAVAILABLE):
            await store(engine, a=b"lost")
    finally:
        postgres_server.start()
    assert await everything(engine) == {b"a": b"1"}
    await store(engine, a=b"2")
    assert await everything(engine) == {b"a": b"2"}


async def test_a_newer_format_is_refused(another: Open, postgres_url: str) -> None:
    await store(another(), a=b"1")
    await query(postgres_url, "UPDATE emberfs_state SET format = 2")
    with refuses(Status.BAD_FORMAT):
        await everything(another())


async def test_a_cancelled_task_leaves_the_engine_in_order(another: Open) -> None:
    engine = another()
    await store(engine, a=b"1")
    for wait in range(6):
        reader = engine.begin()
        task = asyncio.ensure_future(reader.get(b"a"))
        for _ in range(wait):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await everything(engine) == {b"a": b"1"}
    writer = engine.begin()
    writer.put(b"a", b"2")
    task = asyncio.ensure_future(writer.commit())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await store(engine, b=b"1")
    assert (await everything(engine))[b"a"] == b"2"  # nobody heard of it


async def test_who_was_refused_is_not_committed_when_the_server_undoes_the_batch(another: Open) -> None:
    """The one that it conflicted with, in the same batch, is overtaken by somebody else before the batch is done again."""
    from psycopg import errors

    engine, faster = another(), another()
    await store(engine, a=b"1", x=b"1")
    await store(faster, y=b"1")
    first, second = await reading(engine), await reading(engine)
    await first.get(b"x")
    await second.get(b"a")
    first.put(b"a", b"2")
    second.put(b"b", b"2")
    committer = await engine.committer()
    write = committer._write

    async def undone(writer: Any, *_: Any) -> None:
        committer._write = write  # type: ignore[method-assign]
        await writer.run([("ROLLBACK", ())])
        await store(faster, x=b"2")
        raise errors.SerializationFailure

    committer._write = undone  # type: ignore[method-assign,assignment]
    results = await asyncio.gather(first.commit(), second.commit(), return_exceptions=True)
    assert [getattr(result, "status", None) for result in results] == [Status.CONFLICT, Status.CONFLICT]
    assert await everything(engine) == {b"a": b"1", b"x": b"2", b"y": b"1"}


async def test_a_key_that_its_index_cannot_hold_fails_alone(another: Open) -> None:
    import random

    engine = another()
    await store(engine, a=b"1")
    good, bad, other = engine.begin(), engine.begin(), engine.begin()
    good.put(b"good", b"")
    bad.put(random.Random(1).randbytes(8000).replace(b"\xff", b"\xfe"), b"")
    other.add(b"other", 1)
    results = await asyncio.gather(good.commit(), bad.commit(), other.commit(), return_exceptions=True)
    assert isinstance(results[1], StatusError) and results[1].status is Status.TOO_LARGE
    assert set(await everything(engine)) == {b"a", b"good", b"other"}


_VICTIM = """
import asyncio, sys, time
from emberfs.meta.kv.open import open_engine

async def main():
    engine = open_engine(sys.argv[1])
    done = 0
    async def work(i):
        nonlocal done
        while True:
            transaction = engine.begin()
            count = await transaction.get(b"pair%d" % i) or b"0"
            transaction.put(b"pair%d" % i, b"%d" % (int(count) + 1))
            transaction.put(b"twin%d" % i, b"%d" % (int(count) + 1))
            transaction.add(b"total", 1)
            await transaction.commit()
            done += 1
            print(done, flush=True)
    await asyncio.gather(*(work(i) for i in range(8)))

asyncio.run(main())
"""


async def test_kill_9_in_the_middle_of_commits(another: Open, postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "victim.py").write_text(_VICTIM)
    for enough in (5, 40, 80):
        victim = await asyncio.create_subprocess_exec(
            sys.executable, str(tmp_path / "victim.py"), postgres_url, stdout=asyncio.subprocess.PIPE
        )
        assert victim.stdout is not None
        while int(await victim.stdout.readline()) < enough:
            pass
        before = await everything(another())
        victim.kill()
        await victim.communicate()
        found = await everything(another())
        pairs = sum(int(value) for key, value in found.items() if key.startswith(b"pair"))
        twins = sum(int(value) for key, value in found.items() if key.startswith(b"twin"))
        assert pairs == twins == int.from_bytes(found[b"total"], "little")
        assert pairs >= int.from_bytes(before[b"total"], "little") >= enough
        await asyncio.wait_for(store(another(), end=b""), 60)  # the dead one does not have the lock
