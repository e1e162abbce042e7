"""Every engine that is present, behind one fixture: what passes with one must pass with all."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from emberfs.meta.kv.engine import Engine
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.kv.rocksdb import RocksEngine


class Clock:
    """Time that stands until a test moves it; chance that is always the same; sleeping only counts."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def random(self) -> float:
        return 0.5

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _open(kind: str, request: pytest.FixtureRequest, clock: Clock, folder: Path) -> Engine:
    if kind == "memory":
        return MemoryEngine(clock.now)
    if kind == "rocksdb":
        return RocksEngine(str(folder / "kv"), clock.now)
    if kind == "postgres":
        url = request.getfixturevalue("postgres_url")
        from emberfs.meta.kv.postgres import PostgresEngine

        return PostgresEngine(url, clock.now)
    cluster_file = os.environ.get("FDB_CLUSTER_FILE")
    if not cluster_file:
        pytest.skip("FoundationDB is not here: FDB_CLUSTER_FILE is not set")
    from emberfs.meta.kv.fdb import FoundationEngine

    return FoundationEngine(cluster_file, clock.now, prefix=f"emberfs-test/{uuid.uuid4()}/".encode())


@pytest.fixture(params=["memory", "rocksdb", "postgres", "fdb"])
async def engine(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> AsyncIterator[Engine]:
    made = _open(request.param, request, clock, tmp_path)
    yield made
    await made.close()
