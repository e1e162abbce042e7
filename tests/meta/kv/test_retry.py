"""The retry loop: what is tried again, how often, after which pauses; and the engines' URLs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from emberfs.meta.kv import retry
from emberfs.meta.kv.engine import Engine, Transaction
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.kv.open import is_shared, open_engine
from emberfs.meta.kv.rocksdb import RocksEngine
from emberfs.proto.errors import Status, StatusError, error

from .conftest import Clock
from .test_conformance import everything, number, refuses, store


def retries() -> float:
    return retry.RETRIES._value.get()  # type: ignore[no-any-return]


async def test_the_result_of_the_attempt_that_was_committed(engine: Engine, clock: Clock) -> None:
    attempts: list[Transaction] = []

    async def work(transaction: Transaction) -> str:
        attempts.append(transaction)
        await transaction.get(b"a")
        transaction.put(b"b", b"%d" % len(attempts))
        if len(attempts) < 4:
            await store(engine, a=b"%d" % len(attempts))
        return f"attempt {len(attempts)}"

    before = retries()
    assert await retry.run(engine, work, clock) == "attempt 4"
    assert (await everything(engine))[b"b"] == b"4"
    assert retries() - before == 3
    assert clock.slept == [0, 0.001, 0.002]  # at once, then a random part (here half) of 2 ms, 4 ms


async def always_overtaken(engine: Engine, transaction: Transaction) -> None:
    await transaction.get(b"a")
    transaction.put(b"b", b"")
    await store(engine, a=b"x")


async def test_attempts_are_bounded(engine: Engine, clock: Clock) -> None:
    with refuses(Status.CONFLICT):
        await retry.run(engine, lambda t: always_overtaken(engine, t), clock, attempts_max=20)
    assert len(clock.slept) == 19
    assert max(clock.slept) <= retry.BACK_OFF_SECONDS_MAX
    assert b"b" not in await everything(engine)
    with refuses(Status.INVALID):
        await retry.run(engine, lambda t: always_overtaken(engine, t), clock, attempts_max=0)


async def test_a_deadline_ends_the_attempts(engine: Engine, clock: Clock) -> None:
    end = clock.time + 0.01
    with refuses(Status.CONFLICT):
        await retry.run(engine, lambda t: always_overtaken(engine, t), clock, deadline=end)
    assert clock.time == pytest.approx(end)


@pytest.mark.parametrize("status", [Status.NOT_FOUND, Status.MAYBE_COMMITTED, Status.IO_ERROR])
async def test_only_conflicts_are_tried_again(engine: Engine, clock: Clock, status: Status) -> None:
    calls = 0

    async def work(transaction: Transaction) -> None:
        nonlocal calls
        calls += 1
        transaction.put(b"a", b"")
        raise error(status)

    with refuses(status):
        await retry.run(engine, work, clock)
    assert calls == 1
    assert await everything(engine) == {}


async def test_concurrent_increments_all_count(engine: Engine) -> None:
    async def increment(transaction: Transaction) -> None:
        value = await transaction.get(b"n") or number(0)
        await asyncio.sleep(0)  # the others read the same
        transaction.put(b"n", number(int.from_bytes(value, "little") + 1))

    await asyncio.gather(*(retry.run(engine, increment, attempts_max=100) for _ in range(20)))
    assert await engine.begin().get(b"n") == number(20)


async def test_urls(tmp_path: Path) -> None:
    memory = open_engine("memory:")
    assert isinstance(memory, MemoryEngine)
    rocks = open_engine(f"rocksdb://{tmp_path}/with%20space")
    assert isinstance(rocks, RocksEngine)
    assert (tmp_path / "with space" / "CURRENT").exists()
    await rocks.close()
    # Nothing is connected before the first use.
    assert is_shared("postgresql://host/db") and not is_shared("rocksdb:///kv")
    postgres = open_engine("postgresql://user@nowhere.invalid/db")
    await postgres.close()
    with refuses(Status.UNAVAILABLE):
        postgres.begin()
    for url in ("postgresql://user:secret@host/db", "postgresql://host/db?user=u&password=secret"):
        with pytest.raises(StatusError) as refused:
            open_engine(url)
        assert refused.value.status is Status.INVALID and "secret" not in str(refused.value)
    for url in ("", "/var/lib/kv", "rocksdb:", "rocksdb://host/path", "fdb:", "fdb://host/x", "mysql://x"):
        with refuses(Status.INVALID):
            open_engine(url)
