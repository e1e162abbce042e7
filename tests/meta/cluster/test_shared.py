"""Metadata servers over one engine, in virtual time: one leads, the others follow its records and know what they need for names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest

from emberfs.meta.cluster.election import ELECTION_SECONDS
from emberfs.meta.cluster.manager import Manager
from emberfs.meta.cluster.routing import Book
from emberfs.meta.cluster.service import ClusterService
from emberfs.meta.cluster.shared import SPACE_SECONDS, Shared
from emberfs.meta.cluster.store import LOG_MAX, Store
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import (
    LOCAL_STATE_ONLINE,
    NODE_KIND_META,
    NODE_KIND_STORAGE,
    GetRoutingRequest,
    Node,
    RenewClientReply,
    RenewClientRequest,
    Routing,
    Target,
)
from emberfs.proto.routing import RoutingTable
from emberfs.proto.rpc import CLUSTER
from emberfs.proto.settings import CLIENT_LEASE_SECONDS

from ...sim.environment import Simulation
from .nodes_world import Reached, World

NAMES = ("meta0", "meta1", "meta2")


def facts(book: Book, since: int = 0) -> Routing:
    """What a book tells, with what changed in one version in one order."""
    routing = book.routing(since)
    assert routing is not None
    for part in (routing.nodes, routing.targets, routing.chains, routing.tables):
        part.sort(key=lambda entry: entry.SerializeToString(deterministic=True))
    return routing


class Names:
    """A namespace that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def take_charge(self) -> None:
        self.told.append("in charge")

    async def renewed(self, client: bytes, report: RenewClientRequest) -> RenewClientReply:
        return RenewClientReply()

    def client_ended(self, client: bytes) -> None:
        self.told.append(f"{client.hex()} ended")

    async def session_clients(self) -> Sequence[bytes]:
        return []

    async def counts(self) -> tuple[int, int]:
        return 0, 0


class Servers:
    """Each with a routing table that hears what its server tells."""

    def __init__(self, simulation: Simulation) -> None:
        self.world = World(simulation, managers=3)  # its engine and hosts
        self.simulation = simulation
        self.shared: dict[str, Shared] = {}
        self.names: dict[str, Names] = {}
        self.tables: dict[str, RoutingTable] = {}

    async def start(self, name: str) -> None:
        host = self.world.host(name)
        env = self.simulation.environment(host)
        engine = Reached(self.world.engine, self.world, name)
        made = await Shared.open(engine, env, entropy=self.simulation.random.randbytes)
        names, table = Names(), RoutingTable()

        def changed(before: int) -> None:
            delta = made.routing(table.version, server=True)
            if delta is not None:
                table.apply(delta)

        made.listeners.append(changed)
        changed(0)
        self.shared[name], self.names[name], self.tables[name] = made, names, table
        self.simulation.network.serve(host, [ClusterService(made, names.counts, name, 1)])
        number = self.simulation.random.getrandbits(63) | 1
        made.start(number, [f"local:{name}"], names)
        await made.register(Node(kind=NODE_KIND_META, name=name, process=number), [])

    def crash(self, name: str) -> None:
        self.world.host(name).crash()
        del self.shared[name]

    async def leader(self) -> str:
        while not (found := [name for name, shared in self.shared.items() if shared.in_charge]):
            await self.simulation.loop.sleep(0.05)
        [name] = found
        return name

    async def agree(self) -> None:
        """A moment later all know the same."""
        await self.simulation.loop.sleep(0.5)
        books = [shared.book for shared in self.shared.values()]
        assert all(facts(book) == facts(books[0]) for book in books)
        for name, shared in self.shared.items():
            table = self.tables[name]
            assert table.version == shared.book.state.version and set(table.nodes) == set(shared.book.nodes)
            assert table.capability_key == shared.book.state.capability_key


def run(story: Callable[[Servers], Awaitable[None]], seed: int = 1) -> None:
    simulation = Simulation(seed)

    async def whole() -> None:
        servers = Servers(simulation)
        for name in NAMES:
            await servers.start(name)
        await story(servers)

    simulation.run(whole())


def storage(name: str, number: int) -> tuple[Node, list[Target]]:
    target = Target(incarnation=number, state=LOCAL_STATE_ONLINE, path="/t", capacity=1000, used=100)
    return Node(kind=NODE_KIND_STORAGE, name=name, process=number), [target]


