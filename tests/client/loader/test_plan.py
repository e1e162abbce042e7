"""Each sample exactly once an epoch, whoever reads what and however often it was interrupted."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberfs.client.loader.permutation import Permutation
from emberfs.client.loader.plan import Plan, Share


@settings(max_examples=50)
@given(st.integers(1, 3000), st.integers(), st.integers(0, 100))
def test_a_permutation_has_every_number_once(count: int, seed: int, epoch: int) -> None:
    shuffled = Permutation(count, seed % (1 << 64), epoch)(np.arange(count))
    assert sorted(shuffled.tolist()) == list(range(count))


@given(st.integers(1, 1 << 62), st.integers(0, 1 << 32))
def test_a_huge_permutation_stays_within_its_numbers_and_repeats_none(count: int, seed: int) -> None:
    first = seed % max(1, count - 1000)
    some = Permutation(count, seed)(np.arange(first, min(count, first + 1000)))
    assert int(some.max()) < count
    assert len(set(some.tolist())) == len(some)


def test_a_permutation_is_the_same_everywhere_and_another_with_each_seed_and_epoch() -> None:
    assert Permutation(1000, 7, 3)(range(8)).tolist() == GOLDEN
    whole = [tuple(Permutation(1000, seed, epoch)(range(20)).tolist()) for seed in range(20) for epoch in range(20)]
    assert len(set(whole)) == 400


GOLDEN = [106, 562, 962, 749, 173, 906, 973, 684]


def test_a_shuffle_spreads_evenly_and_has_no_runs() -> None:
    count = 100_000
    shuffled = Permutation(count, 1)(range(count)).astype(np.int64)
    # Of 100 stretches of the epoch each has about as much of each hundredth of the data set: chi-square, 10,000 cells of 10.
    cells = np.bincount(np.arange(count) // 1000 * 100 + shuffled // 1000, minlength=10_000)
    chi_square = float(((cells - 10) ** 2 / 10).sum())
    assert 9_000 < chi_square < 10_600
    assert (np.abs(np.diff(shuffled)) == 1).sum() < 12  # two are expected by chance
    assert abs(np.corrcoef(np.arange(count), shuffled)[0, 1]) < 0.02


FEW = settings(max_examples=50, deadline=None)
worlds = st.tuples(st.integers(1, 5), st.integers(1, 4))


@FEW
@given(
    count=st.integers(0, 400),
    batch=st.integers(1, 33),
    world=worlds,
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
    cuts=st.lists(st.integers(0, 9), max_size=4),
)
def test_each_sample_exactly_once_over_ranks_workers_and_resumes(
    count: int, batch: int, world: tuple[int, int], shuffle: bool, epoch: int, cuts: list[int]
) -> None:
    ranks, workers = world
    seen: Counter[int] = Counter()
    steps = set()
    for rank in range(ranks):
        taken = 0
        for worker in range(workers):
            share = Share(rank, ranks, worker, workers)
            plan = Plan(count, batch, seed=5, shuffle=shuffle, share=share)
            plan.begin_epoch(epoch)
            stops = list(cuts)
            while True:
                numbers = plan.take()
                if numbers is None:
                    break
                taken += 1
                assert numbers.size <= batch
                seen.update(numbers.tolist())
                if stops and taken % (stops[0] + 1) == 0:
                    stops.pop(0)
                    state = json.loads(json.dumps(plan.state_dict()))
                    plan = Plan(count, batch, seed=99, shuffle=not shuffle, share=share)
                    plan.load_state_dict(state)
        steps.add(taken)
    assert seen == Counter(range(count))
    assert len(steps) == 1  # every rank takes as many steps


@FEW
@given(
    count=st.integers(0, 400),
    legs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(0, 6)), min_size=1, max_size=5),
)
def test_an_epoch_goes_on_with_other_ranks_and_other_batches(count: int, legs: list[tuple[int, int, int]]) -> None:
    seen: Counter[int] = Counter()
    state = None
    for number, (ranks, batch, steps) in enumerate(legs):
        plans = [Plan(count, batch, seed=5, share=Share(rank, ranks)) for rank in range(ranks)]
        for plan in plans:
            if state is not None:
                plan.load_state_dict(state)
            for _ in range(steps if number < len(legs) - 1 else count + 1):
                if (numbers := plan.take()) is None:
                    break
                seen.update(numbers.tolist())
        state = plans[0].state_dict()
    assert seen == Counter(range(count))


def test_the_last_incomplete_step_can_be_left_out() -> None:
    plans = [Plan(107, 10, drop_last=True, share=Share(rank, 2)) for rank in range(2)]
    taken = [plan.take() for plan in plans for _ in range(5)]
    assert [len(numbers) for numbers in taken if numbers is not None] == [10] * 10
    assert all(plan.take() is None for plan in plans)


def test_the_order_does_not_depend_on_the_workers() -> None:
    alone = Plan(1000, 16, seed=3)
    shared = [Plan(1000, 16, seed=3, share=Share(0, 1, worker, 3)) for worker in range(3)]
    for step in range(alone.steps):
        expected, found = alone.take(), shared[step % 3].take()
        assert expected is not None and found is not None
        assert expected.tolist() == found.tolist()


def test_what_does_not_fit_is_refused() -> None:
    state = Plan(100, 10, share=Share(0, 1, 1, 2)).state_dict()
    with pytest.raises(ValueError, match="worker 1 of 2"):
        Plan(100, 10).load_state_dict(state)
    with pytest.raises(ValueError, match="100 samples"):
        Plan(101, 10).load_state_dict(state)
    with pytest.raises(ValueError, match="version"):
        Plan(100, 10).load_state_dict({**state, "version": 2})
    with pytest.raises(ValueError):
        Share(2, 2)
