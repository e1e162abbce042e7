"""Looks at a finished placement from outside, with nothing but the disks and the chains: written without the planner's code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from emberfs.deploy.placement import Chain, Disk, Domain, Plan, Request


def place(disk: Disk, domain: Domain) -> str:
    host = disk.host or disk.node
    return {Domain.NODE: disk.node, Domain.HOST: host, Domain.RACK: disk.rack}[domain]


def point(disk: Disk, domain: Domain) -> str:
    return disk.node if domain is Domain.NODE else disk.host or disk.node


def seats(request: Request, chains: Sequence[Chain]) -> Counter[str]:
    count = Counter({disk.name: 0 for disk in request.disks})
    for chain in chains:
        count.update(chain.members)
    return count


def pair_loads(request: Request, chains: Sequence[Chain]) -> Counter[tuple[str, str]]:
    points = {disk.name: point(disk, request.domain) for disk in request.disks}
    loads: Counter[tuple[str, str]] = Counter()
    for chain in chains:
        loads.update(combinations(sorted(points[name] for name in chain.members), 2))
    return loads


def check_sound(request: Request, plan: Plan) -> None:
    """Lengths, domains, seats, and figures that are true."""
    disks = {disk.name: disk for disk in request.disks}
    for chain in plan.chains:
        assert len(chain.members) == request.replicas
        assert len({place(disks[name], request.domain) for name in chain.members}) == request.replicas
        assert all(disks[name].standing.value == "in" for name in chain.members)
    taken = seats(request, plan.chains)
    staying = [disk for disk in request.disks if disk.standing.value == "in"]
    assert all(taken[disk.name] <= disk.seats_max for disk in staying)
    figures = plan.figures
    assert figures.chains == len(plan.chains)
    assert (figures.seats_min, figures.seats_max) == (
        min(taken[d.name] for d in staying),
        max(taken[d.name] for d in staying),
    )
    assert figures.pair_load_max == max(pair_loads(request, plan.chains).values(), default=0)
    assert figures.pair_load_bound <= figures.pair_load_max
    per_member = min((d.capacity // taken[d.name] for d in staying if taken[d.name]), default=0)
    assert figures.usable == per_member * len(plan.chains) <= figures.raw
    assert figures.bytes_to_move == sum(move.size for move in plan.moves)


def check_balanced(request: Request, chains: Sequence[Chain]) -> None:
    """No disk can give a seat to another so that the fuller of the two is less full, unless limits of the other forbid it."""
    taken, total = seats(request, chains), len(chains)
    staying = [disk for disk in request.disks if disk.standing.value == "in"]
    on_point, on_place = Counter[str](), Counter[str]()
    for disk in staying:
        on_point[point(disk, request.domain)] += taken[disk.name]
        on_place[place(disk, request.domain)] += taken[disk.name]
    for giver in staying:
        for taker in staying:
            same_point = point(giver, request.domain) == point(taker, request.domain)
            same_place = place(giver, request.domain) == place(taker, request.domain)
            full = (
                taken[taker.name] >= taker.seats_max
                or (on_point[point(taker, request.domain)] >= total and not same_point)
                or (on_place[place(taker, request.domain)] >= total and not same_place)
            )
            if taken[giver.name] and not full:
                assert taken[giver.name] * taker.capacity <= (taken[taker.name] + 1) * giver.capacity, (giver, taker)


def check_moves(request: Request, before: Sequence[Chain], plan: Plan) -> None:
    """The moves lead from one to the other; chains keep their ids and their other members in place."""
    after = {chain.id: [*chain.members, *[""] * (request.replicas - len(chain.members))] for chain in before}
    for move in plan.moves:
        slots = after[move.chain]
        slots[slots.index(move.source)] = (
            "\0" + move.target
        )  # a disk may come and go in one chain: no order of moves is implied
    for chain in plan.chains:
        assert [name.lstrip("\0") for name in after[chain.id]] == list(chain.members)
    assert plan.figures.moves == len(plan.moves) >= plan.figures.moves_bound
