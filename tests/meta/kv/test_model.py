"""The engines against the model: random interleavings of several transactions must read, conflict and end alike."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emberfs.meta.kv.engine import KEYS_END, Engine, Transaction
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.kv.rocksdb import RocksEngine
from emberfs.proto.errors import StatusError

from .conftest import Clock
from .test_conformance import reading

TRANSACTIONS = 3
STAMPED = b"v"  # prefix of the versionstamped keys

keys = st.sampled_from([b"", b"a", b"b", b"bb", b"c", b"d", b"\xfe"])
bounds = st.sampled_from([b"", b"a", b"b", b"b\0", b"c", b"d", STAMPED, b"w", KEYS_END])
values = st.sampled_from([b"", b"x", b"longer than a counter", (7).to_bytes(8, "little")])
numbers = st.sampled_from([-3, 0, 1, 5, 2**62])
flag = st.booleans()
who = st.integers(0, TRANSACTIONS - 1)

steps = st.one_of(
    st.tuples(st.just("get"), who, keys, flag),
    st.tuples(st.just("get_many"), who, st.lists(keys, max_size=4), flag),
    st.tuples(st.just("scan"), who, bounds, bounds, st.integers(0, 4), flag, flag),
    st.tuples(st.just("put"), who, keys, values),
    st.tuples(st.just("delete"), who, keys),
    st.tuples(st.just("delete_range"), who, bounds, bounds),
    st.tuples(st.just("add"), who, keys, numbers),
    st.tuples(st.just("max"), who, keys, numbers),
    st.tuples(st.just("put_versionstamped"), who, st.just(STAMPED), keys, values),
    st.tuples(st.just("conflict_read"), who, keys),
    st.tuples(st.just("conflict_write"), who, keys),
    st.tuples(st.just("commit"), who),
    st.tuples(st.just("commit"), who),
    st.tuples(st.just("drop"), who),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 2.0, 4.9])),
)


class Run:
    """One engine going through the steps. What it answers is written down with commit versions as ordinals."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.open: dict[int, Transaction] = {}
        self.ordinals: dict[int, int] = {}
        self.versions = 0

    async def reset(self) -> None:
        transaction = self.engine.begin()
        transaction.delete_range(b"", KEYS_END)
        for key in (b"a", b"b", b"bb", b"d"):
            transaction.put(key, b"first")
        self.ordinals[await transaction.commit()] = 0

    async def step(self, step: tuple[Any, ...]) -> Any:
        name, number, *arguments = step
        transaction = self.open.get(number)
        if name == "drop":
            self.open.pop(number, None)
            return None
        if transaction is None:
            transaction = self.open[number] = await reading(self.engine)
        try:
            if name == "get":
                return await transaction.get(arguments[0], snapshot=arguments[1])
            if name == "get_many":
                return await transaction.get_many(arguments[0], snapshot=arguments[1])
            if name == "scan":
                begin, end, limit, reverse, snapshot = arguments
                return self.named(await transaction.scan(begin, end, limit, reverse=reverse, snapshot=snapshot))
            if name == "commit":
                del self.open[number]
                version = await transaction.commit()
                return self.ordinals.setdefault(version, len(self.ordinals))
            return getattr(transaction, name)(*arguments)
        except StatusError as failure:
            self.open.pop(number, None)
            return failure.status

    def named(self, pairs: list[tuple[bytes, bytes]]) -> list[tuple[object, bytes]]:
        named: list[tuple[object, bytes]] = []
        for key, value in pairs:
            if key.startswith(STAMPED):
                named.append(((self.ordinals[int.from_bytes(key[1:9], "big")], key[11:]), value))
            else:
                named.append((key, value))
        return named

    async def end(self) -> Any:
        self.open.clear()
        return self.named(await self.engine.begin().scan(b"", KEYS_END, 1000))


Opened = tuple[asyncio.Runner, Engine, Clock]


@pytest.fixture(scope="module")
def rocks() -> Iterator[Opened]:
    """One database for all examples: opening one costs more than an example."""
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="emberfs-") as folder, asyncio.Runner() as runner:
        engine = RocksEngine(folder + "/kv", clock.now)
        yield runner, engine, clock
        runner.run(engine.close())


@pytest.fixture(scope="module")
def postgres(postgres_server: Any) -> Iterator[Opened]:
    from emberfs.meta.kv.postgres import PostgresEngine

    clock = Clock()
    with asyncio.Runner() as runner:
        engine = PostgresEngine(postgres_server.database(), clock.now)
        yield runner, engine, clock
        runner.run(engine.close())


def compare(opened: Opened, steps: list[tuple[Any, ...]]) -> None:
    runner, engine, clock = opened

    async def story() -> None:
        real, model = Run(engine), Run(MemoryEngine(clock.now))
        await real.reset()
        await model.reset()
        for step in steps:
            if step[0] == "wait":
                clock.time += step[1]
            else:
                assert await real.step(step) == await model.step(step), step
        assert await real.end() == await model.end()

    runner.run(story())


fast = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
slow = settings(fast, max_examples=60)  # a step is a round trip
stories = st.lists(steps, min_size=15, max_size=40)


@fast
@given(stories)
def test_rocksdb_does_what_the_model_does(rocks: Opened, steps: list[tuple[Any, ...]]) -> None:
    compare(rocks, steps)


@slow
@given(stories)
def test_postgres_does_what_the_model_does(postgres: Opened, steps: list[tuple[Any, ...]]) -> None:
    compare(postgres, steps)
