"""Carries moves out: looks, takes the steps that `placement.moves` decides on, waits, looks again, until nothing is left.

It may be interrupted at any moment: what has begun goes on in the servers, and another run, by anybody, continues from what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..proto.blocks import TABLE_OF_FILES
from ..proto.errors import Status, StatusError
from ..proto.settings import time_scale
from .administration import Administration
from .placement.moves import AddTarget, Decision, Drop, Join, Leave, Step, Wish, decide
from .placement.view import ClusterView, view_of

LOOK_SECONDS_MIN = 0.05  # between two looks, when something has just been done; scaled
LOOK_SECONDS_MAX = 1.0  # when nothing happens; scaled
AT_ONCE_DEFAULT = 2  # copies under way
FAILURES_MAX = 30  # of steps in a row, before the last one is told

# The cluster has changed since we looked, or a server is away: looking again will tell.
_LOOK_AGAIN = {
    Status.STALE_CHAIN_VERSION,
    Status.BUSY_RESOURCE,
    Status.NOT_FOUND,
    Status.NOT_EMPTY,
    Status.DEADLINE,
    Status.MAYBE_COMMITTED,
    Status.UNAVAILABLE,
}


@dataclass(frozen=True)
class Limits:
    """How much may go on at once."""

    at_once: int = AT_ONCE_DEFAULT  # copies under way, each to another node
    rate: int = 0  # bytes a second of all copies together, on average; 0: as fast as servers let them beside clients

    def __post_init__(self) -> None:
        if self.at_once < 1 or self.rate < 0:
            raise ValueError("at least one move goes on at once, and a rate is not negative")


@dataclass
class Pace:
    """When the next copy may begin, for a limited rate."""

    rate: int
    free_at: float = 0.0

    def may_begin(self, now: float) -> bool:
        return not self.rate or now >= self.free_at

    def begun(self, now: float, size: int) -> None:
        if self.rate:
            self.free_at = max(now, self.free_at) + size / self.rate


@dataclass
class Absences:
    """Since when targets have been away. Those that are away for too long are lost: their members move to others."""

    away_seconds: float  # of a silent node
    failed_seconds: float  # of a disk that its server reports as failed: it does not come back by itself
    since: dict[int, float] = field(default_factory=dict)

    def lost(self, view: ClusterView, now: float) -> frozenset[int]:
        """Targets to give up; disabled ones are an administrator's business."""
        away = {target.id for target in view.targets.values() if not target.up and not target.disabled}
        self.since = {target: self.since.get(target, now) for target in away}
        return frozenset(target for target, begin in self.since.items() if now - begin >= self._patience(view, target))

    def _patience(self, view: ClusterView, target: int) -> float:
        return self.failed_seconds if view.node_of(target).up else self.away_seconds


Told = Callable[[ClusterView, Decision], None]
Taken = Callable[[ClusterView, Step], None]


class Mover:
    """`told` hears of every look at the cluster, `taken` of every step that was taken."""

    def __init__(
        self,
        administration: Administration,
        limits: Limits,
        told: Told = lambda view, decision: None,
        taken: Taken = lambda view, step: None,
    ) -> None:
        self._administration = administration
        self._limits = limits
        self._pace = Pace(limits.rate)
        self._told = told
        self._taken = taken
        self._failures = 0
        self._wait = LOOK_SECONDS_MIN

    def run(self, wish: Wish, table: int = TABLE_OF_FILES) -> Decision:
        """Until nothing is left to do, or nothing can be done any more: then `blocked` of the result says why. Raises StatusError when
        servers refuse what cannot be cured by looking again, or too often."""
        while True:
            _, decision, moved = self.look(wish, table)
            if decision.is_done or not (moved or decision.moving or decision.begin or decision.retiring):
                return decision
            self.rest(moved)

    def look(
        self, wish: Wish | Callable[[ClusterView], Wish], table: int = TABLE_OF_FILES
    ) -> tuple[ClusterView, Decision, bool]:
        """One round over the chains of one table: what was seen, what was decided, whether a step was taken."""
        view = view_of(self._administration.status(), table)
        decision = decide(view, wish(view) if callable(wish) else wish)
        self._told(view, decision)
        moved = False
        for step in decision.finish:
            moved |= self._take(view, step)
        room = self._limits.at_once - len(decision.moving)
        for step in decision.begin[: max(0, room)]:
            if self._pace.may_begin(self._administration.now()):
                moved |= self._take(view, step)
        return view, decision, moved

    def rest(self, moved: bool) -> None:
        """Wait until another look is worth while."""
        self._wait = LOOK_SECONDS_MIN if moved else min(self._wait * 2, LOOK_SECONDS_MAX)
        self._administration.sleep(self._wait * time_scale())

    def _take(self, view: ClusterView, step: Step) -> bool:
        try:
            self._perform(view, step)
        except StatusError as refused:
            self._failures += 1
            if self._failures >= FAILURES_MAX or not (refused.status in _LOOK_AGAIN or refused.retryable):
                raise
            return False
        self._failures = 0
        self._taken(view, step)
        return True

    def _perform(self, view: ClusterView, step: Step) -> None:
        administration = self._administration
        match step:
            case AddTarget(node, folder):
                folders = {target.folder for target in view.targets.values() if target.node == node}
                place = folder if len(folders) > 1 else ""  # with one the server knows where
                administration.add_target(node, place, view.table)
            case Drop(node, target):
                administration.drop_target(node, target)
            case Join(chain, version, target, size):
                administration.change_chain(chain, version, add=target)
                self._pace.begun(administration.now(), size)
            case Leave(chain, version, target):
                administration.change_chain(chain, version, remove=target)
