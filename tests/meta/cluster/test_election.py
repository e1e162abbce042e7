"""Several managers over one engine, in virtual time: one leads, its loss is not noticed by storage, two never both write.

The world asserts after every change that no routing version was made by two managers (nodes_world.py)."""

from __future__ import annotations

from typing import Any

import pytest

from emberfs.meta.cluster.election import DRIFT_PART, ELECTION_SECONDS, Candidate, Term
from emberfs.meta.cluster.manager import NODE_LEASE_SECONDS, Manager
from emberfs.meta.kv import retry
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import GetRoutingRequest, SetNodeRequest
from emberfs.proto.hello import failure_error, failure_frame
from emberfs.proto.rpc import CLUSTER

from ...sim.environment import Simulation
from .nodes_world import World
from .test_nodes import chain_of, run

E, L = ELECTION_SECONDS, NODE_LEASE_SECONDS
MANAGERS = ("meta0", "meta1", "meta2")


async def elected(world: World) -> str:
    """The name of the manager that leads, once one does."""
    while not (leading := [name for name in world.seats if world.leads(name)]):
        await world.sleep(0.05)
    [name] = leading
    return name


async def started(world: World) -> None:
    for name in MANAGERS:
        await world.start_manager(name)
    await elected(world)
    await chain_of(world, "a", "b")
    assert world.states() == "a:S b:S v1" and world.serving() == ["a", "b"]


def test_one_leads_and_the_others_name_it() -> None:
    async def story(world: World) -> None:
        await started(world)
        name = await elected(world)
        for other in set(MANAGERS) - {name}:
            with pytest.raises(StatusError) as refused:
                _ = world.seats[other].leading
            assert refused.value.status is Status.NOT_PRIMARY
            assert refused.value.detail == [f"local:{name}"]
            wire = failure_error(failure_frame(0, 1, refused.value)[32:], "peer")
            assert (wire.status, wire.detail) == (Status.NOT_PRIMARY, [f"local:{name}"])
            assert name in str(wire)

    run(story, managers=3)


@pytest.mark.parametrize("how", ["crash", "freeze", "cut"])
def test_storage_does_not_notice_a_change_of_hands(how: str) -> None:
    async def story(world: World) -> None:
        await started(world)
        for _ in range(3):
            name = await elected(world)
            host = world.host(name)
            if how == "crash":
                await world.crash(name)
            elif how == "freeze":
                host.freeze()
            else:
                world.engine_cut.add(name)
            for _ in range(int(2 * L / 0.1)):
                await world.sleep(0.1)
                assert world.serving() == ["a", "b"]
            successor = await elected(world)
            assert successor != name
            if how == "crash":
                await world.start_manager(name)
            elif how == "freeze":
                host.thaw()
            world.engine_cut.clear()
            await world.sleep(L)
            assert await elected(world) == successor
        assert world.states() == "a:S b:S v1"

    run(story, managers=3)


def test_a_node_that_dies_with_the_primary_is_found_out() -> None:
    async def story(world: World) -> None:
        await started(world)
        await world.crash(await elected(world))
        world.host("b").crash(silent=True)
        await world.sleep(E + L + 3.0)
        await elected(world)
        assert world.states() == "a:S b:O v2"

    run(story, managers=3)


@pytest.mark.parametrize("seed", range(15))
def test_a_primary_that_is_stopped_in_the_middle_of_a_change_does_no_harm(seed: int) -> None:
    async def story(world: World) -> None:
        await started(world)
        chance = world.simulation.random
        for _ in range(6):
            name = await elected(world)
            for i in range(20):  # changes, one of which it is stopped in
                world.wish(name, i % 2 == 0)
            await world.sleep(chance.uniform(0, 0.02))
            host = world.host(name)
            host.freeze()
            await world.sleep(chance.uniform(0.5, 3 * E))
            host.thaw()
            await world.sleep(chance.uniform(0, E))
        await world.sleep(2 * L)
        name = await elected(world)
        await world.manager.set_node(1, draining=True)
        fresh = await Manager.open(world.engine, world.simulation.environment(world.host(name)))
        assert fresh.book.routing() == world.manager.book.routing()  # what is in memory is what is durable
        assert world.states() == "a:S b:S v1"

    run(story, seed, managers=3)


@pytest.mark.parametrize("seed", range(15))
def test_never_two_at_once_whatever_the_clocks_do(seed: int) -> None:
    """Candidates alone, with clocks of different speed, stopped again and again: never do two lead, and the terms rise."""

    async def story(simulation: Simulation) -> None:
        chance = simulation.random
        engine_host = simulation.host("engine")
        engine = MemoryEngine(engine_host.now, simulation.environment(engine_host).pause)
        leading: dict[str, Term] = {}
        terms: list[int] = []
        hosts = [simulation.host(f"m{i}") for i in range(4)]

        def held() -> list[str]:
            return [name for name, term in leading.items() if term.holds]

        async def life(host: Any, candidate: Candidate) -> None:
            while True:
                term = await candidate.campaign()
                leading[host.name] = term
                assert held() == [host.name]
                terms.append(term.number)
                await candidate.keep()

        for i, host in enumerate(hosts):
            host.clock_rate = chance.uniform(1 - DRIFT_PART / 2.1, 1 + DRIFT_PART / 2.1)
            host.clock_offset = chance.uniform(0, 1e6)
            env = simulation.environment(host)
            candidate = Candidate(engine, env, i + 1, [f"local:{host.name}"])
            host.spawn(life(host, candidate), f"life of {host.name}", loud=True)
        for _ in range(20):
            host = chance.choice([h for h in hosts if h.name in held()] * 5 or hosts)
            host.freeze()
            for _ in range(chance.randrange(30)):
                await simulation.loop.sleep(0.1)
                assert len(held()) <= 1
            host.thaw()
        await simulation.loop.sleep(3 * E)
        assert len(held()) == 1
        assert terms == sorted(set(terms)) and len(terms) > 3

    simulation = Simulation(seed)
    simulation.run(story(simulation))


def test_a_clean_stop_hands_over_at_once() -> None:
    async def story(world: World) -> None:
        engine, simulation = world.engine, world.simulation
        first = Candidate(engine, simulation.environment(simulation.host("x")), 1, ["local:x"])
        second = Candidate(engine, simulation.environment(simulation.host("y")), 2, ["local:y"])
        term = await first.campaign()
        began = simulation.loop.time
        await first.resign()
        assert not term.holds
        assert (await second.campaign()).number == term.number + 1
        assert simulation.loop.time - began < E / 2

        async def late(txn: Any) -> None:
            await term.guard(txn)

        with pytest.raises(StatusError) as refused:
            await retry.run(engine, late)
        assert refused.value.status is Status.NOT_PRIMARY

    run(story)


def test_whoever_asks_the_wrong_one_is_led_to_the_right_one() -> None:
    async def story(world: World) -> None:
        await started(world)
        name = await elected(world)
        other = next(n for n in MANAGERS if n != name)
        await world.start_storage("c")
        process = world.processes["c"]
        process.membership._managers[:] = [f"local:{other}"]
        await process.membership.heartbeat()
        assert process.membership.manager == f"local:{name}"
        world.addresses.remove(f"local:{name}")
        with pytest.raises(StatusError) as refused:
            await world.call(CLUSTER.GetRouting, GetRoutingRequest())
        assert refused.value.detail == [f"local:{name}"]
        world.addresses[:] = refused.value.detail
        assert (await world.call(CLUSTER.SetNode, SetNodeRequest(node=1, draining=True))).node.draining

    run(story, managers=3)
