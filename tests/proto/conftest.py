"""Fixtures that several modules of this folder use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .pieces import (
    SECRET,
    Running,
    running,
    unix_address,
)


@pytest.fixture(params=["blocking", "aio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Running]:
    with running(unix_address(tmp_path), "tcp:127.0.0.1:0", secret=SECRET) as server:
        yield server
