"""The election over a real PostgreSQL, in real time with short leases: the rules that `test_election.py` tries on the model engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

pytest.importorskip("psycopg")

from emberfs.meta.cluster.election import Candidate, Term
from emberfs.meta.kv import retry
from emberfs.meta.kv.engine import Transaction
from emberfs.meta.kv.postgres import PostgresEngine
from emberfs.proto.errors import Status, StatusError

SCALE = 0.25  # leases of half a second
PEOPLE = 3


class Person:
    """A process that takes part for ever, until it is stopped."""

    def __init__(self, url: str, number: int) -> None:
        self.engine = PostgresEngine(url, asyncio.get_running_loop().time)
        self.candidate = Candidate(self.engine, retry.REAL_CLOCK, number, [f"local:{number}"], SCALE)
        self.terms: list[Term] = []
        self.life = asyncio.ensure_future(self._live())

    @property
    def leads(self) -> bool:
        return bool(self.terms) and self.terms[-1].holds

    async def _live(self) -> None:
        while True:
            self.terms.append(await self.candidate.campaign())
            await self.candidate.keep()

    async def stop(self) -> None:
        self.life.cancel()
        with suppress(asyncio.CancelledError):
            await self.life

    async def write(self, term: Term, what: bytes) -> None:
        async def work(txn: Transaction) -> None:
            await term.guard(txn)
            txn.put(b"state", what)

        await retry.run(self.engine, work)


@pytest.fixture
async def people(postgres_url: str) -> AsyncIterator[list[Person]]:
    made = [Person(postgres_url, number) for number in range(1, PEOPLE + 1)]
    yield made
    for person in made:
        await person.stop()
        await person.engine.close()


async def leader(people: list[Person]) -> Person:
    """Waits for one; asserts that there are never two."""
    while True:
        leading = [person for person in people if person.leads]
        assert len(leading) <= 1
        if leading:
            return leading[0]
        await asyncio.sleep(0.01)


async def test_one_leads_and_when_it_stops_another_does(people: list[Person]) -> None:
    left, numbers = list(people), list[int]()
    while left:
        person = await leader(left)
        try:
            await person.write(term := person.terms[-1], b"by %d" % person.terms[-1].number)
        except StatusError as late:  # the machine stood still for longer than its lease
            assert late.status is Status.NOT_PRIMARY
            continue
        numbers.append(term.number)
        await person.stop()  # as a crash: it does not resign
        left.remove(person)
    assert numbers == sorted(set(numbers))


async def guarded(people: list[Person]) -> tuple[Person, Term, Transaction]:
    """Who leads, its term, and a transaction that has seen so."""
    while True:
        person = await leader(people)
        term, transaction = person.terms[-1], person.engine.begin()
        with suppress(StatusError):  # the machine stood still for longer than its lease
            await term.guard(transaction)
            return person, term, transaction


async def test_a_change_of_a_term_that_is_over_does_not_commit(people: list[Person]) -> None:
    first, old, transaction = await guarded(people)
    transaction.put(b"state", b"by the old one")
    await first.candidate.resign()
    await first.stop()
    others = [person for person in people if person is not first]
    while True:
        second = await leader(others)
        with suppress(StatusError):  # its lease may be over again
            await second.write(second.terms[-1], b"by the new one")
            break
    with pytest.raises(StatusError) as late:
        await transaction.commit()
    assert late.value.status is Status.CONFLICT
    with pytest.raises(StatusError) as refused:
        await first.write(old, b"by the old one")
    assert refused.value.status is Status.NOT_PRIMARY
    assert await second.engine.begin().get(b"state") == b"by the new one"
