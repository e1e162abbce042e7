"""Every engine that is present, behind one fixture: what passes with one must pass with all."""

from __future__ import annotations

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


@pytest.fixture(params=["memory", "rocksdb"])
async def engine(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> AsyncIterator[Engine]:
    made: Engine = (
        MemoryEngine(clock.now) if request.param == "memory" else RocksEngine(str(tmp_path / "kv"), clock.now)
    )
    yield made
    await made.close()
