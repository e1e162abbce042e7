"""Strict serializability, anomaly by anomaly (names as in Adya's thesis and Fekete's paper on the read-only anomaly)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from emberfs.meta.kv.engine import Engine, Transaction
from emberfs.proto.errors import Status, StatusError

from .test_conformance import everything, number, reading, refuses, store

conflicts = refuses(Status.CONFLICT)


async def test_no_dirty_read(engine: Engine) -> None:
    writer = engine.begin()
    writer.put(b"a", b"dirty")
    reader = engine.begin()
    assert await reader.get(b"a") is None
    del writer
    assert await everything(engine) == {}


async def test_no_non_repeatable_read_and_no_read_skew(engine: Engine) -> None:
    await store(engine, a=b"1", b=b"1")
    reader = engine.begin()
    assert await reader.get(b"a") == b"1"
    await store(engine, a=b"2", b=b"2", c=b"2")
    assert await reader.get(b"a") == b"1"
    assert await reader.get_many([b"b", b"c"]) == [b"1", None]
    assert await reader.scan(b"", b"z", 9) == [(b"a", b"1"), (b"b", b"1")]
    await reader.commit()  # it wrote nothing: it took place at its snapshot


async def test_what_was_committed_is_seen_by_whoever_begins_later(engine: Engine) -> None:
    for i in range(10):
        await store(engine, a=b"%d" % i)
        assert await engine.begin().get(b"a") == b"%d" % i


async def test_no_lost_update(engine: Engine) -> None:
    await store(engine, a=b"0")
    first, second = engine.begin(), engine.begin()
    for transaction in (first, second):
        assert await transaction.get(b"a") == b"0"
        transaction.put(b"a", b"1")
    await first.commit()
    with conflicts:
        await second.commit()


async def test_no_write_skew(engine: Engine) -> None:
    await store(engine, a=b"1", b=b"1")
    first, second = engine.begin(), engine.begin()
    for transaction, mine in ((first, b"a"), (second, b"b")):
        assert await transaction.get_many([b"a", b"b"]) == [b"1", b"1"]
        transaction.put(mine, b"0")
    await first.commit()
    with conflicts:
        await second.commit()


@pytest.mark.parametrize("reverse", [False, True])
async def test_no_phantom(engine: Engine, reverse: bool) -> None:
    first, second = engine.begin(), engine.begin()
    for transaction, name in ((first, b"d/x"), (second, b"d/y")):
        assert await transaction.scan(b"d/", b"d0", 1, reverse=reverse) == []
        transaction.put(name, b"")
    await first.commit()
    with conflicts:
        await second.commit()


async def test_no_phantom_by_versionstamp(engine: Engine) -> None:
    reader = engine.begin()
    assert await reader.scan(b"log/", b"log0", 9) == []
    reader.put(b"empty", b"")
    writer = engine.begin()
    writer.put_versionstamped(b"log/", b"", b"")
    await writer.commit()
    with conflicts:
        await reader.commit()


async def test_no_read_only_anomaly(engine: Engine) -> None:
    """Fekete, O'Neil, O'Neil: a withdrawal that saw no deposit, after a report that saw it, charges for an overdraft that never was."""
    await store(engine, checking=number(0), savings=number(0))
    withdrawal = engine.begin()
    assert await withdrawal.get_many([b"checking", b"savings"]) == [number(0), number(0)]
    deposit = engine.begin()
    assert await deposit.get(b"savings") == number(0)
    deposit.put(b"savings", number(20))
    await deposit.commit()
    report = engine.begin()
    assert await report.get_many([b"checking", b"savings"]) == [number(0), number(20)]
    await report.commit()
    withdrawal.put(b"checking", number(-11))
    with conflicts:
        await withdrawal.commit()


async def test_delete_range_conflicts_with_readers_of_what_it_deleted(engine: Engine) -> None:
    for read in (
        lambda t: t.get(b"b"),
        lambda t: t.get(b"bb"),
        lambda t: t.scan(b"c", b"d", 9),
        lambda t: t.scan(b"a", b"bc", 1),
    ):
        await store(engine, a=b"1", b=b"1", c=b"1", d=b"1")
        reader = engine.begin()
        await read(reader)
        reader.put(b"x", b"")
        cleaner = engine.begin()
        cleaner.delete_range(b"a", b"d")
        await cleaner.commit()
        with conflicts:
            await reader.commit()


async def test_a_range_that_was_cleared_meanwhile_is_still_in_the_snapshot(engine: Engine) -> None:
    await store(engine, a=b"1", b=b"2", c=b"3")
    reader = await reading(engine)
    cleaner = engine.begin()
    cleaner.delete_range(b"a", b"c")
    await cleaner.commit()
    await store(engine, b=b"new", bb=b"new")
    assert await reader.scan(b"", b"z", 9) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    assert await reader.scan(b"", b"bb", 9, reverse=True) == [(b"b", b"2"), (b"a", b"1")]
    assert await reader.get_many([b"a", b"b", b"bb"]) == [b"1", b"2", None]


async def test_clearing_a_range_conflicts_with_scans_that_overlap_it(engine: Engine) -> None:
    """Also where nothing lay: a write set is what a transaction said, not what it met."""
    for begin, end, conflict in ((b"a", b"c", True), (b"c", b"x", True), (b"x", b"z", False), (b"a", b"b", False)):
        reader = engine.begin()
        assert await reader.scan(b"b", b"d", 9) == []
        reader.put(b"z", b"")
        cleaner = engine.begin()
        cleaner.delete_range(begin, end)
        await cleaner.commit()
        if conflict:
            with conflicts:
                await reader.commit()
        else:
            await reader.commit()


async def changed_meanwhile(
    engine: Engine,
    act: Callable[[Transaction], object],
    key: bytes,
    *,
    write: Callable[[Transaction], object] | None = None,
) -> bool:
    """Whether a transaction that did `act` conflicts with a later write to `key`."""
    reader = engine.begin()
    result = act(reader)
    if hasattr(result, "__await__"):
        await result
    reader.put(b"z", b"")
    writer = engine.begin()
    write(writer) if write else writer.put(key, b"changed")
    await writer.commit()
    try:
        await reader.commit()
    except StatusError as failure:
        assert failure.status is Status.CONFLICT
        return True
    return False


async def test_what_conflicts_and_what_does_not(engine: Engine) -> None:
    await store(engine, a=b"1", b=b"1", c=b"1", d=b"1")
    assert await changed_meanwhile(engine, lambda t: t.get(b"a"), b"a")
    assert await changed_meanwhile(engine, lambda t: t.get(b"none"), b"none")
    assert not await changed_meanwhile(engine, lambda t: t.get(b"a"), b"b")
    assert not await changed_meanwhile(engine, lambda t: t.get(b"a", snapshot=True), b"a")
    assert not await changed_meanwhile(engine, lambda t: t.get_many([b"a"], snapshot=True), b"a")
    assert not await changed_meanwhile(engine, lambda t: t.scan(b"a", b"z", 9, snapshot=True), b"a")
    assert not await changed_meanwhile(engine, lambda t: t.put(b"a", b"blind"), b"a")
    assert not await changed_meanwhile(engine, lambda t: t.delete(b"a"), b"a")
    assert await changed_meanwhile(engine, lambda t: t.conflict_read(b"a"), b"a")
    assert await changed_meanwhile(engine, lambda t: t.get(b"q"), b"q", write=lambda t: t.conflict_write(b"q"))
    assert await changed_meanwhile(engine, lambda t: t.get(b"n"), b"n", write=lambda t: t.add(b"n", 1))
    assert await changed_meanwhile(engine, lambda t: t.get(b"n"), b"n", write=lambda t: t.max(b"n", 0))
    assert await changed_meanwhile(engine, lambda t: t.get(b"n"), b"n", write=lambda t: t.delete(b"n"))


async def test_a_scan_reads_as_far_as_it_looked(engine: Engine) -> None:
    await store(engine, a=b"1", c=b"1", e=b"1")
    two = lambda reverse: lambda t: t.scan(b"a", b"f", 2, reverse=reverse)  # noqa: E731
    assert await changed_meanwhile(engine, two(False), b"b")
    assert await changed_meanwhile(engine, two(False), b"b")  # now the second of two
    assert not await changed_meanwhile(engine, two(False), b"bb")
    assert not await changed_meanwhile(engine, two(False), b"c")
    assert await changed_meanwhile(engine, two(True), b"d")
    assert await changed_meanwhile(engine, two(True), b"d")
    assert not await changed_meanwhile(engine, two(True), b"cc")
    assert not await changed_meanwhile(engine, two(True), b"c")
    assert await changed_meanwhile(engine, lambda t: t.scan(b"a", b"f", 9), b"eee")
    assert not await changed_meanwhile(engine, lambda t: t.scan(b"a", b"f", 9), b"f")


async def test_own_values_are_not_read(engine: Engine) -> None:
    async def put_and_get(t: Transaction) -> None:
        t.put(b"a", b"own")
        await t.get(b"a")

    async def clear_and_get(t: Transaction) -> None:
        t.delete_range(b"a", b"b")
        assert await t.get(b"a") is None

    async def add_and_get(t: Transaction) -> None:
        t.add(b"a", 1)
        await t.get(b"a")

    await store(engine, a=b"1")
    assert not await changed_meanwhile(engine, put_and_get, b"a")
    assert not await changed_meanwhile(engine, clear_and_get, b"a")
    assert await changed_meanwhile(engine, add_and_get, b"a")


async def test_a_conflict_leaves_nothing_behind(engine: Engine) -> None:
    loser = engine.begin()
    await loser.get(b"a")
    loser.put(b"b", b"")
    loser.add(b"c", 1)
    loser.put_versionstamped(b"d", b"", b"")
    await store(engine, a=b"1")
    with conflicts:
        await loser.commit()
    with refuses(Status.INVALID):
        await loser.commit()
    assert await everything(engine) == {b"a": b"1"}


async def test_a_cycle_of_keys_stays_a_cycle(engine: Engine) -> None:
    """FoundationDB's Cycle workload: transactions swap three links of a ring; any anomaly breaks the ring."""
    size, chance = 10, random.Random(7)
    await store(engine, **{f"n{i}": b"n%d" % ((i + 1) % size) for i in range(size)})
    done = aborted = 0
    pending: list[tuple[Transaction, list[bytes]]] = []
    while done < 200:
        if len(pending) < 4 and chance.random() < 0.4:
            pending.append((engine.begin(), [b"n%d" % chance.randrange(size)]))
        elif pending:
            transaction, path = chance.choice(pending)
            if len(path) < 4:
                following = await transaction.get(path[-1])
                assert following is not None
                path.append(following)
                continue
            pending.remove((transaction, path))
            first, second, third, fourth = path
            transaction.put(first, third)
            transaction.put(second, fourth)
            transaction.put(third, second)
            try:
                await transaction.commit()
                done += 1
            except StatusError as failure:
                assert failure.status is Status.CONFLICT
                aborted += 1
    assert aborted > 10
    ring = await everything(engine)
    seen, at = set(), b"n0"
    while at not in seen:
        seen.add(at)
        at = ring[at]
    assert len(seen) == size
