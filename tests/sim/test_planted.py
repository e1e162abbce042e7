"""Planted faults are found: by the seeds that found them first, while the healthy code passes the same seeds."""

from __future__ import annotations

import pytest

from .planted import PLANTS
from .soak import fresh_seed, run_many, run_one

SEARCH_MAX = 2000  # fresh seeds within which a fault has to be found

# Fault -> seeds that find it. Where the code draws differently by now they may not any more; `python -m emberfs.tests.sim --plant NAME`
# finds others.
FOUND_BY: dict[str, tuple[int, ...]] = {}


def test_every_fault_has_its_seeds() -> None:
    assert sorted(FOUND_BY) == sorted(PLANTS)


@pytest.mark.parametrize("plant", sorted(FOUND_BY))
def test_found_again(plant: str) -> None:
    outcomes = [run_one("chains", seed, plant) for seed in FOUND_BY[plant]]
    assert any(outcome.failure for outcome in outcomes), f"none of its seeds finds {plant} any more"
    for seed in FOUND_BY[plant]:
        healthy = run_one("chains", seed)
        assert not healthy.failure, healthy.story


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_found_by_fresh_seeds(plant: str) -> None:
    first = fresh_seed()
    for outcome in run_many("chains", first, lambda runs, _: runs >= SEARCH_MAX, plant):
        if outcome.failure:
            return
    raise AssertionError(f"{plant} is not found by the {SEARCH_MAX} seeds from {first} on")
