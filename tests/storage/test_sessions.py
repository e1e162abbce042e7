"""Forwards that come late or twice."""

from __future__ import annotations

import random

from emberfs.storage.sessions import Receiving, Sending


def test_an_answer_that_stays_away_raises_the_session_once() -> None:
    sending = Sending()
    sending.begin(1.0)
    (session, first), (_, second) = sending.next(), sending.next()
    assert (first, second) == (1, 2)
    sending.unanswered(session)
    sending.unanswered(session)  # the other one, too: all of that session are late from now on
    assert sending.next() == (session + 1, 1)


def test_a_restarted_process_begins_above() -> None:
    before, after = Sending(), Sending()
    before.begin(1.0)
    for _ in range(1000):
        before.unanswered(before.session)
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
