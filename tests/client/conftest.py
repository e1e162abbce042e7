"""Fixtures: a world with storage in memory, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emberfs.client.blocking import Client

from .world import World


@pytest.fixture
def world() -> Iterator[World]:
    made = World().start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def client(world: World) -> Client:
    return world.client()
