"""Stories that the simulator tells: real cores, one thread, one seed. Each asserts what must hold."""

from __future__ import annotations

from emberfs.client.core.client import Core
from emberfs.client.core.options import Options
from emberfs.client.core.whole import read_bytes, write_bytes
from emberfs.meta.chunks import StorageChunks
from emberfs.meta.cluster.manager import Manager
from emberfs.meta.cluster.service import ClusterService
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.meta.namespace.check import check
from emberfs.meta.namespace.namespace import Namespace
from emberfs.meta.namespace.seams import Space
from emberfs.meta.namespace.service import MetaService
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import LOCAL_STATE_UPTODATE, NODE_KIND_META, NODE_KIND_STORAGE, Node, Target
from emberfs.proto.routing import RoutingTable

from ..client.storage import MemoryStorage
from .environment import Simulation
from .network import CALM, ROUGH

TARGETS = 3
OPERATION_SECONDS = 120.0  # a client's patience: longer than any fault of a story lasts
_AMBIGUOUS = {Status.DEADLINE, Status.MAYBE_COMMITTED, Status.SESSION_ENDED}
_ORDINARY = {
    Status.NOT_FOUND,
    Status.EXISTS,
    Status.NOT_DIRECTORY,
    Status.IS_DIRECTORY,
    Status.NOT_EMPTY,
    Status.INVALID,
}


