"""Planted faults are found: each by a scenario that tells it, by the seeds that found it first, and by fresh seeds in a soak."""

from __future__ import annotations

import pytest

from .planted import PLANTS, planted
from .soak import fresh_seed, run_many, run_one
from .told import FOLDER, play

SEARCH_MAX = 2000  # fresh seeds within which a fault has to be found

# Fault -> the scenario that ends otherwise with it.
TOLD_BY = {
    "commit_before_ack": "newer_at_the_tail",
    "dedupe_forgotten_over_restart": "all_killed_with_a_pending_version",
    "late_forwards_taken": "late_forward",
    "lease_asked_before_the_read_only": "stopped_in_the_middle_of_a_read",
    "manager_does_not_wait": "restarted_first_of_all_that_were_killed",
    "no_chain_version_check": "away_twice",
    "no_lease": "cut_from_the_manager",
    "no_version_check": "newer_at_the_tail",
    "old_sync_counts": "away_twice",
    "pending_read_without_asking": "newer_at_the_tail",
    "pendings_discarded_on_revival": "all_killed_with_a_pending_version",
    "records_forgotten_by_an_older_sync": "records_of_the_sync_before",
    "resync_without_receipts": "not_before_it_is_synced",
    "serve_while_syncing": "not_before_it_is_synced",
    "stopped_manager_goes_on": "a_stopped_manager",
    "sync_without_fdatasync": "a_sync_survives_power_loss",
    "wiped_disk_keeps_its_incarnation": "an_empty_disk_revives_nothing",
}
# Fault -> the first seed from 1 on that found it. Where the code draws differently by now it may be another run, and only the scenario is
# left to find it: `python -m emberfs.tests.sim --plant NAME --first 1` looks for a new one.
FOUND_BY = {
    "commit_before_ack": 1,
    "dedupe_forgotten_over_restart": 149,
    "late_forwards_taken": 248,
    "lease_asked_before_the_read_only": 783,
    "manager_does_not_wait": 63,
    "no_chain_version_check": 1647,
    "no_lease": 75,
    "no_version_check": 5,
    "old_sync_counts": 45,
    "pending_read_without_asking": 307,
    "pendings_discarded_on_revival": 322,
    "records_forgotten_by_an_older_sync": 134,
    "resync_without_receipts": 17,
    "serve_while_syncing": 22,
    "stopped_manager_goes_on": 433,
    "sync_without_fdatasync": 65,
    "wiped_disk_keeps_its_incarnation": 156,
}


def test_every_fault_is_told_and_found() -> None:
    assert sorted(TOLD_BY) == sorted(FOUND_BY) == sorted(PLANTS)


@pytest.mark.parametrize("plant", sorted(TOLD_BY))
def test_told_again(plant: str) -> None:
    """With the fault the scenario raises, or shows something else than what was recorded (and test_told replays) without it."""
    recorded = (FOLDER / f"{TOLD_BY[plant]}.txt").read_text()
    try:
        with planted(plant):
            shown = play(recorded)
    except (TypeError, AttributeError):
        raise  # the fault does not fit into the code any more
    except Exception:
        return
    assert shown != recorded, f"{TOLD_BY[plant]} does not see {plant}"


@pytest.mark.parametrize("plant", sorted(FOUND_BY))
def test_found_again(plant: str) -> None:
    seed = FOUND_BY[plant]
    healthy = run_one("chains", seed)
    assert not healthy.failure, healthy.story
    if not run_one("chains", seed, plant).failure:
        test_told_again(plant)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_found_by_fresh_seeds(plant: str) -> None:
    first = fresh_seed()
    for outcome in run_many("chains", first, lambda runs, _: runs >= SEARCH_MAX, plant):
        if outcome.failure:
            return
    raise AssertionError(f"{plant} is not found by the {SEARCH_MAX} seeds from {first} on")
