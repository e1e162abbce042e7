"""Managers and storage processes in virtual time: the real manager and the real membership, over a simulated network. What stands in for
a storage server's targets answers truthfully: it serves as its chain entry and its lease allow, and a sync takes it a moment."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import structlog

from emberfs.meta.cluster.election import Candidate, Term
from emberfs.meta.cluster.manager import Manager
from emberfs.meta.cluster.seat import Seat
from emberfs.meta.cluster.service import ClusterService
from emberfs.meta.kv.memory import MemoryEngine
from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen.cluster_pb2 import (
    LOCAL_STATE_OFFLINE,
    LOCAL_STATE_ONLINE,
    LOCAL_STATE_UPTODATE,
    NODE_KIND_STORAGE,
    Node,
    RenewClientReply,
    RenewClientRequest,
    Target,
)
from emberfs.proto.gen.common_pb2 import TARGET_STATE_SERVING, TARGET_STATE_SYNCING, Chain
from emberfs.proto.routing import Change, RoutingTable
from emberfs.proto.rpc import Method
from emberfs.storage.lease import Lease
from emberfs.storage.membership import Membership, Reported

from ...sim.environment import Simulation

SYNC_SECONDS = 0.5  # that a copy takes
LETTERS = "?SLYWO"  # serving, lastsrv, syncing, waiting, offline


class Namespace:
    """No sessions."""

    async def renewed(self, client: bytes, report: RenewClientRequest) -> RenewClientReply:
        return RenewClientReply()

    def client_ended(self, client: bytes) -> None:
        """Nobody was there."""

    async def session_clients(self) -> list[bytes]:
        return []

    async def counts(self) -> tuple[int, int]:
        return 0, 0


class Disk:
    """A target's stand-in: what outlives its process."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.chunks = 0
        self.used = 0
        self.damaged = False
        self.failed = False


class Process:
    """One start of a storage server."""

    def __init__(self, world: World, name: str, disks: list[Disk], spare: bool) -> None:
        self.world, self.name, self.disks = world, name, disks
        self.host = world.host(name)
        self.env = world.simulation.environment(self.host)
        self.incarnation = self.host.incarnation
        self.lease = Lease()
        self.routing = RoutingTable()
        self.ended: StatusError | None = None
        self.chains: dict[int, Chain | None] = {}  # incarnation -> the entry under which it works
        self.synced: dict[int, int] = {}  # incarnation -> chain version under which it was copied to
        self.unreached: set[str] = set()  # processes that give it no answer
        self.membership = Membership(
            self.env,
            world.addresses,
            self.routing,
            self._changed,
            structlog.get_logger(),
            lease=self.lease,
            taken=self._taken,
        )
        self.membership.spare = spare
        self.membership.targets = lambda: [self._reported(disk) for disk in self.disks]

    @property
    def alive(self) -> bool:
        return self.incarnation == self.host.incarnation and self.ended is None

    async def start(self) -> None:
        node = self.membership.node
        node.CopyFrom(Node(id=self.world.numbers.get(self.name, 0), kind=NODE_KIND_STORAGE, name=self.name))
        node.process = self.world.simulation.random.getrandbits(63) | 1
        await self.membership.register()
        self.world.numbers[self.name] = node.id
        self.env.spawn(self.membership.heartbeats, "heartbeats")

    def _taken(self, why: StatusError) -> None:
        self.ended = why

    def _changed(self, change: Change) -> None:
        numbers = {target.incarnation: target.id for target in self.routing.targets.values()}
        by_target = {m.target: chain for chain in self.routing.chains.values() for m in chain.members}
        for disk in self.disks:
            before = self.chains.get(disk.incarnation)
            now = self.chains[disk.incarnation] = by_target.get(numbers.get(disk.incarnation, 0))
            if now is not None and now != before and self.state_in(disk) == TARGET_STATE_SYNCING:
                self.env.spawn(lambda disk=disk, v=now.version: self._be_copied_to(disk, v), "sync")  # type: ignore[misc]

    async def _be_copied_to(self, disk: Disk, version: int) -> None:
        await self.env.sleep(self.world.sync_seconds)
        chain = self.chains.get(disk.incarnation)
        if chain is not None and chain.version == version:
            self.synced[disk.incarnation] = version
            await self.membership.heartbeat()

    def target_of(self, disk: Disk) -> int:
        return next((t.id for t in self.routing.targets.values() if t.incarnation == disk.incarnation), 0)

    def state_in(self, disk: Disk) -> int:
        chain = self.chains.get(disk.incarnation)
        target = self.target_of(disk)
        return next((m.state for m in chain.members if m.target == target), 0) if chain is not None else 0

    def _reported(self, disk: Disk) -> Reported:
        chain = self.chains.get(disk.incarnation)
        state, record = self.state_in(disk), self.routing.targets.get(self.target_of(disk))
        word = LOCAL_STATE_ONLINE
        synced = chain is not None and self.synced.get(disk.incarnation) == chain.version
        if state == TARGET_STATE_SERVING or (state == TARGET_STATE_SYNCING and synced):
            word = LOCAL_STATE_UPTODATE
        if disk.failed or (record is not None and record.disabled):
            word = LOCAL_STATE_OFFLINE
        entry = Target(id=self.target_of(disk), incarnation=disk.incarnation, state=word, path=f"/{disk.incarnation}")
        entry.capacity, entry.used, entry.chunks, entry.damaged = 1000, disk.used, disk.chunks, disk.damaged
        others = [self.world.processes[name] for name in sorted(self.unreached)]
        members = {m.target for m in chain.members} if chain is not None and state == TARGET_STATE_SERVING else set()
        found = [number for other in others for d in other.disks if (number := other.target_of(d)) in members]
        return Reported(entry, chain, found)

    def serves(self, disk: Disk) -> Chain | None:
        """The entry under which a read would be answered at this moment."""
        chain = self.chains.get(disk.incarnation)
        entry = self._reported(disk).entry
        if not self.alive or chain is None or self.state_in(disk) != TARGET_STATE_SERVING:
            return None
        if entry.state == LOCAL_STATE_OFFLINE or (len(chain.members) > 1 and not self.lease.holds(self.env.now())):
            return None
        return chain


