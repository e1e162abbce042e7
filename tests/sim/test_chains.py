"""Chains under everything that can go wrong: fresh seeds in every run of the tests, and those that have failed before."""

from __future__ import annotations

import time

import pytest

from .environment import run_seed
from .soak import fresh_seed, run_many, run_one

PARTS = 4  # of the fresh seeds, so that several workers share them
SECONDS = 25.0  # of each part
SEEDS_MIN = 80  # of each part, however long they take
SOAK_SECONDS = 600.0

# Seeds that have failed, and what they had found. The code draws differently by now, so they are other runs than they were then; the
# scenarios in told/ tell the faults themselves.
PAST = {
    219219587392: "a node names what it has, and a replaced disk of its is not among it: the chain was left to it",
    97: "a repair gave up for good when its source could not read for a moment",
    214: "what was forwarded was counted after the payload was given back",
    6093: "the checker: what was under way when power was lost may have its effect twice",
    20354: "a damaged chunk of the tail was compared with what the head had committed before, and given up",
    640910792336: "a retry was recognised by a receipt that a failing disk had not taken",
    50416: "a sync of the version before went on forgetting records that the next one had brought",
    197787578634: "a copy of a registration, which came late, was taken for a new process: its target had stopped, as it seemed",
    197787575747: "the disk was replaced of a member that nobody could do without: it did not serve just then",
    618306999730: "the only copy was damaged: messages that took very long had cost the others their places",
    404283423122: "a write that had failed was told long after everything was healed, and nobody looked after the disk any more",
    404283420771: "a forward that was refused for want of a lease was taken when it came once more: a chunk that was removed came back",
    404283421369: "after the tail had said that a chunk is not there, a member did not ask again whether it may say so",
    777191589589: "what a sync had covered was given up where the disk could not be read after a power loss",
    794376175397: "a sync dropped the receipt by which a live update had just been recognised, and brought no other",
    903853209320: "the checker: the remove of a dead file comes once more, after a write that was under way when the file died",
}


def _run(seconds: float, seeds_min: int) -> None:
    failures = [
        f"seed {outcome.seed}: {outcome.failure}\n{outcome.story}"
        for outcome in run_many("chains", fresh_seed(), lambda runs, spent: runs >= seeds_min and spent >= seconds)
        if outcome.failure
    ]
    assert not failures, "\n".join(failures[:3]) + f"\n{len(failures)} seeds failed"


@pytest.mark.parametrize("part", range(PARTS))
def test_fresh_seeds(part: int) -> None:
    _run(SECONDS, SEEDS_MIN)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS * 2)
def test_many_fresh_seeds() -> None:
    _run(SOAK_SECONDS, SEEDS_MIN)


@pytest.mark.parametrize("seed", PAST)
def test_past_failures(seed: int) -> None:
    outcome = run_one("chains", seed)
    assert not outcome.failure, outcome.story


def test_same_seed_same_run() -> None:
    from .chains import chains

    began = time.monotonic()
    seed = fresh_seed()
    while time.monotonic() - began < 3:
        assert run_seed(chains, seed) == run_seed(chains, seed), f"seed {seed}: two runs differ"
        seed += 1
