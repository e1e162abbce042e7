"""Pytest plug-in for runs that have little time: of a test's cases every other one, so that drivers and sizes take turns.

Where the drivers go about things in different ways, both stay.
"""

from __future__ import annotations

from collections import defaultdict

import pytest

ALL_CASES = (
    "abandoned",
    "no_answer_in_time",
    "too_late",
    "large_bulk_both_ways",
    "bytes_are_right",
    "queue_pair",
    "given_up",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and not any(part in item.name for part in ALL_CASES):
            cases[f"{item.path}::{item.originalname}"].append(item)
    out = [
        item
        for turn, found in enumerate(found for found in cases.values() if len(found) > 1)
        for item in found[1 - turn % 2 :: 2]
    ]
    config.hook.pytest_deselected(items=out)
    gone = set(out)
    items[:] = [item for item in items if item not in gone]
