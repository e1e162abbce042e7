"""The same design as an integer programme, solved by HiGHS.

One integer variable per possible chain (every set of points in different domains) says how often it is taken. Compared with
one variable per point and chain, nothing has to be linearised, and the solver does not see the same design once per order of
its chains: classical designs of a dozen points take a second instead of minutes. The number of sets bounds what it can be used for.
"""

from __future__ import annotations

import enum
from itertools import combinations
from math import comb
from typing import Any

from .design import Block, Problem

SETS_MAX = 8000  # variables; more take longer than anybody waits


class Answer(enum.Enum):
    FOUND = "found"
    IMPOSSIBLE = "impossible"  # proven
    UNKNOWN = "unknown"  # out of time


def is_small_enough(problem: Problem) -> bool:
    return comb(len(problem.need), problem.replicas) <= SETS_MAX


def solve(problem: Problem, limit: int, seconds: float) -> tuple[Answer, list[Block]]:
    """A design in which no two points share more than `limit` chains, within about that many seconds on one thread."""
    import highspy  # 0.2 s, and only large clusters come here

    domain, points = problem.domain, len(problem.need)
    sets = [s for s in combinations(range(points), problem.replicas) if len({domain[p] for p in s}) == problem.replicas]
    pairs = {pair: points + row for row, pair in enumerate(combinations(range(points), 2))}
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(sets), points + len(pairs)
    lp.col_cost_, lp.col_lower_ = [0.0] * len(sets), [0.0] * len(sets)
    lp.col_upper_ = [float(limit if problem.replicas > 1 else problem.chains)] * len(sets)
    lp.row_lower_ = [*map(float, problem.need), *[0.0] * len(pairs)]
    lp.row_upper_ = [*map(float, problem.need), *[float(limit)] * len(pairs)]
    starts, rows = [0], []
    for members in sets:
        rows += [*members, *(pairs[pair] for pair in combinations(members, 2))]
        starts.append(len(rows))
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = starts, rows, [1.0] * len(rows)
    lp.integrality_ = [highspy.HighsVarType.kInteger] * len(sets)
    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    for option, value in (
        ("output_flag", False),
        ("time_limit", seconds),
        ("threads", 1),
        ("mip_max_improving_sols", 1),
    ):
        solver.setOptionValue(option, value)
    solver.passModel(lp)
    solver.run()
    if solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
        return Answer.IMPOSSIBLE, []
    if solver.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Answer.UNKNOWN, []
    counts = [round(value) for value in solver.getSolution().col_value]
    blocks = [list(members) for members, count in zip(sets, counts, strict=True) for _ in range(count)]
    return Answer.FOUND, blocks
