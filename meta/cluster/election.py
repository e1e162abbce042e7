"""Which of several managers leads: a fenced lease in the KV engine that they share.

One record names the holder and its term, which grows with each change of hands; another one is a counter that the holder raises again and
again. No clocks are compared between machines:
- A candidate that has seen the same term and counter for a whole lease by its own clock may take over: it raises the term in a transaction
  that has read the record, so of several candidates one succeeds.
- The holder leads for nine tenths of a lease from the moment at which it *began* its last successful renewal. Whoever waits can
  have seen that renewal only later, and waits longer: the holder has stopped before anybody may follow.
- A holder that was stopped and goes on in the middle of a change cannot harm: the transaction of every change reads the record
  (`Term.guard`), so it conflicts with the change of hands or sees it. It does not read the counter: renewals disturb nobody.
A holder that has missed its own time does not go on where it was: it takes part in the election again, and if it wins, begins like
any successor. What it did not hear meanwhile is nobody's silence.

With an embedded engine there is one process that can open it, and no election.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from ...proto.errors import Status, StatusError, error
from ..kv import retry
from ..kv.engine import Engine, Transaction

PRIMARY = b"CLUSp"  # documented in store.py
RENEWALS = b"CLUSr"
FORMAT = 1
ELECTION_SECONDS = 2.0  # a lease; scaled. A change of hands takes so long at most, which storage servers do not notice
RENEWALS_PER_LEASE = 5
DRIFT_PART = 0.1  # kept back by the holder: two clocks differ by less over a lease

_HEAD = struct.Struct(">BQQ")  # format, term, holder
_COUNTER = struct.Struct(">Q")


class Clock(Protocol):
    """The part of `proto.env.Environment` that is used here."""

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float: ...

    def random(self) -> float: ...


class Primary(NamedTuple):
    """The record of who leads."""

    term: int
    holder: int  # random number of the process; 0: nobody
    addresses: tuple[str, ...] = ()

    def encode(self) -> bytes:
        return _HEAD.pack(FORMAT, self.term, self.holder) + json.dumps(self.addresses).encode()


NOBODY = Primary(0, 0)
Seen = tuple[Primary, int]  # with the counter


def decode(value: bytes | None) -> Primary:
    """Raises BAD_FORMAT for a record of another version."""
    if value is None:
        return NOBODY
    found, term, holder = _HEAD.unpack_from(value)
    if found != FORMAT:
        raise error(
            Status.BAD_FORMAT, f"the primary's record has format {found}, this emberfs knows {FORMAT}; upgrade it"
        )
    return Primary(term, holder, tuple(json.loads(value[_HEAD.size :])))


async def _read(txn: Transaction, *, snapshot: bool = False) -> Seen:
    primary, counter = await txn.get_many([PRIMARY, RENEWALS], snapshot=snapshot)
    return decode(primary), _COUNTER.unpack(counter)[0] if counter else 0


class Term:
    """A candidate's time as the primary. Once it is over it never comes back, even if the same process wins again."""

    def __init__(self, candidate: Candidate, number: int) -> None:
        self.number = number
        self._candidate = candidate

    @property
    def holds(self) -> bool:
        return self._candidate.leads(self.number)

    def refusal(self) -> StatusError:
        return self._candidate.refusal()

    async def guard(self, txn: Transaction) -> None:
        """Part of every change: it commits only if the record still has this term. Raises NOT_PRIMARY."""
        found = decode(await txn.get(PRIMARY))
        if not self.holds or not self._candidate.is_ours(found, self.number):
            raise self.refusal()


class Candidate:
    """One manager process. `campaign` until it has won, then `keep` until it has lost, and so on."""

    def __init__(
        self, engine: Engine, clock: Clock, process: int, addresses: Sequence[str], scale: float = 1.0
    ) -> None:
        self.seconds = ELECTION_SECONDS * scale
        self.primary = NOBODY  # as last read
        self._engine = engine
        self._clock = clock
        self._process = process
        self._addresses = tuple(addresses)
        self._until = float("-inf")  # we lead before
        self._term = 0  # ours

    def leads(self, term: int) -> bool:
        return term == self._term and self._clock.now() < self._until

    def refusal(self) -> StatusError:
        """What whoever asks us for the primary's work is told."""
        others = [] if self.primary.holder == self._process else list(self.primary.addresses)
        where = f"ask {', '.join(others)}" if others else "none is elected yet, try again"
        return error(Status.NOT_PRIMARY, f"this manager does not lead; {where}", detail=others)

    def is_ours(self, found: Primary, term: int) -> bool:
        return (found.term, found.holder) == (term, self._process)

    async def campaign(self) -> Term:
        """Returns when this process leads. What the engine raises is waited out; raises BAD_FORMAT."""
        seen, since = await self._look(), self._clock.now()
        while True:
            if seen is not None:
                vacant = seen[0].holder in (0, self._process)
                if (vacant or self._clock.now() - since >= self.seconds) and await self._take_over(seen):
                    return Term(self, self._term)
            await self._clock.sleep(self.seconds / RENEWALS_PER_LEASE * (0.5 + self._clock.random()))
            latest = await self._look()
            if latest != seen:
                seen, since = latest, self._clock.now()

    async def keep(self) -> None:
        """Renew for as long as that works; returns when the term is over."""
        while self.leads(self._term):
            await self._clock.sleep(self.seconds / RENEWALS_PER_LEASE)
            await self._renew()

    async def resign(self) -> None:
        """Let go at once (a clean stop): the next one need not wait."""
        self._until = float("-inf")

        async def work(txn: Transaction) -> None:
            found = decode(await txn.get(PRIMARY))
            if self.is_ours(found, self._term):
                txn.put(PRIMARY, Primary(found.term, 0).encode())

        await retry.run(self._engine, work, self._clock, durable=True)

    async def _look(self) -> Seen | None:
        """What the engine holds; None when it does not answer: whoever leads cannot renew either, but nobody can take over."""
        try:
            seen = await _read(self._engine.begin(), snapshot=True)
        except StatusError as failed:
            if failed.status is Status.BAD_FORMAT:
                raise
            return None
        self.primary = seen[0]
        return seen

    async def _take_over(self, seen: Seen) -> bool:
        made = Primary(seen[0].term + 1, self._process, self._addresses)
        began = self._clock.now()

        async def work(txn: Transaction) -> bool:
            if await _read(txn) != seen:
                return False
            txn.put(PRIMARY, made.encode())
            return True

        if not await self._commit(work, durable=True):
            return False
        self.primary, self._term = made, made.term
        self._until = began + self.seconds * (1 - DRIFT_PART)
        return self.leads(self._term)

    async def _renew(self) -> None:
        began = self._clock.now()
        if began >= self._until:
            return  # too late: somebody may be taking over

        async def work(txn: Transaction) -> bool:
            self.primary, counter = await _read(txn)
            if not self.is_ours(self.primary, self._term):
                return False
            txn.put(RENEWALS, _COUNTER.pack(counter + 1))
            return True

        if await self._commit(work):
            self._until = began + self.seconds * (1 - DRIFT_PART)
        elif not self.is_ours(self.primary, self._term):
            self._until = float("-inf")

    async def _commit(self, work: Callable[[Transaction], Awaitable[bool]], *, durable: bool = False) -> bool:
        """One attempt. Not knowing whether it happened counts as no: it is looked at again."""
        try:
            return await retry.run(self._engine, work, self._clock, durable=durable, attempts_max=1)
        except StatusError as failed:
            if failed.status is Status.BAD_FORMAT:
                raise
            return False
