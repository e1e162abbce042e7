"""Chaos over servers on this machine: storage processes are killed, stopped and started again, and so is the metadata server."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emberfs.deploy.local import LocalCluster

from .aftermath import await_whole_chains, finish
from .faults import draw_process_faults, run_round
from .load import Load, seed_of_this_run, soak_seconds
from .local import Local

MakeCluster = Callable[..., LocalCluster]
ROUNDS = 3
TARGETS = 2  # of each node: as many chains
STOP_SECONDS_MAX = 30.0  # in a soak


@pytest.fixture
def load_of(tmp_path: Path) -> Iterator[Callable[[Local, int], Load]]:
    made: list[Load] = []

    def make(cluster: Local, seed: int) -> Load:
        made.append(Load(cluster.url, tmp_path, seed))
        made[-1].prepare()
        made[-1].start()
        return made[-1]

    yield make
    for load in made:
        load.kill()


@pytest.mark.timeout(400)
def test_killed_and_stopped_at_random(
    make_cluster: MakeCluster, load_of: Callable[[Local, int], Load], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.2")  # a lease of one second
    seed = seed_of_this_run()
    chance = random.Random(seed)
    cluster = Local(make_cluster(nodes=3, replicas=3, targets=TARGETS, kv_capacity=0))
    load = load_of(cluster, seed)
    for _ in range(ROUNDS):
        run_round(chance, draw_process_faults(cluster, chance), load.check)
        if chance.random() < 0.5:
            await_whole_chains(cluster.url)
    finish(cluster, load)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_killed_and_stopped_for_as_long_as_asked(
    make_cluster: MakeCluster, load_of: Callable[[Local, int], Load], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the leases that storage processes have, and stops of up to half a minute. Clients have longer ones: the metadata server may be
    killed again as soon as it is back, and none of them is to lose its own."""
    monkeypatch.setenv("EMBERFS_CLIENT_LEASE", "600")
    seed = seed_of_this_run()
    chance = random.Random(seed)
    cluster = Local(make_cluster(nodes=3, replicas=3, targets=TARGETS, kv_capacity=0))
    load = load_of(cluster, seed)
    end = time.monotonic() + soak_seconds()
    while time.monotonic() < end:
        run_round(chance, draw_process_faults(cluster, chance), load.check, STOP_SECONDS_MAX)
        if chance.random() < 0.5:
            await_whole_chains(cluster.url)
            load.advance()
    finish(cluster, load)