def test_all_know_what_the_leader_does() -> None:
    async def story(servers: Servers) -> None:
        first = await servers.leader()
        leading = servers.shared[first].leading
        await leading.register(*storage("s1", 11))
        await leading.register(*storage("s2", 12))
        await leading.remove_node(await leading.register(Node(kind=NODE_KIND_META, name="gone", process=5), []))
        await servers.agree()
        await servers.simulation.loop.sleep(2 * SPACE_SECONDS)
        for name, shared in servers.shared.items():
            assert shared.table() == leading.table() and shared.table()[2] == 2
            capability = shared.issue(b"c" * 16, 77, 1)
            assert all(other.verify(b"c" * 16, capability).inode == 77 for other in servers.shared.values())
            assert shared.space() == leading.space() and shared.space().capacity == 2000
            assert shared.free_part_min() == pytest.approx(0.9)
            answer = await servers.world.simulation.environment(servers.world.host("client")).call(
                Call(f"local:{name}", CLUSTER.GetRouting, GetRoutingRequest(), 1.0)
            )
            assert len(answer.nodes) == 5 and not answer.capability_key
            if name != first:
                with pytest.raises(StatusError) as refused:
                    _ = shared.leading
                assert (refused.value.status, refused.value.detail) == (Status.NOT_PRIMARY, [f"local:{first}"])

    run(story)


@pytest.mark.parametrize("how", ["crash", "freeze", "cut"])
def test_the_next_one_goes_on(how: str) -> None:
    async def story(servers: Servers) -> None:
        first = await servers.leader()
        await servers.shared[first].leading.register(*storage("s1", 11))
        before = servers.shared[first].book.state.version
        if how == "crash":
            servers.crash(first)
        elif how == "freeze":
            servers.world.host(first).freeze()
            frozen = servers.shared.pop(first)
        else:
            servers.world.engine_cut.add(first)
        await servers.simulation.loop.sleep(2 * ELECTION_SECONDS)
        second = await servers.leader()
        assert second != first and servers.names[second].told == ["in charge"]
        await servers.shared[second].leading.register(*storage("s2", 12))
        if how == "freeze":
            servers.world.host(first).thaw()
            servers.shared[first] = frozen
        servers.world.engine_cut.clear()
        await servers.agree()
        assert servers.shared[second].book.state.version > before
        assert not any(shared.in_charge for name, shared in servers.shared.items() if name != second)

    run(story)


def test_servers_keep_their_own_leases_whoever_leads() -> None:
    """They cut files in storage: a server that follows must not count as a client that is gone, nor one that has led before."""

    async def story(servers: Servers) -> None:
        for _ in range(3):
            await servers.simulation.loop.sleep(2.5 * CLIENT_LEASE_SECONDS)
            name = await servers.leader()
            assert not servers.shared[name].book.ended
            await servers.shared[name].stop()  # another one's turn
            await servers.simulation.loop.sleep(1.0)
        servers.crash(next(name for name in list(servers.shared) if not servers.shared[name].in_charge))
        await servers.simulation.loop.sleep(2.5 * CLIENT_LEASE_SECONDS)
        name = await servers.leader()
        assert len(servers.shared[name].book.ended) == 1  # the one that crashed

    run(story)


def test_the_log_of_changes() -> None:
    """A follower reads what changed; one that was away for too long reads everything."""

    async def story(simulation: Simulation) -> None:
        host = simulation.host("m")
        env = simulation.environment(host)
        engine = MemoryEngine(host.now)
        manager = await Manager.open(engine, env, entropy=simulation.random.randbytes)
        store = Store(engine)
        loaded = await store.load()
        assert loaded is not None
        copy, old = Book(*loaded), Book(*loaded)
        for number in range(1, 6):
            await manager.register(*storage(f"s{number}", number))
        await manager.remove_node(await manager.register(Node(kind=NODE_KIND_META, name="gone", process=5), []))
        news = await store.news(copy.state.version)
        assert news is not None
        copy.apply(news)
        assert copy.tombstones() == manager.book.tombstones()
        for since in range(copy.state.version):
            assert facts(copy, since) == facts(manager.book, since)
        nothing = await store.news(copy.state.version)
        assert nothing is not None and not nothing.rows and nothing.state.version == copy.state.version
        for turn in range(LOG_MAX):
            await manager.set_node(1, draining=turn % 2 == 0)
        assert await store.news(old.state.version) is None
        news = await store.news(copy.state.version)
        assert news is not None and len(news.rows) == 1
        copy.apply(news)
        assert facts(copy) == facts(manager.book)

    simulation = Simulation(1)
    simulation.run(story(simulation))
