"""Chains of replica machines, driven through whatever hypothesis finds (chains.py says what there is to find)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emberfs.storage.events import Kind

from .chains import REMOVED_CHUNK, Cluster
from .machines import CLIENT, OTHER

MEMBERS = st.integers(1, 3)
PLACES = st.integers(0, 9)
CHUNKS = st.integers(1, 3)
CLIENTS = st.sampled_from([CLIENT, OTHER])


def act(name: str, *arguments: Any) -> Any:
    return st.tuples(st.just(name), *arguments)


USUAL = [
    act("write", CLIENTS, CHUNKS, MEMBERS),
    act("write", CLIENTS, CHUNKS, st.just(1)),
    act("write", CLIENTS, st.just(REMOVED_CHUNK), MEMBERS, st.sampled_from([Kind.REMOVE, Kind.TRUNCATE])),
    act("advance", MEMBERS, st.integers(1, 4)),
    act("advance", MEMBERS, st.integers(1, 4)),
    act("deliver", PLACES),
    act("deliver", PLACES),
    act("read", MEMBERS, CHUNKS),
    act("read", MEMBERS, CHUNKS),
    act("learn", MEMBERS),
    act("manage"),
    act("tick"),
]
TROUBLE = [
    act("lose", PLACES),
    act("give_up", PLACES),
    act("deliver_twice", PLACES),
    act("crash", MEMBERS),
    act("stop", MEMBERS),
    act("fence", MEMBERS),
    act("wake", MEMBERS),
    act("sync", MEMBERS),
    act("sync", MEMBERS),
    act("heal"),
]


def play(members: int, steps: list[Any]) -> Cluster:
    cluster = Cluster(members)
    for name, *arguments in steps:
        if name == "deliver_twice":
            cluster.deliver(*arguments, twice=True)
        elif name == "heal":
            heal(cluster)
        elif name in ("write", "deliver", "lose", "give_up", "manage", "tick"):
            if name == "write":
                arguments[2] = min(arguments[2], members)
            getattr(cluster, name)(*arguments)
        else:
            getattr(cluster, name)(min(arguments[0], members), *arguments[1:])
    return cluster


def heal(cluster: Cluster) -> None:
    """A quiet while: messages arrive, everybody learns, a sync gets on."""
    cluster.manage()
    for target in cluster.members:
        cluster.wake(target)
        cluster.learn(target)
    for _ in range(3):
        for target in cluster.members:
            cluster.advance(target, 10)
        while cluster.network:
            cluster.deliver(0)
        for target in cluster.members:
            cluster.sync(target)


@pytest.mark.parametrize("members", [1, 2, 3])
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.one_of(*USUAL, *TROUBLE), max_size=120))
def test_every_acknowledged_write_is_on_every_member_once_and_in_one_order(members: int, steps: list[Any]) -> None:
    cluster = play(members, steps)
    cluster.settle()
    cluster.check()