class Cluster:
    """A metadata server and a storage server (in memory) on hosts of their own. The engine and the chunks outlive crashes of these."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.meta, self.disk = simulation.host("meta"), simulation.host("storage")
        self.storage = MemoryStorage()
        self._at_meta = simulation.environment(self.meta)
        self.engine = MemoryEngine(self.meta.now, self._at_meta.pause)

    async def start(self) -> Cluster:
        simulation = self.simulation
        await self.start_meta()
        simulation.network.serve(self.disk, [self.storage])
        await self._register(NODE_KIND_META, "local:meta", 0)
        await self._register(NODE_KIND_STORAGE, "local:storage", TARGETS)
        return self

    async def start_meta(self) -> None:
        """A new process of the metadata server, over what the last one has left."""
        simulation, env = self.simulation, self.simulation.environment(self.meta)
        self.manager = await Manager.open(self.engine, env, entropy=simulation.random.randbytes)
        table = RoutingTable()

        def changed(_: int) -> None:
            news = self.manager.routing(table.version, server=True)
            if news is not None:
                table.apply(news)
            self.storage.chains.update(table.chains)

        self.manager.listeners.append(changed)
        changed(0)
        self.namespace = Namespace(
            self.engine,
            StorageChunks(env, table, lambda: Space(1 << 40, 1 << 39)),
            self.manager,
            self.manager,
            env,
            random_u64=lambda: simulation.random.getrandbits(64) | 1,
        )
        await self.namespace.start()
        await self.manager.start(self.namespace)
        self.namespace.run_workers()
        cluster = ClusterService(self.manager, self.namespace.counts, "meta", env.wall_ns())
        simulation.network.serve(self.meta, [cluster, MetaService(self.namespace)])

    async def _register(self, kind: int, address: str, targets: int) -> None:
        number = self.simulation.random.getrandbits
        made = [Target(incarnation=number(63), capacity=1 << 40, state=LOCAL_STATE_UPTODATE) for _ in range(targets)]
        node = Node(kind=kind, addresses=[address], host="one", name=address, process=number(63))  # type: ignore[arg-type]
        await self.manager.register(node, made)

    async def client(self, name: str) -> Core:
        env = self.simulation.environment(self.simulation.host(name))
        core = Core(env, ["local:meta"], Options(timeout=OPERATION_SECONDS, memory=16 << 20), 0o022)
        await core.connect()
        return core

    async def restart_meta(self) -> None:
        """kill -9 or a power cut at any step of whatever it is doing, then a new process."""
        self.meta.crash(silent=self.simulation.random.random() < 0.5)
        await self.simulation.loop.sleep(self.simulation.random.uniform(0, 3))
        await self.start_meta()

    async def check(self) -> None:
        """Every invariant of the key space, once the background workers have stopped."""
        await self.namespace.close()
        await self.simulation.loop.sleep(60)
        problems = await check(self.engine)
        assert not problems, problems


async def trouble(cluster: Cluster, count: int) -> None:
    """Faults, one after the other."""
    simulation = cluster.simulation
    chance, network = simulation.random, simulation.network
    for _ in range(count):
        await simulation.loop.sleep(chance.uniform(0, 0.5))
        fault = chance.choice(["crash", "freeze meta", "freeze storage", "cut"])
        if fault == "crash":
            await cluster.restart_meta()
        elif fault == "cut":
            server = chance.choice([cluster.meta, cluster.disk])
            clients = [simulation.host(name) for name in ("ann", "bob", "eve")]
            network.partition(chance.sample(clients, 2), [server], both_ways=chance.random() < 0.5)
            await simulation.loop.sleep(chance.uniform(0, 20))
            network.heal()
        else:
            server = cluster.meta if fault == "freeze meta" else cluster.disk
            server.freeze()
            await simulation.loop.sleep(chance.uniform(0, 20))
            server.thaw()


async def namespace_under_faults(simulation: Simulation) -> None:
    """Three clients change names of their own and common ones. What was acknowledged is there, once; every invariant holds at the end."""
    cluster = await Cluster(simulation).start()
    names = ("ann", "bob", "eve")
    cores = [await cluster.client(name) for name in names]
    await cores[0].mkdir("/common")
    simulation.network.weather = ROUGH
    models = await simulation.gather(
        *(_change_names(simulation, core, name) for core, name in zip(cores, names, strict=True)), _trouble(cluster, 4)
    )
    simulation.network.weather = CALM
    simulation.network.heal()
    for core, name, model in zip(cores, names, models, strict=False):
        assert model is not None
        found = set(await core.listdir(f"/{name}"))
        simulation.loop.trace(f"{name} has {sorted(found)}")
        assert model.sure <= found <= model.sure | model.unsure, (name, sorted(found), model)
        await core.close()
    await cluster.check()


async def _trouble(cluster: Cluster, count: int) -> None:
    await trouble(cluster, count)


class Names:
    """What a directory of one client must hold, and what it may hold where an operation had no answer."""

    def __init__(self) -> None:
        self.sure: set[str] = set()
        self.unsure: set[str] = set()

    def __repr__(self) -> str:
        return f"sure {sorted(self.sure)}, unsure {sorted(self.unsure)}"


async def _change_names(simulation: Simulation, core: Core, name: str) -> Names:
    chance, model = simulation.random, Names()
    await core.mkdir(f"/{name}")
    for i in range(25):
        await _change_common(simulation, core)
        existing = sorted(model.sure)
        kind = chance.choice(["create", "create", "mkdir", "rename", "link", "unlink"])
        new, old = f"{i}", chance.choice(existing) if existing else ""
        if not old and kind in ("rename", "link", "unlink"):
            kind = "create"
        gone, made = {old} if kind in ("rename", "unlink") else set(), {new} if kind != "unlink" else set()
        try:
            if kind == "create":
                await write_bytes(core, f"/{name}/{new}", b"", exclusive=True)
            elif kind == "mkdir":
                await core.mkdir(f"/{name}/{new}")
            elif kind == "rename":
                await core.rename(f"/{name}/{old}", f"/{name}/{new}")
            elif kind == "link":
                await core.link(f"/{name}/{old}", f"/{name}/{new}")
            else:
                await core.remove_tree(f"/{name}/{old}")
        except StatusError as failure:
            simulation.loop.trace(f"{name} {kind} {old} {new}: {failure.status.name}")
            if kind == "link" and failure.status is Status.NOT_PERMITTED:  # a directory
                continue
            assert failure.status in _AMBIGUOUS, failure  # not EXISTS or NOT_FOUND: that would be its own first attempt
            model.unsure |= gone | made
            model.sure -= gone
        else:
            simulation.loop.trace(f"{name} {kind} {old} {new}: ok")
            model.sure = model.sure - gone | made
    return model


async def _change_common(simulation: Simulation, core: Core) -> None:
    """Something on names that the others change as well; it may fail in any way that one after the other could."""
    chance = simulation.random
    first, second = (f"/common/{chance.choice('abc')}" for _ in "12")
    try:
        match chance.randrange(5):
            case 0:
                await core.mkdir(first)
            case 1:
                await core.rename(first, second)
            case 2:
                await core.rename(first, second + "/" + chance.choice("xyz"))
            case 3:
                await write_bytes(core, first, b"")
            case _:
                await core.remove_tree(first)
    except StatusError as failure:
        assert failure.status in _AMBIGUOUS | _ORDINARY, failure


async def files_under_faults(simulation: Simulation) -> None:
    """Each client replaces a file of its own and reads everybody's: what a read gives is whole, and not older than what was acknowledged
    before it began."""
    cluster = await Cluster(simulation).start()
    names = ("ann", "bob", "eve")
    cores = [await cluster.client(name) for name in names]
    simulation.network.weather = ROUGH
    closed = dict.fromkeys(names, 0)  # the newest version of which its writer knows that it is there

    async def write(core: Core, name: str) -> None:
        for version in range(1, 9):
            try:
                await write_bytes(core, f"/{name}.new", content(name, version))
                await core.rename(f"/{name}.new", f"/{name}")
            except StatusError as failure:
                simulation.loop.trace(f"{name} writes {version}: {failure.status.name}")
                assert failure.status in _AMBIGUOUS, failure
            else:
                simulation.loop.trace(f"{name} has written {version}")
                closed[name] = version
            await core.env.sleep(simulation.random.uniform(0, 2))

    async def read(core: Core, reader: str) -> None:
        for _ in range(20):
            await core.env.sleep(simulation.random.uniform(0, 1))
            name = simulation.random.choice(names)
            known = closed[name]
            try:
                found = await read_bytes(core, f"/{name}")
            except StatusError as failure:
                # A file that was replaced stays for its readers, however slow they are and whatever happens to the server.
                assert failure.status in _AMBIGUOUS or not known, failure
                continue
            version = int.from_bytes(found[:2], "big")
            simulation.loop.trace(f"{reader} reads {name} {version}")
            assert found == content(name, version), f"{name}: bytes of two versions"
            assert version >= known, f"{name}: version {version} after {known}"

    work = [write(core, name) for core, name in zip(cores, names, strict=True)]
    work += [read(core, name) for core, name in zip(cores, names, strict=True)]
    await simulation.gather(*work, trouble(cluster, 3))
    simulation.network.weather = CALM
    for core in cores:
        for name in names:
            found = await read_bytes(core, f"/{name}")
            assert found == content(name, int.from_bytes(found[:2], "big"))
            assert int.from_bytes(found[:2], "big") >= closed[name]
        await core.close()
    await cluster.check()


def content(name: str, version: int) -> bytes:
    """What a version of a file holds: every version has another length, over several chunks at times."""
    return version.to_bytes(2, "big") + name.encode() * (1 + version * 700 + (version % 4 == 0) * 400_000)
