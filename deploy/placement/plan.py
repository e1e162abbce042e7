"""Chains for new disks: how many, over which hosts, on which disks, in which order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from .design import Block, Problem, Search, greedy, lower_bound
from .exact import Answer, is_small_enough, solve
from .figures import figures_of
from .model import Chain, Disk, InfeasibleError, Plan, Request, Standing
from .seats import chains_that_fit, seats_of

SECONDS_DEFAULT = 10.0  # for improving the greedy answer
STEPS_MAX = 200_000  # of the local search, for each pair load that it tries
STEPS_AT_ONCE = 2_000  # between looks at the clock
SEARCH_SHARE = 0.4  # of the time for the local search, the rest is the solver's


def plan(request: Request, seconds: float = SECONDS_DEFAULT) -> Plan:
    """Chains that use every disk by its capacity and spread recovery as evenly as can be found within about `seconds` (0: the
    greedy answer at once). Raises InfeasibleError when there are too few disks or domains."""
    disks = [disk for disk in request.disks if disk.standing is Standing.IN]
    chains = request.chains or chains_that_fit(request)
    if not chains:
        raise InfeasibleError(f"{len(disks)} disks do not give a single chain of {request.replicas}")
    seats = seats_of(request, chains)
    points = sorted({disk.point(request.domain) for disk in disks})
    problem = _problem(request, disks, points, seats, chains)
    blocks, method, bound = best_design(problem, request.seed, seconds)
    made = _ordered(
        _on_disks(request, disks, points, seats, blocks), seats, {d.name: d.point(request.domain) for d in disks}
    )
    found = tuple(Chain(members) for members in made)
    unused = [disk.name for disk in disks if not seats[disk.name]]
    notes = (
        [f"no chain uses {', '.join(unused)}: too small beside the others, or their failure domain is full"]
        if unused
        else []
    )
    return Plan(found, (), figures_of(request, found, bound), method, tuple(notes))


def _problem(
    request: Request, disks: Sequence[Disk], points: Sequence[str], seats: dict[str, int], chains: int
) -> Problem:
    number = {name: i for i, name in enumerate(points)}
    need, places = [0] * len(points), [""] * len(points)
    for disk in disks:
        point = number[disk.point(request.domain)]
        need[point] += seats[disk.name]
        places[point] = disk.place(request.domain)
    names = sorted(set(places))
    return Problem(need, [names.index(place) for place in places], request.replicas, chains)


def best_design(problem: Problem, seed: int, seconds: float) -> tuple[list[Block], str, int]:
    """The best design that is found in time, how it was found, and the worst pair load that none can be below: each method goes on
    where the one before stopped, until that is met."""
    begin = time.monotonic()
    search = Search(problem, greedy(problem, seed), seed)
    method, load, bound = "greedy", search.loads.highest(), lower_bound(problem)
    best = [list(block) for block in search.blocks]
    while load > bound and seconds > 0 and _reach(search, load - 1, begin + seconds * SEARCH_SHARE):
        best, method = [list(block) for block in search.blocks], "search"
        load = search.loads.highest()
    if seconds > 0 and problem.replicas > 1 and is_small_enough(problem):
        for limit in range(bound, load):
            rest = (begin + seconds - time.monotonic()) / (load - limit)
            answer, blocks = solve(problem, limit, rest) if rest > 0 else (Answer.UNKNOWN, [])
            if answer is Answer.FOUND:
                return blocks, "exact", bound
            if answer is Answer.IMPOSSIBLE and bound == limit:
                bound = limit + 1
    return best, method, bound


def _reach(search: Search, limit: int, deadline: float) -> bool:
    for _ in range(0, STEPS_MAX, STEPS_AT_ONCE):
        if search.run(limit, STEPS_AT_ONCE):
            return True
        if time.monotonic() > deadline:
            return False
    return False


def _on_disks(
    request: Request, disks: Sequence[Disk], points: Sequence[str], seats: dict[str, int], blocks: Sequence[Block]
) -> list[list[str]]:
    """Each point's places go to its disks, so that two disks share as few chains as possible too."""
    of_point: dict[str, list[Disk]] = {}
    for disk in disks:
        of_point.setdefault(disk.point(request.domain), []).append(disk)
    left = dict(seats)
    shared: Counter[tuple[str, str]] = Counter()
    chains = []
    for block in blocks:
        chain: list[str] = []
        for point in block:
            free = [disk.name for disk in of_point[points[point]] if left[disk.name]]
            best = min(
                free,
                key=lambda name: (
                    max((shared[name, other] for other in chain), default=0),
                    -left[name] / seats[name],
                    name,
                ),
            )
            for other in chain:
                shared[best, other] += 1
                shared[other, best] += 1
            left[best] -= 1
            chain.append(best)
        chains.append(chain)
    return chains


def _ordered(chains: Sequence[Sequence[str]], seats: dict[str, int], points: dict[str, str]) -> list[tuple[str, ...]]:
    """Every point leads its share of the chains, and so does every disk of it: the head is the member with the most to do."""
    led: Counter[str] = Counter()  # by point, and by disk
    places: Counter[str] = Counter(dict(seats))
    for name, count in seats.items():
        places["point " + points[name]] += count
    ordered = []
    for chain in chains:
        head = min(chain, key=lambda name: (*(led[x] / places[x] for x in ("point " + points[name], name)), name))
        led.update((head, "point " + points[head]))
        ordered.append((head, *(name for name in chain if name != head)))
    return ordered
