"""Fixtures: each face of the API against one cluster that all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from emberfs.kvcache import aio, blocking

from . import faces


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that do not say how long they wait, as those of adapters, wait long: a machine that stops for a moment is no miss."""
    for module in (blocking, aio):
        monkeypatch.setattr(module, "OPERATION_SECONDS", faces.PATIENCE_SECONDS)


@pytest.fixture(params=faces.FACES)
def face(request: pytest.FixtureRequest, cluster: Any) -> Iterator[Any]:
    with faces.opened(request.param, cluster.url) as made:
        yield made


@pytest.fixture
def kv(cluster: Any) -> Iterator[Any]:
    """The blocking face."""
    with faces.opened("blocking", cluster.url) as made:
        yield made
