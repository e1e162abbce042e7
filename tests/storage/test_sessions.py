"""Forwards that come late or twice."""

from __future__ import annotations

import random

from emberfs.storage.sessions import LATER_MAX, Receiving, Sending


def test_an_answer_that_stays_away_raises_the_session_once() -> None:
    sending = Sending()
    sending.begin(1.0)
    (session, first), (_, second) = sending.next(), sending.next()
    assert (first, second) == (1, 2)
    sending.not_taken(session)
    sending.not_taken(session)  # the other one, too: all of that session are late from now on
    assert sending.next() == (session + 1, 1)


def test_a_restarted_process_begins_above() -> None:
    before, after = Sending(), Sending()
    before.begin(1.0)
    for _ in range(1000):
        before.not_taken(before.session)
    after.begin(1.1)
    assert after.next() > before.next()


def test_each_number_is_taken_once_in_any_order_and_nothing_older() -> None:
    receiving = Receiving()
    numbers = list(range(1, 200)) * 2
    random.Random(1).shuffle(numbers)
    assert sorted(n for n in numbers if receiving.takes(5, n)) == list(range(1, 200))
    assert not receiving._later  # nothing is remembered of a row without gaps
    assert receiving.takes(6, 3)
    assert not receiving.takes(5, 500)
    assert not receiving.takes(6, 3)
    assert receiving.takes(6, 1)


def test_what_was_refused_before_it_was_counted_is_not_waited_for_for_ever() -> None:
    # A member without a lease refuses a forward under its number; the next ones are taken, for as long as the chain stays as it is.
    receiving = Receiving()
    refused = set(range(1, 10 * LATER_MAX, 100))
    for number in range(1, 10 * LATER_MAX):
        assert number in refused or receiving.takes(5, number)
        assert len(receiving._later) <= LATER_MAX
    assert not receiving.takes(5, 101)  # comes again under a new one
    assert receiving.takes(5, 10 * LATER_MAX)
