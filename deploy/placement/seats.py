"""How many members each disk takes: by capacity, as seats of a parliament are given to parties by their votes.

Files are striped over all chains, so all members hold about the same number of bytes, and the cluster is full when the first disk
is. The highest-averages method (Jefferson, D'Hondt: each seat to the disk with the most bytes per seat, counting the new one)
makes the bytes per seat of the scarcest disk as large as they can be. It has no paradoxes: without a disk the others lose nothing,
so draining moves only what lies on the drained disk; with one more, no other gains.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence

from .model import Disk, InfeasibleError, Request, Standing


def seats_of(request: Request, chains: int, held: Mapping[str, int] | None = None) -> dict[str, int]:
    """Seats by disk for so many chains: `chains` × replicas in all, at most `chains` of one point or domain. Of disks
    with equal claims those that hold a member (`held`, by disk) keep it. Raises InfeasibleError."""
    domain, total = request.domain, chains * request.replicas
    seats = {disk.name: 0 for disk in request.disks if disk.standing is Standing.IN}
    used: Counter[tuple[str, str]] = Counter()
    disks = {disk.name: disk for disk in request.disks}
    heap: list[tuple[float, int, str]] = [_claim(disks[name], 0, held) for name in seats]
    heapq.heapify(heap)
    for _ in range(total):
        while heap:
            disk = disks[heap[0][2]]
            point, place = ("point", disk.point(domain)), ("place", disk.place(domain))
            if seats[disk.name] < disk.seats_max and used[point] < chains and used[place] < chains:
                break
            heapq.heappop(heap)
        else:
            raise InfeasibleError(
                f"{chains} chains of {request.replicas} do not fit: a failure domain takes one member of each, "
                "and the others are full; add disks to the small ones"
            )
        seats[disk.name] += 1
        used[point] += 1
        if place[1] != point[1]:
            used[place] += 1
        heapq.heapreplace(heap, _claim(disk, seats[disk.name], held))
    return seats


def _claim(disk: Disk, seats: int, held: Mapping[str, int] | None) -> tuple[float, int, str]:
    keeps = held is not None and held.get(disk.name, 0) > seats
    return -disk.capacity / (seats + 1), 0 if keeps else 1, disk.name


def chains_that_fit(request: Request) -> int:
    """How many chains give a disk of average capacity `seats_per_disk` members, as far as the domains allow."""
    disks = [disk for disk in request.disks if disk.standing is Standing.IN]
    wanted = min(request.seats_per_disk * len(disks), sum(disk.seats_max for disk in disks)) // request.replicas
    low, high = 0, wanted  # what fits with n chains also fits with fewer
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(request, disks, middle):
            low = middle
        else:
            high = middle - 1
    return low


def _fits(request: Request, disks: Sequence[Disk], chains: int) -> bool:
    by_point: Counter[tuple[str, str]] = Counter()
    for disk in disks:
        by_point[disk.place(request.domain), disk.point(request.domain)] += disk.seats_max
    by_place: Counter[str] = Counter()
    for (place, _), seats in by_point.items():
        by_place[place] += min(seats, chains)
    return sum(min(seats, chains) for seats in by_place.values()) >= chains * request.replicas


def bytes_per_seat(disks: Sequence[Disk], seats: Mapping[str, int]) -> int:
    """What each member may hold before the first disk is full."""
    return min((disk.capacity // seats[disk.name] for disk in disks if seats.get(disk.name)), default=0)
