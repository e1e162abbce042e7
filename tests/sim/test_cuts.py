"""Storage nodes that are cut off from each other alone: no update waits for long, and everything else holds."""

from __future__ import annotations

from .soak import run_many

SECONDS = 10.0
SEEDS_MIN, SEEDS_MAX = 20, 100


def test_seeds() -> None:
    def enough(runs: int, spent: float) -> bool:
        return runs >= SEEDS_MAX or (runs >= SEEDS_MIN and spent >= SECONDS)

    outcomes = run_many("cuts", 1, enough)
    failures = [f"seed {outcome.seed}: {outcome.failure}\n{outcome.story}" for outcome in outcomes if outcome.failure]
    assert not failures, "\n".join(failures[:3])
