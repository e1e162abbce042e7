"""A simulated cluster of storage nodes and managers, with everything that is watched while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from emberfs.meta.cluster.chain import LASTSRV, SERVING
from emberfs.meta.cluster.routing import Book
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import ChainMembers, ChangeChainRequest, CreateChainsRequest, SetTargetRequest
from emberfs.proto.gen.common_pb2 import Chain
from emberfs.proto.rpc import CLUSTER
from emberfs.storage.target import Target

from .clients import Seen
from .disks import Platters
from .environment import Simulation
from .history import Event, Histories, What
from .knobs import Knobs, Trouble
from .loop import Host
from .network import Weather
from .nodes import ManagerNode, StorageNode
from .watch import ChainWatch, VersionWatch

START_SECONDS = 60.0  # until all nodes have registered and serve
LIVENESS_SECONDS = (
    600.0  # after everything was healed: a link that failed again and again is tried after 400, a sync may last 120
)
ASK_SECONDS = 40.0  # of one request of an administrator: some wait until a member has stopped
ASK_TRIES = 20
REVIVAL_SECONDS = 40.0  # that a chain has to find somebody who serves by itself
LOOK_SECONDS = 0.5  # between two looks of the watchers


class ChainCluster:
    """Nodes s1, s2, … and managers m1, m2, …; `start` makes the chains."""

    def __init__(self, simulation: Simulation, knobs: Knobs) -> None:
        self.simulation = simulation
        self.knobs = knobs
        self.histories = Histories()
        self.seen = Seen()
        self.chunks_of: dict[int, list[str]] = {}  # chain -> names of the chunks on it
        self.watch = ChainWatch(self._lost)
        self.versions = VersionWatch()
        keeper = simulation.environment(simulation.host("kv"))
        engine = MemoryEngine(keeper.now, keeper.pause)
        names = [f"m{i + 1}" for i in range(knobs.managers)]
        self.managers = [ManagerNode(simulation, name, engine, elected=len(names) > 1) for name in names]
        addresses = [manager.address for manager in self.managers]
        self.nodes = [
            StorageNode(simulation, f"s{i + 1}", addresses, self._targets_of(i), knobs) for i in range(knobs.nodes)
        ]
        for i, host in enumerate(self.hosts):
            host.clock_rate, host.clock_offset = knobs.clock_rates[i], knobs.clock_offsets[i]
        for manager in self.managers:
            manager.told = self._told
        for node in self.nodes:
            node.answered, node.fell_back = self._answered, self._fell_back
        self.chains: list[int] = []
        self._complete: dict[int, set[int]] = {}  # chain -> who served beside a disk that was replaced

    def _targets_of(self, node: int) -> int:
        knobs = self.knobs
        members = [(chain + i) % knobs.nodes for chain in range(knobs.chains) for i in range(knobs.replicas)]
        return max(1, members.count(node))

    @property
    def hosts(self) -> list[Host]:
        """Of nodes, then of managers."""
        return [node.host for node in self.nodes] + [manager.host for manager in self.managers]

    @property
    def addresses(self) -> list[str]:
        return [manager.address for manager in self.managers]

    # Life.

    async def start(self) -> ChainCluster:
        for manager in self.managers:
            manager.start()
        for node in self.nodes:
            node.start()
        await self._until(lambda: all(node.membership is not None for node in self.nodes), START_SECONDS, "nodes")
        await self._create_chains()
        await self._until(self._ready, START_SECONDS, "chains")
        self.simulation.host("watchers").spawn(self._look(), "watchers", loud=True)
        return self

    async def _create_chains(self) -> None:
        """Chain c has its replicas on the nodes c, c + 1, …; each takes the node's next target."""
        knobs, taken = self.knobs, [0] * self.knobs.nodes
        request = CreateChainsRequest()
        for chain in range(knobs.chains):
            members = []
            for i in range(knobs.replicas):
                place = (chain + i) % knobs.nodes
                members.append(self.nodes[place].targets[taken[place]].id)
                taken[place] += 1
            request.chains.append(ChainMembers(targets=members))
        reply = await self.ask(CLUSTER.CreateChains, request)
        self.chains = list(reply.chains)
        self.chunks_of = {chain: [] for chain in self.chains}

    def _ready(self) -> bool:
        for node in self.nodes:
            for chain in self.chains:
                if chain not in node.routing.chains:
                    return False
        return True

    async def ask(self, method: Any, request: Any) -> Any:
        """An administrator's request, at whichever manager leads. Raises the last refusal."""
        env = self.simulation.environment(self.simulation.host("administrator"))
        failure: StatusError | None = None
        for _ in range(ASK_TRIES):
            for address in self.addresses:
                try:
                    return await env.call(Call(address, method, request, ASK_SECONDS))
                except StatusError as refused:
                    if not refused.retryable and refused.status is not Status.DEADLINE:
                        raise
                    failure = refused
            await env.sleep(0.5)
        assert failure is not None
        raise failure

    async def disable(self, target: int, disabled: bool) -> None:
        """Raises the last refusal."""
        await self.ask(CLUSTER.SetTarget, SetTargetRequest(target=target, disabled=disabled))

    async def _until(self, reached: Any, seconds: float, what: str) -> None:
        loop = self.simulation.loop
        until = loop.time + seconds
        while not reached():
            assert loop.time < until, f"not after {seconds} s: {what}\n{self.describe()}"
            await loop.sleep(0.1)

    async def heal(self) -> None:
        """The liveness phase: no more trouble, and what stands still is started again. All chains must become whole."""
        self.simulation.network.heal()
        self.simulation.network.weather = Weather()
        for manager in self.managers:
            manager.host.thaw()
            if not manager.running:
                manager.start()
        for node in self.nodes:
            node.host.thaw()
            node.calm(self.knobs.disk_seconds)
            node.stall = 0.0
        await self._enable()
        for chain in self.chains:
            await self._revive(chain)
        await self._mend_chains()
        await self.until_whole(LIVENESS_SECONDS)

    async def _enable(self) -> None:
        """What an administrator has disabled."""
        weather = self.knobs.weather
        if Trouble.DISABLE in self.knobs.troubles:  # such a request may come a second time
            await self.simulation.loop.sleep(weather.slow_seconds + weather.echo_seconds)
        await self._until(lambda: self.book() is not None, START_SECONDS, "a manager is there")
        for target in sorted(self.book().disabled):
            await self.disable(target, False)

    async def until_whole(self, seconds: float) -> None:
        await self._until(self._whole, seconds, "all members SERVING")

    async def _revive(self, chain: int) -> None:
        """Wait until a chain is served. Where all that could revive it have lost their disks, an administrator says who shall: one that
        served beside them, and so has every acknowledged write."""
        loop = self.simulation.loop
        patience = loop.time + REVIVAL_SECONDS
        while not self._is_served(chain) and loop.time < patience:
            await loop.sleep(0.5)
        if not self._is_served(chain):
            here = {one.incarnation for node in self.nodes for one in node.platters}
            members = self.chain(chain).members
            assert not any(m.state == LASTSRV and m.incarnation in here for m in members), self.describe()
            chosen = next(m.target for m in members if m.target in self._complete.get(chain, ()))
            loop.trace(f"target {chosen} shall revive chain {chain}")
            with suppress(StatusError):  # somebody has begun to serve it just now
                await self.ask(CLUSTER.ChangeChain, ChangeChainRequest(chain=chain, revive=chosen))
        await self._until(lambda: self._is_served(chain), LIVENESS_SECONDS, f"chain {chain} is served")

    def _is_served(self, chain: int) -> bool:
        """Whether a member serves and knows it, under the newest version."""
        self.tend()
        if self.book() is None:
            return False
        version = self.chain(chain).version
        serving = [target.replica for _, target in self.members(chain) if target.replica.serving]
        return any(replica.chain is not None and replica.chain.version == version for replica in serving)

    async def _mend_chains(self) -> None:
        """An administrator's work: where a member's disk was replaced, the new one takes its place."""
        here = {one.incarnation: node for node in self.nodes for one in node.platters}
        for number in self.chains:
            gone = [member for member in self.chain(number).members if member.incarnation not in here]
            for member in gone:
                node = next(node for node in self.nodes if node.number == member.node)
                await self._until(lambda node=node: node.membership is not None, START_SECONDS, "the node is there")
                taken = {m.target for chain in self.book().chains.values() for m in chain.members}
                spare = next(target.id for target in node.targets if target.id not in taken)
                await self.ask(CLUSTER.ChangeChain, ChangeChainRequest(chain=number, remove=member.target))
                await self.ask(CLUSTER.ChangeChain, ChangeChainRequest(chain=number, add=spare))

    def tend(self) -> None:
        """An operator's work; what was under way when the trouble ended may still fail."""
        for node in self.nodes:
            if node.running and any(target.engine.failed or target.read_only for target in node.targets):
                node.kill()
            if not node.running:
                node.start()

    def _whole(self) -> bool:
        self.tend()
        book = self.book()
        if book is None or not all(node.membership is not None for node in self.nodes):
            return False
        entries = [book.chains[chain] for chain in self.chains]
        if any(member.state != SERVING for chain in entries for member in chain.members):
            return False
        return all(self._knows(node, chain) for node in self.nodes for chain in entries)

    @staticmethod
    def _knows(node: StorageNode, chain: Chain) -> bool:
        return node.routing.chains[chain.id].version == chain.version

    # Who is who.

    def node_named(self, name: str) -> StorageNode:
        return next(node for node in self.nodes if node.host.name == name)

    def manager_named(self, name: str) -> ManagerNode:
        return next(manager for manager in self.managers if manager.host.name == name)

    def target_of(self, node: str) -> Target:
        """The first target of a node."""
        return self.node_named(node).targets[0]

    def book(self) -> Any:
        """The newest records that a manager has, as far as one runs."""
        books: list[Book] = [manager.book for manager in self.managers if manager.book is not None]
        return max(books, key=lambda book: book.state.version, default=None)

    def chain(self, chain: int) -> Chain:
        entry = self.book().chains[chain]
        assert isinstance(entry, Chain)
        return entry

    def members(self, chain: int) -> Iterator[tuple[StorageNode, Target]]:
        """Where the targets of a chain are, those whose process runs."""
        wanted = {member.target for member in self.chain(chain).members}
        for node in self.nodes:
            for target in node.targets:
                if target.id in wanted:
                    yield node, target

    def serves(self, node: StorageNode) -> bool:
        """Whether every chain with a SERVING member on this node has another SERVING member whose node runs undisturbed, and no chain waits
        for this node to be served again."""
        book = self.book()
        if book is None:
            return False
        healthy = {n.number for n in self.nodes if n is not node and n.running and not n.host.frozen}
        for chain in self.chains:
            members = book.chains[chain].members
            serving = [member.node for member in members if member.state == SERVING]
            if node.number in serving and not healthy & set(serving):
                return False
            if not serving and any(m.node == node.number and m.state == LASTSRV for m in members):
                return False
        return True

    def _serves(self, target: Target) -> bool:
        """Whether it is SERVING as it has heard, and by the newest entry of its chain."""
        entry, book = target.replica.chain, self.book()
        if entry is None or book is None or not target.replica.serving:
            return False
        newest = book.chains[entry.id]
        return any(member.target == target.id and member.state == SERVING for member in newest.members)

    def describe(self) -> str:
        lines = [f"{node.host.name}: {'runs' if node.running else 'is down'}" for node in self.nodes]
        book = self.book()
        lines += [str(book.chains[chain]) for chain in self.chains] if book is not None else ["no manager"]
        return "\n".join(lines)

    # Watching.

    def _told(self, at: ManagerNode) -> None:
        """A manager has heard of a change of the routing: the watchers see it; nodes are told as their subscriptions would tell them."""
        if at.book is not None:
            self.watch.changed(at.book.chains.values())
            for chain in at.book.chains.values():
                for member in chain.members:
                    if member.state != SERVING:  # perhaps between two looks only
                        self.versions.forget(member.incarnation)
        network, loop = self.simulation.network, self.simulation.loop
        for node in self.nodes:
            if network.is_cut(at.host, node.host) or network.happens(network.weather.loss):
                continue
            loop.call_at(loop.time + network.delay(), partial(self._hint, node))

    @staticmethod
    def _hint(node: StorageNode) -> None:
        if node.running:
            node.host.spawn(node.hear(), f"{node.host.name} hears", loud=True)

    def _answered(self, target: Target) -> None:
        """A target has answered a client's read."""
        entry = target.replica.chain
        books = self.book()
        known = [books.chains[entry.id]] if books is not None and entry is not None and entry.id in books.chains else []
        self.watch.answered(target.id, entry, known)

    def _lost(self, chain: int) -> None:
        self.simulation.loop.trace(f"chain {chain} is served by who has lost what was not synced")
        self.seen.ignored.update(self.chunks_of[chain])
        for name in self.chunks_of[chain]:
            self.histories.of(name).events.append(Event(What.BLACKOUT, self.simulation.loop.time))

    def replace_disks(self, node: StorageNode) -> None:
        """Somebody puts empty disks into a node, while others serve what was on them."""
        for chain in self.chains:
            serving = {m.target for m in self.chain(chain).members if m.state == SERVING and m.node != node.number}
            self._complete[chain] = serving or self._complete.get(chain, set())
        for platters in node.platters:
            self.versions.forget(platters.incarnation)
        if node.running:
            node.kill()
        for platters in node.platters:
            platters.replace()

    def power_loss(self, node: StorageNode) -> None:
        for platters in node.platters:
            self._fell_back(platters)
        node.power_loss()

    def _fell_back(self, platters: Platters) -> None:
        self.watch.fell_back(platters)
        self.versions.forget(platters.incarnation)

    async def _look(self) -> None:
        while True:
            await self.simulation.loop.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        for node in self.nodes:
            self.watch.see(node.routing.chains.values(), node.host.name)
            for target in node.targets:
                self.versions.look(target.incarnation, target.engine, self._serves(target))
