"""Storage nodes that are cut off from each other alone, in fresh seeds: no update waits for long, and everything else holds."""

from __future__ import annotations

from .soak import fresh_seed, run_many

SECONDS = 10.0
SEEDS_MIN = 20


def test_fresh_seeds() -> None:
    outcomes = run_many("cuts", fresh_seed(), lambda runs, spent: runs >= SEEDS_MIN and spent >= SECONDS)
    failures = [f"seed {outcome.seed}: {outcome.failure}\n{outcome.story}" for outcome in outcomes if outcome.failure]
    assert not failures, "\n".join(failures[:3])
