"""Linearizability of one chunk's history: is there one order of its operations that explains every answer?

Wing and Gong's search in Lowe's just-in-time form: events are taken in the order in which they happened, and the set of all possible
worlds is kept. A world is a state of the chunk and the operations under way that have taken effect in it. When an operation ends, only
those worlds go on in which it has taken effect. No world left means that no order explains the history.

An operation without an answer may take effect at any later time, or never. Of two worlds of one state, the one that has used up fewer of
these can do whatever the other can, so the other is dropped. A read that fits is taken at once: it changes nothing. Chunks are
independent, each is checked for itself; the work is bounded, and what passes the bound counts as not decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, combinations

from .history import ABSENT, Event, History, Kind, Operation, State, What

WORLDS_MAX = 20_000  # at one moment; more and the history is not decided


class NotLinearizable(AssertionError):
    """No order of the operations explains what the clients were told."""


class Undecided(Exception):
    """The bound on the work was reached."""


@dataclass(frozen=True, slots=True)
class World:
    state: State
    done: frozenset[Operation] = frozenset()  # called and not ended, and has taken effect (or cannot any more)


class Checker:
    """Takes the events of one history, in order. `answered`: the operations that will end. `blackouts`: whether power will be lost
    everywhere, so that past states have to be remembered."""

    def __init__(self, answered: Iterable[Operation], *, blackouts: bool = False) -> None:
        self.worlds = {World(ABSENT)}
        self._answered = frozenset(answered)
        self._open: dict[Operation, None] = {}  # called and not ended; no reads
        self._reads: dict[Operation, None] = {}
        self._track = blackouts
        self._past: list[set[State]] = [{ABSENT}]  # states that were possible: a new entry begins with every sync
        self._syncs: dict[int, int] = {}  # sync under way -> the entry that began with it

    def take(self, event: Event) -> None:
        """Raises NotLinearizable, Undecided."""
        operation = event.operation
        if operation is None:
            self._durability(event)
            return
        if event.what is What.CALL:
            self._call(operation)
        elif event.what is What.END:
            self._end(operation)
        else:
            self._close(operation, {world for world in self.worlds if operation not in world.done})
        if self._track:
            self._past[-1] |= {world.state for world in self._reachable()}

    def _call(self, operation: Operation) -> None:
        if operation.kind is not Kind.READ:
            self._open[operation] = None
        elif operation in self._answered:
            self._reads[operation] = None
            self.worlds = {self._with_reads(world) for world in self.worlds}

    def _end(self, operation: Operation) -> None:
        reached = {world for world in self._reachable(operation) if operation in world.done}
        if not reached:
            states = sorted(str(tuple(world.state)) for world in self.worlds)
            raise NotLinearizable(f"{operation} cannot be: the chunk was one of {'; '.join(states[:8])}")
        self._close(operation, reached)

    def _close(self, operation: Operation, worlds: set[World]) -> None:
        closed = {operation, *operation.excludes}
        for one in closed:
            self._open.pop(one, None)
            self._reads.pop(one, None)
        self.worlds = self._fewest({World(world.state, world.done - closed) for world in worlds})

    def _reachable(self, wanted: Operation | None = None) -> set[World]:
        """All worlds that operations under way may lead to. One in which `wanted` has taken effect is not followed further: what comes
        after it can come later."""
        seen = set(self.worlds)
        todo = list(seen)
        while todo:
            world = todo.pop()
            if wanted in world.done:
                continue
            for operation in self._open:
                if operation in world.done:
                    continue
                after = self._after(world, operation)
                if after is not None and after not in seen:
                    seen.add(after)
                    todo.append(after)
            if len(seen) > WORLDS_MAX:
                raise Undecided(f"more than {WORLDS_MAX} worlds")
        return seen

    def _after(self, world: World, operation: Operation) -> World | None:
        state = operation.apply(world.state)
        if state is None:
            return None
        done = world.done | {operation} | {one for one in operation.excludes if one in self._open}
        return self._with_reads(World(state, done))

    def _with_reads(self, world: World) -> World:
        fitting = {read for read in self._reads if read not in world.done and read.apply(world.state) is not None}
        return World(world.state, world.done | fitting) if fitting else world

    def _fewest(self, worlds: set[World]) -> set[World]:
        """Without the worlds that another one of the same state makes unnecessary."""
        by_state: dict[State, list[frozenset[Operation]]] = {}
        for world in worlds:
            by_state.setdefault(world.state, []).append(world.done)
        kept = set()
        for state, dones in by_state.items():
            dones.sort(key=len)
            for i, done in enumerate(dones):
                if not any(other < done and not (done - other) & self._answered for other in dones[:i]):
                    kept.add(World(state, done))
        return kept

    # Power loss of all replicas.

    def _durability(self, event: Event) -> None:
        if not self._track:
            return
        reached = self._reachable()
        if event.what is What.SYNC_CALL:
            self._syncs[event.sync] = len(self._past)
            self._past.append({world.state for world in reached})
        elif event.what is What.SYNC_END:
            begin = self._syncs.pop(
                event.sync, 0
            )  # 0: a blackout came between, and the sync speaks of what was before it
            self._past[:begin] = [set() for _ in range(begin)]
        else:
            states = set().union(*self._past) | {world.state for world in reached}
            # Whoever is under way may have had its effect, which is lost now: it may be answered all the same, or have it once more.
            dones = {frozenset(some) for world in reached for some in _subsets(world.done)}
            self.worlds = self._fewest({self._with_reads(World(state, done)) for state in states for done in dones})
            self._past = [states]
            self._syncs.clear()


def _subsets(done: frozenset[Operation]) -> Iterator[tuple[Operation, ...]]:
    ordered = sorted(done, key=lambda operation: operation.number)
    return chain.from_iterable(combinations(ordered, count) for count in range(len(ordered) + 1))


def check(history: History) -> bool:
    """Whether the history was found linearizable; False when that could not be decided within the bound. Raises NotLinearizable."""
    events = list(history.possible())
    answered = [event.operation for event in events if event.what is What.END and event.operation is not None]
    checker = Checker(answered, blackouts=any(event.what is What.BLACKOUT for event in events))
    try:
        for event in events:
            checker.take(event)
    except Undecided:
        return False
    except NotLinearizable as failure:
        failure.add_note(f"chunk {history.name}:\n{history}")
        raise
    return True
