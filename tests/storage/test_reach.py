"""Which members do not answer: rules of storage/reach.py over a real machine, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from emberfs.proto.errors import Status, error
from emberfs.proto.gen.common_pb2 import TARGET_STATE_WAITING, Chain
from emberfs.storage.events import RoutingChanged
from emberfs.storage.reach import BEHIND_LEASES, SILENT_LEASES, SYNCING_LEASES, Reach

from ..sim.environment import Simulation
from .machines import SERVING, SYNCING, chain, held, replica

WAITING = TARGET_STATE_WAITING
L = 5.0  # a lease
LOOK = L / 8 + 0.1


class Member:
    """Target 1 of a chain. `deaf` are those that do not answer when they are asked."""

    def __init__(self, simulation: Simulation, *states: int, target: int = 1) -> None:
        self.host = simulation.host("one")
        self.env = simulation.environment(self.host)
        self.lease = held()
        self.machine, _ = replica(*states, target=target, lease=self.lease)
        self.deaf: set[int] = set()
        self.asked: list[int] = []
        self.told = 0
        self.reach = Reach(lambda: self.machine, self.lease, self.env, self._ask, self._changed)
        self.env.spawn(self.reach.keep, "reach")

    async def _ask(self, target: int, entry: Chain, seconds: float) -> None:
        self.asked.append(target)
        if target in self.deaf:
            await self.env.sleep(seconds)
            raise error(Status.DEADLINE, "no answer")

    def _changed(self) -> None:
        self.told += 1

    async def waits(self, leases: float) -> list[int]:
        """After so many more leases, and a look: who is unreached."""
        await self.env.sleep(leases * L + LOOK)
        return list(self.reach.unreached())

    def becomes(self, *states: int, version: int) -> None:
        self.machine.step(0, RoutingChanged(chain(*states, version=version)))


def story(states: tuple[int, ...], tell: Callable[[Member], Coroutine[Any, Any, None]], target: int = 1) -> None:
    simulation = Simulation(1)
    simulation.run(tell(Member(simulation, *states, target=target)))


def test_a_receiver_that_is_silent_for_a_lease_and_a_half() -> None:
    async def tell(member: Member) -> None:
        member.deaf = {2}
        member.reach.sent(1, 1)
        assert await member.waits(SILENT_LEASES - 0.5) == []
        member.reach.sent(1, 1)  # tried again: it waits all the same
        assert await member.waits(0.5) == [2] and member.told == 1
        member.reach.answered(1)
        assert await member.waits(0.0) == [] and member.told == 2

    story((SERVING, SERVING, SERVING), tell)


def test_any_answer_will_do_and_each_batch_waits_for_itself() -> None:
    async def tell(member: Member) -> None:
        member.reach.sent(1, 1)
        assert await member.waits(1.0) == []
        member.reach.sent(2, 1)
        member.reach.answered(1)
        assert await member.waits(1.0) == []
        assert await member.waits(SILENT_LEASES - 1.0) == [2]

    story((SERVING, SERVING), tell)


def test_one_that_answers_may_be_waiting_for_its_own_successor() -> None:
    """ "the wait is longer for each member behind it, and whoever is nearest to the fault speaks first" """

    async def tell(member: Member) -> None:
        member.reach.sent(1, 1)
        assert await member.waits(SILENT_LEASES + BEHIND_LEASES) == []
        assert await member.waits(BEHIND_LEASES) == [2]

    story((SERVING, SERVING, SERVING, SYNCING), tell)


def test_the_others_are_asked_before_anything_is_said() -> None:
    async def tell(member: Member) -> None:
        member.deaf = {2, 3}
        member.reach.sent(1, 1)
        assert await member.waits(SILENT_LEASES) == [2, 3]
        member.deaf = {2}
        assert await member.waits(1.0) == [2]

    story((SERVING, SERVING, SERVING), tell)


def test_nobody_is_asked_while_forwards_are_answered() -> None:
    async def tell(member: Member) -> None:
        for batch in range(20):
            member.reach.sent(batch, 1)
            await member.env.sleep(L / 2)
            member.reach.answered(batch)
        assert not member.asked and not member.told

    story((SERVING, SERVING, SERVING), tell)


def test_a_syncing_one_that_does_not_answer_at_all_has_no_place_to_lose() -> None:
    async def tell(member: Member) -> None:
        member.deaf = {2}
        member.reach.sent(1, 1)
        assert await member.waits(SYNCING_LEASES) == [2]

    story((SERVING, SYNCING), tell)


def test_the_last_one_that_serves_asks_those_that_wait() -> None:
    async def tell(member: Member) -> None:
        member.deaf = {3}
        assert await member.waits(1.0) == [3]
        assert 2 not in member.asked
        member.deaf = set()
        assert await member.waits(1.5) == []

    story((SERVING, WAITING, WAITING), lambda member: _only_of(member, tell))

    async def silent(member: Member) -> None:
        await member.waits(2.0)
        assert not member.asked  # another one would copy to them

    story((SERVING, SERVING, WAITING), silent)


async def _only_of(member: Member, tell: Callable[[Member], Coroutine[Any, Any, None]]) -> None:
    """The second one serves last: target 2 is this member."""
    member.machine, _ = replica(SERVING, SERVING, WAITING, target=2, lease=member.lease)
    await tell(member)


def test_a_new_version_of_the_chain_begins_anew() -> None:
    async def tell(member: Member) -> None:
        member.deaf = {2}
        member.reach.sent(1, 1)
        assert await member.waits(SILENT_LEASES) == [2]
        member.becomes(SERVING, SERVING, version=2)
        assert not member.reach.unreached()
        member.reach.sent(1, 1)  # on its way under the old one
        assert await member.waits(SILENT_LEASES) == []
        member.reach.sent(1, 2)
        assert await member.waits(SILENT_LEASES) == [2]

    story((SERVING, SERVING), tell)


def test_nothing_is_said_without_a_lease_nor_by_who_does_not_serve() -> None:
    async def tell(member: Member) -> None:
        member.deaf = {2}
        member.reach.sent(1, 1)
        member.lease.until = member.env.now() + L
        assert await member.waits(SILENT_LEASES) == []
        member.lease.until = float("inf")
        assert await member.waits(0.0) == [2]
        member.becomes(SYNCING, SERVING, version=2)
        assert await member.waits(2.0) == []

    story((SERVING, SERVING), tell)


def test_time_in_which_this_process_was_stopped_does_not_count() -> None:
    async def tell(member: Member) -> None:
        member.deaf = {2}
        member.reach.sent(1, 1)
        await member.env.sleep(1.0)
        member.host.freeze()
        await member.env.sleep(3 * L)
        member.host.thaw()
        assert await member.waits(1.0) == []
        assert await member.waits(SILENT_LEASES - 1.0) == [2]

    story((SERVING, SERVING), tell)
