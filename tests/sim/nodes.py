"""Storage servers and managers of a simulated cluster: the real code, over simulated disks and the simulated environment.

What is written here is what `storage/server.py`, `storage/hosting.py` and `meta/server.py` do around that code, for a process that
starts anew after every crash: open the targets, register, serve, and run the background workers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from emberfs.meta.cluster.manager import Manager
from emberfs.meta.cluster.routing import Book
from emberfs.meta.cluster.service import ClusterService
from emberfs.meta.cluster.shared import Shared
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import NODE_KIND_STORAGE, RenewClientReply, RenewClientRequest
from emberfs.proto.gen.storage_pb2 import ReadReply, ReadRequest
from emberfs.proto.routing import Change, RoutingTable
from emberfs.proto.rpc import Context
from emberfs.storage.engine.engine import ChunkEngine, Opened
from emberfs.storage.lease import Lease
from emberfs.storage.membership import Membership, Reported
from emberfs.storage.peers import Peers
from emberfs.storage.repair import Repairer
from emberfs.storage.resyncer import Resyncer, Share
from emberfs.storage.scrub import Scrubber
from emberfs.storage.service import StorageService
from emberfs.storage.target import Target

from .disks import Platters
from .environment import SimulatedEnvironment, Simulation
from .knobs import Knobs
from .loop import Host

CACHE_BYTES = 1 << 20
POOL_BYTES = 1 << 20
SCRUB_RATE = 64 << 20  # bytes a second


class Log:
    """What a process logs goes into the trace, so that a failing run tells its story. An exception that nobody thought of ends the run."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def _note(self, event: str, **details: Any) -> None:
        bug = details.get("exc_info")
        if isinstance(bug, Exception):
            self._host.loop.broken = self._host.loop.broken or bug
        said = " ".join(f"{name}={value}" for name, value in details.items())
        self._host.loop.trace(f"{self._host.name} says: {event} {said}")

    debug = info = warning = error = exception = _note

    def bind(self, **_: Any) -> Log:
        return self


class WatchedService(StorageService):
    """Tells who has answered a client's read, in the moment in which the answer leaves."""

    answered: Callable[[Target], None]

    async def read(self, request: ReadRequest, context: Context) -> ReadReply:
        reply = await super().read(request, context)
        if not request.version:
            for chain, version, status in zip(request.chain, request.chain_version, reply.status, strict=True):
                target = self._target(chain)
                if status not in (Status.OK, Status.CHUNK_NOT_FOUND) or target is None or target.replica.chain is None:
                    continue
                # What it has heard since it looked for the last time is no fault: the read was still in its place then.
                if target.replica.chain.version == version:
                    self.answered(target)
        return reply


