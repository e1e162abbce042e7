"""Fixtures that several modules of this folder use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..proto.conftest import kind
from ..proto.pieces import Pair, paired

__all__ = ["kind", "pair"]


@pytest.fixture
def pair(kind: str, tmp_path: Path) -> Iterator[Pair]:
    with paired("rdma", kind, tmp_path) as made:
        yield made
