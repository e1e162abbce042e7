"""Fixtures: each face of the API against one cluster that all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from . import faces


@pytest.fixture(params=faces.FACES)
def face(request: pytest.FixtureRequest, cluster: Any) -> Iterator[Any]:
    with faces.opened(request.param, cluster.url) as made:
        yield made


@pytest.fixture
def kv(cluster: Any) -> Iterator[Any]:
    """The blocking face."""
    with faces.opened("blocking", cluster.url) as made:
        yield made
