"""The checker is checked: histories whose verdict is known, and small random ones against a search through every order."""

from __future__ import annotations

import itertools
import random

import pytest

from .history import ABSENT, Event, History, Kind, Operation, State, What, cells_of, content_of
from .linear import NotLinearizable, check


class Script:
    """Writes a history by hand: `call` and `end` in any order."""

    def __init__(self) -> None:
        self.history = History("x")
        self._count = 0

    def _note(self, what: What, operation: Operation | None = None, sync: int = 0) -> None:
        self.history.events.append(Event(what, float(len(self.history.events)), operation, sync))

    def call(self, kind: Kind, first: int = 0, last: int = 1, found: tuple[int, ...] | None = None, under: int = 0,
             excludes: tuple[Operation, ...] = ()) -> Operation:  # fmt: skip
        self._count += 1
        operation = Operation(self._count, "c", kind, first, last, under, found, excludes=excludes)
        self._note(What.CALL, operation)
        return operation

    def end(self, operation: Operation) -> None:
        self._note(What.END, operation)

    def never(self, operation: Operation) -> None:
        self._note(What.NEVER, operation)

    def done(
        self, kind: Kind, first: int = 0, last: int = 1, found: tuple[int, ...] | None = None, under: int = 0
    ) -> Operation:
        operation = self.call(kind, first, last, found, under)
        self.end(operation)
        return operation

    def sync(self, number: int = 1) -> None:
        self._note(What.SYNC_CALL, sync=number)
        self._note(What.SYNC_END, sync=number)

    def blackout(self) -> None:
        self._note(What.BLACKOUT)

    @property
    def holds(self) -> bool:
        try:
            return check(self.history)
        except NotLinearizable:
            return False


WRITE, READ, TRUNCATE, REMOVE = Kind.WRITE, Kind.READ, Kind.TRUNCATE, Kind.REMOVE


def test_one_after_the_other() -> None:
    script = Script()
    script.done(READ)
    script.done(WRITE, 1, 2)
    script.done(READ, 0, 4, (0, 2))
    script.done(WRITE, 0, 1)
    script.done(READ, 0, 4, (4, 2))
    script.done(TRUNCATE, 0, 3, under=1)
    script.done(READ, 1, 3, (2, 0))
    script.done(TRUNCATE, 0, 0, under=2)
    script.done(READ)
    script.done(WRITE, under=2)
    script.done(TRUNCATE, 0, 0, under=2)  # said twice: the file has grown again since
    script.done(READ, 0, 4, (10,))
    assert script.holds


def test_old_after_new_is_no_order() -> None:
    script = Script()
    script.done(WRITE)
    second = script.call(WRITE)
    script.done(READ, found=(2,))
    script.done(READ, found=(1,))
    script.end(second)
    assert not script.holds


def test_a_lost_write_is_no_order() -> None:
    script = Script()
    script.done(WRITE)
    script.done(READ)
    assert not script.holds


def test_without_an_answer_it_happens_late_or_never() -> None:
    script = Script()
    script.done(WRITE)
    script.call(WRITE)
    script.done(READ, found=(1,))
    script.done(READ, found=(1,))
    assert script.holds
    script.done(READ, found=(2,))
    assert script.holds
    script.done(READ, found=(1,))
    assert not script.holds


def test_it_happens_once() -> None:
    script = Script()
    script.call(WRITE)
    script.done(WRITE)
    script.done(READ, found=(1,))
    script.done(WRITE)
    script.done(READ, found=(1,))
    assert not script.holds


def test_what_a_later_number_excludes() -> None:
    for order in ([1, 2], [2, 1]):
        script = Script()
        first = script.call(WRITE)
        second = script.call(WRITE, excludes=(first,))
        script.end(second)
        for number in order:
            script.done(READ, found=(number,))
        assert not script.holds  # before the second one the first is overwritten, after it it is refused
    script = Script()
    first = script.call(WRITE)
    second = script.call(WRITE, excludes=(first,))
    script.done(READ, found=(1,))
    script.end(second)
    script.done(READ, found=(2,))
    assert script.holds


