"""Wrong data under eviction, kill -9 and concurrent overwrite: none. `--soak` makes it ten minutes."""

from __future__ import annotations

import os
import random

import pytest

from .soak import soak

SECONDS = 20.0


def seed() -> int:
    return int(os.environ.get("EMBERFS_KV_SEED", "0")) or random.randrange(1 << 30)


def run(seconds: float) -> None:
    number = seed()
    found = soak(seconds, number)
    assert not found["wrong"], f"EMBERFS_KV_SEED={number}: {found}"
    assert found["kills"] >= 1, found
    assert found["get 65536"] > 100, found
    assert found["put 65536"] > 100, found


def test_no_wrong_data() -> None:
    run(SECONDS)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_no_wrong_data_for_long() -> None:
    run(600.0)
