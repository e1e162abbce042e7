"""A replicated chain in virtual time: the real client core, manager and namespace, and storage nodes that hold the same chunks and fail as
a test says. A node that is frozen or crashed renews no lease, so the manager moves the chain as it would."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from emberfs.client.core.client import Core
from emberfs.client.core.file import Handle
from emberfs.client.core.options import Options, parse_mode
from emberfs.meta.chunks import StorageChunks
from emberfs.meta.cluster.manager import Manager
from emberfs.meta.cluster.service import ClusterService
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace.namespace import Namespace
from emberfs.meta.namespace.seams import Space
from emberfs.meta.namespace.service import MetaService
from emberfs.proto.errors import Status
from emberfs.proto.gen import storage_pb2 as pb
from emberfs.proto.gen.cluster_pb2 import (
    LOCAL_STATE_ONLINE,
    LOCAL_STATE_UPTODATE,
    NODE_KIND_META,
    NODE_KIND_STORAGE,
    ChainMembers,
    HeartbeatRequest,
    Node,
    Target,
)
from emberfs.proto.gen.common_pb2 import TARGET_STATE_SERVING, Chain
from emberfs.proto.routing import RoutingTable, route_of
from emberfs.proto.rpc import Context

from ..sim.environment import Simulation
from ..sim.loop import Host
from .storage import MemoryStorage

MEMBERS = 3
HEARTBEAT_SECONDS = 1.0
SETTLED_SECONDS = 7.0  # a manager that has just begun demotes nobody
COMMIT_SECONDS = 0.005  # between two looks of a head at its successors


class Member(MemoryStorage):
    """One storage process of several that hold the same chunks. Its chain entry is always the newest one."""

    def __init__(self, world: ChainWorld, host: Host) -> None:
        super().__init__()
        self.world = world
        self.host = host
        self.incarnation = host.incarnation
        self.node = 0
        self.target = 0
        self.reads = 0  # requests answered
        self.delay = 0.0  # seconds before each answer to a read
        self.missing: set[tuple[int, int]] = set()  # chunks that this one has lost
        self.uncommitted: set[tuple[int, int]] = set()  # chunks with a pending version here

    def share(self, other: Member) -> None:
        self.chains, self.chunks, self.seen, self.floors = other.chains, other.chunks, other.seen, other.floors
        self.applied = other.applied

    @property
    def alive(self) -> bool:
        return self.host.incarnation == self.incarnation and not self.host.frozen

    def _check(self, request: Any, i: int) -> Status:
        status = super()._check(request, i)
        if status is Status.OK and all(r.node != self.node for r in route_of(self.chains[request.chain[i]]).serving):
            return Status.TARGET_OFFLINE
        return status

    async def read(self, request: pb.ReadRequest, context: Context) -> pb.ReadReply:
        await self.world.sleep(self.delay)
        tail = {chain.id: route_of(chain).serving[-1].node for chain in self.chains.values()}
        lost = {key: self.chunks.pop(key) for key in self.missing if key in self.chunks}
        try:
            reply = await super().read(request, context)
        finally:
            self.chunks.update(lost)
        for i, key in enumerate(zip(request.inode, request.index, strict=True)):
            if key in self.uncommitted and tail[request.chain[i]] != self.node:
                reply.status[i] = Status.NOT_COMMITTED
        self.reads += 1
        return reply

    async def write(self, request: pb.WriteRequest, context: Context) -> pb.WriteReply:
        """Acknowledged when every member has it; a head whose successor is silent waits until the chain changes."""
        reply = await super().write(request, context)
        while not self.world.all_alive(request.chain):
            await self.world.sleep(COMMIT_SECONDS)
        return reply

    async def sync(self, request: pb.SyncRequest, context: Context) -> pb.SyncReply:
        await self._enter("sync")
        while not self.world.all_alive(request.chain):
            await self.world.sleep(COMMIT_SECONDS)
        reply = pb.SyncReply(status=[self._check(request, i) for i in range(len(request.chain))])
        reply.chains.extend(self._newer(reply.status))
        return reply


class ChainWorld:
    def __init__(self, simulation: Simulation, members: int = MEMBERS) -> None:
        self.simulation = simulation
        self.sleep = simulation.loop.sleep
        self.meta = simulation.host("meta")
        self.members = [Member(self, simulation.host(f"storage-{i}")) for i in range(members)]
        for member in self.members[1:]:
            member.share(self.members[0])
        self.manager: Manager

    @property
    def now(self) -> float:
        return self.simulation.loop.time

    def all_alive(self, chains: Any) -> bool:
        by_node = {member.node: member for member in self.members}
        routes = [route_of(self.members[0].chains[chain]) for chain in chains]
        return all(by_node[replica.node].alive for route in routes for replica in route.serving)

    def member(self, place: int) -> Member:
        """By its place in the chain: 0 is the head, -1 the tail."""
        [chain] = self.members[0].chains.values()
        node = route_of(chain).serving[place].node
        return next(member for member in self.members if member.node == node)

    async def start(self) -> ChainWorld:
        simulation, env = self.simulation, self.simulation.environment(self.meta)
        engine = MemoryEngine(self.meta.now)
        self.manager = await Manager.open(engine, env, entropy=simulation.random.randbytes)
        table = RoutingTable()
        chains: dict[int, Chain] = self.members[0].chains

        def changed(_: int) -> None:
            news = self.manager.routing(table.version, server=True)
            if news is not None:
                table.apply(news)
            chains.update(table.chains)

        self.manager.listeners.append(changed)
        namespace = Namespace(
            engine,
            StorageChunks(env, table, lambda: Space(1 << 40, 1 << 39)),
            self.manager,
            self.manager,
            env,
            random_u64=lambda: simulation.random.getrandbits(64) | 1,
        )
        await namespace.start()
        await self.manager.start(namespace)
        namespace.run_workers()
        cluster = ClusterService(self.manager, namespace.counts, "meta", env.wall_ns())
        simulation.network.serve(self.meta, [cluster, MetaService(namespace)])
        meta = Node(kind=NODE_KIND_META, addresses=["local:meta"], host="one", name="meta", process=1)
        await self.manager.register(meta, [])
        for member in self.members:
            await self._serve(member)
        await self.manager.create_chains([ChainMembers(targets=[member.target for member in self.members])])
        await self.sleep(SETTLED_SECONDS)
        return self

    async def _serve(self, member: Member) -> None:
        simulation, number = self.simulation, self.simulation.random.getrandbits
        address = simulation.network.serve(member.host, [member])
        target = Target(incarnation=number(63), capacity=1 << 40, state=LOCAL_STATE_ONLINE)
        process = Node(kind=NODE_KIND_STORAGE, addresses=[address], host="one", name=address, process=number(63))
        process.rack = f"rack-{self.members.index(member)}"
        member.node = await self.manager.register(process, [target], spare=True)
        [member.target] = self.manager.book.targets_of(member.node)
        request = HeartbeatRequest(node=member.node, process=process.process)

        async def heartbeats() -> None:
            while True:
                chain = self.manager.book.chain_of(member.target)
                serving = chain is not None and any(r.node == member.node for r in route_of(chain).serving)
                request.ClearField("targets")
                state = LOCAL_STATE_UPTODATE if serving else LOCAL_STATE_ONLINE
                request.targets.add(id=member.target, incarnation=target.incarnation, capacity=1 << 40, state=state)
                request.chain[:] = [chain.id if chain else 0]
                request.chain_version[:] = [chain.version if chain else 0]
                await self.manager.heartbeat(request)
                await self.sleep(HEARTBEAT_SECONDS)

        member.host.spawn(heartbeats(), "heartbeats", loud=True)
        await self.sleep(0.01)

    async def client(self, **options: Any) -> Core:
        env = self.simulation.environment(self.simulation.host("client"))
        core = Core(env, ["local:meta"], Options(**{"memory": 16 << 20, **options}), 0o022)
        await core.connect()
        return core

    async def timed(self, work: Coroutine[Any, Any, Any]) -> tuple[Any, float]:
        """What it returns, and how many seconds it took."""
        began = self.now
        return await work, self.now - began

    def states(self) -> list[bool]:
        """Which members serve."""
        [chain] = self.members[0].chains.values()
        return [member.state == TARGET_STATE_SERVING for member in chain.members]


def run(story: Callable[[ChainWorld], Coroutine[Any, Any, None]], members: int = MEMBERS, seed: int = 1) -> None:
    """Tell a story over a new world."""
    simulation = Simulation(seed)

    async def told() -> None:
        await story(await ChainWorld(simulation, members).start())

    simulation.run(told())


async def opened(core: Core, path: str, mode: str = "rb", **options: Any) -> Handle:
    return await core.open(path, parse_mode(mode), **options)
