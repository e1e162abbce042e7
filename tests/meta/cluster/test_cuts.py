"""Members of a chain that are cut off from each other, while the manager reaches all of them: the real manager and the real memberships in
virtual time. After every change the world asserts that whoever has lost its place serves nothing (nodes_world.py)."""

from __future__ import annotations

from emberfs.meta.cluster.links import HELD_LEASES, PROBED_LEASES

from .nodes_world import World
from .test_nodes import SETTLED, L, chain_of, run, three

HEARTBEAT = L / 4 + 0.2  # seconds until everybody has reported once more


def test_a_member_that_its_predecessor_does_not_reach_goes_behind_the_others() -> None:
    async def story(world: World) -> None:
        await three(world)
        world.processes["a"].unreached = {"b"}
        await world.sleep(HEARTBEAT)
        assert world.states() == "a:S c:S b:Y v2"
        await world.sleep(SETTLED)
        assert world.states() == "a:S c:S b:S v3"  # c has copied to it
        await world.sleep(2 * HELD_LEASES * L)
        assert world.states() == "a:S c:S b:S v3"

    run(story)


def test_of_two_the_one_behind_waits_until_the_link_is_whole() -> None:
    async def story(world: World) -> None:
        await world.start_manager()
        await chain_of(world, "a", "b")
        world.processes["a"].unreached = {"b"}
        await world.sleep(3 * HEARTBEAT)
        assert world.states() == "a:S b:W v3"
        await world.sleep(2 * HELD_LEASES * L)
        assert world.states() == "a:S b:W v3"  # a has asked it again and again
        world.processes["a"].unreached = set()
        await world.sleep(PROBED_LEASES * L + SETTLED)
        assert world.states() == "a:S b:S v5"

    run(story)


def test_a_head_that_reaches_nobody_goes_itself() -> None:
    async def story(world: World) -> None:
        await three(world)
        world.processes["a"].unreached = {"b", "c"}
        await world.sleep(3 * HEARTBEAT)
        assert world.states() == "b:S c:S a:W v3"
        assert world.serving() == ["b", "c"]
        world.processes["a"].unreached = set()
        await world.sleep(HELD_LEASES * L + SETTLED)
        assert world.states() == "b:S c:S a:S v5"

    run(story)


def test_a_member_that_cannot_hear_of_it_goes_with_its_lease() -> None:
    """The manager does not reach it any more either: until its lease is over nothing is acknowledged without it."""

    async def story(world: World) -> None:
        await world.start_manager()
        await chain_of(world, "a", "b")
        world.simulation.network.partition([world.host("b")], [world.host("meta0")])
        world.processes["a"].unreached = {"b"}
        await world.sleep(HEARTBEAT)
        assert world.states() == "a:S b:Y v2"
        assert world.serving() == ["a", "b"]
        await world.sleep(L / 2)
        assert world.states() == "a:S b:Y v2"
        await world.sleep(L)
        assert world.states() == "a:S b:O v3"

    run(story)


def test_the_last_one_is_not_moved_by_anybody() -> None:
    async def story(world: World) -> None:
        await world.start_manager()
        await chain_of(world, "a", "b")
        world.host("b").crash()
        world.processes["a"].unreached = {"b"}
        await world.sleep(2 * L)
        assert world.states().startswith("a:S b:O ")
        await world.sleep(10 * L)
        assert world.serving() == ["a"]

    run(story)


def test_what_is_said_survives_no_manager_but_is_said_again() -> None:
    async def story(world: World) -> None:
        await world.start_manager()
        await chain_of(world, "a", "b")
        world.processes["a"].unreached = {"b"}
        await world.sleep(3 * HEARTBEAT)
        assert world.states() == "a:S b:W v3"
        await world.crash("meta0")
        await world.start_manager()
        await world.sleep(4 * L)
        assert world.states().startswith("a:S b:W ")
        world.processes["a"].unreached = set()
        await world.sleep(HELD_LEASES * L + SETTLED)
        assert world.states().startswith("a:S b:S ")

    run(story)


def test_no_lease_is_granted_while_the_change_of_an_earlier_renewal_is_on_its_way_to_the_disk() -> None:
    """A lease is over, and the place is being given away while the engine's disk takes its time. The member is back: its first renewal has
    to wait for that, and so has the next one, which says nothing new."""

    async def story(world: World) -> None:
        await three(world)
        world.simulation.network.partition([world.host("c")], [world.host("meta0")])
        world.commit_seconds = 0.9 * L
        while world.manager.alive(world.numbers["c"]):
            await world.sleep(0.1)
        world.simulation.network.mend([world.host("c")], [world.host("meta0")])
        for _ in range(2):
            await world.processes["c"].membership.heartbeat()
        assert world.states() == "a:S b:S c:S v1"
        while world.states() == "a:S b:S c:S v1":  # the world looks who serves when the change is there
            await world.sleep(0.1)
        assert world.states() == "a:S b:S c:O v2"
        world.commit_seconds = 0.0
        await world.sleep(2 * SETTLED)
        assert world.states() == "a:S b:S c:S v4"

    run(story)
