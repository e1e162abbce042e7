"""Which points share a chain: a block design with small pair loads, by greedy choice and local search.

A problem is given by how many chains each point takes part in (`need`), the domain that it lies in, and the length of chains.
Greedy is O(chains) and good; the search swaps members of two chains to bring the worst pairs down. Both are deterministic.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

CANDIDATES_MAX = 64  # points that greedy compares for each member


class Problem(NamedTuple):
    need: Sequence[int]  # chains by point; together chains × replicas
    domain: Sequence[int]  # by point
    replicas: int
    chains: int


Block = list[int]  # the points of one chain


class PairLoads:
    """How many chains each two points share."""

    def __init__(self, points: int, blocks: Sequence[Block] = ()) -> None:
        self.rows = [array("I", bytes(4 * points)) for _ in range(points)]
        for block in blocks:
            self.add(block)

    def add(self, block: Sequence[int]) -> None:
        for x, y in combinations(block, 2):
            self.rows[x][y] += 1
            self.rows[y][x] += 1

    def highest(self) -> int:
        return max(map(max, self.rows), default=0)


def lower_bound(problem: Problem) -> int:
    """No design has a smaller worst pair load: each point shares need × (replicas − 1) places with the points outside its domain,
    at most one per chain with those of one domain."""
    return max((_bound_of(problem, x) for x in _kinds(problem)), default=0)


def _kinds(problem: Problem) -> list[int]:
    """One point of each kind: points with the same need in domains of the same size have the same bound."""
    sizes: dict[int, list[int]] = {}
    for point, domain in enumerate(problem.domain):
        sizes.setdefault(domain, []).append(problem.need[point])
    kinds = {(problem.need[x], tuple(sorted(sizes[problem.domain[x]]))): x for x in range(len(problem.need))}
    return list(kinds.values())


def _bound_of(problem: Problem, x: int) -> int:
    need = problem.need[x]
    places = need * (problem.replicas - 1)
    others: dict[int, list[int]] = {}
    for y, domain in enumerate(problem.domain):
        if domain != problem.domain[x]:
            others.setdefault(domain, []).append(problem.need[y])
    low, high = 0, need
    while low < high:
        load = (low + high) // 2
        if sum(min(need, sum(min(load, n) for n in needs)) for needs in others.values()) >= places:
            high = load
        else:
            low = load + 1
    return low


def greedy(problem: Problem, seed: int) -> list[Block]:
    """One chain after the other: of the points that still need most, those that have shared least. A domain that needs all
    remaining chains is in each, so it always works out."""
    order = list(range(len(problem.need)))
    random.Random(seed).shuffle(order)  # noqa: S311 -- any arbitrary order will do
    left = list(problem.need)
    done = [0.0 if need else 1.0 for need in problem.need]  # share of its chains that each point is in
    domain_left = [0] * (max(problem.domain) + 1)
    for point, domain in enumerate(problem.domain):
        domain_left[domain] += left[point]
    loads = PairLoads(len(order))
    blocks = []
    for remaining in range(problem.chains, 0, -1):
        order.sort(key=done.__getitem__)  # few have moved since the last time
        tight = max(domain_left) >= remaining
        due = {domain for domain, count in enumerate(domain_left) if count >= remaining} if tight else set()
        block = _next_block(problem, order, left, due, remaining, loads)
        for point in block:
            left[point] -= 1
            done[point] = 1 - left[point] / problem.need[point]
            domain_left[problem.domain[point]] -= 1
        loads.add(block)
        blocks.append(block)
    return blocks


def _next_block(
    problem: Problem, order: Sequence[int], left: Sequence[int], due: set[int], remaining: int, loads: PairLoads
) -> Block:
    block: Block = []
    used: set[int] = set()
    while len(block) < problem.replicas:
        waiting = due - used
        free = problem.replicas - len(block)
        candidates = []
        for point in order:
            domain = problem.domain[point]
            if left[point] and domain not in used and (domain in waiting or free > len(waiting)):
                candidates.append(point)
                if len(candidates) == CANDIDATES_MAX or not block:
                    break
        best = _cheapest(candidates, block, loads)
        block.append(best)
        used.add(problem.domain[best])
    return block


def _cheapest(candidates: Sequence[int], block: Block, loads: PairLoads) -> int:
    """The candidate whose worst pair load with the block is smallest, then the sum of all; the first of equals."""
    if not block:
        return candidates[0]
    rows = [loads.rows[point] for point in block]
    if len(rows) == 1:
        return min(candidates, key=rows[0].__getitem__)
    costs = [(max(shared), sum(shared)) for shared in ([row[point] for row in rows] for point in candidates)]
    return candidates[costs.index(min(costs))]


class Search:
    """Swaps members of two chains until no pair shares more than `limit`, or the steps are used up."""

    def __init__(self, problem: Problem, blocks: Sequence[Block], seed: int) -> None:
        self.problem = problem
        self.blocks = [list(block) for block in blocks]
        self.loads = PairLoads(len(problem.need), self.blocks)
        self._random = random.Random(seed)  # noqa: S311 -- any arbitrary choice will do
        self._with = [set[int]() for _ in problem.need]  # blocks of each point
        for number, block in enumerate(self.blocks):
            for point in block:
                self._with[point].add(number)

    def run(self, limit: int, steps: int) -> bool:
        """Whether it got there. The blocks are a valid design at any time."""
        rows = self.loads.rows
        bad = [(x, y) for x, row in enumerate(rows) for y in range(x) if row[y] > limit]
        for _ in range(steps):
            while bad:
                place = self._random.randrange(len(bad))
                x, y = bad[place]
                if rows[x][y] > limit:
                    break
                bad[place] = bad[-1]
                bad.pop()
            if not bad:
                return True
            if self._random.random() < 0.5:
                x, y = y, x
            self._swap_away(x, y, limit, bad)
        return not any(load > limit for row in rows for load in row)

    def _swap_away(self, x: int, y: int, limit: int, bad: list[tuple[int, int]]) -> None:
        """Give x's place in a chain with y to another point, which gives x one of its own, unless that makes things worse."""
        pick = self._random
        one = pick.choice(sorted(self._with[x] & self._with[y]))
        other = pick.randrange(len(self.blocks))
        first, second = self.blocks[one], self.blocks[other]
        if x in second:
            return
        z = pick.choice(second)
        if z in first or not self._may(first, x, z) or not self._may(second, z, x):
            return
        rest, others = [p for p in first if p != x], [p for p in second if p != z]
        rows = self.loads.rows
        lost = sum(rows[x][p] > limit for p in rest) + sum(rows[z][p] > limit for p in others)
        gained = sum(rows[z][p] >= limit for p in rest) + sum(rows[x][p] >= limit for p in others)
        if gained > lost:
            return
        for a, mates, step in ((x, rest, -1), (z, others, -1), (z, rest, 1), (x, others, 1)):
            for p in mates:
                rows[a][p] += step
                rows[p][a] += step
                if step > 0 and rows[a][p] > limit:
                    bad.append((a, p))
        first[first.index(x)], second[second.index(z)] = z, x
        self._with[x] ^= {one, other}
        self._with[z] ^= {one, other}

    def _may(self, block: Block, leaves: int, comes: int) -> bool:
        domain = self.problem.domain
        return domain[leaves] == domain[comes] or all(domain[p] != domain[comes] for p in block)