class StorageNode:
    """A machine with disks, on which one storage process runs or does not."""

    def __init__(self, simulation: Simulation, name: str, managers: Sequence[str], targets: int, knobs: Knobs) -> None:
        self.simulation = simulation
        self.host = simulation.host(name)
        chance = simulation.random
        self.platters = [Platters(chance, self._died, knobs.capacity, cold=knobs.cold) for _ in range(targets)]
        self.disk_seconds = knobs.disk_seconds  # of one blocking job, at most
        self._overtaken = False  # work beside another one was the last to end
        self.stall = knobs.stall  # share of them that take longer
        self.stall_seconds = knobs.stall_seconds
        self.answered: Callable[[Target], None] = lambda _: None  # told of each answer to a client's read
        self.fell_back: Callable[[Platters], None] = lambda _: (
            None
        )  # told of a target that lost what it had not synced, with its power on
        self.when_died: Callable[[], None] = lambda: None  # called once, when the process ended at an effect of a disk
        self.targets: list[Target] = []  # of the process that runs
        self.scrubbers: list[Scrubber] = []
        self.service: StorageService | None = None
        self.membership: Membership | None = None
        self.routing = RoutingTable()
        self.running = False
        self.number = 0  # the node's, once the manager has given it one; a file in the data directory remembers it
        self._boot = 0
        self._managers = list(managers)

    # The machine.

    def _died(self) -> None:
        """The process ended in the middle of an effect."""
        if self.running:
            self._stop(silent=False)
            tell, self.when_died = self.when_died, lambda: None
            tell()

    def _stop(self, *, silent: bool) -> None:
        self.running = False
        self.targets, self.scrubbers = [], []
        self.service = self.membership = None
        self.host.crash(silent=silent)

    def kill(self) -> None:
        """kill -9: what was written to files is there."""
        self._stop(silent=False)

    def power_loss(self) -> None:
        """What was not synced is there in part, or not."""
        self._stop(silent=True)
        self._boot += 1
        for platters in self.platters:
            platters.power_loss()

    def calm(self, disk_seconds: float) -> None:
        """Its disks do what they should."""
        self.disk_seconds = disk_seconds
        for platters in self.platters:
            platters.faults.disarm()
            platters.disk.read_errors = 0.0

    def start(self) -> None:
        """Begin a new process. It is there once `running` and every target has its number."""
        assert not self.running
        self.running = True
        for platters in self.platters:
            platters.kill()
        self.host.spawn(self._serve(), f"{self.host.name} serves", loud=True)

    # The process.

    async def _serve(self) -> None:
        simulation, host = self.simulation, self.host
        env = simulation.environment(host, POOL_BYTES)
        log = Log(host)
        lease, routing = Lease(), RoutingTable()
        try:
            targets = [await self._open(env, platters, log, lease) for platters in self.platters]
        except OSError as failed:
            log.error("a target cannot be opened", error=failed)
            self.kill()
            return
        service = WatchedService(routing, targets, env, log, lease)
        service.answered = self.answered
        self.targets, self.service, self.routing = targets, service, routing

        def changed(change: Change) -> None:
            service.routing_changed(change)

        def taken(why: StatusError) -> None:
            raise AssertionError(f"a dead process took the place of the one after it: {why}")

        membership = Membership(env, self._managers, routing, changed, log, lease=lease, taken=taken)
        membership.spare = True
        node = membership.node
        node.id, node.kind, node.name, node.host = self.number, NODE_KIND_STORAGE, host.name, host.name
        node.process = simulation.random.getrandbits(63) | 1
        node.addresses.append(simulation.network.serve(host, [service]))
        membership.targets = lambda: [Reported(t.entry(), t.replica.chain, t.unreached()) for t in targets]
        await membership.register()
        self.number = node.id
        self.membership = membership
        env.spawn(membership.heartbeats, "heartbeats")
        peers = Peers(env, routing, host.name)
        share = Share(env, self._load)
        for target in targets:
            target.state_watchers.append(lambda: env.spawn(self.hear, "news"))
            repairer = Repairer(target, peers, env, log)
            Resyncer(target, peers, env, log, share).routing_changed()
            self.scrubbers.append(Scrubber(target, SCRUB_RATE, None, repairer))
            env.spawn(target.keep_retrying, "retries")
            env.spawn(target.checkpoints.keep, "checkpoints")

    def _load(self) -> tuple[int, int]:
        counters = [target.counters for target in self.targets]
        moved = sum(counter.bytes_read + counter.bytes_written for counter in counters)
        return moved, sum(counter.reads + counter.writes for counter in counters)

    async def scrub(self) -> None:
        """One walk over each target."""
        for scrubber in self.scrubbers:
            await scrubber.walk()

    async def _open(self, env: SimulatedEnvironment, platters: Platters, log: Log, lease: Lease) -> Target:
        boot = f"{self.host.name} boot {self._boot}"
        await self._blocking(env)(lambda: None)
        disk, index = platters.disk, platters.index
        engine = ChunkEngine(disk, index, capacity=platters.capacity, boot=boot, cache_bytes=CACHE_BYTES)
        found = engine.found
        log.info("target opened", how=found.opened.value, chunks=found.chunks, pending=len(found.pending))
        if found.opened is Opened.POWER_LOSS and not platters.dark:
            self.fell_back(platters)
        platters.dark = False
        target = Target(engine, self.host.name, platters.incarnation, self._blocking(env), env, log, lease)
        target.beside = self._beside
        return target

    def _blocking(self, env: SimulatedEnvironment) -> Callable[..., Awaitable[Any]]:
        async def blocking(function: Callable[..., Any], *arguments: Any) -> Any:
            stalls = self.stall and env.random() < self.stall
            seconds = env.random() * (self.stall_seconds if stalls else self.disk_seconds)
            if env.random() < 0.5:  # the disk was slow, or the thread to say that it is done
                await env.sleep(seconds)
                return function(*arguments)
            result = function(*arguments)
            await env.sleep(seconds)
            return result

        return blocking

    def _beside(self, work: Callable[..., None], *arguments: Any) -> Callable[[], None]:
        """In turns, as if one thread were the faster one and then the other."""
        self._overtaken = not self._overtaken
        if self._overtaken:
            return lambda: work(*arguments)
        work(*arguments)
        return lambda: None

    async def hear(self) -> None:
        """The manager speaks of a change: fetch it."""
        if self.membership is not None:
            with suppress(StatusError):
                await self.membership.heartbeat()


class NoSessions:
    """The namespace's part towards the manager, where there are no files."""

    async def renewed(self, client: bytes, report: RenewClientRequest) -> RenewClientReply:
        return RenewClientReply()

    def client_ended(self, client: bytes) -> None:
        """There are no sessions to settle."""

    async def session_clients(self) -> Sequence[bytes]:
        return []

    async def take_charge(self) -> None:
        """There is no background work."""


class ManagerNode:
    """A machine on which one of the managers runs. The KV engine outlives it. Several of them elect one that leads; the others
    follow its records, and answer from them who asks for routing."""

    def __init__(self, simulation: Simulation, name: str, engine: MemoryEngine, *, elected: bool) -> None:
        self.simulation = simulation
        self.host = simulation.host(name)
        self.engine = engine
        self.elected = elected
        self.office: Manager | Shared | None = None
        self.running = False
        self.address = f"local:{name}"
        self.told: Callable[[ManagerNode], None] = lambda _: (
            None
        )  # called after each change of the routing that it knows

    @property
    def book(self) -> Book | None:
        """The records as it has them."""
        return self.office.book if self.office is not None else None

    def kill(self) -> None:
        self.office, self.running = None, False
        self.host.crash()

    def start(self) -> None:
        assert not self.running
        self.running = True
        self.host.spawn(self._serve(), f"{self.host.name} serves", loud=True)

    async def _serve(self) -> None:
        simulation, entropy = self.simulation, self.simulation.random.randbytes
        env = simulation.environment(self.host, POOL_BYTES)

        async def counts() -> tuple[int, int]:
            return 0, 0

        if self.elected:
            shared = self.office = await Shared.open(self.engine, env, entropy=entropy)
            shared.listeners.append(lambda _: self.told(self))
            shared.start(simulation.random.getrandbits(63) | 1, [self.address], NoSessions())
        else:
            manager = self.office = await Manager.open(self.engine, env, entropy=entropy)
            manager.listeners.append(lambda _: self.told(self))
            await manager.start(NoSessions())
        simulation.network.serve(self.host, [ClusterService(self.office, counts, self.host.name, 0)])
