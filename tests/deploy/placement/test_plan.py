"""New chains: classical designs, capacities, racks, random clusters; judged by checker.py."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberfs.deploy.placement import Disk, Domain, InfeasibleError, Plan, Request, plan
from emberfs.deploy.placement.design import Problem, Search, greedy, lower_bound
from emberfs.deploy.placement.exact import Answer, solve
from emberfs.deploy.placement.model import Standing

from .checker import check_balanced, check_sound, pair_loads, seats

TIB = 1 << 40


def cluster(hosts: int, disks: int = 1, racks: int = 0, capacity: int = TIB) -> list[Disk]:
    return [
        Disk(f"n{h}/{d}", f"n{h}", capacity, rack=f"r{h % racks}" if racks else "")
        for h in range(hosts)
        for d in range(disks)
    ]


def checked(request: Request, seconds: float = 5.0) -> Plan:
    found = plan(request, seconds)
    check_sound(request, found)
    check_balanced(request, found.chains)
    return found


# (points, replicas, chains of a point) -> (chains, chains that each two points share)
DESIGNS = {
    (5, 3, 6): (10, 3),  # 3FS's documented example: 5 nodes, 3 replicas, 6 targets per disk
    (6, 3, 5): (10, 2),
    (7, 3, 3): (7, 1),  # Fano's plane
    (9, 3, 4): (12, 1),  # the affine plane of order 3
    (13, 3, 6): (26, 1),  # a Steiner triple system
    (15, 3, 7): (35, 1),  # Kirkman's schoolgirls
    (13, 4, 4): (13, 1),  # the projective plane of order 3
    (11, 5, 5): (11, 2),  # Paley's biplane
    (16, 4, 5): (20, 1),
}


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_classical_designs_are_found(design: tuple[int, int, int]) -> None:
    """Every two hosts share exactly the same number of chains: r (k − 1) / (v − 1)."""
    points, replicas, each = design
    chains, shared = DESIGNS[design]
    found = checked(Request(cluster(points), replicas, seats_per_disk=each), seconds=60)
    assert (found.figures.chains, found.figures.pair_load_max, found.figures.pair_load_bound) == (
        chains,
        shared,
        shared,
    )
    loads = pair_loads(Request(cluster(points), replicas), found.chains)
    assert set(loads.values()) == {shared} and len(loads) == points * (points - 1) // 2


def test_a_design_that_cannot_be_is_proven_not_to_be() -> None:
    """Six points in chains of three, each in two: pair load 1 would need each point to meet four of five others once; 4 chains."""
    problem = Problem([2] * 6, list(range(6)), 3, 4)
    assert lower_bound(problem) == 1 and solve(problem, 1, 10)[0] is Answer.FOUND  # the Pasch configuration
    tight = Problem([4] * 8, list(range(8)), 4, 8)
    assert lower_bound(tight) == 2 and solve(tight, 1, 10)[0] is Answer.IMPOSSIBLE


def test_search_keeps_degrees_and_domains() -> None:
    problem = Problem([6] * 12, [p % 4 for p in range(12)], 3, 24)
    blocks = greedy(problem, 3)
    search = Search(problem, blocks, 3)
    search.run(lower_bound(problem), 5_000)
    for design in (blocks, search.blocks):
        flat = [point for block in design for point in block]
        assert [flat.count(point) for point in range(12)] == [6] * 12
        assert all(len({point % 4 for point in block}) == 3 for block in design)
    assert search.loads.rows == Search(problem, search.blocks, 0).loads.rows


def test_capacity_decides_how_many_members_a_disk_takes() -> None:
    disks = [*cluster(6, capacity=3 * TIB), *(Disk(f"big{i}/1", f"big{i}", 9 * TIB) for i in range(3))]
    found = checked(Request(disks, 3, seats_per_disk=10))
    taken = seats(Request(disks, 3), found.chains)
    assert {taken[f"n{i}/0"] for i in range(6)} == {6} and {taken[f"big{i}/1"] for i in range(3)} == {18}
    assert found.figures.usable * 3 == found.figures.raw  # nothing is wasted
    assert (
        found.figures.is_optimal and found.figures.pair_load_max == 8
    )  # the counting bound says 5; the solver proves 8


def test_a_host_that_holds_too_much_takes_one_member_of_each_chain() -> None:
    disks = [*cluster(4), Disk("whale/1", "whale", 100 * TIB)]
    found = checked(Request(disks, 2, seats_per_disk=4))
    assert seats(Request(disks, 2), found.chains)["whale/1"] == len(found.chains) == 10


def test_racks_are_domains_and_hosts_share_the_load() -> None:
    request = Request(cluster(24, 4, racks=6), 3, Domain.RACK, seats_per_disk=12)
    found = checked(request)
    assert found.figures.is_optimal and found.figures.disk_pair_load_max <= 2


def test_one_machine_with_several_nodes() -> None:
    disks = [Disk(f"target-{i}", f"storage-{i}", TIB, host="laptop") for i in range(3)]
    with pytest.raises(InfeasibleError, match="3 replicas need as many failure domains"):
        Request(disks, 3)
    found = checked(Request(disks, 3, Domain.NODE, seats_per_disk=4))
    assert len(found.chains) == 4 and found.figures.heads_max == 2


def test_one_replica_and_one_disk() -> None:
    found = checked(Request(cluster(1), 1, seats_per_disk=3))
    assert [chain.members for chain in found.chains] == [("n0/0",)] * 3


def test_slots_and_too_few_of_them() -> None:
    disks = [Disk(f"t{i}", f"n{i}", TIB, seats_max=1) for i in range(7)]
    assert len(checked(Request(disks, 3)).chains) == 2
    with pytest.raises(InfeasibleError, match="do not fit"):
        plan(Request(disks, 3, chains=3))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"replicas": 0}, "replicas"),
        ({"disks": [*cluster(3), *cluster(1)]}, "one name"),
        ({"disks": cluster(3, capacity=0)}, "capacity"),
        ({"domain": Domain.RACK}, "without a rack"),
        ({"disks": [Disk("a", "n", 1, rack="x"), Disk("b", "n", 1, rack="y")], "replicas": 1}, "two racks"),
        ({"seats_per_disk": 10**7}, "at most"),
    ],
)
def test_what_cannot_be_meant_is_refused(broken: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Request(**({"disks": cluster(3), "replicas": 3} | broken))


def test_disks_that_leave_take_nothing() -> None:
    disks = [*cluster(4), Disk("old/1", "old", TIB, standing=Standing.DRAINING)]
    found = checked(Request(disks, 3))
    assert "old/1" not in seats(Request(disks, 3), found.chains) or seats(Request(disks, 3), found.chains)["old/1"] == 0


def test_heads_are_spread() -> None:
    found = checked(Request(cluster(20, 2), 3, seats_per_disk=9))
    heads = [chain.members[0] for chain in found.chains]
    assert max(map(heads.count, heads)) <= 4  # three each would be even


def test_the_same_request_gives_the_same_plan() -> None:
    request = Request(cluster(30, 2), 3, seats_per_disk=8)
    assert plan(request, 0).chains == plan(request, 0).chains


@st.composite
def requests(draw: st.DrawFn) -> Request:
    replicas = draw(st.integers(1, 5))
    racks = draw(st.integers(replicas, 8))
    hosts = [(f"h{r}.{h}", f"r{r}") for r in range(racks) for h in range(draw(st.integers(1, 3)))]
    disks = [
        Disk(
            f"{host}/{d}",
            host,
            draw(st.integers(1, 40)) * (TIB // 4),
            rack=rack,
            seats_max=draw(st.sampled_from([1, 2, 5, 10**5])),
        )
        for host, rack in hosts
        for d in range(draw(st.integers(1, 3)))
    ]
    domain = draw(st.sampled_from(list(Domain)))
    return Request(disks, replicas, domain, draw(st.integers(1, 12)), seed=draw(st.integers(0, 9)))


@settings(max_examples=80, deadline=None)
@given(requests())
def test_any_cluster(request: Request) -> None:
    try:
        found = plan(request, 0)
    except InfeasibleError:
        disks = [disk for disk in request.disks if disk.seats_max]
        assert sum(min(request.seats_per_disk, disk.seats_max) for disk in disks) < request.replicas * 50
        return
    check_sound(request, found)
    check_balanced(request, found.chains)


def test_a_large_cluster_has_an_answer_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    request = Request(cluster(500, 2), 3, seats_per_disk=30)
    begin = time.thread_time()
    found = plan(request, 0)
    seconds = time.thread_time() - begin
    check_sound(request, found)
    assert found.figures.chains == 10_000 and found.figures.pair_load_max <= found.figures.pair_load_bound + 1
    with capsys.disabled():
        print(f" [10,000 chains over 500 hosts: {seconds:.1f} s] ", end="")