def test_what_was_refused_has_no_effect() -> None:
    script = Script()
    script.done(WRITE)
    refused = script.call(WRITE)
    script.never(refused)
    assert script.holds
    script.done(READ, found=(2,))
    assert not script.holds


def test_the_remove_of_a_dead_file_comes_once_more() -> None:
    """Removes have no numbers: of one that was answered, a second copy may lie in the buffer of some connection. Nobody misses what a
    write that was under way brought back after the first. But it is one copy, and what is gone then stays away."""
    script = Script()
    late = script.call(WRITE)
    script.done(REMOVE)
    script.done(READ)
    script.end(late)
    script.done(READ, found=(1,))
    script.done(READ)
    assert not script.holds
    script.history.dead = True
    assert script.holds
    script.done(READ, found=(1,))
    assert not script.holds


def test_a_blackout_loses_what_was_not_synced_and_nothing_else() -> None:
    def story(after: tuple[int, ...] | None) -> bool:
        script = Script()
        script.done(WRITE)
        script.sync()
        script.done(WRITE)
        script.done(WRITE)
        script.blackout()
        script.done(READ, found=after)
        script.done(READ, found=after)
        return script.holds

    assert story((1,))
    assert story((2,))
    assert story((3,))
    assert not story(None)


def test_cells() -> None:
    content = content_of(7, 2, 64) + bytes(64) + content_of(9, 1, 64)
    assert cells_of(content, 64) == (7, 7, 0, 9)
    with pytest.raises(AssertionError, match="mixes"):
        cells_of(content_of(7, 1, 32) + content_of(8, 1, 32), 64)


def brute(history: History) -> bool:
    """Every order of the ended operations and of every subset of the unanswered ones, that keeps what came before what."""
    calls = {e.operation: i for i, e in enumerate(history) if e.what is What.CALL and e.operation is not None}
    ends = {e.operation: i for i, e in enumerate(history) if e.what is What.END and e.operation is not None}
    free = [operation for operation in calls if operation not in ends]
    for count in range(len(free) + 1):
        for chosen in itertools.combinations(free, count):
            for order in itertools.permutations([*ends, *chosen]):
                if _explains(order, calls, ends):
                    return True
    return False


def _explains(order: tuple[Operation, ...], calls: dict[Operation, int], ends: dict[Operation, int]) -> bool:
    for i, later in enumerate(order):
        for earlier in order[:i]:
            if ends.get(later, 1 << 30) < calls[earlier]:
                return False
    state: State | None = ABSENT
    for operation in order:
        assert state is not None
        state = operation.apply(state)
        if state is None:
            return False
    return True


def test_agrees_with_a_search_through_every_order() -> None:
    verdicts = set()
    for seed in range(400):
        chance, script = random.Random(seed), Script()
        under_way: list[Operation] = []
        writes = [0]
        while script._count < 6 or under_way:
            if script._count < 6 and (chance.random() < 0.5 or not under_way):
                kind = chance.choice([READ, READ, WRITE, WRITE, TRUNCATE, REMOVE])
                under = chance.randrange(3)
                found = chance.choice([None, (chance.choice(writes),)]) if kind is READ else None
                operation = script.call(kind, 0, chance.randrange(2) if kind is TRUNCATE else 1, found, under)
                if kind is WRITE:
                    writes.append(operation.number)
                under_way.append(operation)
            else:
                operation = under_way.pop(chance.randrange(len(under_way)))
                if operation.kind is READ or chance.random() < 0.8:
                    script.end(operation)
        verdict = brute(script.history)
        assert script.holds == verdict, f"seed {seed}\n{script.history}"
        verdicts.add(verdict)
    assert verdicts == {True, False}
