"""A fresh namespace, checked against every invariant of the key space when the test is over: on the memory engine, with --soak on
PostgreSQL too."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from emberfs.meta.kv.engine import Engine
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace.check import check

from .world import ManualClock, World


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.soak)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    clock = ManualClock()
    engine: Engine = MemoryEngine(clock.now)
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        from emberfs.meta.kv.postgres import PostgresEngine

        engine = PostgresEngine(url, clock.now)
    made = await World(engine, clock).start()
    yield made
    assert await check(made.engine) == []
    await engine.close()
