"""Leases that demote, in virtual time: the real manager and the real memberships of storage processes over a simulated network.

After every change of the routing the world asserts that whoever has lost its place serves nothing any more (nodes_world.py)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from emberfs.meta.cluster.manager import NODE_LEASE_SECONDS
from emberfs.meta.cluster.table import DEAD_SECONDS
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import (
    ChainMembers,
    ChangeChainRequest,
    CreateChainsRequest,
    RemoveNodeRequest,
    RenewClientRequest,
    SetTargetRequest,
    StatusRequest,
)
from emberfs.proto.rpc import CLUSTER

from ...sim.environment import Simulation
from .nodes_world import Disk, World

L = NODE_LEASE_SECONDS
SETTLED = 4.0  # seconds until a chain that may be whole is whole again


def run(story: Callable[[World], Coroutine[Any, Any, None]], seed: int = 1, managers: int = 1) -> None:
    simulation = Simulation(seed)
    simulation.run(story(World(simulation, managers)))


async def chain_of(world: World, *names: str) -> None:
    """Storage processes of these names, and one chain over them in this order."""
    for name in names:
        if name not in world.processes:
            await world.start_storage(name)
    targets = [world.processes[name].target_of(world.processes[name].disks[0]) for name in names]
    await world.call(CLUSTER.CreateChains, CreateChainsRequest(chains=[ChainMembers(targets=targets)]))
    await world.sleep(SETTLED)


async def three(world: World) -> None:
    await world.start_manager()
    await chain_of(world, "a", "b", "c")
    assert world.states() == "a:S b:S c:S v1"
    assert world.serving() == ["a", "b", "c"]


def cut(world: World, *names: str) -> None:
    world.simulation.network.partition([world.host(n) for n in names], [world.host("meta0")])


def test_a_silent_node_loses_its_place_when_its_lease_is_over_and_not_before() -> None:
    async def story(world: World) -> None:
        await three(world)
        cut(world, "b")
        await world.sleep(L * 0.7)
        assert world.states() == "a:S b:S c:S v1"
        await world.sleep(L * 0.3 + L / 10 + 0.1)  # "detection ≤ 5 s by default", and a look every half second
        assert world.states() == "a:S c:S b:O v2"
        assert "b" not in world.serving()
        await world.sleep(3.0)  # the others hear of it with a heartbeat, as this network has no subscriptions
        assert world.serving() == ["a", "c"]
        world.simulation.network.heal()
        await world.sleep(SETTLED)
        assert world.states() == "a:S c:S b:S v4"  # by way of SYNCING
        assert world.serving() == ["a", "b", "c"]

    run(story)


def test_all_are_silent_and_one_returns() -> None:
    async def story(world: World) -> None:
        await three(world)
        cut(world, "a", "b", "c")
        await world.sleep(3 * L)
        # They fell silent together, so none kept the chain for itself alone: each of them holds every acknowledged write.
        assert world.states() == "a:L b:L c:L v2"
        assert world.serving() == []
        world.simulation.network.heal()
        cut(world, "a", "c")
        await world.sleep(SETTLED)
        assert world.states() == "b:S a:O c:O v3"
        world.simulation.network.heal()
        await world.sleep(2 * SETTLED)
        assert sorted(world.states().split()[:3]) == ["a:S", "b:S", "c:S"]

    run(story)


@pytest.mark.parametrize("away", [0.5, 2.0, L - 1.6, L + 2.0, 10 * L])
def test_a_restart_of_the_manager_costs_no_place(away: float) -> None:
    """ "A manager's restart or fail-over, shorter than the lease, is not noticed by healthy chains"; a longer one pauses them."""

    async def story(world: World) -> None:
        await three(world)
        await world.crash("meta0")
        await world.sleep(away)
        assert world.serving() == (["a", "b", "c"] if away < L - 1.5 else [])
        await world.start_manager()
        await world.sleep(3 * L)
        assert world.states() == "a:S b:S c:S v1"
        assert world.serving() == ["a", "b", "c"]

    run(story)


def test_a_node_dies_while_the_manager_restarts() -> None:
    async def story(world: World) -> None:
        await three(world)
        await world.crash("meta0")
        world.host("a").crash(silent=True)
        await world.sleep(2.0)
        await world.start_manager()
        await world.sleep(L + 0.9)
        assert world.states() == "a:S b:S c:S v1"  # "demotes nobody until L + 1 s after it took over"
        await world.sleep(1.0)
        assert world.states() == "b:S c:S a:O v2"

    run(story)


def test_a_manager_that_was_stopped_blames_nobody() -> None:
    async def story(world: World) -> None:
        await three(world)
        for seconds in (4.0, 30.0):
            world.host("meta0").freeze()
            await world.sleep(seconds)
            world.host("meta0").thaw()
            await world.sleep(2 * L)
            assert world.states() == "a:S b:S c:S v1"
        world.host("meta0").freeze()
        world.host("c").crash()
        await world.sleep(30.0)
        world.host("meta0").thaw()
        await world.sleep(2 * L)
        assert world.states() == "a:S b:S c:O v2"

    run(story)


def test_a_process_that_was_stopped_serves_nothing_when_it_goes_on() -> None:
    async def story(world: World) -> None:
        await three(world)
        process, lease = world.processes["a"], world.processes["a"].lease
        world.host("a").freeze()
        await world.sleep(30.0)
        assert not lease.holds(process.env.now())
        world.host("a").thaw()
        await world.sleep(SETTLED)
        assert world.states() == "b:S c:S a:S v4"

    run(story)


def test_a_new_process_is_copied_to_before_it_serves_again() -> None:
    async def story(world: World) -> None:
        await three(world)
        disks = world.processes["a"].disks
        world.host("a").crash()
        await world.start_storage("a", disks)
        assert world.states() == "b:S c:S a:O v2"
        await world.sleep(SETTLED)
        assert world.states() == "b:S c:S a:S v4"
        assert await world.call(CLUSTER.Status, StatusRequest())

    run(story)


def test_all_processes_restart_at_once_and_the_last_one_keeps_the_chain() -> None:
    async def story(world: World) -> None:
        await three(world)
        disks = {name: process.disks for name, process in world.processes.items()}
        for name in disks:
            world.host(name).crash(silent=True)
        for name, kept in disks.items():
            await world.start_storage(name, kept)
        assert world.states().startswith("c:S ")
        await world.sleep(2 * SETTLED)
        assert sorted(world.states().split()[:3]) == ["a:S", "b:S", "c:S"]

    run(story)


def test_a_process_whose_place_was_taken_ends() -> None:
    async def story(world: World) -> None:
        await three(world)
        old = world.processes["a"]
        world.hosts["a"] = world.simulation.host("a2")  # a copy of its data directory, on another machine
        await world.start_storage("a", old.disks)
        await world.sleep(2.0)
        assert old.ended is not None and old.ended.status is Status.FENCED
        assert not old.lease.holds(old.env.now())
        with pytest.raises(StatusError) as refused:  # what it sent before arrives late
            await world.manager.register(old.membership.node, [])
        assert refused.value.status is Status.FENCED
        assert world.processes["a"].alive

    run(story)


def test_what_a_process_had_sent_when_it_was_killed_takes_no_place() -> None:
    """It was killed while it started, and its registration lay in a socket until the one after it had registered."""

    async def story(world: World) -> None:
        await world.start_manager()
        await chain_of(world, "a")
        [disk] = world.processes["a"].disks
        world.host("a").crash()
        world.simulation.network.hold("RegisterNode", "a", "meta0")
        world.host("a").spawn(world.start_storage("a", [disk]), "a start that is killed", loud=True)
        await world.sleep(0.1)
        world.host("a").crash()
        await world.start_storage("a", [disk])
        world.simulation.network.release()
        await world.sleep(SETTLED)
        assert world.processes["a"].ended is None and world.serving() == ["a"]

    run(story)


def test_a_registration_that_comes_once_more_says_nothing() -> None:
    async def story(world: World) -> None:
        await world.start_manager()
        world.simulation.network.echo("RegisterNode", "a", "meta0")
        await chain_of(world, "a")
        process = world.processes["a"]
        process.disks.append(Disk(world.simulation.random.getrandbits(62) | 1))
        await process.membership.register()
        other = process.target_of(process.disks[1])
        await world.call(CLUSTER.CreateChains, CreateChainsRequest(chains=[ChainMembers(targets=[other])]))
        await world.sleep(1.0)
        world.host("a").freeze()
        await world.call(CLUSTER.SetTarget, SetTargetRequest(target=process.target_of(process.disks[0]), disabled=True))
        world.simulation.network.release()
        await world.sleep(1.0)
        # Neither is the disk gone that was not there yet, nor has the server said that it has stopped.
        assert (world.states(1), world.states(2)) == ("a:S v1", "a:S v1")
        world.host("a").thaw()
        await world.sleep(1.0)
        assert (world.states(1), world.states(2)) == ("a:L v2", "a:S v1")

    run(story)


def test_a_registration_that_a_heartbeat_has_overtaken_goes_again() -> None:
    async def story(world: World) -> None:
        await world.start_manager()
        await chain_of(world, "a")
        process = world.processes["a"]
        process.disks.append(Disk(world.simulation.random.getrandbits(62) | 1))
        world.simulation.network.hold("RegisterNode", "a", "meta0")
        registering = world.host("a").spawn(process.membership.register(), "registration", loud=True)
        await world.sleep(L / 2)
        assert not registering.done
        world.simulation.network.release()
        await registering
        assert process.target_of(process.disks[1])

    run(story)


def test_a_damaged_index_revives_nothing_until_an_administrator_says_so() -> None:
    async def story(world: World) -> None:
        await world.start_manager()
        await chain_of(world, "a", "b")
        [disk] = world.processes["a"].disks
        world.host("b").crash()
        await world.sleep(2 * L)
        world.host("a").crash()
        disk.damaged = True
        await world.start_storage("a", [disk])
        await world.sleep(SETTLED)
        assert world.states() == "a:L b:O v3"
        status = await world.call(CLUSTER.Status, StatusRequest())
        assert [t.damaged for t in status.routing.targets] == [True, False]
        request = ChangeChainRequest(chain=1, version=3, revive=1)
        await world.call(CLUSTER.ChangeChain, request)
        await world.sleep(L)
        assert world.states() == "a:S b:O v4"
        with pytest.raises(StatusError) as refused:
            await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, revive=2))
        assert refused.value.status is Status.BUSY_RESOURCE

    run(story)


def test_a_disabled_target_stops_first_and_comes_back() -> None:
    async def story(world: World) -> None:
        await three(world)
        await world.call(CLUSTER.SetTarget, SetTargetRequest(target=1, disabled=True))
        assert world.states() == "a:S b:S c:S v1"  # it may not have heard of it
        await world.sleep(SETTLED)
        assert world.states() == "b:S c:S a:O v2"
        disks = world.processes["a"].disks
        world.host("a").crash()
        await world.start_storage("a", disks)  # a new process does not know it yet
        await world.sleep(SETTLED)
        assert world.states() == "b:S c:S a:O v2"
        await world.call(CLUSTER.SetTarget, SetTargetRequest(target=1, disabled=False))
        await world.sleep(SETTLED)
        assert world.states() == "b:S c:S a:S v4"
        with pytest.raises(StatusError):
            await world.call(CLUSTER.SetTarget, SetTargetRequest(target=77, disabled=True))

    run(story)


def test_a_failed_disk_goes_at_once() -> None:
    async def story(world: World) -> None:
        await three(world)
        world.processes["c"].disks[0].failed = True
        await world.sleep(L / 4 + 0.2)
        assert world.states() == "a:S b:S c:O v2"

    run(story)


def test_members_move_while_the_chain_serves() -> None:
    async def story(world: World) -> None:
        await three(world)
        await world.start_storage("d")
        reply = await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, version=1, add=4))
        assert [m.target for m in reply.chain.members] == [1, 2, 3, 4]
        await world.sleep(SETTLED)
        assert world.states() == "a:S b:S c:S d:S v4"
        again = await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, version=1, add=4))
        assert again.chain.version == 4  # it is a member already
        with pytest.raises(StatusError) as stale:
            await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, version=3, remove=1))
        assert stale.value.status is Status.STALE_CHAIN_VERSION
        reply = await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, version=4, remove=1))
        assert [m.target for m in reply.chain.members] == [2, 3, 4] and reply.chain.version == 6
        await world.sleep(SETTLED)
        assert world.serving() == ["b", "c", "d"]
        await world.call(CLUSTER.RemoveNode, RemoveNodeRequest(node=world.numbers["a"]))
        status = await world.call(CLUSTER.Status, StatusRequest())
        assert sorted(t.id for t in status.routing.targets) == [2, 3, 4]
        with pytest.raises(StatusError) as held:
            await world.call(CLUSTER.RemoveNode, RemoveNodeRequest(node=world.numbers["b"]))
        assert held.value.status is Status.BUSY_RESOURCE

    run(story)


def test_who_is_to_go_does_not_serve_again_first_however_fast_it_is_synced() -> None:
    async def story(world: World) -> None:
        await three(world)
        world.sync_seconds = 0.01  # faster than the manager looks whether it has stopped

        def hear(_before: int) -> None:  # a subscription brings the news at once
            for process in world.processes.values():
                process.env.spawn(process.membership.heartbeat, "news")

        world.manager.listeners.append(hear)
        reply = await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, version=1, remove=1))
        assert world.states() == "b:S c:S v3" and reply.chain.version == 3
        await world.sleep(SETTLED)
        assert world.serving() == ["b", "c"]

    run(story)


def test_who_does_not_hear_that_it_is_to_go_keeps_the_others_from_acknowledging_until_its_lease_is_over() -> None:
    async def story(world: World) -> None:
        await three(world)
        cut(world, "a")
        began = world.simulation.loop.time
        with pytest.raises(StatusError) as late:
            await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, remove=1), 2.0)
        assert late.value.status is Status.DEADLINE
        assert world.states() == "b:S c:S a:Y v2"  # every write still goes through it
        await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, remove=1), 20.0)
        assert world.simulation.loop.time - began >= L - L / 4 - 0.1
        assert not world.processes["a"].serves(world.processes["a"].disks[0])
        assert world.states() in ("b:S c:S v3", "b:S c:S v4")

    run(story)


def test_one_member_after_the_other_is_removed_however_many_are_to_go() -> None:
    async def story(world: World) -> None:
        await three(world)
        cut(world, "a")
        for target in (1, 2):
            with pytest.raises(StatusError) as late:
                await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, remove=target), 1.0)
            assert late.value.status is Status.DEADLINE
            # WAITING, the first one would still answer reads while the others acknowledge writes without it.
            assert world.states() == "b:S c:S a:Y v2"
        await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, remove=2), 20.0)
        assert not world.processes["a"].serves(world.processes["a"].disks[0])
        assert world.serving() == ["c"]

    run(story)


def test_the_last_member_stays() -> None:
    async def story(world: World) -> None:
        await world.start_manager()
        await chain_of(world, "a", "b")
        world.host("b").crash()
        await world.sleep(2 * L)
        assert world.states() == "a:S b:O v2"
        with pytest.raises(StatusError) as refused:
            await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, remove=1))
        assert refused.value.status is Status.BUSY_RESOURCE
        await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, remove=2))
        assert world.states() == "a:S v3"
        await world.sleep(SETTLED)
        cut(world, "a")
        await world.sleep(3 * L)
        assert world.states() == "a:S v3" and world.serving() == ["a"]  # a chain of one needs no lease

    run(story)


def test_what_cannot_become_a_chain_is_refused() -> None:
    async def story(world: World) -> None:
        await world.start_manager()
        await world.start_storage("a", [Disk(11), Disk(12)])
        await world.start_storage("b", [Disk(21), Disk(22)])
        used = Disk(31)
        used.chunks = 5
        await world.start_storage("c", [used])
        await world.sleep(2.0)
        for wanted, status in (
            ([], Status.INVALID),
            ([[]], Status.INVALID),
            ([[1, 2]], Status.INVALID),  # one process
            ([[1, 3], [3]], Status.INVALID),
            ([[9]], Status.NOT_FOUND),
            ([[1, 5]], Status.NOT_EMPTY),
            ([range(100, 120)], Status.TOO_LARGE),
        ):
            with pytest.raises(StatusError) as refused:
                await world.manager.create_chains([ChainMembers(targets=targets) for targets in wanted])
            assert refused.value.status is status, wanted
        made = await world.call(
            CLUSTER.CreateChains, CreateChainsRequest(chains=[ChainMembers(targets=t) for t in ([1, 3], [4, 2])])
        )
        assert (list(made.chains), made.table_version) == ([1, 2], 1)
        with pytest.raises(StatusError) as taken:
            await world.manager.create_chains([ChainMembers(targets=[1])])
        assert taken.value.status is Status.BUSY_RESOURCE
        await world.call(CLUSTER.ChangeChain, ChangeChainRequest(chain=1, add=5))  # what it holds is copied over
        for chain, target, status in ((1, 2, Status.BUSY_RESOURCE), (7, 1, Status.NOT_FOUND), (2, 9, Status.NOT_FOUND)):
            with pytest.raises(StatusError) as refused:
                await world.manager.change_chain(ChangeChainRequest(chain=chain, add=target), 1.0)
            assert refused.value.status is status
        with pytest.raises(StatusError):
            await world.manager.change_chain(ChangeChainRequest(chain=1, add=1, remove=2), 1.0)
        world.host("c").crash()
        await world.sleep(2 * L)
        status_reply = await world.call(CLUSTER.Status, StatusRequest())
        assert list(status_reply.silent_nodes) == [world.numbers["c"]]

    run(story)


def test_new_files_go_around_full_targets_and_dead_chains() -> None:
    async def story(world: World) -> None:
        await world.start_manager()
        for name in "abc":
            await chain_of(world, name)

        def table() -> tuple[int, list[int]]:
            newest = world.manager.book.tables[1]
            return newest.version, list(newest.chains)

        assert table() == (3, [1, 2, 3])
        disk = world.processes["a"].disks[0]
        disk.used = 960
        await world.sleep(L + SETTLED)
        assert table() == (4, [2, 3])
        assert world.manager.book.targets[1].full
        disk.used = 930  # not enough room yet
        await world.sleep(2 * DEAD_SECONDS)
        assert table() == (4, [2, 3])
        disk.used = 890
        world.host("c").crash()
        await world.sleep(L + SETTLED)
        assert table() == (5, [2, 3, 1])
        await world.sleep(DEAD_SECONDS + 2 * L)
        assert table() == (6, [2, 1])
        versions = sorted(t.version for t in world.manager.book.routing().tables)  # type: ignore[union-attr]
        assert versions == [1, 2, 3, 4, 5, 6]  # what was laid out by an old version is still found
        for process in (world.processes["a"], world.processes["b"]):
            process.disks[0].used = 999
        await world.sleep(2 * DEAD_SECONDS)
        assert table() == (6, [2, 1])  # somewhere they must go

    run(story)


def test_the_end_of_a_client_is_known_when_every_member_has_heard_of_it() -> None:
    async def story(world: World) -> None:
        await three(world)
        manager = world.manager
        client = bytes(16)
        await manager.renew_client(client, RenewClientRequest(name="x"))
        cut(world, "c")
        await manager.end_client(client)
        version = manager.last_end()
        assert version == manager.book.state.version
        assert manager.is_known([1], version - 1) and not manager.is_known([1], version)
        await world.sleep(L / 4 + 0.2)
        assert not manager.is_known([1], version)  # one of them could still take its writes, and become the head
        await world.sleep(L)
        assert world.states() == "a:S b:S c:O v2"
        assert manager.is_known([1], version)  # that one asks before it serves again
        world.simulation.network.heal()
        await world.sleep(SETTLED)
        assert all(client in process.routing.ended_clients for process in world.processes.values())
        assert manager.last_end() == version < manager.book.state.version

    run(story)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_nobody_serves_without_a_place_and_all_is_whole_again(seed: int) -> None:
    async def story(world: World) -> None:
        chance, network = world.simulation.random, world.simulation.network
        for name in ("meta0", *"abcde"):
            world.host(name).clock_rate = chance.uniform(0.96, 1.04)
            world.host(name).clock_offset = chance.uniform(0, 1e6)
        await three(world)
        await chain_of(world, "d", "e")
        for _ in range(12):
            name = chance.choice("abcde")
            match chance.randrange(4):
                case 0:
                    disks = world.processes[name].disks
                    world.host(name).crash(silent=chance.random() < 0.5)
                    await world.sleep(chance.uniform(0, 2 * L))
                    await world.start_storage(name, disks)
                case 1:
                    host = world.host(chance.choice([name, "meta0"]))
                    host.freeze()
                    await world.sleep(chance.uniform(0, 3 * L))
                    host.thaw()
                case 2:
                    servers = [world.host(n) for n in chance.sample("abcde", 3)]
                    network.partition(servers, [world.host("meta0")], both_ways=chance.random() < 0.5)
                    await world.sleep(chance.uniform(0, 3 * L))
                    network.heal()
                case 3:
                    await world.crash("meta0")
                    await world.sleep(chance.uniform(0, 2 * L))
                    await world.start_manager()
            await world.sleep(chance.uniform(0, L))
        await world.sleep(6 * L)
        for chain in (1, 2):
            assert {m.state for m in world.manager.book.chains[chain].members} == {1}, world.states(chain)
        assert world.serving() == ["a", "b", "c", "d", "e"]

    run(story, seed)