class SlowCommit:
    """A transaction whose commit takes as long as the world says."""

    def __init__(self, transaction: Any, world: World) -> None:
        self._transaction, self._world = transaction, world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    async def commit(self, **options: Any) -> Any:
        if self._world.commit_seconds:
            await self._world.sleep(self._world.commit_seconds)
        return await self._transaction.commit(**options)


class Reached:
    """The engine as one manager reaches it, or does not."""

    def __init__(self, engine: MemoryEngine, world: World, name: str) -> None:
        self._engine, self._world, self._name = engine, world, name

    def begin(self) -> Any:
        if self._name in self._world.engine_cut:
            raise error(Status.UNAVAILABLE, "the store does not answer")
        return SlowCommit(self._engine.begin(), self._world)

    async def sync(self) -> None:
        await self._engine.sync()

    async def close(self) -> None:
        """It is everybody's."""


class World:
    """Managers over one engine, and storage processes by name."""

    def __init__(self, simulation: Simulation, managers: int = 1) -> None:
        self.simulation = simulation
        self.hosts: dict[str, object] = {}
        self.numbers: dict[str, int] = {}
        self.processes: dict[str, Process] = {}
        self.versions: dict[int, str] = {}  # routing version -> the manager that made it
        self.seats: dict[str, Seat] = {}
        self.names = [f"meta{i}" for i in range(managers)]
        self.addresses = [f"local:{name}" for name in self.names]
        keeper = simulation.environment(self.host("engine"))
        self.engine = MemoryEngine(self.host("engine").now, keeper.pause)
        self._one = managers == 1
        self._alone: Manager | None = None
        self.engine_cut: set[str] = set()  # managers that do not reach the engine
        self.sync_seconds = SYNC_SECONDS
        self.commit_seconds = 0.0  # that the engine's disk takes

    def host(self, name: str):  # type: ignore[no-untyped-def]
        if name not in self.hosts:
            self.hosts[name] = self.simulation.host(name)
        return self.hosts[name]

    # Managers.

    async def start_manager(self, name: str = "meta0") -> None:
        host = self.host(name)
        env = self.simulation.environment(host)
        incarnation = host.incarnation

        async def begin(term: Term | None = None) -> Manager:
            manager = await Manager.open(
                Reached(self.engine, self, name), env, entropy=self.simulation.random.randbytes, term=term
            )
            manager.listeners.append(
                lambda before: self._changed(manager, name if term is None else f"{name} {term.number}")
            )
            await manager.start(Namespace())
            return manager

        if self._one:
            office = self._alone = await begin()
        else:
            number = self.simulation.random.getrandbits(63) | 1
            candidate = Candidate(Reached(self.engine, self, name), env, number, [f"local:{name}"])
            office = self.seats[name] = Seat(candidate, env, begin)  # type: ignore[assignment]
            env.spawn(self.seats[name].run, "elections")
        assert host.incarnation == incarnation
        self.simulation.network.serve(host, [ClusterService(office, Namespace().counts, name, 1)])

    def _changed(self, manager: Manager, name: str) -> None:
        """After every change: no version twice, and whoever has no place any more serves nothing."""
        version = manager.book.state.version
        if manager.leads:  # one that does not may have read what another one made
            maker = self.versions.setdefault(version, name)
            assert maker == name, f"version {version} was made by {maker} and {name}"
        for process in self.processes.values():
            for disk in process.disks:
                chain = process.serves(disk)
                now = manager.book.chains.get(chain.id) if chain is not None else None
                if chain is None or now is None:
                    continue
                target = process.target_of(disk)
                place = next((m.state for m in now.members if m.target == target), 0)
                assert place in (TARGET_STATE_SERVING, TARGET_STATE_SYNCING), (
                    f"target {target} serves under version {chain.version}, and has no place in {now}"
                )

    def leads(self, name: str) -> bool:
        """Whether this manager would act now."""
        try:
            return not self.host(name).frozen and self.seats[name].leading.leads
        except StatusError:
            return False

    def wish(self, name: str, draining: bool) -> None:
        """A change that this manager is asked for; what becomes of it does not matter."""

        async def ask() -> None:
            with suppress(StatusError):
                await self.seats[name].leading.set_node(1, draining=draining)

        self.host(name).spawn(ask(), "wish", loud=True)

    @property
    def leading(self) -> list[Manager]:
        if self._alone is not None:
            return [self._alone]
        return [seat.leading for name, seat in self.seats.items() if self.leads(name)]

    @property
    def manager(self) -> Manager:
        [manager] = self.leading
        return manager

    async def crash(self, name: str) -> None:
        self.host(name).crash()
        if name == "meta0" and self._one:
            self._alone = None
        self.seats.pop(name, None)

    # Storage.

    async def start_storage(self, name: str, disks: list[Disk] | None = None, *, spare: bool = True) -> Process:
        disks = disks if disks is not None else [Disk(self.simulation.random.getrandbits(62) | 1)]
        process = self.processes[name] = Process(self, name, disks, spare)
        await process.start()
        return process

    async def sleep(self, seconds: float) -> None:
        await self.simulation.loop.sleep(seconds)

    async def call(self, method: Method, request: object, seconds: float = 10.0):  # type: ignore[no-untyped-def]
        """As an operator's command does: whoever leads is asked."""
        env = self.simulation.environment(self.host("operator"))
        for address in list(self.addresses):
            try:
                return await env.call(Call(address, method, request, seconds))  # type: ignore[arg-type]
            except StatusError as refused:
                if refused.status is not Status.NOT_PRIMARY or address == self.addresses[-1]:
                    raise

    def states(self, chain: int = 1) -> str:
        """Which node is what, in the order of the chain: "a:S b:S c:O", and the version."""
        names = {number: name for name, number in self.numbers.items()}
        entry = self.manager.book.chains[chain]
        return " ".join(f"{names[m.node]}:{LETTERS[m.state]}" for m in entry.members) + f" v{entry.version}"

    def serving(self) -> list[str]:
        return sorted(name for name, process in self.processes.items() if any(process.serves(d) for d in process.disks))
