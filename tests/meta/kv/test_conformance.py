"""What `meta/kv/engine.py` says of one transaction: reads, own writes, scans, counters, versionstamps, limits, its end."""

from __future__ import annotations

import asyncio

import pytest

from emberfs.meta.kv.engine import (
    KEY_BYTES_MAX,
    KEYS_END,
    TRANSACTION_BYTES_MAX,
    TRANSACTION_SECONDS_MAX,
    VALUE_BYTES_MAX,
    Engine,
    Transaction,
)
from emberfs.proto.errors import Status, StatusError

from .conftest import Clock


def number(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


async def store(engine: Engine, **pairs: bytes) -> None:
    transaction = engine.begin()
    for key, value in pairs.items():
        transaction.put(key.encode(), value)
    await transaction.commit()


async def reading(engine: Engine) -> Transaction:
    """A transaction that has its snapshot."""
    transaction = engine.begin()
    await transaction.get(b"nothing", snapshot=True)
    return transaction


async def everything(engine: Engine) -> dict[bytes, bytes]:
    return dict(await engine.begin().scan(b"", KEYS_END, 10_000))


def refuses(status: Status) -> pytest.RaisesExc[StatusError]:
    return pytest.RaisesExc(StatusError, check=lambda failure: failure.status is status)


# Reads and own writes.


async def test_reads_its_own_writes(engine: Engine) -> None:
    await store(engine, a=b"old", b=b"old", c=b"old")
    transaction = engine.begin()
    transaction.put(b"a", b"new")
    transaction.delete(b"b")
    transaction.put(b"d", b"")
    assert await transaction.get(b"a") == b"new"
    assert await transaction.get(b"b") is None
    assert await transaction.get_many([b"d", b"c", b"b", b"a", b"e", b"a"]) == [b"", b"old", None, b"new", None, b"new"]
    assert await engine.begin().get(b"a") == b"old"
    await transaction.commit()
    assert await everything(engine) == {b"a": b"new", b"c": b"old", b"d": b""}


async def test_the_last_write_to_a_key_counts(engine: Engine) -> None:
    transaction = engine.begin()
    for value in (b"1", b"2"):
        transaction.put(b"put", value)
    transaction.put(b"deleted", b"x")
    transaction.delete(b"deleted")
    transaction.delete(b"restored")
    transaction.put(b"restored", b"y")
    await transaction.commit()
    assert await everything(engine) == {b"put": b"2", b"restored": b"y"}


async def test_scan_order_limit_and_bounds(engine: Engine) -> None:
    await store(engine, a=b"1", b=b"2", c=b"3", d=b"4")
    transaction = engine.begin()
    pairs = [(b"b", b"2"), (b"c", b"3")]
    assert await transaction.scan(b"b", b"d", 10) == pairs
    assert await transaction.scan(b"b", b"d", 10, reverse=True) == pairs[::-1]
    assert await transaction.scan(b"aa", b"cc", 10) == pairs
    assert await transaction.scan(b"aa", b"cc", 10, reverse=True) == pairs[::-1]
    assert await transaction.scan(b"a", b"e", 2) == [(b"a", b"1"), (b"b", b"2")]
    assert await transaction.scan(b"a", b"e", 2, reverse=True) == [(b"d", b"4"), (b"c", b"3")]
    for begin, end, limit in ((b"b", b"b", 9), (b"d", b"b", 9), (b"a", b"e", 0), (b"x", b"y", 9)):
        assert await transaction.scan(begin, end, limit) == []
        assert await transaction.scan(begin, end, limit, reverse=True) == []


@pytest.mark.parametrize("reverse", [False, True])
async def test_scan_sees_own_writes_deletes_and_cleared_ranges(engine: Engine, reverse: bool) -> None:
    await store(engine, b=b"1", c=b"2", d=b"3", f=b"4", g=b"5", h=number(6))
    transaction = engine.begin()
    transaction.put(b"a", b"own")
    transaction.put(b"c", b"own")
    transaction.delete(b"d")
    transaction.put(b"e", b"own")
    transaction.delete_range(b"f", b"h")
    transaction.put(b"g", b"after")
    transaction.add(b"h", 1)
    transaction.max(b"i", 7)
    expected = [
        (b"a", b"own"),
        (b"b", b"1"),
        (b"c", b"own"),
        (b"e", b"own"),
        (b"g", b"after"),
        (b"h", number(7)),
        (b"i", number(7)),
    ]
    if reverse:
        expected.reverse()
    for limit in range(1, 9):
        assert await transaction.scan(b"a", b"z", limit, reverse=reverse) == expected[:limit]
    await transaction.commit()
    assert await engine.begin().scan(b"a", b"z", 9, reverse=reverse) == expected


async def test_delete_range_takes_what_was_put_before_and_leaves_what_is_put_after(engine: Engine) -> None:
    await store(engine, a=b"1", b=b"1", c=b"1", d=b"1")
    transaction = engine.begin()
    transaction.put(b"bb", b"2")
    transaction.add(b"bc", 1)
    transaction.delete_range(b"b", b"d")
    transaction.put(b"c", b"3")
    transaction.add(b"ca", 5)
    transaction.delete_range(b"x", b"b")  # empty
    assert await transaction.get(b"bb") is None
    await transaction.commit()
    assert await everything(engine) == {b"a": b"1", b"c": b"3", b"ca": number(5), b"d": b"1"}


async def test_delete_range_of_many_keys(engine: Engine) -> None:
    """More than an engine would delete one by one."""
    transaction = engine.begin()
    for i in range(1000):
        transaction.put(b"m%04d" % i, b"")
    transaction.put(b"l", b"")
    transaction.put(b"n", b"")
    await transaction.commit()
    transaction = engine.begin()
    transaction.delete_range(b"m", b"n")
    transaction.put(b"m0500", b"kept")
    await transaction.commit()
    assert await everything(engine) == {b"l": b"", b"m0500": b"kept", b"n": b""}


async def test_delete_range_takes_what_others_put_after_it_began(engine: Engine) -> None:
    transaction = engine.begin()
    transaction.delete_range(b"a", b"c")
    await store(engine, b=b"late")
    await transaction.commit()
    assert await everything(engine) == {}


async def test_empty_key_and_empty_value_are_ordinary(engine: Engine) -> None:
    transaction = engine.begin()
    transaction.put(b"", b"")
    await transaction.commit()
    assert await engine.begin().get(b"") == b""
    assert await everything(engine) == {b"": b""}


# Counters.


async def test_add_and_max(engine: Engine) -> None:
    transaction = engine.begin()
    transaction.add(b"count", 5)
    transaction.add(b"count", -7)
    transaction.max(b"time", 10)
    transaction.max(b"time", 3)
    assert await transaction.get_many([b"count", b"time"]) == [number(-2), number(10)]
    await transaction.commit()
    transaction = engine.begin()
    transaction.add(b"count", 2)
    transaction.max(b"time", 9)
    await transaction.commit()
    assert await everything(engine) == {b"count": number(0), b"time": number(10)}


async def test_counters_wrap_and_mix_with_put(engine: Engine) -> None:
    transaction = engine.begin()
    transaction.put(b"a", number(2**63 - 1))
    transaction.add(b"a", 1)
    transaction.add(b"b", 3)
    transaction.put(b"b", number(100))
    transaction.add(b"b", 1)
    transaction.delete(b"c")
    transaction.max(b"c", 0)
    transaction.put(b"short", b"\x05")
    await transaction.commit()
    transaction = engine.begin()
    transaction.add(b"short", 1)
    transaction.add(b"b", 1)
    transaction.delete(b"b")
    await transaction.commit()
    assert await everything(engine) == {b"a": number(-(2**63)), b"c": number(0), b"short": number(6)}


async def test_blind_writes_of_many_transactions_never_conflict(engine: Engine) -> None:
    begun = [engine.begin() for _ in range(100)]
    for i, transaction in enumerate(begun):
        transaction.add(b"count", i)
        transaction.max(b"time", 1000 - i)
    await asyncio.gather(*(transaction.commit() for transaction in begun))
    assert await everything(engine) == {b"count": number(sum(range(100))), b"time": number(1000)}


async def test_numbers_outside_a_counter_are_refused(engine: Engine) -> None:
    for value in (2**63, -(2**63) - 1):
        with refuses(Status.INVALID):
            engine.begin().add(b"a", value)
    for value in (2**63, -1):
        with refuses(Status.INVALID):
            engine.begin().max(b"a", value)


# Versions.


async def test_commit_versions_rise(engine: Engine) -> None:
    versions = []
    for i in range(5):
        transaction = engine.begin()
        transaction.put(b"a", b"%d" % i)
        versions.append(await transaction.commit())
    assert versions == sorted(set(versions))
    assert await engine.begin().commit() == versions[-1]
    transaction = engine.begin()
    transaction.conflict_write(b"nothing")
    assert await transaction.commit() > versions[-1]


async def test_versionstamps_rise_with_the_commits(engine: Engine) -> None:
    begun = [engine.begin() for _ in range(20)]
    for i, transaction in enumerate(begun):
        transaction.put_versionstamped(b"event/", b"/a", b"%d" % i)
        transaction.put_versionstamped(b"event/", b"/b", b"%d" % i)
    assert await begun[0].scan(b"event/", b"event0", 9) == []  # it does not see its own
    versions = []
    for transaction in reversed(begun[1:]):
        versions.append(await transaction.commit())
    pairs = await engine.begin().scan(b"event/", b"event0", 100)
    assert [value for _, value in pairs] == [b"%d" % i for i in range(19, 0, -1) for _ in "ab"]
    for i, (key, _) in enumerate(pairs):
        assert len(key) == len(b"event/") + 10 + 2
        assert key.endswith((b"/a", b"/b")[i % 2])
        assert int.from_bytes(key[6:14], "big") == versions[i // 2]


# Limits.


async def test_keys_and_values_have_a_greatest_size(engine: Engine) -> None:
    key, value = b"k" * KEY_BYTES_MAX, b"v" * VALUE_BYTES_MAX
    transaction = engine.begin()
    transaction.put(key, value)
    await transaction.commit()
    assert await engine.begin().get(key) == value
    with refuses(Status.TOO_LARGE):
        engine.begin().put(key + b"k", b"")
    with refuses(Status.TOO_LARGE):
        engine.begin().put(b"k", value + b"v")
    with refuses(Status.TOO_LARGE):
        engine.begin().put_versionstamped(key, b"", b"")
    with refuses(Status.TOO_LARGE):
        await engine.begin().get(key + b"k")
    with refuses(Status.TOO_LARGE):
        await engine.begin().scan(b"a", key + b"k", 1)


async def test_keys_of_the_engine_are_refused(engine: Engine) -> None:
    writes = (
        lambda t: t.put(KEYS_END, b""),
        lambda t: t.delete(KEYS_END + b"/format"),
        lambda t: t.delete_range(b"", KEYS_END + b"/"),
        lambda t: t.add(KEYS_END, 1),
        lambda t: t.conflict_read(KEYS_END),
        lambda t: t.conflict_write(KEYS_END),
    )
    for write in writes:
        with refuses(Status.INVALID):
            write(engine.begin())
    with refuses(Status.INVALID):
        await engine.begin().get(KEYS_END)
    with refuses(Status.INVALID):
        await engine.begin().scan(b"", KEYS_END + b"\0", 1)
    with refuses(Status.INVALID):
        await engine.begin().scan(b"", b"z", -1)


async def test_a_transaction_has_a_greatest_size(engine: Engine) -> None:
    def fill(transaction: Transaction, total: int) -> None:
        for i in range(total // VALUE_BYTES_MAX):
            transaction.put(b"%08d" % i, b"v" * (VALUE_BYTES_MAX - 8))

    transaction = engine.begin()
    fill(transaction, TRANSACTION_BYTES_MAX)
    await transaction.commit()
    transaction = engine.begin()
    fill(transaction, TRANSACTION_BYTES_MAX)
    transaction.conflict_read(b"x")
    with refuses(Status.TOO_LARGE):
        await transaction.commit()
    transaction = engine.begin()
    for i in range(TRANSACTION_BYTES_MAX // KEY_BYTES_MAX):  # a read set counts too
        await transaction.get(b"%010d" % i * (KEY_BYTES_MAX // 10))
    transaction.put(b"a", b"")
    with refuses(Status.TOO_LARGE):
        await transaction.commit()


async def test_reading_a_key_again_does_not_count_again(engine: Engine) -> None:
    transaction = engine.begin()
    for _ in range(TRANSACTION_BYTES_MAX // KEY_BYTES_MAX + 1):
        await transaction.get(b"k" * KEY_BYTES_MAX)
    transaction.put(b"a", b"b")
    await transaction.commit()


async def test_a_transaction_has_a_greatest_age(engine: Engine, clock: Clock) -> None:
    transaction = engine.begin()
    transaction.put(b"a", b"")
    clock.time += TRANSACTION_SECONDS_MAX
    assert await transaction.get(b"a") == b""
    await transaction.commit()
    transaction = engine.begin()
    transaction.put(b"b", b"")
    clock.time += TRANSACTION_SECONDS_MAX + 0.001
    with refuses(Status.CONFLICT):
        await transaction.commit()
    for read in (lambda t: t.get(b"a"), lambda t: t.get_many([b"a"]), lambda t: t.scan(b"a", b"b", 1)):
        transaction = engine.begin()
        clock.time += TRANSACTION_SECONDS_MAX + 0.001
        with refuses(Status.CONFLICT):
            await read(transaction)
        with refuses(Status.INVALID):
            await read(transaction)
    assert await everything(engine) == {b"a": b""}


async def test_an_old_snapshot_is_kept_as_long_as_it_may_be_read(engine: Engine, clock: Clock) -> None:
    await store(engine, a=b"0")
    begun = []
    for i in range(1, 50):
        begun.append((await reading(engine), b"%d" % (i - 1)))
        clock.time += 0.5
        await store(engine, a=b"%d" % i)
        begun = [(t, value) for t, value in begun if i * 0.5 - int(value) * 0.5 <= TRANSACTION_SECONDS_MAX]
        for transaction, value in begun:
            assert await transaction.get(b"a", snapshot=True) == value
            assert await transaction.scan(b"", b"b", 2, snapshot=True) == [(b"a", value)]
    for transaction, _ in begun:
        await transaction.commit()


# The end.


async def test_a_transaction_is_spent_after_commit(engine: Engine) -> None:
    transaction = engine.begin()
    transaction.put(b"a", b"")
    await transaction.commit()
    await check_spent(transaction)


@pytest.mark.parametrize(
    "fail",
    [
        lambda t: t.put(b"k" * (KEY_BYTES_MAX + 1), b""),
        lambda t: t.put(b"k", b"v" * (VALUE_BYTES_MAX + 1)),
        lambda t: t.add(b"k", 2**63),
        lambda t: t.delete(KEYS_END),
    ],
)
async def test_a_transaction_is_spent_after_an_error(engine: Engine, fail: object) -> None:
    """Otherwise half of an operation could be committed by one who overlooks the error of the other half."""
    transaction = engine.begin()
    transaction.put(b"half", b"")
    with pytest.raises(StatusError):
        fail(transaction)  # type: ignore[operator]
    await check_spent(transaction)
    assert await everything(engine) == {}


async def check_spent(transaction: Transaction) -> None:
    with refuses(Status.INVALID):
        await transaction.commit()
    with refuses(Status.INVALID):
        await transaction.get(b"a")
    with refuses(Status.INVALID):
        await transaction.scan(b"a", b"b", 1)
    with refuses(Status.INVALID):
        transaction.put(b"a", b"")
    with refuses(Status.INVALID):
        transaction.add(b"a", 1)
    with refuses(Status.INVALID):
        transaction.conflict_read(b"a")


async def test_after_close_nothing_works(engine: Engine) -> None:
    await store(engine, a=b"1")
    transaction = engine.begin()
    await engine.close()
    with refuses(Status.UNAVAILABLE):
        await transaction.get(b"a")
    with refuses(Status.UNAVAILABLE):
        engine.begin()
    with refuses(Status.UNAVAILABLE):
        await engine.sync()
    await engine.close()


async def test_sync_and_durable_commits_return(engine: Engine) -> None:
    await engine.sync()
    await store(engine, a=b"1")
    await engine.sync()
    transaction = engine.begin()
    transaction.put(b"a", b"2")
    await transaction.commit(durable=True)
    reader = engine.begin()
    assert await reader.get(b"a") == b"2"
    await reader.commit(durable=True)
