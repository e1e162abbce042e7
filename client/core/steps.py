"""Which versions of an inode this client has made itself. Pure.

A change that was made here leads from one version to the next, and its reply says to which. Replies come in any order, and another reply
may show the new version before the change's own does: so what is kept are runs of steps, joined wherever they touch.
"""

from __future__ import annotations

Runs = tuple[tuple[int, int], ...]  # (before, last): every step from version `before` to version `last` was made here
RUNS_MAX = 8  # beyond what requests for one inode overtake one another; the oldest are dropped, which is safe


def noted(runs: Runs, change: int) -> Runs:
    """The runs with the step that led to version `change`."""
    before, last = change - 1, change
    apart = []
    for run in runs:
        if run[0] <= last and run[1] >= before:
            before, last = min(before, run[0]), max(last, run[1])
        else:
            apart.append(run)
    return tuple(sorted((*apart, (before, last))))[-RUNS_MAX:]


def since(runs: Runs, change: int) -> int:
    """The version from which on all steps up to `change` were made here; `change` itself where the last one was not."""
    return next((before for before, last in runs if before <= change <= last), change)
