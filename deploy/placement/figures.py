"""What a placement is worth, in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from .design import Problem, lower_bound
from .model import Chain, Figures, Move, Request, Standing
from .seats import bytes_per_seat


def figures_of(
    request: Request,
    chains: Sequence[Chain],
    bound: int | None = None,
    moves: Sequence[Move] = (),
    moves_bound: int = 0,
) -> Figures:
    """Over the disks that take members."""
    disks = {disk.name: disk for disk in request.disks if disk.standing is Standing.IN}
    points = {name: disk.point(request.domain) for name, disk in disks.items()}
    seats = Counter(dict.fromkeys(disks, 0))
    heads, pairs, disk_pairs = Counter[str](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for chain in chains:
        members = sorted(name for name in chain.members if name in disks)
        seats.update(members)
        heads.update(chain.members[:1])
        disk_pairs.update(combinations(members, 2))
        pairs.update(combinations(sorted({points[name] for name in members}), 2))
    return Figures(
        chains=len(chains),
        points=len(set(points.values())),
        seats_min=min(seats.values()),
        seats_max=max(seats.values()),
        pair_load_max=max(pairs.values(), default=0),
        pair_load_bound=bound_for(request, seats, len(chains)) if bound is None else bound,
        disk_pair_load_max=max(disk_pairs.values(), default=0),
        heads_max=max(heads.values(), default=0),
        usable=bytes_per_seat(list(disks.values()), seats) * len(chains),
        raw=sum(disk.capacity for disk in disks.values()),
        moves=len(moves),
        moves_bound=moves_bound,
        bytes_to_move=sum(move.size for move in moves),
    )


def bound_for(request: Request, seats: Counter[str], chains: int) -> int:
    """The lower bound of the worst pair load for these seats."""
    need: Counter[str] = Counter()
    places: dict[str, str] = {}
    for disk in request.disks:
        if disk.standing is Standing.IN:
            need[disk.point(request.domain)] += seats[disk.name]
            places[disk.point(request.domain)] = disk.place(request.domain)
    names = sorted(set(places.values()))
    problem = Problem(list(need.values()), [names.index(places[p]) for p in need], request.replicas, chains)
    return lower_bound(problem)
