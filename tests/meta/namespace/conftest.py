"""A fresh namespace on the memory engine, checked against every invariant of the key space when the test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from emberfs.meta.namespace.check import check

from .world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await World().start()
    yield made
    assert await check(made.engine) == []
